"""Streams of events: what comes, in which order, what it costs, and how it ends."""

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from support.eventflux import WAIT_S, error_of, events, message, now_ms, send, take
from support.eventflux_service import EventFlux, eventflux
from support.scripted import eventually
from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire.v1 import event_pb2, event_pb2_grpc
from tidewire_server.core import ServiceLimits
from tidewire_server.services.eventflux import events as events_module


async def listening(server: EventFlux, count: int = 1) -> None:
    """Wait until so many streams of events are open."""
    exchange = server.backends.event.exchange
    await eventually(lambda: len(exchange._sessions) == count)


async def all_of(call: Any) -> list[str]:
    """Payloads until the end."""
    async with asyncio.timeout(WAIT_S):
        return [event.payload.decode() async for event in call]


async def test_several_streams_and_what_no_stream_keeps(tmp_path: Path) -> None:
    """One reader of everything gets all of them, each stream in its own order, each event once."""
    async with eventflux(tmp_path) as server:
        for name in ("a", "b", "c"):
            await server.create_stream(name, f"{name}.>")
            await server.publish(f"{name}.x", *(f"{name}{n}".encode() for n in range(100)))
        call = events(server.stub, start=1)
        stored = await take(call, 300)
        for number in range(100):
            for name in ("a", "live", "c"):
                await server.publish(f"{name}.x", f"{name}-{number}".encode())
        fresh = await take(call, 300)
        call.cancel()

    for name in ("a", "b", "c"):
        own = [event.payload.decode() for event in stored if event.headers["stream"] == f"{name}.x"]
        assert [f"{name}{number}" for number in range(100)] == own
    for name in ("a", "live", "c"):
        own = [event.payload.decode() for event in fresh if event.headers["stream"] == f"{name}.x"]
        assert [f"{name}-{number}" for number in range(100)] == own
    assert not any("lost" in event.headers for event in stored + fresh)


async def test_a_stream_that_comes_later_is_followed_and_one_that_goes_is_left(
    tmp_path: Path,
) -> None:
    """A reader of everything has no gap when a stream begins to take a subject, and goes on."""
    async with eventflux(tmp_path) as server:
        call = events(server.stub, "x.>")
        await listening(server)
        await server.publish("x.1", b"live")
        await server.create_stream("later", "x.>")
        await server.publish("x.1", b"stored")
        control: Any = event_pb2_grpc.EventServiceStub(server.channel)
        got = await take(call, 2)
        await control.DeleteStream(event_pb2.DeleteStreamRequest(name="later"))
        await server.publish("x.1", b"live again")
        await server.create_stream("later", "x.>")
        await server.publish("x.1", b"stored again")
        got += await take(call, 2)
        call.cancel()

    assert [b"live", b"stored", b"live again", b"stored again"] == [e.payload for e in got]


async def test_the_end_may_be_in_the_future(tmp_path: Path) -> None:
    """Until then events come; then the stream is over, without an error."""
    async with eventflux(tmp_path) as server:
        end = now_ms() + 1500
        call = events(server.stub, "x", end=end)
        await listening(server)
        await server.publish("x", b"1")
        got = await all_of(call)
        code = await call.code()
        over_ms = now_ms()

    assert ["1"] == got
    assert grpc.StatusCode.OK is code
    assert end <= over_ms


async def test_what_is_stored_after_the_end_does_not_keep_it_open(tmp_path: Path) -> None:
    """History ends although the stream goes on growing while it is read."""
    async with eventflux(tmp_path) as server:
        await server.create_stream("s", "x")
        await server.publish("x", *(b"old" for _ in range(1000)))
        going = asyncio.Event()

        async def grow() -> None:
            while not going.is_set():
                await server.publish("x", b"new")

        growing = asyncio.create_task(grow())
        await asyncio.sleep(0)
        got = await all_of(events(server.stub, "x", start=1, end=now_ms()))
        going.set()
        await growing

    assert 1000 == got.count("old")


@pytest.mark.parametrize("batch_size", [1, 7, 100])
async def test_batches_are_as_large_as_wanted(tmp_path: Path, batch_size: int) -> None:
    """Every event belongs to one batch, whose last event says how many it has."""
    async with eventflux(tmp_path) as server:
        await server.create_stream("s", "x")
        await server.publish("x", *(str(number).encode() for number in range(250)))
        call = events(server.stub, "x", start=1, end=now_ms() + 1, batch_size=batch_size)
        sizes, size = [], 0
        async for event in call:
            size += 1
            if "batch" in event.headers:
                assert str(size) == event.headers["batch"]
                sizes.append(size)
                size = 0

    assert (250, 0) == (sum(sizes), size)
    assert batch_size == max(sizes)


async def test_a_slow_reader_loses_only_what_nobody_keeps(tmp_path: Path) -> None:
    """
    It reads nothing while much is published: of stored events none is missing afterwards, of others
    the oldest are, and it is told how many. What waits for it is bounded all the while.
    """
    limits = ServiceLimits(subscriber_pending_bytes_max=64 * 1024, subscriber_stall_s=60.0)
    payload = b"x" * 8192
    async with eventflux(tmp_path, limits=limits) as server:
        await server.create_stream("s", "kept")
        kept, loose = events(server.stub, "kept"), events(server.stub, "loose")
        await listening(server, 2)
        for _ in range(1000):
            await server.publish("kept", payload)
            await server.publish("loose", payload)
        live = server.backends.event.exchange.live
        waiting = {buffer.bytes for _, buffer in live._index}
        got = await take(kept, 1000)
        total, lost = 0, 0
        while total + lost < 1000:
            (event,) = await take(loose, 1)
            total, lost = total + 1, lost + int(event.headers.get("lost", 0))
        kept.cancel()
        loose.cancel()

    assert max(waiting) <= 64 * 1024 + 8192 + 64
    assert 1000 == len(got)
    assert lost > 0
    assert 1000 == total + lost


async def test_streams_are_not_read_ahead_of_a_slow_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Twenty streams of a megabyte each, and a reader that takes nothing: one of them was read.
    Control: a reader that takes everything makes it read them all.
    """
    read: set[str] = set()
    async with eventflux(tmp_path, limits=ServiceLimits(subscriber_stall_s=60.0)) as server:
        for number in range(20):
            await server.create_stream(f"s{number}", f"x.{number}")
            for _ in range(16):
                await server.publish(f"x.{number}", b"x" * 65_536)
        original = server.core.engine.read_stream

        async def read_stream(stream: str, *arguments: Any, **named: Any) -> Any:
            part = await original(stream, *arguments, **named)
            if part.batches:
                read.add(stream)
            return part

        monkeypatch.setattr(server.core.engine, "read_stream", read_stream)
        call = events(server.stub, start=1)
        await take(call, 1)
        ahead = len(read)
        await take(call, 319)
        call.cancel()

    assert ahead <= 2
    assert 20 == len(read)


async def test_a_reader_that_takes_nothing_is_cut(tmp_path: Path) -> None:
    """When nothing was taken for the time of the limit; control: one that reads is not."""
    limits = ServiceLimits(subscriber_stall_s=0.3)
    async with eventflux(tmp_path, limits=limits) as server:
        await server.create_stream("s", "x")
        for _ in range(40):
            await server.publish("x", b"x" * 500_000)
        idle, busy = events(server.stub, "x", start=1), events(server.stub, "x", start=1)
        await take(busy, 40)
        await eventually(lambda: server.core.counters.values.get("subscribers_cut") == 1)
        got = 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in idle:
                got += 1
        assert not busy.done()
        busy.cancel()

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is caught.value.code()
    assert got < 40


async def test_a_batch_nobody_can_read_is_skipped_and_told(tmp_path: Path) -> None:
    """The server never looks into bodies: one reader of one batch must not pay for it."""
    async with eventflux(tmp_path) as server:
        await server.create_stream("s", "x")
        await server.publish("x", b"before")
        control: Any = event_pb2_grpc.EventServiceStub(server.channel)
        request = event_pb2.PublishRequest()
        request.batch.subject, request.batch.body = "x", b"\xff\xff\xff\xff\xff"
        request.batch.count, request.batch.raw_size = 2, 5
        request.batch.crc32c = _crc(request.batch.body)
        await control.Publish(request)
        await server.publish("x", b"after")
        got = [event async for event in events(server.stub, "x", start=1, end=now_ms() + 1)]

    assert [b"before", b"after"] == [event.payload for event in got]
    assert 2 == sum(int(event.headers.get("lost", 0)) for event in got)


def _crc(body: bytes) -> int:
    from crc32c import crc32c

    return int(crc32c(body))


async def test_a_reader_is_told_when_the_server_goes(tmp_path: Path) -> None:
    """What is there is sent first; then UNAVAILABLE, with the reason."""
    async with eventflux(tmp_path) as server:
        await server.create_stream("s", "x")
        await server.publish("x", *(b"x" for _ in range(500)))
        call = events(server.stub, "x", start=1)
        await take(call, 1)
        server.core.drain.start(5.0)
        got = await take(call, 499)
        error = await error_of(call.read())

    assert 499 == len(got)
    assert isinstance(error, errors.Draining)


async def test_there_is_a_most_of_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream costs a little memory; a reader of more names fewer subjects."""
    monkeypatch.setattr(events_module, "STREAMS_MAX", 2)
    async with eventflux(tmp_path) as server:
        for name in ("a", "b", "c"):
            await server.create_stream(name, name)
        error = await error_of(events(server.stub).read())
        few = events(server.stub, "a", "b", start=1, end=now_ms() + 1)

        assert isinstance(error, errors.Overloaded)
        assert [] == await all_of(few)


async def test_dead_letters_are_no_events(tmp_path: Path) -> None:
    """The record of an event that was given up does not come as one more event."""
    async with eventflux(tmp_path) as server:
        await server.create_stream("s", "x")
        await server.create_stream("dead", "dead")
        control: Any = event_pb2_grpc.EventServiceStub(server.channel)
        config = event_pb2.ConsumerConfig(name="c", deliveries_max=1, dead_letter_stream="dead")
        config.start.all = True
        await control.CreateConsumer(event_pb2.CreateConsumerRequest(stream="s", config=config))
        await server.publish("x", b"poison")
        source = event_pb2.ConsumerSource(stream="s", consumer="c")
        await control.Fetch(event_pb2.FetchRequest(consumer=source, messages_max=1))
        ack = event_pb2.AckItem(settlement=event_pb2.SETTLEMENT_TERMINATE, attempt=1)
        ack.range.first = ack.range.last = 1
        await control.Acknowledge(
            event_pb2.AcknowledgeRequest(consumer=source, ack=event_pb2.Ack(items=[ack]))
        )
        await eventually(lambda: server.core.engine.last_sequence("dead") == 1)
        got = await all_of(events(server.stub, start=1, end=now_ms() + 1))

    assert ["poison"] == got


async def test_a_target_is_of_both_live_and_stored_events(tmp_path: Path) -> None:
    """Who the event is not for gets nothing, whatever way it comes."""
    async with eventflux(tmp_path) as server:
        await server.create_stream("s", "kept")
        mine, theirs = events(server.stub, node="a"), events(server.stub, node="b")
        await listening(server, 2)
        for subject in ("kept", "loose"):
            await send(server.stub, "EVENT", b"for a", {"stream": subject, "target_node": "a"})
            await send(server.stub, "EVENT", b"for all", {"stream": subject})
        got, others = await take(mine, 4), await take(theirs, 2)
        mine.cancel()
        theirs.cancel()

    assert [b"for a", b"for a", b"for all", b"for all"] == sorted(e.payload for e in got)
    assert {b"for all"} == {e.payload for e in others}


async def test_a_dead_reader_leaves_nothing_behind(tmp_path: Path) -> None:
    """Subscriptions, followers and listeners end with the call."""
    async with eventflux(tmp_path) as server:
        await server.create_stream("s", "kept")
        changed = server.core.engine.listeners.streams_changed
        before = len(changed)
        calls = [events(server.stub) for _ in range(5)]
        await listening(server, 5)
        during = len(changed)
        for call in calls:
            call.cancel()
        await listening(server, 0)
        exchange = server.backends.event.exchange

        assert before + 5 == during
        assert before == len(changed)
        assert 0 == len(exchange.live._index)
        assert {} == exchange._followers


async def test_bad_requests_are_refused(tmp_path: Path) -> None:
    """With the reason of every other service."""
    async with eventflux(tmp_path) as server:
        error = await error_of(events(server.stub, "a b").read())
        kinds = [transport_pb2.MESSAGE_TYPE_STATE]
        other = await error_of(events(server.stub, kinds=kinds).read())
        bad = await error_of(server.stub.SendMessage(message("EVENT", b"", {"durability": "x"})))

    assert isinstance(error, errors.InvalidSubject)
    assert ["filter.message_types"] == list(other.fields)
    assert ["headers[durability]"] == list(bad.fields)
