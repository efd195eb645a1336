"""Gather over a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
import pytest

from support.live_fake_engine import make_core
from support.responders import WAIT_S, responding, responding_all
from support.serving import serving
from tidewire import errors
from tidewire.v1 import common_pb2, query_pb2, query_pb2_grpc
from tidewire_server.core import Core
from tidewire_server.members import Life
from tidewire_server.services.query import QueryService

Channel = grpc.aio.Channel


@pytest.fixture
def core() -> Core:
    return make_core()


@pytest.fixture
async def channel(core: Core) -> AsyncIterator[Channel]:
    register = query_pb2_grpc.add_QueryServiceServicer_to_server
    async with serving(core, [(register, QueryService(core))]) as channel:
        yield channel


def gather(channel: Channel, *, timeout: float = WAIT_S, **until: Any) -> Any:
    request = query_pb2.GatherRequest(
        subject="a", payload=common_pb2.Payload(data=b"?"), request_id="g", **until
    )
    return query_pb2_grpc.QueryServiceStub(channel).Gather(request, timeout=timeout)


async def read_all(
    call: Any,
) -> tuple[list[str], dict[str, bytes | str], query_pb2.GatherSummary]:
    """Whom it asked, what each answered (a payload or the reason of an error), and the summary."""
    responses = [response async for response in call]
    kinds = [response.WhichOneof("kind") for response in responses]
    assert ["started", *["reply"] * (len(kinds) - 2), "summary"] == kinds
    answers: dict[str, bytes | str] = {}
    for response in responses[1:-1]:
        reply = response.reply
        good = reply.WhichOneof("outcome") == "payload"
        reason = errors.reason_name(errors.from_status(reply.error).reason)
        answers[reply.responder] = reply.payload.data if good else reason
    return list(responses[0].started.responders), answers, responses[-1].summary


async def answer(responder: Any, data: bytes) -> None:
    query = await responder.query()
    await responder.reply(query.query_id, data)


async def test_all_waits_for_everybody(channel: Channel) -> None:
    """Replies and failures both count; the request id is one for all."""
    async with AsyncExitStack() as stack:
        one, two, three = await responding_all(channel, stack, ["one", "two", "three"])
        call = gather(channel, all=True)
        await answer(one, b"1")
        query = await two.query()
        failed = errors.InvalidArgument("no").to_status()
        await two.send_reply(query_pb2.ServeReply(query_id=query.query_id, error=failed))
        await three.query()
        three.call.cancel()
        started, answers, summary = await read_all(call)

    assert ["one", "three", "two"] == sorted(started)
    assert {"one": b"1", "two": "RESPONDER_FAILED", "three": "OUTCOME_UNKNOWN"} == answers
    assert (True, 1, 2, []) == (
        summary.complete,
        summary.replies,
        summary.failures,
        list(summary.missing),
    )
    assert "g" == query.request_id


async def test_first_cancels_who_is_not_needed(channel: Channel) -> None:
    """One good reply is enough; the other is told that nobody waits, and is named as missing."""
    async with AsyncExitStack() as stack:
        one, two = await responding_all(channel, stack, ["one", "two"])
        call = gather(channel, first=1)
        query = await two.query()
        await answer(one, b"1")
        _, answers, summary = await read_all(call)
        cancel = await two.next()

    assert {"one": b"1"} == answers
    assert (True, ["two"]) == (summary.complete, list(summary.missing))
    assert query.query_id == cancel.cancel.query_id


async def test_quorum_replaces_a_failure(channel: Channel) -> None:
    """The third is asked only when one of the first two has failed."""
    async with AsyncExitStack() as stack:
        names = ["one", "two", "three"]
        responders = dict(zip(names, await responding_all(channel, stack, names), strict=True))
        call = gather(channel, quorum=2)
        responses = aiter(call)
        started = (await anext(responses)).started.responders
        asked = [responders[name] for name in started]
        await answer(asked[0], b"0")
        await asked[1].query()
        asked[1].call.cancel()
        await answer(asked[2], b"2")
        kinds = [response async for response in responses]

    assert kinds[-1].summary.complete
    assert (2, 1) == (kinds[-1].summary.replies, kinds[-1].summary.failures)


async def test_the_deadline_brings_a_summary_with_who_is_missing(channel: Channel) -> None:
    """The gather ends before the call does, and says who had not answered."""
    async with AsyncExitStack() as stack:
        one, _two = await responding_all(channel, stack, ["one", "two"])
        call = gather(channel, all=True, timeout=3.0)
        await answer(one, b"1")
        _, answers, summary = await read_all(call)

    assert {"one": b"1"} == answers
    assert (False, ["two"]) == (summary.complete, list(summary.missing))


async def test_dead_members_are_not_among_all(channel: Channel, core: Core) -> None:
    """
    Who "all" is comes from the members: the dead are not asked, and who dies counts as failed.
    """
    for name in ("n1", "n2", "n3"):
        core.members.set_life(name, Life.ALIVE, 1)
    async with (
        responding(channel, node_id="n1") as one,
        responding(channel, node_id="n2"),
        responding(channel, node_id="n3") as three,
    ):
        core.members.set_life("n2", Life.DEAD, 1)
        call = gather(channel, all=True)
        await answer(one, b"1")
        await three.query()
        core.members.set_life("n3", Life.DEAD, 1)
        started, answers, summary = await read_all(call)

    assert ["n1", "n3"] == sorted(started)
    assert {"n1": b"1", "n3": "OUTCOME_UNKNOWN"} == answers
    assert summary.complete


async def test_full_hands_are_a_failure_in_a_gather(channel: Channel) -> None:
    """Who cannot be asked now is reported at once."""
    async with responding(channel, client_id="one", in_flight_max=1) as one:
        stub = query_pb2_grpc.QueryServiceStub(channel)
        first = stub.Ask(query_pb2.AskRequest(subject="a"), timeout=WAIT_S)
        await one.query()
        _, answers, summary = await read_all(gather(channel, all=True))
        first.cancel()

    assert {"one": "RESPONDERS_BUSY"} == answers
    assert summary.complete


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ({"first": 2}, "TOO_FEW_RESPONDERS"),
        ({}, "INVALID_ARGUMENT"),
        ({"quorum": 0}, "INVALID_ARGUMENT"),
    ],
)
async def test_bad_rules_are_refused(
    channel: Channel, until: dict[str, Any], expected: str
) -> None:
    """At once, and nobody is asked."""
    async with responding(channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(gather(channel, **until))

    assert expected in str(caught.value.trailing_metadata())


async def test_gather_without_responders_is_an_error_at_once(channel: Channel) -> None:
    """As for Ask."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all(gather(channel, all=True))

    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()


async def test_responders_without_a_name_are_told_apart(channel: Channel) -> None:
    """Each gets one of its own."""
    async with responding(channel) as one, responding(channel) as two:
        call = gather(channel, all=True)
        await answer(one, b"1")
        await answer(two, b"2")
        started, answers, _ = await read_all(call)

    assert 2 == len(set(started))
    assert {b"1", b"2"} == {answers[name] for name in started}


async def test_a_long_deadline_is_not_cut(channel: Channel) -> None:
    """The call's deadline is the gather's; thirty seconds are only the default."""
    async with responding(channel) as one:
        call = gather(channel, first=1, timeout=300)
        query = await one.query()
        await one.reply(query.query_id, b"")
        await read_all(call)

    assert query.remaining.seconds > 200


async def test_cancelling_a_gather_reaches_everybody(channel: Channel) -> None:
    """All that were asked are told."""
    async with AsyncExitStack() as stack:
        responders = await responding_all(channel, stack, ["one", "two"])
        call = gather(channel, all=True)
        for responder in responders:
            await responder.query()
        call.cancel()
        async with asyncio.timeout(WAIT_S):
            kinds = [(await responder.next()).WhichOneof("kind") for responder in responders]

    assert ["cancel", "cancel"] == kinds
