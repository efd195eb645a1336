"""Where the events of a subscription come from: live, a stream in order, or a durable consumer."""

from typing import Protocol

from tidewire.errors import StreamNotFound
from tidewire.v1 import event_pb2
from tidewire_server.services.event.allowance import Allowance
from tidewire_server.services.event.consumer import ConsumerRunner, ConsumerSubscriber
from tidewire_server.services.event.delivery import Response, fill_delivery
from tidewire_server.services.event.exchange import Exchange
from tidewire_server.services.event.follow import StreamFollower
from tidewire_server.services.event.live import LiveBuffer
from tidewire_server.services.event.signal import Signal


class Source(Protocol):
    """
    Events of one subscription.

    Attributes:
        signal: Set when `pull` may have something; the subscription waits on it.
        allowance: Credit of the subscriber.
    """

    signal: Signal
    allowance: Allowance

    async def pull(self) -> Response | None:
        """The next response; ``None`` when there is none now."""
        ...

    @property
    def sequence(self) -> int:
        """Every event up to this one was sent or is not for this subscriber; 0 for live ones."""
        ...

    @property
    def mark(self) -> float | None:
        """
        Changes with every event taken; ``None`` when nothing waits for the subscriber to take it.
        """
        ...

    @property
    def is_drained(self) -> bool:
        """
        Whether the subscription can end without leaving something undone, when the server goes.
        """
        ...

    def drain(self) -> None:
        """Begin nothing new."""
        ...

    def close(self) -> None:
        """The subscription is over."""
        ...


class LiveEvents:
    """What is published from now on."""

    def __init__(
        self,
        exchange: Exchange,
        live: event_pb2.LiveSource,
        allowance: Allowance,
        *,
        takes_several: bool = False,
    ) -> None:
        limits = exchange.core.limits
        self.allowance = allowance
        self.buffer = LiveBuffer(
            allowance,
            messages_max=limits.subscriber_pending_messages_max,
            bytes_max=limits.subscriber_pending_bytes_max,
            group=live.group,
        )
        self.signal = self.buffer.signal
        self._pop = self.buffer.pop_several if takes_several else self.buffer.pop
        self._exchange = exchange
        self._clock = exchange.core.clock
        self._patterns = tuple(dict.fromkeys(live.subjects))
        exchange.live.add(self._patterns, self.buffer)

    async def pull(self) -> Response | None:
        """The oldest batch that waits, after what was lost before it; or the oldest few."""
        return self._pop(self._clock())

    @property
    def sequence(self) -> int:
        """Live events have no place to resume."""
        return 0

    @property
    def mark(self) -> float | None:
        """When something was taken last."""
        return self.buffer.moved_at if self.buffer.messages else None

    @property
    def is_drained(self) -> bool:
        """Whether nothing waits, and nobody publishes any more."""
        return not self._exchange.publishers and not self.buffer.is_deliverable

    def drain(self) -> None:
        """Publishers that are there still may publish."""

    def close(self) -> None:
        """Hear nothing more."""
        self._exchange.live.remove(self._patterns, self.buffer)


class OrderedEvents:
    """A stream in order from a position on."""

    def __init__(self, exchange: Exchange, follower: StreamFollower, allowance: Allowance) -> None:
        self.allowance = allowance
        self.signal = follower.signal
        self._exchange = exchange
        self._follower = follower
        exchange.follow(follower)

    async def pull(self) -> event_pb2.SubscribeResponse | None:
        """
        The next batch there is credit for.

        Raises:
            StreamNotFound: The stream was deleted.
            DataCorrupt: It is damaged here; metadata says which sequences, so that one may go on
                after them.
        """
        follower = self._follower
        if follower.is_gone:
            raise StreamNotFound(f"stream {follower.stream!r} was deleted")
        if not self.allowance.is_open:
            return None
        while follower.head is None:
            if not await follower.fill() and follower.is_caught_up:
                return None
        stored = follower.head
        first = max(follower.position, stored.first_sequence)
        follower.advance(stored.last_sequence)
        self.allowance.take(stored.last_sequence + 1 - first, len(stored.batch.body))
        response = event_pb2.SubscribeResponse()
        included = [(first, stored.last_sequence)]
        fill_delivery(response.delivery, stored, included, pending=follower.pending)
        self._exchange.core.counters.add("events_delivered", stored.last_sequence + 1 - first)
        return response

    @property
    def sequence(self) -> int:
        """Last sequence that was sent, or is not wanted."""
        return self._follower.position - 1

    @property
    def mark(self) -> float | None:
        """A reader of a stream may lag: the stream waits."""
        return None

    @property
    def is_drained(self) -> bool:
        """Whether everything was sent that there is credit for, and nobody publishes any more."""
        if self._exchange.publishers:
            return False
        return not self.allowance.is_open or self._follower.is_caught_up

    def drain(self) -> None:
        """What is stored still may be read."""

    def close(self) -> None:
        """Follow no more."""
        self._exchange.unfollow(self._follower)


class ConsumerEvents:
    """A share of a durable consumer."""

    def __init__(self, runner: ConsumerRunner, subscriber: ConsumerSubscriber) -> None:
        self.allowance = subscriber.allowance
        self.signal = subscriber.signal
        self.runner = runner
        self._subscriber = subscriber
        runner.add(subscriber)

    async def pull(self) -> event_pb2.SubscribeResponse | None:
        """
        The next delivery.

        Raises:
            ConsumerNotFound: The consumer was deleted.
            StreamNotFound: The stream was deleted.
        """
        subscriber = self._subscriber
        if subscriber.error is not None:
            raise subscriber.error
        was_full = not subscriber.has_room
        response = subscriber.pop()
        if response is not None and was_full:
            self.runner.signal.set()
        return response

    @property
    def sequence(self) -> int:
        """Everything up to here is settled."""
        return self.runner.ledger.ack_floor

    @property
    def mark(self) -> float | None:
        """A consumer may lag: the stream waits."""
        return None

    @property
    def is_drained(self) -> bool:
        """Whether everything this subscription was given is settled."""
        return not self.runner.ledger.holds(self._subscriber)

    def drain(self) -> None:
        """Get nothing new; what was delivered may still be settled."""
        self._subscriber.is_resting = True

    def close(self) -> None:
        """Give back what is not settled."""
        self.runner.remove(self._subscriber)


async def first_position(exchange: Exchange, stream: str, start: event_pb2.StartPosition) -> int:
    """The sequence a start position means now."""
    engine = exchange.core.engine
    last = engine.last_sequence(stream)
    kind = start.WhichOneof("position")
    if kind == "all":
        return 1
    if kind == "sequence":
        return start.sequence
    if kind == "time":
        return await engine.sequence_at(stream, start.time.ToNanoseconds())
    return max(1, last) if kind == "last" else last + 1


def bookmark(source: Source, epoch: int) -> event_pb2.SubscribeResponse:
    """A safe place to resume."""
    return event_pb2.SubscribeResponse(
        bookmark=event_pb2.Bookmark(sequence=source.sequence, epoch=epoch)
    )
