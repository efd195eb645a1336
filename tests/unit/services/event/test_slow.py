"""Slow subscribers: bounded, told what they lost, and cut off when they stall."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.events import MUCH, Subscription, event_service, payloads
from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import encode_payloads
from tidewire.wire.spliced import Spliced
from tidewire_server.core import ServiceLimits
from tidewire_server.services.event import live as live_module
from tidewire_server.services.event.allowance import Allowance
from tidewire_server.services.event.live import LiveBuffer, LiveHub
from tidewire_server.services.event.subscribe import SubscribeSession

RESPONSE = event_pb2.SubscribeResponse(delivery=event_pb2.Delivery())


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(1, 7), st.integers(0, 70)),
            st.tuples(st.just("pop"), st.just(0), st.just(0)),
        ),
        max_size=60,
    )
)
def test_what_was_put_is_sent_lost_or_waiting(steps: list[tuple[str, int, int]]) -> None:
    """Whatever the order: the bounds hold, order is kept, and every message is accounted for."""
    buffer = LiveBuffer(Allowance(MUCH), messages_max=10, bytes_max=100)
    put = sent = told = 0
    for kind, messages, body_bytes in steps:
        if kind == "put":
            buffer.put(RESPONSE, messages, body_bytes)
            put += messages
        else:
            before = buffer.messages
            response = buffer.pop(0.0)
            assert not isinstance(response, Spliced)
            if response is not None and response.WhichOneof("kind") == "lost":
                told += response.lost.messages
                assert told == response.lost.messages_total
            sent += before - buffer.messages
        assert buffer.messages <= 10
        assert buffer.bytes <= 100
        assert put == sent + buffer.lost_total + buffer.messages
        assert buffer.lost_total == told + buffer.lost_messages


def test_a_batch_over_the_bounds_goes_alone() -> None:
    """A batch that is larger than the buffer is taken when nothing else waits."""
    buffer = LiveBuffer(Allowance(MUCH), messages_max=10, bytes_max=100)
    buffer.put(RESPONSE, 5, 10)

    assert 5 == buffer.put(RESPONSE, 20, 1000)
    assert 20 == buffer.messages
    lost = buffer.pop(0.0)
    assert lost is not None
    assert not isinstance(lost, Spliced)
    assert (5, 5) == (lost.lost.messages, lost.lost.messages_total)


def test_one_response_for_all() -> None:
    """Fan-out builds one response; every subscriber has the same object."""
    hub = LiveHub()
    buffers = [LiveBuffer(Allowance(MUCH), messages_max=10, bytes_max=100) for _ in range(3)]
    for buffer in buffers:
        hub.add(["a.*", "a.>"], buffer)

    fanout = hub.deliver(encode_payloads("a.b", [b"x"]), now=0.0, time_ns=0)

    assert 3 == fanout.receivers
    first, *others = [buffer.pop(0.0) for buffer in buffers]
    assert all(other is first for other in others)
    assert all(buffer.pop(0.0) is None for buffer in buffers)


def test_a_publisher_is_held_only_while_all_are_behind_and_one_moves() -> None:
    """Who reads nothing holds nobody back, nor does one slow reader among faster ones."""
    hub = LiveHub()
    slow, fast = (LiveBuffer(Allowance(MUCH), messages_max=10, bytes_max=100) for _ in range(2))
    hub.add(["a"], slow)
    batch = encode_payloads("a", [b"x"] * 6)
    slow.moved_at = 0.0

    hub.deliver(batch, now=0.05, time_ns=0)
    assert hub.holder("a", 0.05) is slow
    hub.deliver(batch, now=5.0, time_ns=0)
    assert hub.holder("a", 5.0) is None  # it does not move
    hub.add(["a"], fast)
    slow.moved_at = 5.0
    hub.deliver(batch, now=5.0, time_ns=0)
    assert hub.holder("a", 5.0) is slow
    fast.pop(5.0)
    fast.pop(5.0)
    hub.remove(["a"], slow)
    hub.deliver(batch, now=5.0, time_ns=0)
    assert hub.holder("a", 5.0) is fast


async def test_who_is_held_back_goes_on_as_soon_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Taking a batch lets publishers go, and so does a batch that does not come after all."""
    monkeypatch.setattr(live_module, "HOLD_S", 3600.0)
    monkeypatch.setattr(live_module, "HOLD_S_MAX", 3600.0)
    hub = LiveHub()
    buffer = LiveBuffer(Allowance(MUCH), messages_max=10, bytes_max=100)
    hub.add(["a"], buffer)
    batch = encode_payloads("a", [b"x"] * 6)
    assert hub.holder("a", 0.0) is None
    hub.deliver(batch, now=0.0, time_ns=0)
    held = [asyncio.ensure_future(buffer.hold_back()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in held)

    buffer.pop(0.0)

    async with asyncio.timeout(5):
        await asyncio.gather(*held)
        coming = hub.expect(encode_payloads("a", [b"x"] * 8))
        assert coming is not None
        assert hub.holder("a", 3600.0) is buffer  # it has nothing to take: it keeps up
        waiting = asyncio.ensure_future(buffer.hold_back())
        await asyncio.sleep(0)
        assert not waiting.done()
        coming.arrived()
        await waiting
    assert hub.holder("a", 0.0) is None
    assert hub.expect(encode_payloads("b", [b"x"])) is None


async def test_publishers_go_on_in_a_row_one_for_each_batch_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that wait are let go as room comes, first come first served, not all at once."""
    monkeypatch.setattr(live_module, "HOLD_S", 3600.0)
    monkeypatch.setattr(live_module, "HOLD_S_MAX", 3600.0)
    buffer = LiveBuffer(Allowance(MUCH), messages_max=8, bytes_max=100)
    for _ in range(5):
        buffer.put(RESPONSE, 1, 0)
    held = [asyncio.ensure_future(buffer.hold_back()) for _ in range(3)]
    await asyncio.sleep(0)

    gone = []
    async with asyncio.timeout(5):
        for number in range(2):
            buffer.pop(0.0)
            await held[number]
            gone.append([task.done() for task in held])

    assert [[True, False, False], [True, True, False]] == gone
    held[2].cancel()


def test_half_of_the_receivers_set_the_pace() -> None:
    """One of three that keeps up lets nobody run ahead of the two others; two of four do."""
    hub = LiveHub()
    buffers = [LiveBuffer(Allowance(MUCH), messages_max=10, bytes_max=100) for _ in range(3)]
    for buffer in buffers:
        hub.add(["a"], buffer)
    hub.deliver(encode_payloads("a", [b"x"] * 6), now=0.0, time_ns=0)
    buffers[2].pop(0.0)

    assert hub.holder("a", 0.0) in buffers[:2]
    hub.add(["a"], LiveBuffer(Allowance(MUCH), messages_max=10, bytes_max=100))
    assert hub.holder("a", 0.0) is None


def test_many_receivers_are_looked_at_in_part() -> None:
    """Of a hundred that are all behind a few are looked at, and the batch may wait longer."""
    hub = LiveHub()
    buffers = [LiveBuffer(Allowance(MUCH), messages_max=10, bytes_max=100) for _ in range(100)]
    for buffer in buffers:
        hub.add(["a"], buffer)
    hub.deliver(encode_payloads("a", [b"x"] * 6), now=0.0, time_ns=0)

    holder = hub.holder("a", 0.0)

    assert holder is not None
    assert 100 // live_module.LOOKED_AT_MAX == holder.crowd
    for buffer in buffers:
        buffer.pop(0.0)
    assert hub.holder("a", 0.0) is None


async def test_nobody_is_held_back_for_long() -> None:
    """A subscriber that takes nothing more costs a publisher a bounded time."""
    buffer = LiveBuffer(Allowance(MUCH), messages_max=10, bytes_max=100)
    buffer.put(RESPONSE, 6, 0)

    async with asyncio.timeout(5):
        await buffer.hold_back()

    assert buffer.is_behind


def test_members_of_a_group_expect_their_part() -> None:
    """What is on its way to a group is shared: one batch does not make all members be behind."""
    hub = LiveHub()
    for _ in range(2):
        hub.add(["a"], LiveBuffer(Allowance(MUCH), messages_max=10, bytes_max=100, group="g"))
    batch = encode_payloads("a", [b"x"] * 10)

    first = hub.expect(batch)
    assert hub.holder("a", 0.0) is None
    second = hub.expect(batch)
    assert hub.holder("a", 0.0) is not None
    for coming in (first, second):
        assert coming is not None
        coming.arrived()
    assert hub.holder("a", 0.0) is None


@pytest.fixture(params=[True, False], ids=["held", "not held"])
def is_held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether publishers wait for who listens live, then for much longer than any machine needs."""
    if request.param:
        for name in ("HOLD_S", "HOLD_S_MAX", "MOVING_S"):
            monkeypatch.setattr(live_module, name, 5.0)
    else:
        monkeypatch.setattr(live_module, "_holder", lambda *_: None)
    return bool(request.param)


async def lost_of(messages: int, live: Subscription, credit: int = 0) -> int:
    """Read until so many came or were lost, granting so many ahead, and say how many were lost."""
    got = lost = 0
    while got + lost < messages:
        response = await live.next()
        lost += response.lost.messages
        if response.WhichOneof("kind") == "delivery":
            got += response.delivery.batch.count
            if credit:
                await live.grant(got + lost + credit)
    return lost


async def test_a_burst_of_commits_waits_for_a_live_reader(tmp_path: Path, is_held: bool) -> None:
    """
    Far more than a subscriber's bound is on its way through the store, and one that reads gets
    all; control: without holding back, it loses.
    """
    limits = ServiceLimits(subscriber_pending_bytes_max=100_000)
    batch = encode_payloads("s.a", [b"x" * 1000] * 10)
    async with event_service(tmp_path, limits=limits) as events:
        await events.create_stream("S", "s.>")
        # Without credit nothing is on its way to the control: no disk is too slow for it to lose.
        live = await events.live("s.>", credit=MUCH if is_held else None)
        publisher = await events.publisher(quiet=True)

        async def publish() -> None:
            for publish_id in range(1, 301):
                await publisher.publish(publish_id, batch)
            await publisher.call.done_writing()

        publishing = asyncio.create_task(publish())
        if not is_held:
            # Or a slow disk would hold back in our place.
            async with asyncio.timeout(10.0):
                while not events.core.counters.values.get("events_lost", 0):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await live.grant(1 << 40)
        lost = await lost_of(3000, live)
        await publishing

        assert is_held == (lost == 0)
        assert lost == events.core.counters.values.get("events_lost", 0)


async def test_publishers_wait_before_they_hand_over(tmp_path: Path, is_held: bool) -> None:
    """
    What a hundred publishers have in hand is more than a live subscriber's bound, and one that
    reads gets all; control: without holding back, it loses.
    """
    limits = ServiceLimits(subscriber_pending_bytes_max=100_000)
    async with event_service(tmp_path, limits=limits) as events:
        live = await events.live(
            "s", credit=common_pb2.Credit(messages_until=10, bytes_until=1 << 50)
        )
        publishing = [
            asyncio.create_task(events.publish("s", [b"x" * 1000] * 10)) for _ in range(100)
        ]
        if not is_held:
            await asyncio.gather(*publishing)  # or the reader might keep up
        lost = await lost_of(1000, live, credit=10)
        await asyncio.gather(*publishing)

        assert is_held == (lost == 0)
        assert lost == events.core.counters.values.get("events_lost", 0)


async def test_sent_is_received_plus_lost(tmp_path: Path) -> None:
    """
    A subscriber that takes nothing for a while loses whole batches and is told how many messages.
    """
    limits = ServiceLimits(subscriber_pending_messages_max=100)
    async with event_service(tmp_path, limits=limits) as events:
        live = await events.live("s", credit=None)
        for i in range(100):
            await events.publish("s", [b"%d" % i] * 7)
        await live.grant(100_000)
        lost = (await live.of_kind("lost")).lost
        got: list[bytes] = []
        while not got or got[-1] != b"99":
            delivery = await live.delivery()
            got += payloads(delivery)

        assert 700 == len(got) + lost.messages
        assert 98 == len(got)  # fourteen batches fit
        assert lost.messages == lost.messages_total == events.core.counters.values["events_lost"]
        assert list(range(86, 100)) == sorted({int(payload) for payload in got})


async def test_who_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    """
    Events wait and none is taken for the time limit: the subscription ends with SLOW_CONSUMER.
    """
    limits = ServiceLimits(subscriber_stall_s=0.3)
    async with event_service(tmp_path, limits=limits) as events:
        slow = await events.live("s", credit=None)
        idle = await events.live("other", idle_bookmark={"nanos": 200_000_000})
        await events.publish("s", [b"x"])

        with pytest.raises(errors.SlowConsumer):
            await slow.next()
        assert 1 == events.core.counters.values["subscribers_cut"]
        assert 0 == (await events.publish("s", [b"x"])).receivers
        # Control: to have nothing to take is no stall.
        for _ in range(4):
            await idle.of_kind("bookmark")


async def test_a_client_that_never_reads_costs_bounded_memory_and_is_cut_off(
    tmp_path: Path,
) -> None:
    """
    Far more than the wire's windows hold is published to a client that reads nothing, over gRPC.
    """
    limits = ServiceLimits(subscriber_stall_s=0.5, subscriber_pending_bytes_max=1_000_000)
    async with event_service(tmp_path, limits=limits) as events:
        slow = await events.live("s")
        healthy = await events.live("s")
        sizes: list[int] = []
        receivers = 2
        for _ in range(2000):
            receivers = (await events.publish("s", [b"x" * 100_000])).receivers
            sizes += [b.bytes for _, b in events.service._exchange.live._index]
            assert 100_000 == len(payloads(await healthy.delivery())[0])
            if receivers == 1:
                break

        assert 1 == receivers
        assert max(sizes) <= 1_000_000
        assert 1 == events.core.counters.values["subscribers_cut"]
        assert events.core.counters.values["events_lost"] > 0
        with pytest.raises(errors.SlowConsumer):
            while True:  # what the wire had taken before still comes
                await slow.next()


class StuckContext:
    """A client whose wire takes the greeting and nothing more."""

    def __init__(self) -> None:
        self.writes = 0

    async def write(self, _response: Any) -> None:
        self.writes += 1
        if self.writes > 1:
            await asyncio.Event().wait()


async def test_a_wire_that_does_not_take_is_cut_off(tmp_path: Path) -> None:
    """A write that does not end within the time limit ends the call, and leaves no subscription."""
    limits = ServiceLimits(subscriber_stall_s=0.2)
    async with event_service(tmp_path, limits=limits) as events:
        await events.create_stream("S", "s")
        await events.publish("s", [b"x"])
        open_ = event_pb2.SubscribeOpen(codecs=events.core.codecs, credit=MUCH)
        open_.ordered.stream = "S"
        open_.ordered.start.all = True

        async def requests() -> AsyncIterator[event_pb2.SubscribeRequest]:
            yield event_pb2.SubscribeRequest(open=open_)
            await asyncio.Event().wait()

        exchange = events.service._exchange
        context: Any = StuckContext()
        with pytest.raises(errors.SlowConsumer):
            await SubscribeSession(exchange, requests(), context).run()

        assert not exchange._followers
        assert not exchange._sessions
