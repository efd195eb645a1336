"""
A retried request happens once: the answer to the first try is lost, after the server has done it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
import pytest

import tidewire
from support.server import Running, running
from tidewire.errors import ConnectionLost

LIMIT_S = 15.0


class Losing(grpc.aio.Channel):
    """A channel that loses the answer to one call of each method it is told."""

    def __init__(self, below: grpc.aio.Channel) -> None:
        self._below = below
        self.lose: set[str] = set()
        self.sent: list[str] = []

    def unary_unary(self, method: str, *given: Any, **more: Any) -> Any:
        below: Any = self._below.unary_unary(method, *given, **more)
        name = method.rpartition("/")[2]

        async def call(request: Any, **options: Any) -> Any:
            self.sent.append(name)
            answer = await below(request, **options)
            if name in self.lose:
                self.lose.discard(name)
                raise grpc.aio.AioRpcError(
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.aio.Metadata(),
                    grpc.aio.Metadata(),
                    details="the connection was lost",
                )
            return answer

        return call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    def unary_stream(self, *given: Any, **more: Any) -> Any:
        return self._below.unary_stream(*given, **more)

    def stream_unary(self, *given: Any, **more: Any) -> Any:
        return self._below.stream_unary(*given, **more)

    def stream_stream(self, *given: Any, **more: Any) -> Any:
        return self._below.stream_stream(*given, **more)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._below.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._below.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._below.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        await self._below.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


@pytest.fixture
async def losing(tmp_path: Path) -> AsyncIterator[tuple[tidewire.Client, Losing]]:
    """A client whose channel loses answers, and that channel."""
    async with running(tmp_path, ("tcp",)) as it:
        channel = Losing(tidewire.channel(it.url("tcp")))
        async with tidewire.connect(it.url("tcp"), channel=channel) as client:
            await client.events.stream("orders").create("orders.>")
            channel.sent.clear()
            yield client, channel


async def put(client: tidewire.Client) -> None:
    await client.state.put("key", b"1", expected_revision=0)
    entry = await client.state.get("key")
    assert entry is not None
    assert 1 == len([change async for change in client.state.history("key")])


async def delete(client: tidewire.Client) -> None:
    written = await client.state.put("key", b"1")
    deleted = await client.state.delete("key", expected_revision=written.revision)
    assert deleted
    assert 2 == len([change async for change in client.state.history("key")])


async def transact(client: tidewire.Client) -> None:
    transaction = client.state.transact().if_absent("key")
    result = await transaction.put("key", b"1").commit()
    assert result.succeeded
    assert 1 == len([change async for change in client.state.history("key")])


async def touch(client: tidewire.Client) -> None:
    written = await client.state.put("key", b"1", ttl_s=60.0)
    touched = await client.state.touch("key", expected_revision=written.revision)
    assert written.revision == touched.revision


async def publish(client: tidewire.Client) -> None:
    ack = await client.events.publish("orders.new", b"1", message_id="m1")
    stream = await client.events.stream("orders").info()
    assert (1, 1) == (ack.sequence, stream.state.messages)


async def publish_with_expectation(client: tidewire.Client) -> None:
    ack = await client.events.publish("orders.new", b"1", expected_last_sequence=0)
    stream = await client.events.stream("orders").info()
    assert (1, 1) == (ack.sequence, stream.state.messages)


async def commit(client: tidewire.Client) -> None:
    operator = client.checkpoints.operator("sum")
    await operator.acquire()
    outputs = [("orders.sum", b"3")]
    committed = await operator.commit(b"state", outputs=outputs, expected_revision=0)
    again = await operator.commit(b"next", expected_revision=committed.revision)
    stream = await client.events.stream("orders").info()
    assert committed.revision < again.revision
    assert 1 == stream.state.messages


async def acquire(client: tidewire.Client) -> None:
    operator = client.checkpoints.operator("sum")
    await operator.acquire()
    await operator.commit(b"state")  # the epoch of the last answer is the one that counts


async def create_stream(client: tidewire.Client) -> None:
    await client.events.stream("parcels").create("parcels.>", messages_max=10)


async def update_stream(client: tidewire.Client) -> None:
    stream = await client.events.stream("orders").update(messages_max=10)
    assert 10 == stream.config.messages_max


async def create_consumer(client: tidewire.Client) -> None:
    await client.events.stream("orders").consumer("c").create()


async def leave(client: tidewire.Client) -> None:
    async with client.members.join("m1"):
        pass


ONCE: list[tuple[str, Callable[[tidewire.Client], Awaitable[None]]]] = [
    ("Put", put),
    ("Delete", delete),
    ("Transact", transact),
    ("Touch", touch),
    ("Publish", publish),
    ("Publish", publish_with_expectation),
    ("Commit", commit),
    ("Acquire", acquire),
    ("CreateStream", create_stream),
    ("UpdateStream", update_stream),
    ("CreateConsumer", create_consumer),
    ("Leave", leave),
]


@pytest.mark.parametrize(("method", "act"), ONCE, ids=[act.__name__ for _, act in ONCE])
async def test_a_retried_request_happens_once(
    method: str, act: Callable[[tidewire.Client], Awaitable[None]], losing: Any
) -> None:
    """The second sending is known by its id, or changes nothing; the caller sees one success."""
    client, channel = losing
    channel.lose.add(method)
    await asyncio.wait_for(act(client), LIMIT_S)

    assert not channel.lose
    assert 2 <= channel.sent.count(method)


async def purge(client: tidewire.Client) -> None:
    await client.events.stream("orders").purge()


async def delete_stream(client: tidewire.Client) -> None:
    await client.events.stream("orders").delete()


async def delete_consumer(client: tidewire.Client) -> None:
    await client.events.stream("orders").consumer("c").create()
    await client.events.stream("orders").consumer("c").delete()


async def delete_checkpoints(client: tidewire.Client) -> None:
    operator = client.checkpoints.operator("sum")
    await operator.acquire()
    await operator.commit(b"state")
    await operator.delete()


NEVER: list[tuple[str, Callable[[tidewire.Client], Awaitable[None]]]] = [
    ("PurgeStream", purge),
    ("DeleteStream", delete_stream),
    ("DeleteConsumer", delete_consumer),
    ("DeleteCheckpoint", delete_checkpoints),
]


@pytest.mark.parametrize(("method", "act"), NEVER, ids=[act.__name__ for _, act in NEVER])
async def test_what_would_hit_what_came_after_is_not_retried(
    method: str, act: Callable[[tidewire.Client], Awaitable[None]], losing: Any
) -> None:
    """A delete whose answer was lost is reported: repeated, it might take what is new."""
    client, channel = losing
    channel.lose.add(method)
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(act(client), LIMIT_S)

    assert 1 == channel.sent.count(method)


async def test_a_member_that_joins_is_not_joined_twice(losing: Any) -> None:
    """The second join would find the first incarnation alive: it is reported, not repeated."""
    client, channel = losing
    channel.lose.add("Join")
    with pytest.raises(ConnectionLost):
        async with client.members.join("m1"):
            pass
    assert 1 == channel.sent.count("Join")


@pytest.fixture
async def attended(tmp_path: Path) -> AsyncIterator[Running]:
    """A server of its own for commands."""
    async with running(tmp_path, ("tcp",)) as it:
        yield it


async def test_a_command_that_is_sent_again_is_done_once(attended: Running) -> None:
    """Its stream is cut after the node has it: it is followed again by its id."""
    done: list[str] = []
    release = asyncio.Event()
    begun = asyncio.Event()

    async def reload(command: tidewire.Command) -> bytes:
        done.append(command.command_id)
        begun.set()
        await release.wait()
        return b"ok"

    url = attended.url("tcp")
    async with (
        tidewire.connect(url) as node,
        tidewire.connect(url) as client,
        node.control.attend("node", {"reload": reload}),
    ):
        sending = asyncio.ensure_future(_outcome(client))
        await asyncio.wait_for(begun.wait(), LIMIT_S)
        channel: Any = client.channel
        channel.link.protocol.abort()
        release.set()
        outcome = await asyncio.wait_for(sending, LIMIT_S)

    assert ["succeeded"] == [node.progress for node in outcome.nodes.values()]
    assert 1 == len(done)


async def _outcome(client: tidewire.Client) -> Any:
    return await client.control.send("reload", node_id="node")
