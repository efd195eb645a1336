"""Streams of messages: order, bounds, slow readers, and the end of the server."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import zstandard
from google.rpc import status_pb2

from support.eventflux import WAIT_S, error_of, message, take
from support.eventflux_service import EventFlux, eventflux
from support.responders import TestResponder, responding
from support.scripted import eventually
from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire.v1 import state_pb2, state_pb2_grpc
from tidewire_server.core import ServiceLimits
from tidewire_server.services.eventflux import session as session_module

Messages = Sequence[transport_pb2.TransportMessage]


async def pipelined(server: EventFlux, messages: Messages) -> Messages:
    """Write everything without waiting, and return the answers."""
    call = server.stub.StreamMessages()

    async def write() -> None:
        for each in messages:
            await call.write(each)
        await call.done_writing()

    writing = asyncio.create_task(write())
    async with asyncio.timeout(WAIT_S):
        answers = [answer async for answer in call]
    await writing
    return answers


async def test_events_are_stored_in_the_order_they_came(tmp_path: Path) -> None:
    """Also when some of them have to be decompressed beside the event loop."""
    noise = bytes(range(256)) * 4096
    async with eventflux(tmp_path) as server:
        await server.create_stream("s", "x")
        sent = []
        for number in range(200):
            here = {"stream": "x", "n": str(number)}
            if number % 10:
                sent.append(message("EVENT", b"", here))
            else:
                data = zstandard.ZstdCompressor(level=1).compress(noise + noise[: number * 100])
                sent.append(message("EVENT", data, here, compression="ZSTD"))
        answers = await pipelined(server, sent)
        sequences = [int(answer.headers["sequence"]) for answer in answers]

    assert list(range(1, 201)) == sequences


async def test_writes_of_a_key_happen_in_their_order(tmp_path: Path) -> None:
    """Many writes under way at once: every version is there, and the last one stays."""
    async with eventflux(tmp_path) as server:
        key = {"key": "k"}
        sent = [message("STATE", str(number).encode(), key) for number in range(500)]
        answers = await pipelined(server, sent)
        stub: Any = state_pb2_grpc.StateServiceStub(server.channel)
        stored = await stub.Get(state_pb2.GetRequest(key="k"))

    assert [str(number) for number in range(1, 501)] == [a.headers["version"] for a in answers]
    assert b"499" == stored.entry.value.data


async def test_a_failure_has_the_status_any_call_would_have(tmp_path: Path) -> None:
    """Code, reason and details are in the answer, and the next message is done."""
    async with eventflux(tmp_path) as server:
        failed, done = await pipelined(server, [message("STATE", b"v"), message("EVENT")])
    error = errors.from_status(status_pb2.Status.FromString(failed.payload))

    assert isinstance(error, errors.InvalidArgument)
    assert ["headers[key]"] == list(error.fields)
    assert {
        "status": "INVALID_ARGUMENT",
        "reason": "INVALID_ARGUMENT",
        "message": error.message,
    } == (dict(failed.headers))
    assert "status" not in done.headers


async def test_one_slow_answer_does_not_stop_what_is_done(tmp_path: Path) -> None:
    """A query waits for its responder; what was sent behind it is done, and answered behind it."""
    async with eventflux(tmp_path) as server, responding(server.channel, "q") as responder:
        call = server.stub.StreamMessages()
        await call.write(message("QUERY", b"?", {"stream": "q"}))
        query = await responder.query()
        await call.write(message("STATE", b"v", {"key": "k"}))
        stub: Any = state_pb2_grpc.StateServiceStub(server.channel)

        async def written() -> bool:
            return bool((await stub.Get(state_pb2.GetRequest(key="k"))).HasField("entry"))

        async with asyncio.timeout(WAIT_S):
            while not await written():
                pass  # each look is a call: the server has its turn
        await responder.reply(query.query_id, b"!")
        first, second = await take(call, 2)
        await call.done_writing()

    assert (b"!", "1") == (first.payload, second.headers["version"])


async def test_reading_stops_at_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    While nothing can be answered no more than the window is taken from the wire. Control: without
    the limit everything is.
    """

    async def taken(window: int) -> int:
        monkeypatch.setattr(session_module, "WINDOW_MESSAGES_MAX", window)
        async with (
            eventflux(tmp_path / str(window)) as server,
            responding(server.channel, "q") as responder,
        ):
            call = server.stub.StreamMessages()
            await call.write(message("QUERY", b"?", {"stream": "q"}))
            query = await responder.query()

            async def write() -> None:
                for _ in range(50):
                    await call.write(message("EVENT", b"x" * 1000))

            writing = asyncio.create_task(write())
            counted = server.core.counters.values
            wanted = min(50, window - 1)
            await eventually(lambda: counted.get("eventflux_event_total", 0) >= wanted)
            await writing
            await asyncio.sleep(0.05)
            seen = counted["eventflux_event_total"]
            await responder.reply(query.query_id, b"!")
            await take(call, 51)
            await call.done_writing()
        return seen

    assert 9 == await taken(10)
    assert 50 == await taken(1000)


async def test_bytes_count_as_well(tmp_path: Path) -> None:
    """Few large messages fill the window too."""
    limits = ServiceLimits(publish_pending_bytes_max=100_000)
    async with (
        eventflux(tmp_path, limits=limits) as server,
        responding(server.channel, "q") as responder,
    ):
        call = server.stub.StreamMessages()
        await call.write(message("QUERY", b"?", {"stream": "q"}))
        query = await responder.query()
        for _ in range(10):
            await call.write(message("EVENT", b"x" * 60_000))
        counted = server.core.counters.values
        await eventually(lambda: counted.get("eventflux_event_total", 0) == 2)
        await asyncio.sleep(0.05)
        seen = counted["eventflux_event_total"]
        await responder.reply(query.query_id, b"!")
        await take(call, 11)
        await call.done_writing()

    assert 2 == seen


async def test_who_does_not_read_answers_is_cut(tmp_path: Path) -> None:
    """Answers nobody takes end the stream; control: one that reads goes on meanwhile."""
    limits = ServiceLimits(subscriber_stall_s=1.0)  # a busy machine stalls who reads for 0.3 s
    async with (
        eventflux(tmp_path, limits=limits) as server,
        responding(server.channel, "q") as responder,
    ):
        idle, busy = server.stub.StreamMessages(), server.stub.StreamMessages()
        asking = asyncio.create_task(answer_all(responder, b"x" * 500_000))

        async def flood() -> None:
            while True:
                await idle.write(message("QUERY", b"?", {"stream": "q"}))

        flooding = asyncio.create_task(flood())
        for _ in range(20):
            await busy.write(message("QUERY", b"?", {"stream": "q"}))
            await take(busy, 1)
        await eventually(lambda: server.core.counters.values.get("subscribers_cut") == 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in idle:
                pass
        await busy.write(message("EVENT"))
        await take(busy, 1)
        await busy.done_writing()
        for task in (asking, flooding):
            task.cancel()
        await asyncio.gather(asking, flooding, return_exceptions=True)

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is caught.value.code()


async def answer_all(responder: TestResponder, payload: bytes) -> None:
    """Answer every query alike."""
    while True:
        await responder.reply((await responder.query()).query_id, payload)


async def test_when_the_server_goes_what_was_read_is_answered(tmp_path: Path) -> None:
    """Then the stream ends with the reason, and what has no answer was not done."""
    async with eventflux(tmp_path) as server, responding(server.channel, "q") as responder:
        call = server.stub.StreamMessages()
        await call.write(message("QUERY", b"?", {"stream": "q"}))
        query = await responder.query()
        await call.write(message("STATE", b"v", {"key": "k"}))
        await eventually(lambda: server.core.counters.values.get("eventflux_state_total") == 1)
        server.core.drain.start(5.0)
        await asyncio.sleep(0)
        await responder.reply(query.query_id, b"!")
        first, second = await take(call, 2)
        error = await error_of(call.read())

    assert (b"!", "1") == (first.payload, second.headers["version"])
    assert isinstance(error, errors.Draining)


async def test_who_goes_leaves_nothing_behind(tmp_path: Path) -> None:
    """Workers and queries end with the call."""
    async with eventflux(tmp_path) as server, responding(server.channel, "q") as responder:
        exchange = server.backends.event.exchange
        before = len(asyncio.all_tasks())
        call = server.stub.StreamMessages()
        for _ in range(5):
            await call.write(message("QUERY", b"?", {"stream": "q"}))
            await responder.query()
        call.cancel()
        await eventually(lambda: not exchange._sessions)
        await eventually(lambda: len(asyncio.all_tasks()) <= before)

        assert 0 == exchange.publishers
