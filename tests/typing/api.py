"""
The public signatures, as users write against them. Never run: mypy and pyright judge it.

A change that breaks this file breaks users; the lines that must be refused carry an ignore, and an
ignore that is no longer needed is an error too.
"""

from typing import assert_type

import grpc.aio

import tidewire
from tidewire.v1 import state_pb2, state_pb2_grpc


async def connecting() -> None:
    """A client is a context manager, and its channel serves generated stubs."""
    async with tidewire.connect("tcp://localhost:7401", timeout_s=5.0) as client:
        assert_type(client, tidewire.Client)
        assert_type(client.connection_state, tidewire.ConnectionState)
    channel: grpc.aio.Channel = tidewire.channel("tcp://localhost:7401")
    reply = await state_pb2_grpc.StateServiceStub(channel).Get(state_pb2.GetRequest(key="a"))
    assert_type(reply, state_pb2.GetResponse)


async def signing() -> None:
    """What signs and what verifies are given once, for all that a client does."""
    signer = tidewire.signing.Signer.from_file("orders", "orders.key", audience="prod")
    verifier = tidewire.signing.Verifier.from_folder("keys", audience="prod")
    async with (
        tidewire.connect("tcp://localhost", signer=signer, verifier=verifier) as client,
        client.events.subscribe("a.>") as subscription,
    ):
        assert_type((await subscription.next()).signed_by, str)
        assert_type(subscription.refused, int)
        assert_type(subscription.last_refusal, tidewire.TidewireError | None)


async def events(client: tidewire.Client) -> None:
    """Messages are iterated over; what is published is acknowledged."""
    assert_type(await client.events.publish("a.b", b"1"), tidewire.PublishAck)
    async with client.events.subscribe(["a.*", "b.>"]) as subscription:
        assert_type(subscription, tidewire.Subscription)
        async for message in subscription:
            assert_type(message, tidewire.Message)


async def state_and_queries(client: tidewire.Client) -> None:
    """A key may be absent; a query has a reply."""
    assert_type(await client.state.get("a"), tidewire.Entry | None)
    assert_type(await client.state.get_many(["a", "b"]), dict[str, tidewire.Entry])
    assert_type(await client.state.put("a", "text", expected_revision=0), tidewire.Entry)
    assert_type(await client.state.delete("a"), tidewire.Deleted)
    assert_type(await client.state.transact().put("a", "1").commit(), tidewire.TransactionResult)
    assert_type(await client.queries.ask("time.now"), tidewire.Reply)


async def checkpoints(client: tidewire.Client) -> None:
    """Acquiring gives the last checkpoint with its state."""
    operator = client.checkpoints.operator("totals")
    assert_type(await operator.acquire(), tidewire.Checkpoint | None)
    assert_type(await operator.commit(b"1"), tidewire.Committed)


def errors(error: tidewire.TidewireError) -> None:
    """Every error has a code, a message and figures."""
    assert_type(error.code, int)
    assert_type(error.message, str)
    raise tidewire.errors.Unavailable("down") from error


async def refused(client: tidewire.Client) -> None:
    """Options are named, subjects are text."""
    await client.events.publish(b"a", b"1")  # type: ignore[arg-type] # pyright: ignore
    await client.state.put("a", b"1", 5)  # type: ignore[call-arg] # pyright: ignore
