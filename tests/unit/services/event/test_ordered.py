"""Reading a stream in order, over gRPC on the real engine."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from support.events import MUCH, Events, event_service, payloads, sequences
from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2
from tidewire_server.engine.base import StreamSlice

ALL = event_pb2.StartPosition(all=True)


@pytest.fixture
async def events(tmp_path: Path) -> AsyncIterator[Events]:
    async with event_service(tmp_path) as running:
        await running.create_stream("S", "s.>")
        yield running


async def test_every_start_position(events: Events) -> None:
    """Each position starts where it says, also inside a batch."""
    for i in range(3):
        await events.publish("s.a", [b"%d" % (2 * i), b"%d" % (2 * i + 1)])
    stream = await events.stub.GetStream(event_pb2.GetStreamRequest(name="S"))
    last_time = stream.stream.state.last_time
    starts = {
        "all": (ALL, 1),
        "sequence": (event_pb2.StartPosition(sequence=4), 4),
        "last": (event_pb2.StartPosition(last=True), 6),
        "time": (event_pb2.StartPosition(time=last_time), 5),
        "next": (event_pb2.StartPosition(next=True), 7),
        "not said": (event_pb2.StartPosition(), 7),
        "ahead": (event_pb2.StartPosition(sequence=8), 8),
    }
    subscriptions = {
        name: await events.ordered("S", start=start) for name, (start, _) in starts.items()
    }
    await events.publish("s.a", [b"6", b"7"])

    for name, (_, first) in starts.items():
        expected = list(range(first, 9))
        assert expected == await subscriptions[name].sequences(len(expected)), name


async def test_no_gap_and_no_duplicate_between_store_and_tail(events: Events) -> None:
    """Readers that join while others publish get every message once, in order."""
    total, readers = 600, []

    async def publish() -> None:
        for i in range(total // 3):
            await events.publish("s.a", [b"%d" % (3 * i + k) for k in range(3)])

    publishing = asyncio.create_task(publish())
    for _ in range(5):
        readers.append(await events.ordered("S", start=ALL))
        await events.publish("s.b", [b"x"])
    await publishing

    for reader in readers:
        assert list(range(1, total + 6)) == await reader.sequences(total + 5)


async def test_a_reader_without_credit_lags_and_loses_nothing(events: Events) -> None:
    """A slow reader of a stream is behind, and gets all when it takes it."""
    reader = await events.ordered("S", start=ALL, credit=None)
    for _ in range(50):
        await events.publish("s.a", [b"x" * 100] * 20)
    for step in range(1, 51):
        await reader.grant(step * 20)
        delivery = await reader.delivery()
        assert (step - 1) * 20 + 1 == sequences(delivery)[0]
        assert 1000 - step * 20 == delivery.pending


async def test_subjects_select(events: Events) -> None:
    """Only what matches is delivered; the bookmark moves past the rest."""
    for i in range(10):
        await events.publish("s.odd" if i % 2 else "s.even", [b"%d" % i])
    reader = await events.ordered("S", "s.odd", start=ALL, idle_bookmark={"nanos": 100_000_000})

    pending = []
    for i in range(1, 10, 2):
        delivery = await reader.delivery()
        assert [b"%d" % i] == payloads(delivery)
        pending.append(delivery.pending)
    assert [4, 3, 2, 1, 0] == pending
    await events.publish("s.even", [b"x"] * 10)
    bookmark = (await reader.of_kind("bookmark")).bookmark
    while bookmark.sequence < 20:
        bookmark = (await reader.of_kind("bookmark")).bookmark
    assert 20 == bookmark.sequence


async def test_deleting_the_stream_ends_its_readers(events: Events) -> None:
    """A reader of a stream that is deleted is told."""
    reader = await events.ordered("S", start=ALL)
    await events.stub.DeleteStream(event_pb2.DeleteStreamRequest(name="S"))

    with pytest.raises(errors.StreamNotFound):
        await reader.next()


async def test_purged_messages_are_skipped(events: Events) -> None:
    """A reader goes on with what is kept."""
    for _ in range(4):
        await events.publish("s.a", [b"x"])
    await events.stub.PurgeStream(event_pb2.PurgeStreamRequest(name="S", through=2))
    reader = await events.ordered("S", start=ALL)

    assert [3, 4] == await reader.sequences(2)


async def test_reading_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Another server on the same store serves the same sequences."""
    async with event_service(tmp_path) as events:
        await events.create_stream("S", "s.>")
        await events.publish("s.a", [b"1", b"2"])
    async with event_service(tmp_path) as events:
        reader = await events.ordered("S", start=event_pb2.StartPosition(sequence=2))
        await events.publish("s.a", [b"3"])

        assert [2, 3] == await reader.sequences(2)


async def test_fetch_reads_a_stream(events: Events) -> None:
    """A stream can be read by unary calls, each from where the one before ended."""
    for i in range(10):
        await events.publish("s.a", [b"%d" % i] * 10)
    got: list[int] = []
    position = 1
    while position <= 100:
        source = event_pb2.OrderedSource(
            stream="S", start=event_pb2.StartPosition(sequence=position)
        )
        response = await events.stub.Fetch(event_pb2.FetchRequest(ordered=source, messages_max=25))
        got += [s for delivery in response.deliveries for s in sequences(delivery)]
        position = response.next_sequence

    assert list(range(1, 101)) == got


async def test_fetch_reads_no_more_than_it_answers(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored behind the answer is not read; a fetch of more reads all it needs."""
    for i in range(50):
        await events.publish("s.a", [b"%d" % i] * 10)
    read: list[int] = []
    engine = events.core.engine
    unwatched = engine.read_stream

    async def read_stream(*arguments: Any, **limits: Any) -> StreamSlice:
        part = await unwatched(*arguments, **limits)
        read.append(len(part.batches))
        return part

    monkeypatch.setattr(engine, "read_stream", read_stream)
    source = event_pb2.OrderedSource(stream="S", start=event_pb2.StartPosition(sequence=201))
    for wanted, batches in ((1, 1), (10, 1), (11, 2), (300, 30)):
        read.clear()
        request = event_pb2.FetchRequest(ordered=source, messages_max=wanted, bytes_max=1 << 20)
        response = await events.stub.Fetch(request)
        assert batches == len(response.deliveries) == sum(read)


async def test_fetch_waits_for_the_first_message(events: Events) -> None:
    """A fetch at the end of a stream waits as long as it was told to, and not longer."""
    source = event_pb2.OrderedSource(stream="S", start=ALL)
    empty = await events.stub.Fetch(event_pb2.FetchRequest(ordered=source))
    assert (0, 1) == (len(empty.deliveries), empty.next_sequence)
    waiting = asyncio.ensure_future(
        events.stub.Fetch(event_pb2.FetchRequest(ordered=source, wait=Duration(seconds=20)))
    )
    await events.publish("s.a", [b"x"])

    response = await waiting
    assert [1] == [s for delivery in response.deliveries for s in sequences(delivery)]
    with pytest.raises(errors.InvalidArgument):
        await events.call(
            "Fetch", event_pb2.FetchRequest(ordered=source, wait=Duration(seconds=31))
        )


async def test_acks_do_not_belong_here(events: Events) -> None:
    """To acknowledge what is not acknowledged is an error."""
    reader = await events.ordered("S", start=ALL, credit=MUCH)
    item = event_pb2.AckItem(
        range=common_pb2.SequenceRange(first=1, last=1), settlement=event_pb2.SETTLEMENT_DONE
    )
    await reader.call.write(event_pb2.SubscribeRequest(ack=event_pb2.Ack(items=[item])))

    with pytest.raises(errors.InvalidArgument):
        await reader.next()
