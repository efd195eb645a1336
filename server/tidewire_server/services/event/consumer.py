"""
A durable consumer at work: one ledger, shared by all who subscribe to it or fetch from it.

One task hands out deliveries: first what is to be delivered again, then what is new, to the
subscribers in turn as far as they have credit. It waits for events and for the ledger's next time,
never in a circle.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Final

from tidewire.errors import (
    ConnectionLost,
    DataCorrupt,
    Internal,
    NotDelivered,
    Overloaded,
    StaleAck,
    TidewireError,
)
from tidewire.v1 import common_pb2, event_pb2
from tidewire_server.core import Core
from tidewire_server.engine.base import StoredBatch
from tidewire_server.services.event.allowance import Allowance
from tidewire_server.services.event.delivery import fill_delivery
from tidewire_server.services.event.follow import StreamFollower
from tidewire_server.services.event.ledger import ConsumerLedger
from tidewire_server.services.event.progress import Answer, ProgressSaver
from tidewire_server.services.event.runs import LedgerPolicy, Run, merge
from tidewire_server.services.event.signal import Signal

log = logging.getLogger(__name__)

OVERLOADED_WAIT_S: Final = 0.1
ROOM_WAIT_S: Final = 0.01
"""How long a consumer with little room waits for more before it cuts a small piece off a batch."""
PIECES: Final = 4
"""A piece of at least this part of a batch, or of the room there can be, is cut off at once."""
WAITING_MAX: Final = 16
"""Deliveries that may wait to be written to one subscriber; the rest is left to the others."""


class ConsumerSubscriber:
    """
    One who takes a share of a durable consumer.

    Attributes:
        owner: Whose deliveries these are; ``None`` when nothing but the ack wait takes them back.
        node_id: Member its life hangs on; may be empty.
        error: Why it gets nothing any more.
        is_resting: True while it is to get nothing (the server drains).
    """

    def __init__(self, allowance: Allowance, node_id: str = "") -> None:
        self.allowance = allowance
        self.node_id = node_id
        self.owner: Hashable | None = self
        self.signal = Signal()
        self.error: TidewireError | None = None
        self.is_resting = False
        self._waiting: deque[tuple[event_pb2.SubscribeResponse, Sequence[Run]]] = deque()

    @property
    def has_room(self) -> bool:
        """Whether it can take a delivery."""
        return (
            self.allowance.is_open
            and len(self._waiting) < WAITING_MAX
            and not self.is_resting
            and self.error is None
        )

    def accepts(self, _body_bytes: int) -> bool:
        """Whether it takes a batch of this size; one that does not gets nothing any more."""
        return True

    def put(self, response: event_pb2.SubscribeResponse, runs: Sequence[Run]) -> None:
        """Hand it a delivery."""
        self._waiting.append((response, runs))
        messages = sum(run.count for run in runs)
        self.allowance.take(messages, len(response.delivery.batch.body))
        self.signal.set()

    def pop(self) -> event_pb2.SubscribeResponse | None:
        """The next delivery, which from now on counts as made."""
        return self._waiting.popleft()[0] if self._waiting else None

    def take_unsent(self) -> list[Run]:
        """Deliveries it never got."""
        runs = [run for _, runs in self._waiting for run in runs]
        self._waiting.clear()
        return runs

    def rest(self) -> None:
        """There is nothing for it at the moment: told when the consumer has looked."""

    def fail(self, error: TidewireError) -> None:
        """It gets nothing any more, for this reason."""
        self.error = error
        self.signal.set()


class ConsumerRunner:
    """
    Runs one durable consumer of one stream.

    Args:
        core: What every service gets.
        consumer: Configuration and stored state.
    """

    def __init__(self, core: Core, consumer: event_pb2.Consumer) -> None:
        self.stream = consumer.stream
        self.config = consumer.config
        self.signal = Signal()
        self.subscribers: deque[ConsumerSubscriber] = deque()
        self.error: TidewireError | None = None
        self._core = core
        self.ledger = ConsumerLedger(policy_of(consumer.config), consumer.state, core.clock())
        self.follower = StreamFollower(
            core.engine,
            consumer.stream,
            self.ledger.next_sequence,
            consumer.config.subjects,
            signal=self.signal,
        )
        self.saver = ProgressSaver(core, consumer.stream, consumer.config, self.ledger)
        self._node_owners: dict[str, str] = {}
        self._room_awaited_until: float | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_idle(self) -> bool:
        """Whether it could be closed and opened again without anybody noticing."""
        return not self.subscribers and not self.ledger.waits and self.saver.is_idle

    def start(self) -> None:
        """Begin to deliver and to store."""
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self.saver.run())]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Stop, and store what can be stored."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.error is None and not self.saver.is_idle:
            await self.saver.save()
        self.saver.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """
        A task ends when it is cancelled, or by a mistake of ours: nobody must wait for it then.
        """
        if task.cancelled():
            return
        mistake = task.exception()
        if mistake is not None:
            log.error("consumer %s of %s broke", self.config.name, self.stream, exc_info=mistake)
            self.fail(Internal("the server made a mistake with this consumer; it is in its log"))

    # Who gets deliveries.

    def add(self, subscriber: ConsumerSubscriber) -> None:
        """Let a subscriber take its share."""
        if self.error is not None:
            raise self.error
        self.subscribers.append(subscriber)
        self.signal.set()

    def remove(self, subscriber: ConsumerSubscriber) -> None:
        """A subscriber is gone: what it has goes to others at once."""
        if subscriber in self.subscribers:
            self.subscribers.remove(subscriber)
        for run in subscriber.take_unsent():
            self.ledger.take_back(run, subscriber.owner)
        if subscriber.owner is subscriber:
            self.ledger.release(subscriber, self._core.clock())
        self.saver.note()
        self.signal.set()

    def node_owner(self, node_id: str) -> str | None:
        """The owner of deliveries that hang on a member's life without a subscription."""
        return self._node_owners.setdefault(node_id, node_id) if node_id else None

    def member_gone(self, node_id: str, *, dead: bool) -> None:
        """A member is DEAD or has LEFT: what it has goes to others at once."""
        owner = self._node_owners.pop(node_id, None)
        if owner is not None:
            self.ledger.release(owner, self._core.clock())
        for subscriber in self.subscribers:
            if subscriber.node_id == node_id:
                self.ledger.release(subscriber, self._core.clock())
                if dead:
                    # Or it would get deliveries again, over a connection that may be dead too, as
                    # soon as another process is this member. Who only seemed dead comes back.
                    subscriber.fail(ConnectionLost(f"member {node_id!r} was declared dead"))
        self.signal.set()

    def fail(self, error: TidewireError) -> None:
        """The consumer or its stream is gone: nobody gets anything any more."""
        self.error = error
        for subscriber in self.subscribers:
            subscriber.fail(error)

    # What comes in.

    def settle(self, ack: event_pb2.Ack, answer: Answer | None) -> None:
        """Apply an acknowledgement, which was checked; ``answer`` is called when it is stored."""
        failed: list[common_pb2.ItemResult] = []
        now = self._core.clock()
        for index, item in enumerate(ack.items):
            try:
                self._settle_item(item, now)
            except (StaleAck, NotDelivered) as error:
                failed.append(common_pb2.ItemResult(index=index, status=error.to_status()))
        if answer is not None:
            self.saver.answer_when_stored(ack, failed, answer)
        self.saver.note()
        self.signal.set()

    def advance(self, through: int) -> None:
        """A checkpoint moved the consumer."""
        self.ledger.advance(through)
        self.follower.skip_to(through + 1)
        self.signal.set()

    def _settle_item(self, item: event_pb2.AckItem, now: float) -> None:
        delay_s = None
        if item.HasField("delay"):
            delay_s = item.delay.seconds + item.delay.nanos / 1e9
        self.ledger.settle(
            item.range.first,
            item.range.last,
            item.settlement,
            attempt=item.attempt,
            now=now,
            delay_s=delay_s,
            reason=item.reason,
        )

    # What goes out.

    async def _run(self) -> None:
        try:
            while True:
                while await self._step_or_wait():
                    pass
                for subscriber in self.subscribers:
                    subscriber.rest()
                await self.signal.wait_until(self._next_time(), self._core.clock())
        except TidewireError as error:
            log.warning("consumer %s of %s ends: %s", self.config.name, self.stream, error)
            self.fail(error)

    async def _step_or_wait(self) -> bool:
        try:
            return await self._step()
        except Overloaded as error:
            await asyncio.sleep(error.retry_after_s or OVERLOADED_WAIT_S)
            return True

    async def _step(self) -> bool:
        """Do one thing; False when there is nothing to do before the next event."""
        self.ledger.expire(self._core.clock())
        self.saver.note()
        config = self._core.engine.stream_config(self.stream)
        if config is None or config.paused:
            return False
        subscriber = self._choose()
        if subscriber is None:
            return False
        ready = self.ledger.first_ready()
        try:
            if ready is not None:
                await self._redeliver(ready, subscriber)
                return True
            return await self._deliver(subscriber)
        except DataCorrupt as error:
            self._skip_damaged(error, ready)
            return True

    def _choose(self) -> ConsumerSubscriber | None:
        """The next subscriber in turn that can take something."""
        for subscriber in self.subscribers:
            if subscriber.has_room and not self._core.members.is_gone(subscriber.node_id):
                return subscriber
        return None

    async def _deliver(self, subscriber: ConsumerSubscriber) -> bool:
        room = self.ledger.room
        if not room:
            return False
        stored = self.follower.head
        if stored is None:
            filled = await self.follower.fill()
            if not filled:
                self.ledger.skip_to(self.follower.position)
            return filled or not self.follower.is_caught_up
        if not subscriber.accepts(len(stored.batch.body)):
            return True
        if self._waits_for_room(stored, room):
            return False
        first = max(stored.first_sequence, self.follower.position)
        last = min(stored.last_sequence, first + min(room, subscriber.allowance.messages_left) - 1)
        self.ledger.deliver(first, last, subscriber.owner, self._core.clock())
        self.follower.advance(last)
        self._put(subscriber, stored, [Run(first, last, 1)])
        return True

    def _waits_for_room(self, stored: StoredBatch, room: int) -> bool:
        """
        Whether to wait a little for more room, as every piece of a batch travels with all its body.

        A consumer at its limit whose messages are settled one by one would else send the body once
        for each message.
        """
        count = stored.last_sequence + 1 - stored.first_sequence
        left = stored.last_sequence + 1 - max(stored.first_sequence, self.follower.position)
        piece = min(left, count // PIECES, self.ledger.policy.ack_pending_max // PIECES)
        now = self._core.clock()
        if room >= piece:
            self._room_awaited_until = None
            return False
        if self._room_awaited_until is None:
            self._room_awaited_until = now + ROOM_WAIT_S
        if now < self._room_awaited_until:
            return True
        self._room_awaited_until = None
        return False

    def _next_time(self) -> float | None:
        """When there is something to do without an event."""
        times = [time_s for time_s in (self.ledger.next_time, self._room_awaited_until) if time_s]
        return min(times, default=None)

    async def _redeliver(self, ready: int, subscriber: ConsumerSubscriber) -> None:
        part = await self._core.engine.read_stream(self.stream, ready, messages_max=1, bytes_max=1)
        stored = part.batches[0] if part.batches else None
        kept_from = self.ledger.next_sequence if stored is None else stored.first_sequence
        if kept_from > ready:
            gone = self.ledger.forget(ready, kept_from - 1)
            self._core.counters.add("events_gone_unsettled", gone)
        if stored is None:
            return
        if not self.follower.wanted(stored.batch.subject):
            self.ledger.forget(ready, stored.last_sequence)
            return
        if subscriber not in self.subscribers or not subscriber.has_room:
            return  # it changed while the batch was read; another one is chosen
        if subscriber.accepts(len(stored.batch.body)):
            self._put_again(stored, max(ready, stored.first_sequence), subscriber)

    def _put_again(self, stored: StoredBatch, first: int, subscriber: ConsumerSubscriber) -> None:
        """
        Deliver again what is ready of a batch, in the order of the stream.

        A response has one number of deliveries: where it changes, the next response begins.
        """
        while subscriber.has_room:
            runs = self.ledger.redeliver(
                first,
                stored.last_sequence,
                subscriber.allowance.messages_left,
                subscriber.owner,
                self._core.clock(),
            )
            if not runs:
                return
            first = runs[-1].last + 1
            self._put(subscriber, stored, runs)

    def _put(
        self, subscriber: ConsumerSubscriber, stored: StoredBatch, runs: Sequence[Run]
    ) -> None:
        response = event_pb2.SubscribeResponse()
        fill_delivery(
            response.delivery,
            stored,
            merge((run.first, run.last) for run in runs),
            attempt=runs[0].attempt,
            pending=self.follower.pending,
        )
        subscriber.put(response, runs)
        while self.subscribers[-1] is not subscriber:  # whoever got something goes to the end
            self.subscribers.rotate(-1)
        messages = sum(run.count for run in runs)
        self._core.counters.add("events_delivered", messages)
        if runs[0].attempt > 1:
            self._core.counters.add("events_redelivered", messages)

    def _skip_damaged(self, error: DataCorrupt, ready: int | None) -> None:
        """
        Leave out a range that cannot be read, so that the rest is served; it counts as settled.
        """
        first = error.figure("first_sequence") or ready or self.follower.position
        last = error.figure("last_sequence") or first
        log.error("consumer %s skips damaged messages: %s", self.config.name, error)
        self._core.counters.add("events_damaged_skipped", last - first + 1)
        if ready is not None:
            self.ledger.forget(ready, max(ready, last))
        else:
            self.follower.skip_to(last + 1)
            self.ledger.skip_to(last + 1)


def policy_of(config: event_pb2.ConsumerConfig) -> LedgerPolicy:
    """The rules of a ledger from a configuration with its defaults filled in."""
    return LedgerPolicy(
        ack_wait_s=config.ack_wait.seconds + config.ack_wait.nanos / 1e9 or 30.0,
        backoff_s=tuple(wait.seconds + wait.nanos / 1e9 for wait in config.backoff),
        deliveries_max=config.deliveries_max,
        ack_pending_max=config.ack_pending_max or 1000,
    )
