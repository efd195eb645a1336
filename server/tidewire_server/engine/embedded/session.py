"""
What the writer knows and changes: the connection, and the small facts that are kept in memory.

Only the writer thread touches a session. Facts that change with every transaction (counters of
streams, consumers, producers, the store revision) are written once for a whole group, by `flush`. A
transaction that is refused half-way takes its changes back by `undo`; a group that is lost makes
everything be read again by `reload`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import apsw

from tidewire.v1 import common_pb2, state_pb2
from tidewire.wire.subject import SubjectIndex
from tidewire_server.engine.base import Settle, StoredBatch
from tidewire_server.engine.embedded import rows
from tidewire_server.engine.embedded.connections import Connection
from tidewire_server.engine.embedded.facts import Consumer, Producer, Stream, Streams
from tidewire_server.engine.embedded.options import EngineOptions

Durability = common_pb2.Durability


@dataclass(slots=True)
class Effects:
    """What one transaction will have done when its group is durable, for the listeners."""

    appended: list[StoredBatch] = field(default_factory=list)
    changed: list[tuple[list[state_pb2.Change], int]] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    settled: list[Settle] = field(default_factory=list)
    streams_changed: list[str] = field(default_factory=list)


class Session:
    """
    The writer's hands. See the module.

    Attributes:
        prevented: Removals that damage prevented.
        state_changed: The group changes what a read of State shows.
        documents: Documents of each kind, as far as they were counted.
    """

    def __init__(self, connection: Connection, options: EngineOptions) -> None:
        self.connection = connection
        self.options = options
        self.now_ns = time.time_ns()
        self.level: Durability.ValueType = common_pb2.DURABILITY_FSYNC
        self.effects = Effects()
        self.streams = Streams()
        self.subjects: SubjectIndex[Stream] = SubjectIndex()
        self.consumers: dict[tuple[int, str], Consumer] = {}
        self.producers: dict[tuple[int, str], Producer] = {}
        self.meta: dict[str, Any] = {}
        self.documents: dict[str, int] = {}
        self.view_changed = False
        self.state_changed = False
        self.prevented = 0
        self._undo: list[Callable[[], None]] = []
        self._dirty_meta: set[str] = set()
        self.dirty_streams: dict[int, Stream] = {}
        self.dirty_consumers: dict[tuple[int, str], Consumer] = {}
        self.dirty_producers: dict[tuple[int, str], Producer] = {}

    def execute(self, sql: str, *bindings: object) -> apsw.Cursor:
        """Run one statement."""
        return self.connection.execute(sql, bindings)

    def row(self, sql: str, *bindings: object) -> Any:
        """The one row of a query, or ``None``; a row of one column is its value."""
        return self.connection.execute(sql, bindings).get

    # One transaction of a group.

    def begin(self) -> None:
        """Start a transaction."""
        self._undo.clear()
        self.effects = Effects()

    def on_undo(self, restore: Callable[[], None]) -> None:
        """Say how to take a change in memory back."""
        self._undo.append(restore)

    def undo(self) -> None:
        """Take the changes in memory of this transaction back."""
        while self._undo:
            self._undo.pop()()

    def attempt(self, work: Callable[[], object]) -> bool:
        """Do something that damage may prevent; False when it did, and nothing of it is done."""
        mark = len(self._undo)
        self.execute("SAVEPOINT attempt")
        try:
            work()
        except (apsw.CorruptError, UnicodeDecodeError):
            while len(self._undo) > mark:
                self._undo.pop()()
            self.execute("ROLLBACK TO attempt")
            self.execute("RELEASE attempt")
            self.prevented += 1
            return False
        self.execute("RELEASE attempt")
        return True

    # Facts of the whole store.

    def number(self, name: str) -> int:
        """A number of the whole store."""
        return int(self.meta[name])

    def set_number(self, name: str, value: int) -> None:
        """Change a number of the whole store."""
        before = self.meta[name]
        self.on_undo(lambda: self.meta.__setitem__(name, before))
        self.meta[name] = value
        self._dirty_meta.add(name)

    def touch_stream(self, stream: Stream) -> None:
        """Say that the counters of a stream are about to change."""
        counters = stream.counters()
        self.on_undo(lambda: stream.restore(counters))
        self.dirty_streams[stream.number] = stream

    # A group.

    def flush(self) -> None:
        """Write what changed in memory during the group."""
        for name in self._dirty_meta:
            value = self.meta[name]
            self.execute(
                "UPDATE meta SET value=?, crc=? WHERE name=?", value, rows.seal(name, value), name
            )
        self._dirty_meta.clear()
        for stream in self.dirty_streams.values():
            stream.save(self.connection)
        for consumer in self.dirty_consumers.values():
            consumer.save(self.connection)
        for producer in self.dirty_producers.values():
            producer.save(self.connection)
        self.dirty_consumers.clear()
        self.dirty_producers.clear()

    def take_changed_counters(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        """Counters of streams that changed since the last call, by name."""
        changed = [(stream.name, stream.counters()) for stream in self.dirty_streams.values()]
        self.dirty_streams.clear()
        return changed

    def reload(self) -> None:
        """Forget everything in memory and read it again."""
        for dirty in (self.dirty_streams, self.dirty_consumers, self.dirty_producers):
            dirty.clear()
        self._dirty_meta.clear()
        self._undo.clear()
        self.consumers.clear()
        self.producers.clear()
        self.documents.clear()
        self.meta = dict(self.connection.execute("SELECT name, value FROM meta"))
        self.streams.load(self.connection, self.options.message_ids_max)
        self.index_subjects()

    def index_subjects(self) -> None:
        """Build the index from subjects to streams anew."""
        self.subjects = SubjectIndex()
        for stream in self.streams.by_name.values():
            for pattern in stream.config.subjects:
                self.subjects.add(pattern, stream)
        self.view_changed = True
