"""
Message ids of one stream within its window.

They are stored with the batches that carry them, so remembering costs no writing: at a start they
are read from the batches of the window, and from a table for batches that were removed within it.
"""

import contextlib
import json
from collections import deque
from collections.abc import Iterator, Sequence

import apsw

from tidewire.v1 import common_pb2
from tidewire_server.engine.embedded import rows, schema
from tidewire_server.engine.embedded.connections import Connection

Stored = Sequence[tuple[str, int]]


def ids_of(batch: common_pb2.Batch, first_sequence: int) -> list[tuple[str, int]]:
    """Message ids of the selected messages of a batch, with their sequences."""
    ids = batch.message_ids
    if not ids:
        return []
    if batch.selected:
        indexes = [i for item in batch.selected for i in range(item.first, item.last + 1)]
    else:
        indexes = list(range(batch.count))
    return [
        (ids[index], first_sequence + place)
        for place, index in enumerate(indexes)
        if index < len(ids) and ids[index]
    ]


class MessageIds:
    """
    Ids that were stored, with their sequence, oldest first; at most as many as the caller allows.
    """

    def __init__(self) -> None:
        self._sequences: dict[str, int] = {}
        self._batches: deque[tuple[int, Stored]] = deque()

    def __len__(self) -> int:
        return len(self._sequences)

    def find(self, message_id: str) -> int | None:
        """Sequence of the message that was stored under this id; ``None`` when there is none."""
        return self._sequences.get(message_id)

    def add(self, time_ns: int, stored: Stored) -> None:
        """Remember the ids of one batch."""
        self._sequences.update(stored)
        self._batches.append((time_ns, stored))

    def take_back(self) -> None:
        """Forget the batch that was added last."""
        self._remove(self._batches.pop()[1])

    def forget(self, before_ns: int, ids_max: int) -> None:
        """Forget what is older than the window, or too much."""
        while self._batches and (self._batches[0][0] < before_ns or len(self._sequences) > ids_max):
            self._remove(self._batches.popleft()[1])

    def _remove(self, stored: Stored) -> None:
        for message_id, sequence in stored:
            if self._sequences.get(message_id) == sequence:
                del self._sequences[message_id]

    def load(self, connection: Connection, stream: int, window_ns: int, ids_max: int) -> None:
        """Read the ids of the window that ends with the newest batch. Damaged rows are left out."""
        self._sequences.clear()
        self._batches.clear()
        removed = connection.execute(
            "SELECT stream, time_ns, body, crc FROM removed_ids WHERE stream=? ORDER BY id",
            (stream,),
        )
        for number, time_ns, body, crc in rows.readable(removed):
            if rows.fits(crc, number, time_ns, body):
                self.add(time_ns, [tuple(item) for item in json.loads(body)])
        found: list[tuple[int, Stored]] = []
        with contextlib.suppress(apsw.CorruptError):  # What cannot be read has no ids to remember.
            for stored in self._in_window(connection, stream, window_ns):
                found.append(stored)
                if sum(len(ids) for _, ids in found) > ids_max:
                    break
        for time_ns, ids in reversed(found):
            self.add(time_ns, ids)

    def _in_window(
        self, connection: Connection, stream: int, window_ns: int
    ) -> Iterator[tuple[int, Stored]]:
        """Ids of the batches of the window, newest first."""
        low, high = schema.batch_id(stream, 0), schema.batch_id(stream, schema.SEQUENCE_MAX)
        newest = connection.execute(
            "SELECT time_ns FROM batches WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
            (low, high),
        ).get
        if not isinstance(newest, int):
            return
        before = connection.execute(
            "SELECT id FROM batches WHERE id BETWEEN ? AND ? AND time_ns < ? "
            "ORDER BY id DESC LIMIT 1",
            (low, high, newest - window_ns),
        ).get
        for (identifier,) in connection.execute(
            "SELECT id FROM batches WHERE id > ? AND id <= ? AND has_ids ORDER BY id DESC",
            (low if before is None else before, high),
        ):
            row = self._read(connection, identifier)
            if row is not None:
                yield row

    @staticmethod
    def _read(connection: Connection, identifier: int) -> tuple[int, Stored] | None:
        try:
            row = connection.execute(
                "SELECT id, last_sequence, time_ns, has_ids, subject, dead_letter, batch, crc "
                "FROM batches WHERE id=?",
                (identifier,),
            ).get
        except UnicodeDecodeError:
            return None
        if row is None or not rows.fits(row[-1], *row[:-1]):
            return None
        batch = common_pb2.Batch.FromString(row[6])
        return row[2], ids_of(batch, identifier & schema.SEQUENCE_MAX)
