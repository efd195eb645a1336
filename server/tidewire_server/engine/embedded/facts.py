"""Streams, consumers and producers as the writer keeps them in memory, and how they are stored."""

import json
from dataclasses import dataclass, field

from tidewire.v1 import common_pb2, event_pb2
from tidewire_server.engine.embedded import ranges, rows, schema
from tidewire_server.engine.embedded.connections import Connection
from tidewire_server.engine.embedded.message_ids import MessageIds

PRODUCER_BATCHES_KEPT = 16
"""
Batches of a producer whose place is remembered, to answer a repeated publish with the first copy's
sequences.
"""
FOUND_NEVER = 0
"""Time at which a quarantined range was found when there never was a row in it: it was skipped."""
DEDUP_WINDOW_NS_DEFAULT = 120 * 10**9


@dataclass(slots=True)
class Stream:
    """
    A stream: configuration and counters. ``first_sequence`` is ``last_sequence + 1`` when nothing
    is kept.
    """

    number: int
    name: str
    config: event_pb2.StreamConfig
    created_ns: int
    first_sequence: int = 1
    last_sequence: int = 0
    bytes: int = 0
    first_time_ns: int = 0
    last_time_ns: int = 0
    deleted: bool = False
    message_ids: MessageIds = field(default_factory=MessageIds)
    holes: list[ranges.Range] = field(default_factory=list)

    @property
    def messages(self) -> int:
        """Messages kept; a damaged one counts, it is not forgotten."""
        return self.messages_from(self.first_sequence)

    def messages_from(self, sequence: int) -> int:
        """
        Messages kept from a sequence on. In ``holes`` there are none: a damaged log has lost them.
        """
        count = self.last_sequence - sequence + 1
        for first, last in self.holes:
            count -= max(0, last - max(first, sequence) + 1)
        return count

    @property
    def dedup_window_ns(self) -> int:
        """Time in which a message id is stored once; 0 when never."""
        if self.config.HasField("dedup_window"):
            return self.config.dedup_window.ToNanoseconds()
        return DEDUP_WINDOW_NS_DEFAULT

    def counters(self) -> tuple[int, ...]:
        """What changes with every append."""
        return (
            self.first_sequence,
            self.last_sequence,
            self.bytes,
            self.first_time_ns,
            self.last_time_ns,
        )

    def restore(self, counters: tuple[int, ...]) -> None:
        """Put counters back."""
        (
            self.first_sequence,
            self.last_sequence,
            self.bytes,
            self.first_time_ns,
            self.last_time_ns,
        ) = counters

    def save(self, connection: Connection) -> None:
        """Store the row."""
        columns: tuple[rows.Column, ...] = (
            self.number,
            self.name,
            self.config.SerializeToString(deterministic=True),
            self.created_ns,
            *self.counters(),
            int(self.deleted),
        )
        connection.execute(
            "INSERT OR REPLACE INTO streams VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (*columns, rows.seal(*columns)),
        )


class Streams:
    """All streams that are there."""

    def __init__(self) -> None:
        self.by_name: dict[str, Stream] = {}

    def load(self, connection: Connection, message_ids_max: int) -> None:
        """
        Read streams and the message ids of their windows. A damaged row is left alone.
        """
        self.by_name = {}
        for *columns, crc in rows.readable(connection.execute("SELECT * FROM streams")):
            if not rows.fits(crc, *columns):
                continue
            number, name, config, created_ns, *counters, deleted = columns
            if deleted:
                continue
            stream = Stream(number, name, event_pb2.StreamConfig.FromString(config), created_ns)
            stream.restore(tuple(counters))
            self.by_name[name] = stream
        for stream in self.by_name.values():
            stream.holes = _holes(connection, stream)
            if stream.dedup_window_ns:
                stream.message_ids.load(
                    connection, stream.number, stream.dedup_window_ns, message_ids_max
                )


@dataclass(slots=True)
class Consumer:
    """A durable consumer: configuration and progress."""

    stream: int
    name: str
    config: event_pb2.ConsumerConfig
    created_ns: int
    floor: int = 0
    settled: list[ranges.Range] = field(default_factory=list)
    attempts: dict[int, int] = field(default_factory=dict)
    delivered_through: int = 0
    given_up: int = 0

    def state(self) -> event_pb2.ConsumerState:
        """Progress as it is told and stored."""
        return event_pb2.ConsumerState(
            ack_floor=self.floor,
            settled=[common_pb2.SequenceRange(first=a, last=b) for a, b in self.settled],
            attempts=[
                event_pb2.Attempt(sequence=s, count=n) for s, n in sorted(self.attempts.items())
            ],
            delivered_through=self.delivered_through,
            given_up=self.given_up,
        )

    def set_state(self, state: event_pb2.ConsumerState) -> None:
        """Take progress over."""
        self.floor = state.ack_floor
        self.settled = [(item.first, item.last) for item in state.settled]
        self.attempts = {item.sequence: item.count for item in state.attempts}
        self.delivered_through = state.delivered_through
        self.given_up = state.given_up

    def save(self, connection: Connection) -> None:
        """Store the row."""
        columns = (
            self.stream,
            self.name,
            self.config.SerializeToString(deterministic=True),
            self.state().SerializeToString(),
            self.created_ns,
        )
        connection.execute(
            "INSERT OR REPLACE INTO consumers VALUES (?,?,?,?,?,?)", (*columns, rows.seal(*columns))
        )


@dataclass(slots=True)
class Producer:
    """
    A producer of one stream.

    Attributes:
        next_sequence: Producer sequence that comes next.
        recent: Last batches: producer sequence of the first message, messages, sequence in the
            stream.
    """

    stream: int
    producer_id: str
    epoch: int
    next_sequence: int = 1
    recent: list[tuple[int, int, int]] = field(default_factory=list)
    time_ns: int = 0

    def save(self, connection: Connection) -> None:
        """Store the row."""
        recent = json.dumps([self.next_sequence, self.recent], separators=(",", ":"))
        columns = (self.stream, self.producer_id, self.epoch, recent, self.time_ns)
        connection.execute(
            "INSERT OR REPLACE INTO producers VALUES (?,?,?,?,?,?)", (*columns, rows.seal(*columns))
        )

    @classmethod
    def load(cls, connection: Connection, stream: int, producer_id: str) -> "Producer | None":
        """Read a producer; ``None`` when it is not known, or its row is damaged."""
        row = connection.execute(
            "SELECT * FROM producers WHERE stream=? AND producer_id=?", (stream, producer_id)
        ).get
        if row is None or not rows.fits(row[-1], *row[:-1]):
            return None
        next_sequence, recent = json.loads(row[3])
        return cls(
            stream, producer_id, row[2], next_sequence, [tuple(item) for item in recent], row[4]
        )


def _holes(connection: Connection, stream: Stream) -> list[ranges.Range]:
    """Ranges that were skipped, as a damaged log may have lost messages of them."""
    found = connection.execute("SELECT * FROM quarantine WHERE stream=?", (stream.number,))
    return [
        (first, last)
        for number, first, last, found_ns, crc in rows.readable(found)
        if found_ns == FOUND_NEVER and rows.fits(crc, number, first, last, found_ns)
    ]


def bounds(stream: int) -> tuple[int, int]:
    """First and last identifier a batch of this stream can have."""
    return schema.batch_id(stream, 0), schema.batch_id(stream, schema.SEQUENCE_MAX)
