"""Subscriptions: in order, without gap or duplicate over breaks, within credit, acknowledged."""

import asyncio
import itertools
import sys
from collections.abc import Sequence

import pytest

from support.scripted import Conversation, ScriptedEvents, client_of, events_of, eventually, idle
from tidewire.client.message import Message
from tidewire.client.subscription import Subscription
from tidewire.errors import ConnectionLost, DeadlineExceeded, Internal, StaleAck, StreamNotFound
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import encode_payloads

TOTAL = 60


def delivery(first: int, count: int, attempt: int = 0) -> event_pb2.Delivery:
    payloads = [str(sequence).encode() for sequence in range(first, first + count)]
    return event_pb2.Delivery(
        batch=encode_payloads("a", payloads), stream="s", first_sequence=first, attempt=attempt
    )


def live(count: int) -> event_pb2.Delivery:
    return event_pb2.Delivery(batch=encode_payloads("a", [b"x"] * count))


def sent(conversation: Conversation, kind: str) -> list[event_pb2.SubscribeRequest]:
    return [r for r in conversation.requests if r.WhichOneof("kind") == kind]


async def read_on(conversation: Conversation) -> None:
    while await conversation.read() is not None:
        continue


@pytest.mark.parametrize("cut_after", [0, 7, 17])
@pytest.mark.parametrize("driven", [False, True])
async def test_reading_goes_on_behind_the_last_message(cut_after: int, driven: bool) -> None:
    """However often the call breaks, within batches too, every message comes once and in order."""
    starts: list[int] = []

    async def serve(conversation: Conversation) -> None:
        opened = await conversation.greet()
        start = opened.ordered.start.sequence or 1
        starts.append(start)
        # The start lies within a batch, of which the server sends the whole.
        size = (10, 7, 12)[conversation.number % 3]
        budget = cut_after if conversation.number < 4 else TOTAL
        for begin in range((start - 1) // size * size + 1, TOTAL + 1, size):
            if budget <= 0:
                await conversation.cut()
            count = min(size, TOTAL + 1 - begin)
            await conversation.write(delivery=delivery(begin, count))
            budget -= count
        await idle(conversation)

    events = ScriptedEvents(subscribe=[serve])
    got: list[bytes] = []
    handler = (lambda message: got.append(message.payload)) if driven else None
    async with (
        client_of(events_of(events)) as client,
        client.events.read("s", handler=handler) as subscription,
    ):
        if driven:
            await eventually(lambda: len(got) == TOTAL)
        else:
            got.extend([(await subscription.next(timeout_s=20)).payload for _ in range(TOTAL)])
        breaks = subscription.reopened

    assert [str(sequence).encode() for sequence in range(1, TOTAL + 1)] == got
    assert breaks >= 2
    assert sorted(starts) == starts


async def test_new_is_pinned_when_it_is_opened() -> None:
    """Reading from now on does not skip what is stored before the first message of a break."""
    starts: list[int] = []

    async def serve(conversation: Conversation) -> None:
        starts.append((await conversation.greet()).ordered.start.sequence)
        if conversation.number == 0:
            await conversation.cut()
        await idle(conversation)

    events = ScriptedEvents(subscribe=[serve])
    events.last_sequence = 41
    async with client_of(events_of(events)) as client, client.events.read("s", start="new"):
        await eventually(lambda: len(starts) == 2)

    assert [42, 42] == starts


async def test_bookmarks_move_the_position() -> None:
    """A reader of a rare subject does not go back to where it began."""
    starts: list[int] = []

    async def serve(conversation: Conversation) -> None:
        starts.append((await conversation.greet()).ordered.start.sequence)
        if conversation.number == 0:
            await conversation.write(bookmark=event_pb2.Bookmark(sequence=99))
            await conversation.cut()
        await idle(conversation)

    events = ScriptedEvents(subscribe=[serve])
    async with (
        client_of(events_of(events)) as client,
        client.events.read("s", start=5, subjects="a.rare"),
    ):
        await eventually(lambda: len(starts) == 2)

    assert [5, 100] == starts


async def test_lost_events_are_counted_and_told() -> None:
    """A slow reader of live events knows how many it missed."""
    told: list[int] = []

    async def serve(conversation: Conversation) -> None:
        opened = await conversation.greet()
        assert (["a.*"], "workers") == (list(opened.live.subjects), opened.live.group)
        await conversation.write(delivery=live(2))
        await conversation.write(lost=event_pb2.Lost(messages=5, messages_total=5))
        await conversation.write(lost=event_pb2.Lost(messages=2, messages_total=7))
        await conversation.write(delivery=live(1))
        await idle(conversation)

    events = ScriptedEvents(subscribe=[serve])
    async with client_of(events_of(events)) as client:
        opening = client.events.subscribe("a.*", group="workers", on_lost=told.append)
        async with opening as subscription:
            for _ in range(3):
                await subscription.next(timeout_s=20)

            assert 7 == subscription.lost
    assert [5, 2] == told


async def test_what_waits_in_the_client_is_bounded_by_credit() -> None:
    """Credit is granted anew only for what was taken; totals grow and are never passed."""
    grants: list[int] = []

    async def serve(conversation: Conversation) -> None:
        opened = await conversation.greet()
        grants.append(opened.credit.messages_until)
        given = 0
        while True:
            while given + 5 <= grants[-1]:
                await conversation.write(delivery=live(5))
                given += 5
            request = await conversation.read()
            if request is None:
                return
            grants.append(request.credit.messages_until)

    events = ScriptedEvents(subscribe=[serve])
    async with (
        client_of(events_of(events)) as client,
        client.events.subscribe("a", window_messages=20) as subscription,
    ):
        await subscription.next(timeout_s=20)
        waiting = [subscription.waiting]
        for _ in range(300):
            await subscription.next(timeout_s=20)
            waiting.append(subscription.waiting)

    assert max(waiting) <= 4
    assert 20 == grants[0]
    assert all(10 <= after - before <= 20 for before, after in itertools.pairwise(grants))


async def test_acks_of_a_turn_travel_as_one_range() -> None:
    """Acknowledging message by message costs one item a batch."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.write(delivery=delivery(1, 50, attempt=1))
        request = await conversation.read()
        await conversation.write(ack_result=event_pb2.AckResult(ack_id=request.ack.ack_id))
        await read_on(conversation)

    events = ScriptedEvents(subscribe=[serve])
    async with (
        client_of(events_of(events)) as client,
        client.events.consume("s", "c") as subscription,
    ):
        taken = 0
        async for message in subscription:
            await message.ack()
            taken += 1
            if taken == 50:
                break

    (ack,) = (request.ack for request in sent(events.subscribing.calls[0], "ack"))
    assert [(1, 50, event_pb2.SETTLEMENT_DONE, 1)] == [
        (item.range.first, item.range.last, item.settlement, item.attempt) for item in ack.items
    ]


async def test_settlements_say_what_they_mean() -> None:
    """Retry, extend and terminate carry their delay and reason; a refusal reaches who waits."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.write(delivery=delivery(1, 4, attempt=2))
        while (request := await conversation.read()) is not None:
            if request.WhichOneof("kind") != "ack":
                continue
            result = event_pb2.AckResult(ack_id=request.ack.ack_id)
            for index, item in enumerate(request.ack.items):
                if item.range.last == 4:
                    status = StaleAck("delivered again").to_status()
                    result.failed.append(common_pb2.ItemResult(index=index, status=status))
            await conversation.write(ack_result=result)

    events = ScriptedEvents(subscribe=[serve])
    async with (
        client_of(events_of(events)) as client,
        client.events.consume("s", "c") as subscription,
    ):
        messages = [await subscription.next(timeout_s=20) for _ in range(4)]
        await messages[0].retry(1.5, reason="later")
        await messages[1].extend()
        await messages[2].terminate("never")
        with pytest.raises(StaleAck):
            await messages[3].ack(confirm=True)

        assert 1 == subscription.acks_failed
    (ack,) = (request.ack for request in sent(events.subscribing.calls[0], "ack"))
    retry, extend, terminate, done = ack.items
    assert (1, 1_500_000_000, "later") == (
        retry.range.first,
        retry.delay.ToNanoseconds(),
        retry.reason,
    )
    assert event_pb2.SETTLEMENT_EXTEND == extend.settlement
    assert (event_pb2.SETTLEMENT_TERMINATE, "never") == (terminate.settlement, terminate.reason)
    assert (event_pb2.SETTLEMENT_DONE, 2) == (done.settlement, done.attempt)


@pytest.mark.parametrize("waits", [False, True])
async def test_handlers_acknowledge_by_returning(waits: bool) -> None:
    """What a handler takes is acknowledged; what it raises on comes again, with the reason."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.write(delivery=delivery(1, 10, attempt=1))
        await read_on(conversation)

    seen: list[int] = []

    def handle(message: Message) -> None:
        seen.append(message.sequence)
        if message.sequence in (1, 4, 10):
            raise ValueError(f"no {message.sequence}")

    async def handle_waiting(message: Message) -> None:
        await asyncio.sleep(0)
        handle(message)

    events = ScriptedEvents(subscribe=[serve])
    handler = handle_waiting if waits else handle
    async with (
        client_of(events_of(events), timeout_s=2.0) as client,
        client.events.consume("s", "c", handler=handler) as subscription,
    ):
        items: list[event_pb2.AckItem] = []

        def acked() -> int:
            items[:] = [
                item
                for request in sent(events.subscribing.calls[0], "ack")
                for item in request.ack.items
            ]
            return sum(item.range.last - item.range.first + 1 for item in items)

        await eventually(lambda: acked() == 10)

        assert 3 == subscription.handler_failures
    done = [i for i in items if i.settlement == event_pb2.SETTLEMENT_DONE]
    again = [i for i in items if i.settlement == event_pb2.SETTLEMENT_RETRY]
    assert list(range(1, 11)) == seen
    assert [2, 3, 5, 6, 7, 8, 9] == sorted(
        sequence for item in done for sequence in range(item.range.first, item.range.last + 1)
    )
    assert [(1, "ValueError: no 1"), (4, "ValueError: no 4"), (10, "ValueError: no 10")] == [
        (item.range.first, item.reason) for item in again
    ]


async def test_messages_of_a_broken_call_are_left_to_the_next() -> None:
    """A consumer's messages that were not taken come again, once."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        attempt = conversation.number + 1
        await conversation.write(delivery=delivery(1, 3, attempt=attempt))
        if conversation.number == 0:
            await conversation.cut()
        await read_on(conversation)

    events = ScriptedEvents(subscribe=[serve])
    async with (
        client_of(events_of(events)) as client,
        client.events.consume("s", "c") as subscription,
    ):
        await eventually(lambda: subscription.reopened == 1 and subscription.waiting == 1)
        got = [await subscription.next(timeout_s=20) for _ in range(3)]

        with pytest.raises(DeadlineExceeded):
            await subscription.next(timeout_s=0.05)
    assert [(1, 2), (2, 2), (3, 2)] == [(message.sequence, message.attempt) for message in got]


async def test_what_cannot_be_read_is_skipped_and_given_up() -> None:
    """A damaged delivery is counted, terminated for a consumer, and does not stop the rest."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        broken = delivery(1, 2, attempt=1)
        broken.batch.crc32c ^= 1
        await conversation.write(delivery=broken)
        await conversation.write(delivery=delivery(3, 1, attempt=1))
        await read_on(conversation)

    events = ScriptedEvents(subscribe=[serve])
    async with (
        client_of(events_of(events), timeout_s=2.0) as client,
        client.events.consume("s", "c") as subscription,
    ):
        message = await subscription.next(timeout_s=20)
        await eventually(lambda: bool(sent(events.subscribing.calls[0], "ack")))

        assert (3, 1) == (message.sequence, subscription.corrupt)
    (ack,) = (request.ack for request in sent(events.subscribing.calls[0], "ack"))
    assert [1, 2] == [item.range.first for item in ack.items]
    assert {event_pb2.SETTLEMENT_TERMINATE} == {item.settlement for item in ack.items}


async def test_refusals_end_a_subscription() -> None:
    """What is refused at first is raised by opening; what is refused later by reading."""

    async def refuse(conversation: Conversation) -> None:
        raise StreamNotFound("there is no stream 's'")

    async def once(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.cut()

    async with client_of(events_of(ScriptedEvents(subscribe=[refuse]))) as client:
        with pytest.raises(StreamNotFound):
            await client.events.consume("s", "c")
    async with (
        client_of(events_of(ScriptedEvents(subscribe=[once, refuse]))) as client,
        client.events.consume("s", "c") as subscription,
    ):
        with pytest.raises(StreamNotFound):
            await subscription.next(timeout_s=20)
        with pytest.raises(StreamNotFound):
            await subscription.join()


async def test_a_listener_that_fails_does_no_harm() -> None:
    """What an application's listener raises is logged; messages go on."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.write(lost=event_pb2.Lost(messages=5, messages_total=5))
        await conversation.write(delivery=live(1))
        await idle(conversation)

    def fail(_: int) -> None:
        raise ValueError("of the application")

    events = ScriptedEvents(subscribe=[serve])
    async with (
        client_of(events_of(events)) as client,
        client.events.subscribe("a", on_lost=fail) as subscription,
    ):
        await subscription.next(timeout_s=20)

        assert 5 == subscription.lost


async def test_a_mistake_of_the_client_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An unexpected exception in the reader ends the subscription with an error."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.write(delivery=live(1))
        await idle(conversation)

    def mistake(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(Subscription, "_deliver", mistake)
    events = ScriptedEvents(subscribe=[serve])
    async with client_of(events_of(events)) as client, client.events.subscribe("a") as subscription:
        with pytest.raises(Internal, match="a mistake"):
            await subscription.next(timeout_s=20)


async def test_closing_ends_the_iteration() -> None:
    """A closed subscription ends its loops without an error."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.write(delivery=live(3))
        await idle(conversation)

    events = ScriptedEvents(subscribe=[serve])
    async with client_of(events_of(events)) as client:
        subscription = await client.events.subscribe("a")
        sizes: list[int] = []

        async def collect() -> Sequence[int]:
            async for batch in subscription.batches():
                sizes.append(len(batch))
                break
            async for message in subscription:
                sizes.append(len(message.payload))
            return sizes

        task = asyncio.create_task(collect())
        await eventually(lambda: bool(sizes))
        await subscription.close()

        assert [3] == await task
        with pytest.raises(ConnectionLost):
            await subscription.next()


@pytest.mark.parametrize("every", [1, 2, 7])
async def test_handlers_may_keep_messages(every: int) -> None:
    """
    A message object is handed out again only when the handler kept none: those that were kept stay
    what they were. The control: a handler that keeps nothing gets the same object again.
    """
    kept: list[Message] = []
    seen: list[int] = []
    done = asyncio.Event()

    def handle(message: Message) -> None:
        seen.append(id(message))
        if len(seen) % every == 0:
            kept.append(message)
        if len(seen) == TOTAL:
            done.set()

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        for begin in range(1, TOTAL + 1, 20):
            await conversation.write(delivery=delivery(begin, 20))
        await idle(conversation)

    scripted = ScriptedEvents(subscribe=[serve])
    async with (
        client_of(events_of(scripted)) as client,
        client.events.read("s", handler=handle),
        asyncio.timeout(10),
    ):
        await done.wait()

    expected = list(range(every, TOTAL + 1, every))
    assert expected == [message.sequence for message in kept]
    assert expected == [int(message.payload) for message in kept]
    assert len(kept) == len({id(message) for message in kept})
    if every > 1 and sys.version_info < (3, 14):
        assert len(set(seen)) < TOTAL
