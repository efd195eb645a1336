"""Streams of questions over real servers: drain, bounds, and askers that do not read."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc.aio
import pytest

from support.asking import answer, asking, questions_of
from support.live_fake_engine import make_core
from support.responders import responding
from support.serving import serving
from tidewire import errors
from tidewire.transport import RawServer
from tidewire.transport import channel as raw_channel
from tidewire.v1 import query_pb2, query_pb2_grpc
from tidewire_server.core import Core, ServiceLimits
from tidewire_server.router import Router
from tidewire_server.services.query import QueryService
from tidewire_server.services.query import asker as asking_limits

WAIT_S = 20.0


@pytest.fixture
def core() -> Core:
    return make_core(limits=ServiceLimits(subscriber_pending_bytes_max=64 * 1024))


@pytest.fixture(params=["grpc", "tcp"])
async def channel(core: Core, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    service = QueryService(core)
    register = query_pb2_grpc.add_QueryServiceServicer_to_server
    if request.param == "grpc":
        async with serving(core, [(register, service)]) as made:
            yield made
        return
    router = Router(drain=core.drain)
    register(service, cast("Any", router))
    server = RawServer((router,))
    url = server.listen("tcp://127.0.0.1:0").url.text
    await service.start()
    await server.start()
    try:
        async with raw_channel(url) as made:
            yield made
    finally:
        await server.stop(None)
        await service.close()


async def test_a_draining_server_answers_what_it_has_and_takes_no_more(
    channel: Any, core: Core
) -> None:
    """The asker hears `draining`; a question after it is refused typed, one before it answered."""
    async with responding(channel, takes_questions=True) as responder, asking(channel) as asker:
        await asker.ask("a", 1, b"?")
        asked = await questions_of(responder)
        core.drain.start(grace_s=10.0)
        while not asker.draining:
            assert await asker.next() is not None
        await asker.ask("a", 2, b"late", b"later")
        await asker.wait(2, 3)
        await answer(responder, [asked.first_query_id], [b"!"])
        await asker.end()

        assert [errors.Draining] * 2 == [type(asker.failures[number]) for number in (2, 3)]
        assert b"!" == asker.answers[1][1]
        assert grpc.StatusCode.OK == await asker.call.code()


async def test_an_asker_that_ignores_the_drain_ends_within_the_grace(
    channel: Any, core: Core
) -> None:
    """What is not answered by then has an unknown outcome; the stream ends with OK."""
    async with responding(channel, takes_questions=True) as responder, asking(channel) as asker:
        await asker.ask("a", 1, b"?")
        await questions_of(responder)
        core.drain.start(grace_s=0.3)
        while await asker.next() is not None:
            continue

        assert isinstance(asker.failures[1], errors.OutcomeUnknown)
        assert grpc.StatusCode.OK == await asker.call.code()


async def test_outstanding_questions_are_bounded(
    channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The surplus fails as overload, with the limit; an answer makes room again."""
    monkeypatch.setattr(asking_limits, "OUTSTANDING_MAX", 3)
    async with responding(channel, takes_questions=True) as responder, asking(channel) as asker:
        await asker.ask("a", 1, b"a", b"b")
        first = (await questions_of(responder)).first_query_id
        await asker.ask("a", 3, b"c", b"d")
        await questions_of(responder)
        await asker.ask("a", 5, b"e")
        await asker.wait(4, 5)
        await answer(responder, [first], [b"A"])
        await asker.wait(1)
        await asker.ask("a", 6, b"f")
        asked = await questions_of(responder)

    assert [b"f"] == list(asked.bare)
    assert [errors.Overloaded] * 2 == [type(asker.failures[number]) for number in (4, 5)]
    assert "3" == asker.failures[4].metadata["outstanding_max"]


async def test_an_asker_that_does_not_read_is_ended(channel: Any) -> None:
    """With SLOW_CONSUMER; its responder is told, and one that reads gets answers all the while."""
    body = bytes(32 * 1024)
    async with (
        responding(channel, takes_questions=True, in_flight_max=10_000) as responder,
        asking(channel) as reader,
    ):
        asker: Any = cast("Any", query_pb2_grpc.QueryServiceStub(channel)).AskMany()
        await asker.write(query_pb2.AskManyRequest(open=query_pb2.AskManyOpen()))
        await _ask_one(asker, 1)
        never = (await questions_of(responder)).first_query_id
        for number in range(2, 502):  # small enough to be taken, with 16 MB of answers
            await _ask_one(asker, number)
        cancelled = await _answer_until_cancelled(responder, body, never)
        answering = asyncio.create_task(_answer_until_cancelled(responder, body, None))
        await reader.ask("a", 1, b"?")
        await reader.wait(1)
        answering.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(WAIT_S):
                while await asker.read() is not grpc.aio.EOF:
                    continue

    assert never == cancelled
    assert body == reader.answers[1][1]
    assert grpc.StatusCode.RESOURCE_EXHAUSTED == caught.value.code()


async def _ask_one(asker: Any, number: int) -> None:
    questions = query_pb2.Questions(subject="a", first_id=number, bare=[b"?"])
    await asker.write(query_pb2.AskManyRequest(questions=questions))


async def _answer_until_cancelled(responder: Any, body: bytes, until: int | None) -> int:
    async with asyncio.timeout(WAIT_S):
        while True:
            response = await responder.call.read()
            if response.HasField("cancel"):
                if response.cancel.query_id == until:
                    return int(response.cancel.query_id)
                continue
            asked = response.questions
            ids = range(asked.first_query_id, asked.first_query_id + len(asked.bare))
            await answer(responder, ids, [body] * len(ids))


async def test_a_question_over_the_limit_fails_alone(core: Core) -> None:
    """Those beside it in the run are asked, bare or not; so it is with answers."""
    limits = ServiceLimits(payload_bytes_max=1000)
    service = QueryService(make_core(limits=limits))
    register = query_pb2_grpc.add_QueryServiceServicer_to_server
    async with (
        serving(core, [(register, service)]) as made,
        responding(made, takes_questions=True) as responder,
        asking(made) as asker,
    ):
        await asker.ask("a", 1, b"a", bytes(1001), b"c", bytes(600), bytes(600))
        parts = [await questions_of(responder) for _ in range(3)]
        ids = [part.first_query_id + n for part in parts for n in range(len(part.bare))]
        await answer(responder, ids, [b"A", bytes(1001), b"D", b"E"])
        await asker.wait(1, 2, 3, 4, 5)

    assert [[1], [1, 600], [600]] == [[len(body) for body in part.bare] for part in parts]
    assert {2: errors.MessageTooLarge, 3: errors.ResponderFailed} == {
        number: type(error) for number, error in asker.failures.items()
    }
    assert [1, 4, 5] == sorted(asker.answers)


async def test_counters_count_questions(channel: Any, core: Core) -> None:
    """Asked, failed, and answered too late."""
    async with asking(channel) as asker:
        async with responding(channel, takes_questions=True) as responder:
            await asker.ask("a", 1, b"a", b"b")
            first = (await questions_of(responder)).first_query_id
            await asker.cancel(1)
            await responder.next()
            await answer(responder, [first, first + 1], [b"A", b"B"])
            await asker.wait(2)
            await asker.ask("nobody.here", 3, b"c", b"d", b"e")
            await asker.wait(3, 4, 5)
        async with responding(channel):
            pass

    assert 5 == core.counters.values["query_asks_total"]
    assert 3 == core.counters.values["query_failures_total"]
    assert 1 == core.counters.values["query_late_replies_total"]


async def test_an_absurd_time_left_harms_nobody(channel: Any) -> None:
    """The longest time a message can say is bounded: responder and asker keep their streams."""
    async with responding(channel, takes_questions=True) as responder, asking(channel) as asker:
        longest = query_pb2.Questions(subject="a", first_id=1, bare=[b"?"])
        longest.remaining.seconds = 2**63 - 1
        await asker.call.write(query_pb2.AskManyRequest(questions=longest))
        asked = await questions_of(responder)
        await answer(responder, [asked.first_query_id], [b"!"])
        await asker.wait(1)

        assert b"!" == asker.answers[1][1]


async def test_an_asker_that_takes_no_failure_ends_itself_alone(core: Core) -> None:
    """Whoever answers it is not told: only its own stream fails, and at once."""
    asker = asking_limits.Asker(core, lambda _: None, "p-", "")

    def write(_: query_pb2.AskManyResponse) -> bool:
        raise errors.MessageTooLarge("it takes nothing")

    asker.write_at_once = write
    asker.outstanding = 1
    asker.answer("r", (1,), (b"!",), bare=True)

    with pytest.raises(errors.MessageTooLarge):
        asker.backlog.take_nowait()
