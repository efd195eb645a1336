"""
Reading streams, in a reader thread.

Sequences are dense, so a hole between two rows is damage as much as a row that does not fit its
checksum. A read ends before a damaged range; the next one, which begins with it, is told so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import apsw

from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.subject import matches
from tidewire_server.engine.base import StoredBatch, StreamSlice
from tidewire_server.engine.embedded import rows, schema
from tidewire_server.engine.embedded.connections import Connection

Range = tuple[int, int]
COLUMNS = "id, last_sequence, time_ns, has_ids, subject, dead_letter, batch, crc"
UNREADABLE = (apsw.CorruptError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Place:
    """A stream as a snapshot has it."""

    number: int
    name: str
    first_sequence: int
    last_sequence: int


def place_of(connection: Connection, number: int, name: str) -> Place:
    """The stream as this snapshot has it."""
    row = connection.execute("SELECT * FROM streams WHERE number=?", (number,)).get
    if row is None or row[9]:
        raise errors.StreamNotFound(f"there is no stream {name!r}", metadata={"stream": name})
    if not rows.fits(row[-1], *row[:-1]):
        raise errors.DataCorrupt(
            f"the stored record of stream {name!r} is damaged", metadata={"stream": name}
        )
    return Place(number, name, row[4], row[5])


@dataclass(slots=True)
class _Gathering:
    batches: list[StoredBatch] = field(default_factory=list)
    messages: int = 0
    bytes: int = 0


def selector(subjects: Sequence[str]) -> Callable[[str], bool]:
    """Whether a subject is selected by any of the patterns; all are when there are none."""
    if not subjects:
        return lambda _: True
    return lru_cache(maxsize=1024)(
        lambda subject: any(matches(pattern, subject) for pattern in subjects)
    )


def read(
    connection: Connection,
    place: Place,
    first_sequence: int,
    messages_max: int,
    bytes_max: int,
    subjects: Sequence[str],
    damaged: Callable[[Range], None],
) -> StreamSlice:
    """Batches from a sequence on. ``damaged`` is told of ranges that are found damaged."""
    wanted = selector(subjects)
    gathered = _Gathering()
    expected = max(first_sequence, place.first_sequence, 1)
    broken, expected = _scan(connection, place, expected, messages_max, bytes_max, wanted, gathered)
    if broken is not None:
        damaged(broken)
        if not gathered.batches:
            raise corrupt(place.name, broken)
        # What comes next is damaged: whoever reads on is told so, and where it ends.
        expected = broken[0]
    return StreamSlice(gathered.batches, expected, place.last_sequence)


def corrupt(stream: str, broken: Range) -> errors.DataCorrupt:
    """The error for a damaged range."""
    return errors.DataCorrupt(
        f"messages {broken[0]} to {broken[1]} of stream {stream!r} are damaged and set aside; read "
        f"on from {broken[1] + 1}",
        metadata={"stream": stream, "first_sequence": broken[0], "last_sequence": broken[1]},
    )


def _scan(
    connection: Connection,
    place: Place,
    expected: int,
    messages_max: int,
    bytes_max: int,
    wanted: Callable[[str], bool],
    gathered: _Gathering,
) -> tuple[Range | None, int]:
    """Gather until a limit, the end or damage; return the damaged range and where to go on."""
    start = batch_before(connection, place.number, expected)
    end = schema.batch_id(place.number, place.last_sequence)
    try:
        for row in connection.execute(
            f"SELECT {COLUMNS} FROM batches WHERE id BETWEEN ? AND ? ORDER BY id",  # noqa: S608
            (start, end),
        ):
            batch = parse(row, place)
            if batch is None or batch.first_sequence > expected:
                break
            if batch.last_sequence < expected:
                continue
            if wanted(batch.batch.subject):
                size = len(batch.batch.body)
                if gathered.batches and gathered.bytes + size > bytes_max:
                    return None, expected
                gathered.batches.append(batch)
                gathered.bytes += size
                gathered.messages += batch.last_sequence - max(batch.first_sequence, expected) + 1
            expected = batch.last_sequence + 1
            if gathered.messages >= messages_max:
                return None, expected
    except UNREADABLE:
        pass  # The rows behind it are looked for one by one.
    if expected > place.last_sequence:
        return None, expected
    following = whole_from(connection, place, expected + 1)
    return (expected, following - 1), following


def batch_before(connection: Connection, number: int, sequence: int) -> int:
    """
    Identifier of the batch that may hold a sequence: the last one that begins at or before it.
    """
    try:
        found = connection.execute(
            "SELECT id FROM batches WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
            (schema.batch_id(number, 0), schema.batch_id(number, sequence)),
        ).get
    except UNREADABLE:
        found = None
    return found if isinstance(found, int) else schema.batch_id(number, sequence)


def whole_from(connection: Connection, place: Place, sequence: int) -> int:
    """First sequence from here on that begins a whole batch; last + 1 when there is none."""
    step = 1
    while sequence <= place.last_sequence:
        try:
            for row in connection.execute(
                f"SELECT {COLUMNS} FROM batches WHERE id BETWEEN ? AND ? ORDER BY id",  # noqa: S608
                (
                    schema.batch_id(place.number, sequence),
                    schema.batch_id(place.number, place.last_sequence),
                ),
            ):
                batch = parse(row, place)
                if batch is not None:
                    return batch.first_sequence
            return place.last_sequence + 1
        except UNREADABLE:
            # A page that cannot be read: probe behind it in growing steps.
            sequence += step
            step = min(step * 2, 2**20)
    return place.last_sequence + 1


def parse(row: Sequence[object], place: Place) -> StoredBatch | None:
    """The batch of a row; ``None`` when it does not fit its checksum."""
    if not rows.fits(row[-1], *row[:-1]):
        return None
    identifier, last_sequence, time_ns, _, _, dead_letter, data, _ = row
    assert isinstance(identifier, int)
    assert isinstance(last_sequence, int)
    assert isinstance(time_ns, int)
    assert isinstance(data, bytes)
    return StoredBatch(
        place.name,
        common_pb2.Batch.FromString(data),
        identifier & schema.SEQUENCE_MAX,
        last_sequence,
        time_ns,
        event_pb2.DeadLetter.FromString(dead_letter) if isinstance(dead_letter, bytes) else None,
    )


def count_pending(connection: Connection, place: Place, after: int, subjects: Sequence[str]) -> int:
    """Messages after a sequence whose subject is selected."""
    wanted = selector(subjects)
    start = batch_before(connection, place.number, after + 1)
    found = connection.execute(
        "SELECT subject, sum(last_sequence - max(id & ?, ?) + 1) FROM batches "
        "WHERE id BETWEEN ? AND ? AND last_sequence > ? GROUP BY subject",
        (
            schema.SEQUENCE_MAX,
            after + 1,
            start,
            schema.batch_id(place.number, place.last_sequence),
            after,
        ),
    )
    return sum(count for subject, count in found if wanted(subject))


def sequence_at(connection: Connection, place: Place, time_ns: int) -> int:
    """Sequence of the first message stored at or after a time; last + 1 when there is none."""
    low, high = place.first_sequence, place.last_sequence + 1
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(
            f"SELECT {COLUMNS} FROM batches WHERE id=?",  # noqa: S608
            (batch_before(connection, place.number, middle),),
        ).get
        batch = None if row is None else parse(row, place)
        if batch is None:
            # Damage hides the time: look from the low end, where it errs towards reading more.
            high = middle
        elif batch.time_ns >= time_ns:
            high = min(middle, batch.first_sequence)
        else:
            low = max(middle, batch.last_sequence) + 1
    return low
