"""
Reading State, in a reader thread, within one snapshot.

The index from keys to changes is only a hint: SQLite does not notice a flipped bit in it. Each
change says which one was before it, and the newest one is in ``heads``; what is found by the index
is believed only when that chain says the same.
"""

from collections.abc import Iterator, Sequence

from tidewire import errors
from tidewire.v1 import state_pb2
from tidewire_server.engine.embedded import rows, schema
from tidewire_server.engine.embedded.connections import Connection
from tidewire_server.engine.embedded.state import Head, entry_of, parse_head, state_corrupt

PREFIX_END = "\U0010ffff"
SCAN_ROWS_MAX = 20_000
"""Changes one read looks at, when few of them have the prefix."""


def number(connection: Connection, name: str) -> int:
    """A number of the whole store, as this snapshot has it."""
    value, crc = connection.execute("SELECT value, crc FROM meta WHERE name=?", (name,)).get
    if not rows.fits(crc, name, value):
        raise errors.DataCorrupt(f"the store's {name.replace('_', ' ')} is damaged")
    return int(value)


def get(connection: Connection, key: str, revision: int) -> state_pb2.GetResponse:
    """The entry of a key, now or as it was at a revision."""
    current = number(connection, "state_revision")
    response = state_pb2.GetResponse(revision=current)
    _check_revision(connection, revision or current, current)
    entry = entry_at(connection, key, revision or current)
    if entry is not None:
        response.entry.CopyFrom(entry)
    return response


def get_many(
    connection: Connection, keys: Sequence[str], revision: int, bytes_max: int
) -> state_pb2.GetManyResponse:
    """The entries of keys, from the first on, as far as they fit; at least one key is read."""
    current = number(connection, "state_revision")
    at = revision or current
    _check_revision(connection, at, current)
    response = state_pb2.GetManyResponse(revision=at)
    size = 0
    for read, key in enumerate(keys):
        entry = entry_at(connection, key, at)
        if entry is not None:
            size += entry.ByteSize()
            if read and size > bytes_max:
                response.read = read
                return response
            response.entries.append(entry)
    response.read = len(keys)
    return response


def _check_revision(connection: Connection, revision: int, current: int) -> None:
    if revision > current:
        raise errors.RevisionInFuture(
            f"the store is at revision {current}; {revision} does not exist yet",
            metadata={"revision": current},
        )
    compacted = number(connection, "compacted_revision")
    if revision < compacted:
        raise errors.RevisionCompacted(
            f"history before revision {compacted} is forgotten; {revision} was asked for. Read the "
            "present and go on from there",
            metadata={"compacted_revision": compacted, "revision": current},
        )


def entry_at(connection: Connection, key: str, revision: int) -> state_pb2.Entry | None:
    """The entry of a key at a revision that is kept; ``None`` when the key was not there."""
    row = connection.execute("SELECT * FROM heads WHERE key=?", (key,)).get
    if row is None:
        connection.check_absence("heads", f"key {key!r}")
        return None
    head = parse_head(row)
    if head.revision <= revision:
        if not head.live:
            return None
        return entry_of(_change(connection, head.change_id), head)
    for change in versions(connection, head, schema.change_id(revision + 1)):
        if change[2] != state_pb2.CHANGE_KIND_PUT:
            return None
        return entry_of(change, key=key)
    return None


def versions(
    connection: Connection, head: Head, before_id: int
) -> Iterator[tuple[int, str, int, int, int, bytes]]:
    """Changes of a key before an identifier, newest first, as far as they are kept."""
    compacted = schema.change_id(number(connection, "compacted_revision") + 1)
    identifier = _newest_before(connection, head, before_id)
    while identifier:
        change = _change(connection, identifier)
        if change is None:
            if identifier < compacted:
                return
            raise state_corrupt(head.key)
        entry_of(change, key=head.key)
        yield change
        identifier = change[3]


def _newest_before(connection: Connection, head: Head, before_id: int) -> int:
    if head.change_id < before_id:
        return head.change_id
    hint = connection.execute(
        "SELECT id FROM changes WHERE key=? AND id>=? ORDER BY id LIMIT 1", (head.key, before_id)
    ).get
    if hint is not None:
        change = _change(connection, hint)
        whole = change is not None and rows.fits(change[4], *change[:4], change[5])
        if change is not None and whole and change[1] == head.key:
            identifier, _, _, previous, _, _ = change
            if previous < before_id <= identifier:
                return previous
    # The hint leads nowhere: walk the chain itself.
    identifier = head.change_id
    while identifier >= before_id:
        change = _change(connection, identifier)
        entry_of(change, key=head.key)
        assert change is not None
        identifier = change[3]
    return identifier


def _change(
    connection: Connection, identifier: int
) -> tuple[int, str, int, int, int, bytes] | None:
    row: tuple[int, str, int, int, int, bytes] | None = connection.execute(
        "SELECT * FROM changes WHERE id=?", (identifier,)
    ).get
    return row


def read_range(
    connection: Connection,
    prefix: str,
    start_after: str,
    revision: int,
    entries_max: int,
    bytes_max: int,
    *,
    keys_only: bool,
) -> tuple[Sequence[state_pb2.Entry], int, bool]:
    """Entries with a prefix after a key, the revision they show, and whether there are more."""
    current = number(connection, "state_revision")
    at = revision or current
    _check_revision(connection, at, current)
    connection.check_absence("heads", "a part of the keys")
    low = max(prefix, start_after)
    found: list[state_pb2.Entry] = []
    size = 0
    for row in connection.execute(
        "SELECT * FROM heads WHERE key >= ? AND key < ? ORDER BY key", (low, prefix + PREFIX_END)
    ):
        head = parse_head(row)
        if head.key == start_after and start_after:
            continue
        if head.revision <= at:
            entry = entry_of(_change(connection, head.change_id), head) if head.live else None
        else:
            entry = entry_at(connection, head.key, at)
        if entry is None:
            continue
        if keys_only:
            entry.ClearField("value")
        size += entry.ByteSize()
        if len(found) == entries_max or (found and size > bytes_max):
            return found, at, True
        found.append(entry)
    return found, at, False


def history(
    connection: Connection, key: str, before_revision: int, changes_max: int, bytes_max: int
) -> tuple[Sequence[state_pb2.Change], int, bool]:
    """Changes of a key newest first, the oldest revision kept, and whether there are more."""
    compacted = number(connection, "compacted_revision")
    row = connection.execute("SELECT * FROM heads WHERE key=?", (key,)).get
    if row is None:
        connection.check_absence("heads", f"key {key!r}")
        return [], compacted, False
    head = parse_head(row)
    before_id = schema.change_id(before_revision) if before_revision else head.change_id + 1
    found: list[state_pb2.Change] = []
    size = 0
    for change in versions(connection, head, before_id):
        size += len(change[5])
        if len(found) == changes_max or (found and size > bytes_max):
            return found, compacted, True
        own = head if change[0] == head.change_id else None
        found.append(_to_change(change, own))
    return found, compacted, False


def _to_change(
    row: tuple[int, str, int, int, int, bytes], head: Head | None = None
) -> state_pb2.Change:
    entry = entry_of(row, head, key=row[1])
    return state_pb2.Change(kind=row[2], entry=entry)  # type: ignore[arg-type]


def changes(
    connection: Connection,
    prefix: str,
    after_revision: int,
    changes_max: int,
    bytes_max: int,
    *,
    exact: bool,
    with_previous: bool,
) -> tuple[Sequence[state_pb2.Change], int]:
    """Changes after a revision, whole revisions only, and the revision to go on from."""
    current = number(connection, "state_revision")
    _check_revision(connection, after_revision, current)
    found: list[state_pb2.Change] = []
    expected = after_revision + 1
    cursor = connection.execute(
        "SELECT * FROM changes WHERE id >= ? ORDER BY id LIMIT ?",
        (schema.change_id(after_revision + 1), SCAN_ROWS_MAX + schema.CHANGES_PER_REVISION_MAX),
    )
    size = 0
    for looked_at, row in enumerate(cursor):
        revision = row[0] >> schema.CHANGE_BITS
        full = len(found) >= changes_max or size >= bytes_max or looked_at >= SCAN_ROWS_MAX
        if revision >= expected and full:
            return found, expected - 1
        _check_dense(revision, expected)
        change = _to_change(row)
        expected = revision + 1
        key = row[1]
        if key == prefix if exact else key.startswith(prefix):
            if with_previous:
                _add_previous(connection, change, row)
            size += change.ByteSize()
            found.append(change)
    _check_dense(current + 1, expected)
    return found, current


def _check_dense(revision: int, expected: int) -> None:
    """Every revision has a change: one that is skipped was lost."""
    if revision > expected:
        raise errors.DataCorrupt(
            f"the changes of revisions {expected} to {revision - 1} are damaged; read the present "
            "and go on from there",
            metadata={"first_revision": expected, "last_revision": revision - 1},
        )


def _add_previous(
    connection: Connection,
    change: state_pb2.Change,
    row: tuple[int, str, int, int, int, bytes],
) -> None:
    if not row[3]:
        return
    before = _change(connection, row[3])
    if before is not None and before[2] == state_pb2.CHANGE_KIND_PUT:
        change.previous.CopyFrom(entry_of(before, key=row[1]))
