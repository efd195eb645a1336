"""Durable consumers over gRPC, on the real engine."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from support.events import Events, event_service, payloads, sequences
from tidewire import errors
from tidewire.errors import from_status
from tidewire.v1 import common_pb2, event_pb2
from tidewire_server.engine.base import Settle, Transaction
from tidewire_server.members import Life
from tidewire_server.services.event import consumer as consumer_module

DONE = event_pb2.SETTLEMENT_DONE
RETRY = event_pb2.SETTLEMENT_RETRY
TERMINATE = event_pb2.SETTLEMENT_TERMINATE
EXTEND = event_pb2.SETTLEMENT_EXTEND


@pytest.fixture
async def events(tmp_path: Path) -> AsyncIterator[Events]:
    async with event_service(tmp_path) as running:
        await running.create_stream("S", "s.>")
        yield running


async def test_what_is_settled_is_not_delivered_again(tmp_path: Path) -> None:
    """Settled ranges, also inside a batch, outlive a restart; the rest is delivered again."""
    async with event_service(tmp_path) as events:
        await events.create_stream("S", "s.>")
        await events.create_consumer("S", "c")
        await events.publish("s.a", [b"%d" % i for i in range(1, 11)])
        first = await events.consume("S", "c")
        delivery = await first.delivery()
        assert (1, 0) == (delivery.attempt, delivery.pending)
        result = await first.settle(1, 4)
        assert common_pb2.DURABILITY_FSYNC == result.durability
        assert not result.failed
        await first.settle(7, 7)
    async with event_service(tmp_path) as events:
        assert (4, 5) == (
            (await events.consumer("S", "c")).state.ack_floor,
            (await events.consumer("S", "c")).ack_pending,
        )
        second = await events.consume("S", "c")
        again = await second.delivery()
        assert [5, 6, 8, 9, 10] == sequences(again)
        assert [b"5", b"6", b"8", b"9", b"10"] == payloads(again)
        assert 2 == again.attempt
        await second.settle(5, 10)
        await events.publish("s.a", [b"11"])
        assert [11] == sequences(await second.delivery())
        consumer = await events.consumer("S", "c")
        assert (10, 1, 0, 1) == (
            consumer.state.ack_floor,
            consumer.ack_pending,
            consumer.pending,
            consumer.subscriptions,
        )


async def test_subscriptions_share_by_their_credit(events: Events) -> None:
    """Each message goes to one subscription, as far as its credit goes, and batches are cut."""
    await events.create_consumer("S", "c", ack_pending_max=50)
    one = await events.consume("S", "c", credit=None)
    two = await events.consume("S", "c", credit=None)
    await events.publish("s.a", [b"x"] * 20)
    await one.grant(3)
    assert [1, 2, 3] == await one.sequences(3)
    await two.grant(4)
    assert [4, 5, 6, 7] == await two.sequences(4)
    for _ in range(10):
        await events.publish("s.a", [b"x"] * 2)
    await one.grant(1000)
    assert [*range(8, 21)] == (await one.sequences(33))[:13]
    await two.grant(1000)
    await two.settle(1, 40)
    for _ in range(10):
        await events.publish("s.a", [b"x"] * 2)

    # Batch by batch in turn: both get their share.
    assert 10 == len(await one.sequences(10)) == len(await two.sequences(10))


async def test_unsettled_messages_are_bounded(events: Events) -> None:
    """Over all subscriptions no more than the limit is out; a batch is cut there too."""
    await events.create_consumer("S", "c", ack_pending_max=7)
    one = await events.consume("S", "c", idle_bookmark={"nanos": 100_000_000})
    await events.publish("s.a", [b"x"] * 20)

    assert list(range(1, 8)) == await one.sequences(7)
    assert "bookmark" == (await one.next()).WhichOneof("kind")
    await one.settle(1, 3)
    assert [8, 9, 10] == await one.sequences(3)


async def test_a_batch_is_not_cut_to_crumbs(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit, room gathers before the next piece goes out: each has all of the body."""
    monkeypatch.setattr(consumer_module, "ROOM_WAIT_S", 3600.0)
    await events.create_consumer("S", "c", ack_pending_max=20)
    one = await events.consume("S", "c", idle_bookmark={"nanos": 100_000_000})
    await events.publish("s.a", [b"x"] * 200)
    assert 20 == len(sequences(await one.delivery()))
    for sequence in range(1, 5):
        await one.settle(sequence, sequence)
    assert "bookmark" == (await one.next()).WhichOneof("kind")
    await one.settle(5, 5)
    assert [21, 22, 23, 24, 25] == sequences(await one.delivery())

    # Not for ever: what is settled late by others must not hold up what there is room for.
    monkeypatch.setattr(consumer_module, "ROOM_WAIT_S", 0.01)
    await events.create_consumer("S", "d", ack_pending_max=20)
    two = await events.consume("S", "d")
    assert 20 == len(sequences(await two.delivery()))
    await two.settle(7, 7)
    assert [21] == sequences(await two.delivery())


async def test_a_subscription_that_ends_gives_back(events: Events) -> None:
    """What a client had when it went goes to the others at once."""
    await events.create_consumer("S", "c")
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"x"] * 5)
    await one.delivery()
    await one.settle(1, 2)
    two = await events.consume("S", "c")
    one.close()

    again = await two.delivery()
    assert ([3, 4, 5], 2) == (sequences(again), again.attempt)


async def test_what_is_taken_back_in_part_comes_in_the_order_of_the_stream(events: Events) -> None:
    """Messages of one batch that were delivered more and less often go out in sequence."""
    await events.create_consumer("S", "c")
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"x"] * 6)
    await one.delivery()
    for sequences_again in ([1, 2], [5]):
        await one.settle(sequences_again[0], sequences_again[-1], RETRY, attempt=1)
        assert sequences_again == sequences(await one.delivery())
    two = await events.consume("S", "c")
    one.close()

    again = [await two.delivery() for _ in range(4)]

    assert [([1, 2], 3), ([3, 4], 2), ([5], 3), ([6], 2)] == [
        (sequences(delivery), delivery.attempt) for delivery in again
    ]


async def test_a_client_that_ends_its_requests_is_done(events: Events) -> None:
    """To half-close a consumer's subscription ends it cleanly after its answers."""
    await events.create_consumer("S", "c")
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"x"])
    await one.delivery()
    item = event_pb2.AckItem(range=common_pb2.SequenceRange(first=1, last=1), settlement=DONE)
    await one.call.write(event_pb2.SubscribeRequest(ack=event_pb2.Ack(ack_id=1, items=[item])))
    await one.call.done_writing()

    assert 1 == (await one.of_kind("ack_result")).ack_result.ack_id
    with pytest.raises(EOFError):
        await one.next()


@pytest.mark.parametrize("life", [Life.DEAD, Life.LEFT])
async def test_a_dead_member_gives_back_at_once(events: Events, life: Life) -> None:
    """Deliveries that hang on a member's life go to others when it is over, and it gets no more."""
    await events.create_consumer("S", "c")
    members = events.core.members
    members.set_life("n1", Life.ALIVE, 1)
    one = await events.consume("S", "c", node_id="n1")
    await events.publish("s.a", [b"x"] * 3)
    await one.delivery()
    two = await events.consume("S", "c")
    fetched = await fetch(events, node_id="n1")
    assert not fetched.deliveries

    members.set_life("n1", life, 1)

    assert ([1, 2, 3], 2) == (sequences(again := await two.delivery()), again.attempt)
    await events.publish("s.a", [b"x"])
    await events.publish("s.a", [b"x"])
    assert [4, 5] == await two.sequences(2)


async def test_a_dead_members_stream_ends(events: Events) -> None:
    """
    Another process that joins as the same member gets the deliveries: the stream that was there is
    over, as not every wire notices that a process was killed.
    """
    await events.create_consumer("S", "c")
    members = events.core.members
    members.set_life("n1", Life.ALIVE, 1)
    one = await events.consume("S", "c", node_id="n1")
    members.set_life("n1", Life.DEAD, 1)
    members.set_life("n1", Life.ALIVE, 2)
    two = await events.consume("S", "c", node_id="n1")
    await events.publish("s.a", [b"x"])
    await events.publish("s.a", [b"x"])

    assert [1, 2] == await two.sequences(2)
    with pytest.raises(errors.ConnectionLost, match="n1"):
        await one.next()


async def test_the_ack_wait_and_extending(events: Events) -> None:
    """A delivery that is not settled in time is made again, elsewhere; extending prevents that."""
    await events.create_consumer("S", "c", ack_wait={"nanos": 500_000_000})
    one = await events.consume("S", "c", credit=common_pb2.Credit(messages_until=2, bytes_until=99))
    await events.publish("s.a", [b"x", b"x"])
    await one.delivery()
    two = await events.consume("S", "c")
    waiting = asyncio.ensure_future(two.delivery())
    while not waiting.done():
        await one.settle(2, 2, EXTEND, attempt=1)
        await asyncio.wait([waiting], timeout=0.05)

    again = await waiting
    assert ([1], 2) == (sequences(again), again.attempt)
    assert not (await two.settle(1, 1, EXTEND, attempt=2)).failed
    stale = await one.settle(1, 1, attempt=1)
    assert isinstance(from_status(stale.failed[0].status), errors.StaleAck)
    assert not (await one.settle(2, 2, attempt=1)).failed
    assert not (await two.settle(1, 1, attempt=2)).failed
    assert isinstance(from_status((await one.settle(1, 2)).failed[0].status), errors.NotDelivered)


async def test_retry_with_a_delay_and_with_backoff(events: Events) -> None:
    """A message comes again after the delay that is said, else after the consumer's back-off."""
    await events.create_consumer("S", "c", backoff=[{"nanos": 200_000_000}])
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"x"])
    await one.delivery()
    clock = events.core.clock
    began = clock()
    await one.settle(1, 1, RETRY, attempt=1)
    assert 2 == (await one.delivery()).attempt
    assert clock() - began >= 0.2
    began = clock()
    await one.settle(1, 1, RETRY, attempt=2, delay={"nanos": 400_000_000})
    assert 3 == (await one.delivery()).attempt
    assert clock() - began >= 0.4


async def test_subjects_select_and_the_floor_moves_over_the_rest(events: Events) -> None:
    """A consumer gets what matches only, and what does not match is not pending."""
    await events.create_consumer("S", "c", subjects=["s.a"])
    for i in range(6):
        await events.publish("s.a" if i % 2 else "s.b", [b"x"])
    assert 3 == (await events.consumer("S", "c")).pending
    one = await events.consume("S", "c")

    assert [2, 4, 6] == await one.sequences(3)
    await one.settle(1, 6)
    consumer = await events.consumer("S", "c")
    assert (6, 0, 0) == (consumer.state.ack_floor, consumer.pending, consumer.ack_pending)


async def test_dead_letters_have_the_one_message_and_the_reason(events: Events) -> None:
    """
    What is given up is stored narrowed to the message, with why, and settled in the same commit.
    """
    await events.create_stream("DEAD", "dead")
    await events.create_consumer("S", "c", dead_letter_stream="DEAD", deliveries_max=2)
    live = await events.live("s.>")
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"1", b"2", b"3"], batch_message_ids=["1", "2", "3"])
    await one.delivery()
    await one.settle(2, 2, TERMINATE, attempt=1, reason="poison")
    await one.settle(3, 3, RETRY, attempt=1)
    await one.delivery()
    await one.settle(3, 3, RETRY, attempt=2, reason="no table")

    dead = await events.ordered("DEAD", start=event_pb2.StartPosition(all=True))
    letters = [await dead.delivery(), await dead.delivery()]

    assert [[b"2"], [b"3"]] == [payloads(letter) for letter in letters]
    assert [("S", "c", 2, 1, "poison"), ("S", "c", 3, 2, "no table")] == [
        (d.stream, d.consumer, d.sequence, d.attempts, d.reason)
        for d in (letter.dead_letter for letter in letters)
    ]
    assert ["s.a", "s.a"] == [letter.batch.subject for letter in letters]
    consumer = await events.consumer("S", "c")
    assert (1, 2) == (consumer.ack_pending, consumer.state.given_up)
    await events.publish("s.b", [b"4"])
    await live.delivery()
    assert [b"4"] == payloads(await live.delivery())  # a dead letter is not an event again


async def test_without_a_dead_letter_stream_it_is_dropped_and_counted(events: Events) -> None:
    """Silence past the last delivery gives a message up."""
    await events.create_consumer("S", "c", ack_wait={"nanos": 100_000_000}, deliveries_max=2)
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"1"])
    assert [1, 2] == [(await one.delivery()).attempt for _ in range(2)]
    consumer = await events.consumer_where("S", "c", lambda c: bool(c.state.given_up))

    assert (1, 1, 0) == (consumer.state.ack_floor, consumer.state.given_up, consumer.ack_pending)
    assert 1 == events.core.counters.values["events_given_up"]


async def test_a_paused_stream_delivers_nothing(events: Events) -> None:
    """Consumers get nothing while the stream is paused, and go on when it is resumed."""
    await events.publish("s.a", [b"x"])
    config = event_pb2.StreamConfig(name="S", subjects=["s.>"], paused=True)
    await events.stub.UpdateStream(event_pb2.UpdateStreamRequest(config=config))
    await events.create_consumer("S", "c")
    one = await events.consume("S", "c", idle_bookmark={"nanos": 100_000_000})
    assert "bookmark" == (await one.next()).WhichOneof("kind")
    config.paused = False
    await events.stub.UpdateStream(event_pb2.UpdateStreamRequest(config=config))

    assert [1] == await one.sequences(1)


@pytest.mark.parametrize("what", ["consumer", "stream"])
async def test_deleting_ends_the_subscriptions(events: Events, what: str) -> None:
    """Who uses a consumer that is deleted, or whose stream is, is told."""
    await events.create_consumer("S", "c")
    one = await events.consume("S", "c")
    if what == "consumer":
        await events.stub.DeleteConsumer(event_pb2.DeleteConsumerRequest(stream="S", consumer="c"))
        with pytest.raises(errors.ConsumerNotFound):
            await one.next()
    else:
        await events.stub.DeleteStream(event_pb2.DeleteStreamRequest(name="S"))
        with pytest.raises(errors.StreamNotFound):
            await one.next()


async def test_a_checkpoint_moves_the_consumer(events: Events) -> None:
    """Progress that another service commits moves a consumer that is at work."""
    await events.create_consumer("S", "c", ack_pending_max=2)
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"x"] * 10)
    assert [1, 2] == await one.sequences(2)

    settle = Settle("S", "c", through=7)
    await events.core.engine.commit(Transaction(settles=(settle,)))

    assert [8, 9] == await one.sequences(2)
    assert 7 == (await events.consumer("S", "c")).state.ack_floor


async def test_purged_messages_are_not_waited_for(events: Events) -> None:
    """A message that is gone when it is to be delivered again counts as settled."""
    await events.create_consumer("S", "c")
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"x"])
    await events.publish("s.a", [b"x"])
    await one.sequences(2)
    await events.stub.PurgeStream(event_pb2.PurgeStreamRequest(name="S", through=1))
    two = await events.consume("S", "c")
    one.close()

    assert ([2], 2) == (sequences(again := await two.delivery()), again.attempt)
    await two.settle(2, 2)
    assert 2 == (await events.consumer("S", "c")).state.ack_floor


async def fetch(events: Events, **fields: Any) -> event_pb2.FetchResponse:
    source = event_pb2.ConsumerSource(stream="S", consumer="c")
    return await events.call(  # type: ignore[no-any-return]
        "Fetch", event_pb2.FetchRequest(consumer=source, **fields)
    )


async def test_fetch_and_acknowledge(events: Events) -> None:
    """Unary calls take from the same ledger as subscriptions, cut to what is asked for."""
    await events.create_consumer("S", "c")
    assert not (await fetch(events)).deliveries
    await events.publish("s.a", [b"x"] * 10)
    await events.publish("s.a", [b"x"] * 10)

    response = await fetch(events, messages_max=15)

    assert list(range(1, 16)) == [s for d in response.deliveries for s in sequences(d)]
    source = event_pb2.ConsumerSource(stream="S", consumer="c")
    item = event_pb2.AckItem(
        range=common_pb2.SequenceRange(first=1, last=15), settlement=DONE, attempt=1
    )
    acknowledge = event_pb2.AcknowledgeRequest(consumer=source, ack=event_pb2.Ack(items=[item]))
    result = (await events.call("Acknowledge", acknowledge)).result
    assert (0, common_pb2.DURABILITY_FSYNC) == (len(result.failed), result.durability)
    again = (await events.call("Acknowledge", acknowledge)).result
    assert isinstance(from_status(again.failed[0].status), errors.NotDelivered)
    assert list(range(16, 21)) == [
        s for d in (await fetch(events)).deliveries for s in sequences(d)
    ]


async def test_fetch_waits_and_gives_back_when_cancelled(events: Events) -> None:
    """A fetch waits for the first message; one that is cancelled holds nothing."""
    await events.create_consumer("S", "c")
    waiting = asyncio.ensure_future(fetch(events, wait={"seconds": 20}))
    await events.publish("s.a", [b"x"])
    assert 1 == len((await waiting).deliveries)
    call = events.stub.Fetch(
        event_pb2.FetchRequest(
            consumer=event_pb2.ConsumerSource(stream="S", consumer="c"), wait=Duration(seconds=20)
        )
    )
    await events.consumer_where("S", "c", lambda c: c.subscriptions == 1)
    call.cancel()
    await events.consumer_where("S", "c", lambda c: c.subscriptions == 0)
    await events.publish("s.a", [b"x"])

    delivery = (await fetch(events, wait={"seconds": 20})).deliveries[0]
    assert ([2], 1) == (sequences(delivery), delivery.attempt)
