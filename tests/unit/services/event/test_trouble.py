"""Consumers and readers when the store refuses, is damaged, or is late."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.events import Events, event_service, payloads, sequences
from tidewire import errors
from tidewire.errors import from_status
from tidewire.v1 import event_pb2
from tidewire.wire.batch import encode_payloads
from tidewire_server.engine.base import StoredBatch, StreamSlice
from tidewire_server.services.event import progress
from tidewire_server.services.event.follow import StreamFollower

ALL = event_pb2.StartPosition(all=True)


@pytest.fixture
async def events(tmp_path: Path) -> AsyncIterator[Events]:
    async with event_service(tmp_path) as running:
        await running.create_stream("S", "s.>")
        yield running


class Refusing:
    """Refuses commits while it is asked to."""

    def __init__(self, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: errors.TidewireError | None = None
        self.refused = asyncio.Event()
        commit = events.core.engine.commit

        async def refuse(transaction: Any) -> Any:
            if self.error is not None:
                self.refused.set()
                raise self.error
            return await commit(transaction)

        monkeypatch.setattr(events.core.engine, "commit", refuse)


async def test_an_ack_that_is_not_stored_says_so_and_is_stored_later(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full acknowledgements fail; when it is not, what was settled is stored."""
    monkeypatch.setattr(progress, "RETRY_S", 0.05)
    await events.create_consumer("S", "c")
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"x"] * 3)
    await one.delivery()
    engine = Refusing(events, monkeypatch)
    engine.error = errors.StoreFull("the disk is full")

    result = await one.settle(1, 2)

    assert isinstance(from_status(result.failed[0].status), errors.StoreFull)
    assert 0 == (await events.consumer("S", "c")).state.ack_floor
    engine.error = None
    await events.consumer_where("S", "c", lambda c: c.state.ack_floor == 2)


async def test_a_dead_letter_that_is_refused_waits(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A paused dead-letter stream loses nothing: the message is recorded when it takes it."""
    monkeypatch.setattr(progress, "RETRY_S", 0.05)
    config = event_pb2.StreamConfig(name="DEAD", subjects=["dead"], paused=True)
    await events.call("CreateStream", event_pb2.CreateStreamRequest(config=config))
    await events.create_consumer("S", "c", dead_letter_stream="DEAD")
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"1", b"2"])
    await one.delivery()

    result = await one.settle(1, 1, event_pb2.SETTLEMENT_TERMINATE)

    assert isinstance(from_status(result.failed[0].status), errors.StreamPaused)
    assert not (await one.settle(2, 2)).failed  # others are not held up
    assert 1 == (await events.consumer("S", "c")).ack_pending
    config.paused = False
    await events.call("UpdateStream", event_pb2.UpdateStreamRequest(config=config))
    dead = await events.ordered("DEAD", start=ALL)
    assert [b"1"] == payloads(await dead.delivery())
    await events.consumer_where("S", "c", lambda c: c.state.ack_floor == 2)


async def test_a_dead_letter_stream_that_is_gone_drops_and_counts(events: Events) -> None:
    """
    When the dead-letter stream was deleted, messages are dropped and counted, not kept for ever.
    """
    await events.create_stream("DEAD", "dead")
    await events.create_consumer("S", "c", dead_letter_stream="DEAD")
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"1"])
    await one.delivery()
    await events.call("DeleteStream", event_pb2.DeleteStreamRequest(name="DEAD"))

    assert not (await one.settle(1, 1, event_pb2.SETTLEMENT_TERMINATE)).failed
    consumer = await events.consumer("S", "c")
    assert (1, 1) == (consumer.state.ack_floor, consumer.state.given_up)


async def test_many_dead_letters_are_stored_by_parts(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole batch is given up: one letter for each message, in transactions of bounded size."""
    monkeypatch.setattr(progress, "DEAD_LETTER_BYTES_MAX", 2000)
    await events.create_stream("DEAD", "dead")
    await events.create_consumer("S", "c", dead_letter_stream="DEAD")
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"%d" % i for i in range(200)])
    await one.delivery()
    await one.settle(1, 200, event_pb2.SETTLEMENT_TERMINATE)
    dead = await events.ordered("DEAD", start=ALL)

    letters = [await dead.delivery() for _ in range(200)]

    assert list(range(1, 201)) == sorted(letter.dead_letter.sequence for letter in letters)
    assert all(b"%d" % (d.dead_letter.sequence - 1) == payloads(d)[0] for d in letters)
    assert 200 == (await events.consumer("S", "c")).state.ack_floor


async def test_a_damaged_range_is_left_out_and_the_rest_is_served(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A consumer goes on behind what cannot be read; a reader in order is told which range it is.
    """
    for _ in range(4):
        await events.publish("s.a", [b"x"] * 5)
    read = events.core.engine.read_stream

    async def damaged(stream: str, first_sequence: int, **limits: Any) -> StreamSlice:
        if first_sequence <= 10:
            raise errors.DataCorrupt(
                "damaged", metadata={"stream": "S", "first_sequence": 1, "last_sequence": 10}
            )
        return await read(stream, first_sequence, **limits)

    monkeypatch.setattr(events.core.engine, "read_stream", damaged)
    await events.create_consumer("S", "c")
    one = await events.consume("S", "c")
    reader = await events.ordered("S", start=ALL)

    assert list(range(11, 21)) == await one.sequences(10)
    with pytest.raises(errors.DataCorrupt) as caught:
        await reader.next()
    assert 10 == caught.value.figure("last_sequence")
    assert 10 == events.core.counters.values["events_damaged_skipped"]


async def test_an_engine_that_fails_ends_the_subscription(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine says on reading reaches the client as it is; nothing hangs."""

    async def fail(*_: Any, **__: Any) -> StreamSlice:
        raise errors.Unavailable("the store has failed")

    monkeypatch.setattr(events.core.engine, "read_stream", fail)
    await events.create_consumer("S", "c")
    await events.publish("s.a", [b"x"])
    one = await events.consume("S", "c")

    with pytest.raises(errors.Unavailable):
        await one.next()


async def test_a_busy_store_delays_and_a_mistake_is_told(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A store that is overloaded is asked again; a mistake of ours ends the call instead of hanging.
    """
    read = events.core.engine.read_stream
    problems: list[Exception] = [errors.Overloaded("busy", retry_after_s=0.01), KeyError("ours")]

    async def busy(*arguments: Any, **limits: Any) -> StreamSlice:
        if len(problems) > 1:
            raise problems.pop(0)
        return await read(*arguments, **limits)

    monkeypatch.setattr(events.core.engine, "read_stream", busy)
    await events.create_consumer("S", "c")
    await events.publish("s.a", [b"x"])
    one = await events.consume("S", "c")
    assert [1] == await one.sequences(1)

    async def broken(*_: Any, **__: Any) -> StreamSlice:
        raise problems[0]

    monkeypatch.setattr(events.core.engine, "read_stream", broken)
    await events.create_consumer("S", "d")
    with pytest.raises(errors.Internal):
        await (await events.consume("S", "d")).next()


async def test_a_fetch_fits_its_bytes(events: Events) -> None:
    """An answer holds at least one batch, and another only when it fits what was asked for."""
    await events.create_consumer("S", "c")
    for _ in range(4):
        await events.publish("s.a", [b"x" * 1000])
    sources: list[dict[str, Any]] = [
        {"ordered": event_pb2.OrderedSource(stream="S", start=ALL)},
        {"consumer": event_pb2.ConsumerSource(stream="S", consumer="c")},
    ]
    for source in sources:
        for bytes_max, expected in ((10, 1), (2100, 2)):
            request = event_pb2.FetchRequest(bytes_max=bytes_max, **source)
            response = await events.call("Fetch", request)
            assert expected == len(response.deliveries)


class LateStore:
    """A store whose reads show an old state, as a snapshot taken before a commit does."""

    def __init__(self) -> None:
        self.stored: list[StoredBatch] = []
        self.during_read: list[int] = []
        self.follower: StreamFollower | None = None

    def last_sequence(self, stream: str) -> int:
        return self.stored[-1].last_sequence if self.stored else 0

    def append(self, subject: str, count: int) -> StoredBatch:
        first = self.last_sequence("S") + 1
        batch = encode_payloads(subject, [b"x"] * count)
        stored = StoredBatch("S", batch, first, first + count - 1, 0)
        self.stored.append(stored)
        if self.follower is not None:
            self.follower.appended(stored)
        return stored

    async def read_stream(
        self,
        stream: str,
        first_sequence: int,
        *,
        messages_max: int,
        bytes_max: int,
        subjects: Sequence[str] = (),
    ) -> StreamSlice:
        seen = [stored for stored in self.stored if stored.last_sequence >= first_sequence][:2]
        last = self.last_sequence(stream)
        if self.during_read:
            self.append("s", self.during_read.pop())
        await asyncio.sleep(0)
        end = seen[-1].last_sequence + 1 if seen else first_sequence
        return StreamSlice(seen, end, last)


@pytest.mark.parametrize("before", [0, 1, 2, 5])
async def test_a_commit_during_a_read_is_not_missed(before: int) -> None:
    """Whatever is stored while a read is under way is read next, once."""
    store = LateStore()
    for _ in range(before):
        store.append("s", 3)
    engine: Any = store
    follower = store.follower = StreamFollower(engine, "S", 1)
    store.during_read = [1]
    got: list[int] = []
    for _ in range(3):
        while True:
            filled = await follower.fill()
            while follower.head is not None:
                head = follower.head
                first = max(head.first_sequence, follower.position)
                got += range(first, head.last_sequence + 1)
                follower.advance(head.last_sequence)
            if not filled and follower.is_caught_up:
                break
        assert list(range(1, store.last_sequence("S") + 1)) == got
        store.append("s", 2)


async def test_a_follower_that_is_not_read_keeps_its_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tail that waits is bounded; what does not fit is read later, in order."""
    monkeypatch.setattr("tidewire_server.services.event.follow.TAIL_BATCHES_MAX", 3)
    store = LateStore()
    engine: Any = store
    follower = store.follower = StreamFollower(engine, "S", 1)
    assert not await follower.fill()
    for _ in range(10):
        store.append("s", 1)
    assert 3 == len(follower._batches)
    got = []
    while await follower.fill() or not follower.is_caught_up:
        assert follower.head is not None
        got.append(follower.head.first_sequence)
        follower.advance(follower.head.last_sequence)

    assert list(range(1, 11)) == got


async def test_deliveries_in_flight_survive_many_ends(events: Events) -> None:
    """
    Subscriptions come and go while messages are published: every message is settled once at least.
    """
    await events.create_consumer("S", "c", ack_pending_max=50)
    total = 300
    settled: set[int] = set()

    async def publish() -> None:
        for _ in range(total // 5):
            await events.publish("s.a", [b"x"] * 5)

    publishing = asyncio.create_task(publish())
    while len(settled) < total:
        one = await events.consume("S", "c")
        for round_ in range(4):
            if len(settled) == total:
                break
            delivery = await one.delivery()
            got = sequences(delivery)
            if round_ < 3:
                assert not (await one.settle(got[0], got[-1], attempt=delivery.attempt)).failed
                settled.update(got)
        one.close()
    await publishing

    assert set(range(1, total + 1)) == settled
    await events.consumer_where("S", "c", lambda c: c.state.ack_floor == total)
