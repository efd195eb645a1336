"""
Ranges of streams that were found damaged: told in the stream's state, never deleted by themselves.
"""

import time
from collections.abc import MutableMapping

from tidewire_server.engine.embedded import ranges, rows
from tidewire_server.engine.embedded.connections import Connection
from tidewire_server.engine.embedded.session import Session

Ranges = MutableMapping[int, list[ranges.Range]]


def load(connection: Connection) -> dict[int, list[ranges.Range]]:
    """
    Ranges by stream number. A record that is damaged itself is left out: its range will be found
    again.
    """
    found: dict[int, list[ranges.Range]] = {}
    found_rows = connection.execute("SELECT * FROM quarantine ORDER BY stream, first")
    for stream, first, last, found_ns, crc in rows.readable(found_rows):
        if rows.fits(crc, stream, first, last, found_ns):
            add(found, stream, (first, last))
    return found


def add(known: Ranges, stream: int, item: ranges.Range) -> bool:
    """Remember a range; False when it was known."""
    listed = known.setdefault(stream, [])
    if any(first <= item[0] and item[1] <= last for first, last in listed):
        return False
    ranges.add(listed, *item)
    return True


def drop_through(known: Ranges, stream: int, through: int) -> None:
    """Forget what was purged."""
    if stream in known:
        known[stream] = [item for item in known[stream] if item[1] > through]


def save(session: Session, stream: int, item: ranges.Range, *, found_ns: int | None = None) -> None:
    """Record a range, found now unless another time is said."""
    columns = (stream, *item, time.time_ns() if found_ns is None else found_ns)
    session.execute(
        "INSERT OR REPLACE INTO quarantine VALUES (?,?,?,?,?)", *columns, rows.seal(*columns)
    )
