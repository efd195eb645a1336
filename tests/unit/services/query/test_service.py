"""QueryService over a real server: what askers and responders see."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
import pytest
from google.rpc import status_pb2

from support.live_fake_engine import make_core
from support.responders import WAIT_S, responding
from support.serving import serving
from tidewire import errors
from tidewire.v1 import common_pb2, query_pb2, query_pb2_grpc
from tidewire_server.core import Core, ServiceLimits
from tidewire_server.members import Life
from tidewire_server.services.query import QueryService

Channel = grpc.aio.Channel


@pytest.fixture
def core() -> Core:
    return make_core(limits=ServiceLimits(subscriber_pending_bytes_max=64 * 1024))


@pytest.fixture
async def channel(core: Core) -> AsyncIterator[Channel]:
    service = QueryService(core)
    register = query_pb2_grpc.add_QueryServiceServicer_to_server
    async with serving(core, [(register, service)]) as channel:
        yield channel


def ask(channel: Channel, subject: str = "a", data: bytes = b"?", **options: Any) -> Any:
    request = query_pb2.AskRequest(
        subject=subject,
        payload=common_pb2.Payload(data=data),
        request_id=options.pop("request_id", ""),
    )
    options.setdefault("timeout", WAIT_S)
    return query_pb2_grpc.QueryServiceStub(channel).Ask(request, **options)


async def failure(call: Any) -> errors.TidewireError:
    """Wait for the call to fail and return its typed error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(WAIT_S):
            await call
    return typed(caught.value)


def typed(error: grpc.aio.AioRpcError) -> errors.TidewireError:
    return errors.from_status(status_of(error))


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    for key, value in error.trailing_metadata():
        if key == errors.STATUS_TRAILER:
            assert isinstance(value, bytes)
            return status_pb2.Status.FromString(value)
    raise AssertionError(f"no details: {error}")


async def test_a_query_reaches_its_responder_and_comes_back(channel: Channel) -> None:
    """Subject, payload, request id and remaining time go there; payload and name come back."""
    async with responding(channel, "a.*", client_id="worker") as responder:
        call = ask(channel, "a.b", b"question", request_id="r-1", timeout=5)
        query = await responder.query()
        await responder.reply(query.query_id, b"answer")
        response = await call

    assert ("a.b", b"question", "r-1") == (query.subject, query.payload.data, query.request_id)
    assert 0 < query.remaining.ToNanoseconds() <= 6e9
    assert (b"answer", "worker", "r-1") == (
        response.payload.data,
        response.responder,
        response.request_id,
    )


async def test_without_deadline_a_query_has_thirty_seconds(channel: Channel) -> None:
    """The default is told to the responder; the server makes the missing request id."""
    async with responding(channel) as responder:
        call = ask(channel, timeout=None)
        query = await responder.query()
        await responder.reply(query.query_id, b"")
        response = await call

    assert 25e9 < query.remaining.ToNanoseconds() <= 31e9
    assert response.request_id == query.request_id != ""


async def test_nobody_serves_is_an_error_at_once(channel: Channel) -> None:
    """No waiting for the deadline; the error says which subject."""
    error = await failure(ask(channel, "nobody"))

    assert isinstance(error, errors.NoResponders)
    assert "nobody" == error.metadata["subject"]


async def test_full_hands_are_an_error_at_once(channel: Channel) -> None:
    """With in_flight_max 1 the second query is refused, and taken again after the answer."""
    async with responding(channel, in_flight_max=1) as responder:
        first = ask(channel)
        query = await responder.query()
        assert isinstance(await failure(ask(channel)), errors.RespondersBusy)
        await responder.reply(query.query_id, b"1")
        await first
        second = ask(channel)
        query = await responder.query()
        await responder.reply(query.query_id, b"2")

        assert b"2" == (await second).payload.data


async def test_a_responders_error_arrives_with_its_status(channel: Channel) -> None:
    """RESPONDER_FAILED carries the responder's own status among its details."""
    own = errors.KeyNotFound("no such thing", metadata={"key": "k"}).to_status()
    async with responding(channel, client_id="worker") as responder:
        call = ask(channel)
        query = await responder.query()
        await responder.send_reply(query_pb2.ServeReply(query_id=query.query_id, error=own))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call

    error = typed(caught.value)
    assert isinstance(error, errors.ResponderFailed)
    assert ("worker", "KEY_NOT_FOUND") == (error.metadata["responder"], error.metadata["cause"])
    inner = status_pb2.Status()
    assert any(detail.Unpack(inner) for detail in status_of(caught.value).details)
    assert isinstance(errors.from_status(inner), errors.KeyNotFound)


async def test_a_reply_that_breaks_the_limits_fails_its_query_only(channel: Channel) -> None:
    """The stream of the responder goes on."""
    async with responding(channel) as responder:
        call = ask(channel)
        query = await responder.query()
        bad = common_pb2.Payload(data=b"12345", raw_size=3)
        await responder.send_reply(query_pb2.ServeReply(query_id=query.query_id, payload=bad))
        assert isinstance(await failure(call), errors.ResponderFailed)
        second = ask(channel)
        query = await responder.query()
        await responder.reply(query.query_id, b"good")

        assert b"good" == (await second).payload.data


async def test_a_lost_responder_leaves_the_outcome_unknown(channel: Channel) -> None:
    """It had the query: nobody else is asked, and the error names the request."""
    async with responding(channel), AsyncExitStack() as stack:
        responder = await stack.enter_async_context(responding(channel, "b"))
        call = ask(channel, "b", request_id="r-9")
        await responder.query()
        responder.call.cancel()
        error = await failure(call)

    assert isinstance(error, errors.OutcomeUnknown)
    assert "r-9" == error.request_id


async def test_cancelling_an_ask_reaches_the_responder(channel: Channel) -> None:
    """The responder is told, its late reply is dropped, and it goes on serving."""
    async with responding(channel) as responder:
        call = ask(channel)
        query = await responder.query()
        call.cancel()
        response = await responder.next()
        assert query.query_id == response.cancel.query_id
        await responder.reply(query.query_id, b"late")
        second = ask(channel)
        query = await responder.query()
        await responder.reply(query.query_id, b"in time")

        assert b"in time" == (await second).payload.data


async def test_the_deadline_reaches_the_responder_as_a_cancel(channel: Channel) -> None:
    """When the asker's time is over the responder need not go on."""
    async with responding(channel) as responder:
        call = ask(channel, timeout=0.2)
        query = await responder.query()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        response = await responder.next()

    assert grpc.StatusCode.DEADLINE_EXCEEDED == caught.value.code()
    assert query.query_id == response.cancel.query_id


async def test_a_reply_to_a_query_never_asked_ends_the_stream(channel: Channel) -> None:
    """That is a mistake of the responder, and it is told."""
    async with responding(channel) as responder:
        await responder.reply(7, b"")

        assert grpc.StatusCode.INVALID_ARGUMENT == await responder.ended()


async def test_a_draining_responder_finishes_what_it_has(channel: Channel) -> None:
    """It gets no new queries; the stream ends OK after the last answer."""
    async with responding(channel) as responder:
        first, second = ask(channel, data=b"1"), ask(channel, data=b"2")
        queries = {}
        for _ in range(2):
            query = await responder.query()
            queries[query.payload.data] = query.query_id
        await responder.drain()
        await responder.reply(queries[b"1"], b"one")
        assert b"one" == (await first).payload.data  # so the drain before it has been read
        assert isinstance(await failure(ask(channel)), errors.NoResponders)
        await responder.reply(queries[b"2"], b"two")

        assert b"two" == (await second).payload.data
        assert grpc.StatusCode.OK == await responder.ended()


async def test_a_draining_server_says_so_and_ends_cleanly(channel: Channel, core: Core) -> None:
    """Responders hear `draining`, answer what they have, and their streams end OK."""
    async with responding(channel) as busy, responding(channel, "b") as idle:
        call = ask(channel)
        query = await busy.query()
        core.drain.start(grace_s=5.0)
        assert "draining" == (await idle.next()).WhichOneof("kind")
        assert grpc.StatusCode.OK == await idle.ended()
        assert "draining" == (await busy.next()).WhichOneof("kind")
        await busy.reply(query.query_id, b"last")

        assert b"last" == (await call).payload.data
        assert grpc.StatusCode.OK == await busy.ended()


async def test_a_responder_that_ignores_the_drain_is_cut_within_the_grace(
    channel: Channel, core: Core
) -> None:
    """Its query's outcome is unknown; the stream ends all the same."""
    async with responding(channel) as responder:
        call = ask(channel)
        await responder.query()
        core.drain.start(grace_s=0.2)

        assert isinstance(await failure(call), errors.OutcomeUnknown)
        assert grpc.StatusCode.OK == await responder.ended()


async def test_a_dead_members_responder_is_skipped(channel: Channel, core: Core) -> None:
    """
    What it has is unknown, it gets no more and its stream ends; alive again it serves again, on a
    stream that was opened since: the old one may be that of a process that is no more.
    """
    core.members.set_life("n1", Life.ALIVE, 1)
    async with responding(channel, node_id="n1") as responder:
        call = ask(channel)
        query = await responder.query()
        core.members.set_life("n1", Life.DEAD, 1)
        assert isinstance(await failure(call), errors.OutcomeUnknown)
        assert query.query_id == (await responder.next()).cancel.query_id
        assert isinstance(await failure(ask(channel)), errors.NoResponders)
        assert grpc.StatusCode.OK == await responder.ended()
    async with responding(channel, node_id="n1") as responder:
        assert isinstance(await failure(ask(channel)), errors.NoResponders)
        core.members.set_life("n1", Life.ALIVE, 2)
        second = ask(channel)
        query = await responder.query()
        await responder.reply(query.query_id, b"back")

        assert b"back" == (await second).payload.data


async def test_replies_stream_in_order_until_the_end(channel: Channel) -> None:
    """AskStream brings every reply; `end` with a payload is the last one."""
    stub = query_pb2_grpc.QueryServiceStub(channel)
    async with responding(channel) as responder:
        call = stub.AskStream(query_pb2.AskStreamRequest(subject="a"), timeout=WAIT_S)
        query = await responder.query()
        for i in range(20):
            await responder.reply(query.query_id, b"%d" % i, end=i == 19)
        got = [response.payload.data async for response in call]

    assert query.streaming
    assert [b"%d" % i for i in range(20)] == got


async def test_a_stream_of_replies_can_end_with_an_error(channel: Channel) -> None:
    """What came before the error is delivered first."""
    stub = query_pb2_grpc.QueryServiceStub(channel)
    async with responding(channel) as responder:
        call = stub.AskStream(query_pb2.AskStreamRequest(subject="a"), timeout=WAIT_S)
        query = await responder.query()
        await responder.reply(query.query_id, b"one", end=False)
        error = errors.InvalidArgument("no").to_status()
        await responder.send_reply(query_pb2.ServeReply(query_id=query.query_id, error=error))
        got: list[bytes] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            got.extend([response.payload.data async for response in call])

    assert isinstance(typed(caught.value), errors.ResponderFailed)


async def test_an_asker_that_does_not_read_is_cut_off(channel: Channel) -> None:
    """It costs bounded memory, the responder is told, and other queries go on."""
    stub = query_pb2_grpc.QueryServiceStub(channel)
    async with responding(channel) as responder:
        call = stub.AskStream(query_pb2.AskStreamRequest(subject="a"), timeout=30)
        query = await responder.query()
        told = asyncio.Event()
        writing = asyncio.create_task(_flood(responder, query.query_id, told))
        response = await responder.next()
        told.set()
        await writing
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [response async for response in call]

    assert query.query_id == response.cancel.query_id
    assert isinstance(typed(caught.value), errors.SlowConsumer)


async def _flood(responder: Any, query_id: int, told: asyncio.Event) -> None:
    while not told.is_set():
        await responder.reply(query_id, bytes(64 * 1024), end=False)


@pytest.mark.parametrize(
    ("opening", "expected"),
    [
        (query_pb2.ServeRequest(drain=True), "PROTOCOL_ORDER"),
        (query_pb2.ServeRequest(open=query_pb2.ServeOpen()), "INVALID_ARGUMENT"),
        (query_pb2.ServeRequest(open=query_pb2.ServeOpen(subjects=["a..b"])), "INVALID_SUBJECT"),
        (
            query_pb2.ServeRequest(open=query_pb2.ServeOpen(subjects=["a"], in_flight_max=10_001)),
            "INVALID_ARGUMENT",
        ),
        (
            query_pb2.ServeRequest(open=query_pb2.ServeOpen(subjects=["a"], node_id="x.y")),
            "INVALID_SUBJECT",
        ),
        (
            query_pb2.ServeRequest(open=query_pb2.ServeOpen(subjects=["a"], client_id="x" * 65)),
            "INVALID_ARGUMENT",
        ),
    ],
)
async def test_bad_openings_are_refused(
    channel: Channel, opening: query_pb2.ServeRequest, expected: str
) -> None:
    """Each with its reason."""
    call = query_pb2_grpc.QueryServiceStub(channel).Serve(timeout=WAIT_S)
    await call.write(opening)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()

    assert expected == errors.reason_name(typed(caught.value).reason)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (query_pb2.AskRequest(subject="a.*"), "INVALID_SUBJECT"),
        (query_pb2.AskRequest(subject="a", request_id="x" * 65), "INVALID_ARGUMENT"),
        (
            query_pb2.AskRequest(
                subject="a", payload=common_pb2.Payload(codec=common_pb2.CODEC_LZ4, data=b"x")
            ),
            "INVALID_ARGUMENT",
        ),
    ],
)
async def test_bad_queries_are_refused(
    channel: Channel, request_: query_pb2.AskRequest, expected: str
) -> None:
    """Before anybody is asked."""
    error = await failure(query_pb2_grpc.QueryServiceStub(channel).Ask(request_, timeout=WAIT_S))

    assert expected == errors.reason_name(error.reason)


async def test_many_asks_share_the_responders_evenly(channel: Channel) -> None:
    """Eighty queries at once over four responders: twenty each."""
    async with AsyncExitStack() as stack:
        responders = [
            await stack.enter_async_context(responding(channel, client_id=str(i))) for i in range(4)
        ]
        calls = [ask(channel, data=b"%d" % i) for i in range(80)]
        async with asyncio.timeout(WAIT_S):
            taken = [[await responder.query() for _ in range(20)] for responder in responders]
            for responder, queries in zip(responders, taken, strict=True):
                for query in queries:
                    await responder.reply(query.query_id, query.payload.data)
            answers = [await call for call in calls]

    assert [b"%d" % i for i in range(80)] == [answer.payload.data for answer in answers]


async def test_a_responder_that_does_not_read_is_ended() -> None:
    """It is told why, and what was not written to it goes to another."""
    fast = make_core(limits=ServiceLimits(subscriber_stall_s=0.1))
    service = QueryService(fast)
    await service.start()
    stuck, reading = FakeResponder(reads=False), FakeResponder(reads=True)
    serving_stuck = asyncio.create_task(service.Serve(stuck.requests(), stuck))
    await stuck.stuck.wait()
    asks = [
        asyncio.create_task(service.Ask(query_pb2.AskRequest(subject="a"), stuck)) for _ in range(2)
    ]
    await stuck.asked(2, service)
    serving_other = asyncio.create_task(service.Serve(reading.requests(), reading))
    with pytest.raises(errors.SlowConsumer):
        await serving_stuck
    async with asyncio.timeout(WAIT_S):
        outcomes = await asyncio.gather(*asks)
    serving_other.cancel()
    await service.close()

    assert [b"other", b"other"] == [outcome.payload.data for outcome in outcomes]


class FakeResponder:
    """A context and its requests; the writes of one that does not read never end."""

    def __init__(self, *, reads: bool) -> None:
        self.stuck = asyncio.Event()
        self._reads = reads
        self._queries: asyncio.Queue[int] = asyncio.Queue()

    async def requests(self) -> AsyncIterator[query_pb2.ServeRequest]:
        yield query_pb2.ServeRequest(open=query_pb2.ServeOpen(subjects=["a"]))
        while True:
            query_id = await self._queries.get()
            payload = common_pb2.Payload(data=b"other")
            reply = query_pb2.ServeReply(query_id=query_id, payload=payload, end=True)
            yield query_pb2.ServeRequest(reply=reply)

    async def write(self, response: query_pb2.ServeResponse) -> None:
        if not self._reads:
            self.stuck.set()
            await asyncio.Event().wait()
        if response.HasField("query"):
            self._queries.put_nowait(response.query.query_id)

    async def asked(self, number: int, service: QueryService) -> None:
        """Wait until so many queries wait for it."""
        async with asyncio.timeout(WAIT_S):
            while sum(seat.in_hand for seat in service.directory.seats) < number:  # noqa: ASYNC110
                await asyncio.sleep(0)

    def auth_context(self) -> dict[str, Any]:
        return {}

    def time_remaining(self) -> float:
        return WAIT_S
