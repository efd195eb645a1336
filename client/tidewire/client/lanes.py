"""
What a publisher remembers of its batches: who waits for them, and their place in their lane.

A lane is the messages of one subject, numbered, so that the stream that takes the subject knows a
batch it is sent twice. A refused batch leaves a gap, which makes the server refuse what follows it
in the lane; those are put back in order and sent under the next epoch. No I/O.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from tidewire.client.naming import level_of
from tidewire.errors import Overloaded, ProducerGap, TidewireError
from tidewire.v1 import common_pb2, event_pb2

TRIES_MAX: Final = 5
"""Times one batch is put back into its lane before it is given up."""
OVERLOADED_DELAY_S: Final = 0.1


class PublishAck(NamedTuple):
    """
    What became of a message.

    Attributes:
        stream: Stream that stored it; empty when no stream takes the subject.
        sequence: Its sequence there; of the first copy for a duplicate; 0 when it is not stored,
            or not known because other messages of its batch were duplicates.
        durability: Level reached; it prints as "memory", "os", "fsync" or "quorum".
        duplicate: It was stored before under the same message id, and not again.
        receivers: Live subscriptions it was handed to, where no stream takes the subject.
    """

    stream: str
    sequence: int
    durability: common_pb2.Durability.ValueType
    duplicate: bool
    receivers: int


Waiter: TypeAlias = tuple[int, asyncio.Future[PublishAck]]
"""Index of a message in its batch, and who waits for its acknowledgement."""


class Item:
    """A batch on its way."""

    __slots__ = (
        "batch",
        "body_bytes",
        "count",
        "granted",
        "lane",
        "message",
        "sends",
        "tries",
        "waiters",
    )

    def __init__(
        self,
        message: event_pb2.PublishStreamRequest,
        body_bytes: int,
        granted: int,
        waiters: list[Waiter],
    ) -> None:
        self.message = message
        self.batch = message.publish.request.batch
        self.granted = granted
        self.waiters = waiters
        self.count: int = self.batch.count
        self.body_bytes = body_bytes
        self.lane: Lane | None = None
        self.sends = 0
        self.tries = 0

    def resolve(self, response: event_pb2.PublishResponse) -> None:
        """Tell who waits what became of the batch."""
        for index, future in self.waiters:
            if not future.done():
                future.set_result(self.ack_of(response, index))

    def ack_of(self, response: event_pb2.PublishResponse, index: int) -> PublishAck:
        """What became of one message of the batch."""
        # Sent twice without message ids: the duplicate is our own first sending.
        own = self.sends > 0 and not self.batch.message_ids
        return read_ack(response, index, self.count, own_duplicates=own)

    def reject(self, error: TidewireError) -> int:
        """Tell who waits that the batch failed; returns how many waited."""
        for _, future in self.waiters:
            if not future.done():
                future.set_exception(error)
        return len(self.waiters)


def read_ack(
    response: event_pb2.PublishResponse, index: int, count: int, *, own_duplicates: bool = False
) -> PublishAck:
    """
    What became of one message of a batch.

    Args:
        response: What the server says of the batch.
        index: Place of the message in the batch.
        count: Messages of the batch.
        own_duplicates: Duplicates are of this very batch, sent before.
    """
    first = response.stored.first
    duplicates = response.duplicates
    if 0 < duplicates < count:
        # Duplicates of our own are the beginning of the batch; those of others can be anywhere.
        first = first - duplicates if own_duplicates and index >= duplicates else 0
    return PublishAck(
        response.stream,
        first + index if first else 0,
        level_of(response.durability),
        duplicates == count and not own_duplicates,
        response.receivers,
    )


class Lane:
    """The messages of one subject of one publisher."""

    __slots__ = (
        "broken",
        "delay_s",
        "epoch",
        "held",
        "in_flight",
        "next_sequence",
        "producer_id",
        "subject",
    )

    def __init__(self, subject: str, producer_id: str) -> None:
        self.subject = subject
        self.producer_id = producer_id
        self.epoch = 1
        self.next_sequence = 1
        self.in_flight = 0
        self.broken = False
        self.held: list[Item] = []
        self.delay_s = 0.0

    def number(self, item: Item) -> None:
        """Give a batch the next place."""
        batch = item.batch
        batch.producer_id = self.producer_id
        batch.producer_epoch = self.epoch
        batch.producer_sequence = self.next_sequence
        self.next_sequence += item.count
        self.in_flight += 1


class Lanes:
    """Lanes of one publisher, by subject; idle ones beyond the limit are forgotten."""

    def __init__(self, publisher_id: str, lanes_max: int) -> None:
        self._publisher_id = publisher_id
        self._lanes_max = lanes_max
        self._lanes: dict[str, Lane] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        """Subjects of lanes with nothing on its way or held back, the longest idle first."""
        self._made = 0
        self.held = 0

    def enter(self, item: Item) -> bool:
        """Number a batch, or hold it back while its lane mends; true when it may be sent."""
        lane = item.lane = self._lane(item.batch.subject)
        if lane.broken:
            lane.held.append(item)
            self.held += 1
            return False
        lane.number(item)
        return True

    def succeeded(self, item: Item) -> None:
        """Take note that a batch was taken."""
        if item.lane is not None:
            item.lane.in_flight -= 1
            self._rest(item.lane)

    def refused(self, item: Item, error: TidewireError) -> bool:
        """Take note that a batch was refused; true when it is held to be sent again."""
        lane = item.lane
        if lane is None:
            return False
        lane.in_flight -= 1
        lane.broken = True
        if isinstance(error, Overloaded):
            lane.delay_s = max(lane.delay_s, error.retry_after_s or OVERLOADED_DELAY_S)
        elif not isinstance(error, ProducerGap):
            return False
        item.tries += 1
        if item.tries > TRIES_MAX:
            return False
        lane.held.append(item)
        self.held += 1
        return True

    def restart_after_s(self, item: Item) -> float | None:
        """When the lane of a batch just settled can go on after a refusal; ``None``: not now."""
        lane = item.lane
        if lane is None or not lane.broken or lane.in_flight:
            return None
        delay_s, lane.delay_s = lane.delay_s, 0.0
        return delay_s

    def restart(self, item: Item) -> Sequence[Item]:
        """Begin a new epoch and return what was held, numbered, in its old order."""
        lane = item.lane
        if lane is None or not lane.broken or lane.in_flight:
            return ()
        # Answers may come in any order; the old numbers say how it was. New items have none yet.
        tried = [entry for entry in lane.held if entry.batch.producer_sequence]
        fresh = [entry for entry in lane.held if not entry.batch.producer_sequence]
        tried.sort(key=lambda entry: entry.batch.producer_sequence)
        self.held -= len(lane.held)
        lane.held = []
        lane.broken = False
        lane.epoch += 1
        lane.next_sequence = 1
        for entry in (*tried, *fresh):
            lane.number(entry)
        self._rest(lane)
        return (*tried, *fresh)

    def held_items(self) -> list[Item]:
        """Everything that is held back."""
        return [item for lane in self._lanes.values() for item in lane.held]

    def take_held(self) -> list[Item]:
        """Take everything that is held back."""
        items = self.held_items()
        for lane in self._lanes.values():
            lane.held = []
        self.held = 0
        return items

    def _lane(self, subject: str) -> Lane:
        lane = self._lanes.get(subject)
        if lane is not None:
            self._idle.pop(subject, None)
            return lane
        # Those in use are bounded by what may be on its way.
        while len(self._lanes) >= self._lanes_max and self._idle:
            del self._lanes[self._idle.popitem(last=False)[0]]
        self._made += 1
        lane = self._lanes[subject] = Lane(subject, f"{self._publisher_id}-{self._made}")
        return lane

    def _rest(self, lane: Lane) -> None:
        if not lane.in_flight and not lane.held and not lane.broken:
            self._idle[lane.subject] = None
