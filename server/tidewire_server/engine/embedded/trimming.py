"""Removing the oldest batches of a stream, by wish and by its retention."""

import json
from collections.abc import Iterator
from typing import Any

from tidewire.v1 import common_pb2, event_pb2
from tidewire_server.engine.embedded import rows, schema
from tidewire_server.engine.embedded.facts import Stream, bounds
from tidewire_server.engine.embedded.message_ids import ids_of
from tidewire_server.engine.embedded.session import Session

Row = tuple[int, int, Any, Any, int]

_OLDEST = (
    "SELECT id, last_sequence, time_ns, has_ids, length(batch) + ifnull(length(dead_letter), 0) "
    "FROM batches WHERE id BETWEEN ? AND ? ORDER BY id"
)


def trim(session: Session, stream: Stream) -> None:
    """
    Remove whole batches until the limits on messages and bytes are kept. The newest batch stays.
    """
    config = stream.config
    if config.discard == event_pb2.DISCARD_NEW:
        return
    messages_max, bytes_max = config.messages_max, config.bytes_max
    if not (messages_max and stream.messages > messages_max) and not (
        bytes_max and stream.bytes > bytes_max
    ):
        return
    session.attempt(lambda: _trim(session, stream))


def _trim(session: Session, stream: Stream) -> None:
    messages_max, bytes_max = stream.config.messages_max, stream.config.bytes_max
    messages, size = stream.messages, stream.bytes
    through = 0
    for count, row in enumerate(_oldest(session, stream)):
        over = (messages_max and messages > messages_max) or (bytes_max and size > bytes_max)
        last = row[1]
        # A limit that was lowered by much is reached in pieces, one with each commit.
        if not over or last >= stream.last_sequence or count == session.options.sweep_rows_max:
            break
        messages = stream.messages_from(last + 1)
        size -= row[4]
        through = last
    if through:
        remove_through(session, stream, through)


def trim_by_age(session: Session, stream: Stream, rows_max: int) -> int:
    """Remove batches that are too old, at most so many; return how many messages."""
    before = stream.messages
    session.attempt(lambda: _trim_by_age(session, stream, rows_max))
    return before - stream.messages


def _trim_by_age(session: Session, stream: Stream, rows_max: int) -> None:
    if not stream.config.HasField("age_max") or not stream.messages:
        return
    before_ns = session.now_ns - stream.config.age_max.ToNanoseconds()
    if stream.first_time_ns >= before_ns:
        return
    through = 0
    for count, row in enumerate(_oldest(session, stream)):
        # A time that is damaged does not keep its batch for ever.
        if count == rows_max or (isinstance(row[2], int) and row[2] >= before_ns):
            break
        through = row[1]
    if through:
        remove_through(session, stream, through)


def remove_through(
    session: Session, stream: Stream, through: int, rows_max: int | None = None
) -> None:
    """Remove whole batches that end at or before a sequence, at most so many."""
    through = min(through, stream.last_sequence)
    low, high = bounds(stream.number)
    size = removed_through = 0
    for count, row in enumerate(_oldest(session, stream)):
        last = row[1]
        if last > through or count == rows_max:
            break
        size += row[4]
        removed_through = last
        if row[3]:
            _keep_ids(session, stream, row[0])
    if not removed_through:
        return
    session.execute(
        "DELETE FROM batches WHERE id BETWEEN ? AND ?",
        low,
        schema.batch_id(stream.number, removed_through),
    )
    session.execute(
        "DELETE FROM quarantine WHERE stream=? AND last<=?", stream.number, removed_through
    )
    session.touch_stream(stream)
    stream.bytes = max(0, stream.bytes - size)
    stream.first_sequence = removed_through + 1
    next_time_ns = session.row(
        "SELECT time_ns FROM batches WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1", low, high
    )
    stream.first_time_ns = next_time_ns if isinstance(next_time_ns, int) else 0
    if not stream.messages:
        stream.bytes = 0


def _oldest(session: Session, stream: Stream) -> Iterator[Row]:
    """
    Batches, oldest first: identifier, last sequence, time, whether it has ids, bytes.

    The last sequence is where the next batch begins, less one: a damaged row must not remove more
    than itself.
    """
    before: Row | None = None
    for row in rows.readable(session.execute(_OLDEST, *bounds(stream.number))):
        if before is not None:
            yield (before[0], (row[0] & schema.SEQUENCE_MAX) - 1, *before[2:])
        before = row
    if before is not None:
        yield (before[0], stream.last_sequence, *before[2:])


def _keep_ids(session: Session, stream: Stream, identifier: int) -> None:
    """Message ids outlive their batch until the window ends."""
    row = session.row(
        "SELECT id, last_sequence, time_ns, has_ids, subject, dead_letter, batch, crc FROM batches "
        "WHERE id=?",
        identifier,
    )
    if not rows.fits(row[-1], *row[:-1]) or row[2] < session.now_ns - stream.dedup_window_ns:
        return
    ids = ids_of(common_pb2.Batch.FromString(row[6]), identifier & schema.SEQUENCE_MAX)
    columns = (stream.number, row[2], json.dumps(ids, separators=(",", ":")))
    session.execute(
        "INSERT INTO removed_ids (stream, time_ns, body, crc) VALUES (?,?,?,?)",
        *columns,
        rows.seal(*columns),
    )
