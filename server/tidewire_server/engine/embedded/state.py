"""
Writing State: one revision for each transaction that changes something.

``changes`` is the history, in order; ``heads`` has one row for each key and says which change is
its newest, with what a comparison needs. A removed key keeps its head until compaction, so that
nothing about it is guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tidewire import errors
from tidewire.v1 import state_pb2
from tidewire_server.engine.embedded import rows, schema
from tidewire_server.engine.embedded.session import Session

REMOVALS_PER_REVISION_MAX: Final = 512
READ_BYTES_MAX: Final = 10 * 1024 * 1024
"""Values that the reads of one transaction answer together; a single one may be larger."""


@dataclass(frozen=True, slots=True)
class Head:
    """The newest change of a key. ``live`` is false when it is a removal."""

    key: str
    change_id: int
    version: int
    create_revision: int
    live: bool
    ttl_ns: int = 0
    expires_ns: int = 0
    lease_node: str = ""
    lease_token: int = 0

    @property
    def revision(self) -> int:
        """Revision of the newest change."""
        return self.change_id >> schema.CHANGE_BITS

    def columns(self) -> tuple[str, int, int, int, int, int, int, str, int]:
        """The row without its checksum."""
        return (
            self.key,
            self.change_id,
            self.version,
            self.create_revision,
            int(self.live),
            self.ttl_ns,
            self.expires_ns,
            self.lease_node,
            self.lease_token,
        )


def parse_head(row: Sequence[object]) -> Head:
    """A head of its row; `errors.DataCorrupt` when it does not fit its checksum."""
    if not rows.fits(row[-1], *row[:-1]):
        raise state_corrupt(str(row[0]))
    key, change_id, version, create_revision, live, *rest = row[:-1]
    return Head(key, change_id, version, create_revision, bool(live), *rest)  # type: ignore[arg-type]


def state_corrupt(key: str) -> errors.DataCorrupt:
    """The error for a key whose stored value is damaged."""
    return errors.DataCorrupt(
        f"the stored value of key {key!r} is damaged; write it again from its source",
        metadata={"key": key},
    )


def find_head(session: Session, key: str) -> Head | None:
    """Newest change of a key; ``None`` when nothing is known of it."""
    row = session.row("SELECT * FROM heads WHERE key=?", key)
    if row is None:
        session.connection.check_absence("heads", f"key {key!r}")
        return None
    return parse_head(row)


def _find_head_to_replace(session: Session, request: state_pb2.PutRequest) -> Head | None:
    """The head a write goes over. A write without conditions heals what is damaged."""
    try:
        return find_head(session, request.key)
    except errors.DataCorrupt:
        if request.HasField("expected_revision"):
            raise
        return None


class StateWriter:
    """The operations of one transaction on State, under one revision."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._changes: list[state_pb2.Change] = []
        self._revision = session.number("state_revision")
        self._read_bytes = 0

    @property
    def revision(self) -> int:
        """Store revision after what was done so far."""
        return self._revision

    def compare(self, conditions: Sequence[state_pb2.Compare]) -> list[state_pb2.Entry] | None:
        """
        ``None`` when all conditions hold; else the compared keys that are there, without values.
        """
        heads = {item.key: find_head(self._session, item.key) for item in conditions}
        if all(_holds(item, heads[item.key]) for item in conditions):
            return None
        return [self._entry(head) for head in heads.values() if head is not None and head.live]

    def perform(self, operation: state_pb2.StateOperation) -> state_pb2.StateOperationResult:
        """Do one operation."""
        kind = operation.WhichOneof("kind")
        if kind == "put":
            return state_pb2.StateOperationResult(put=self._put(operation.put))
        if kind == "delete":
            return state_pb2.StateOperationResult(delete=self._delete(operation.delete))
        if kind == "get":
            return state_pb2.StateOperationResult(get=self._get(operation.get.key))
        raise errors.InvalidArgument("an operation of a transaction is empty: put, delete or get")

    def finish(self) -> int:
        """Take the revision when something changed; return the store revision."""
        if self._changes:
            self._session.set_number("state_revision", self._revision)
            self._session.effects.changed.append((self._changes, self._revision))
            self._session.state_changed = True
        return self._revision

    def remove(self, head: Head, kind: state_pb2.ChangeKind.ValueType) -> None:
        """Remove a key that is there."""
        entry = state_pb2.Entry(key=head.key)
        identifier = self._record(entry, kind, head.change_id)
        self._save(Head(head.key, identifier, 0, 0, live=False))

    def _put(self, request: state_pb2.PutRequest) -> state_pb2.PutResponse:
        head = _find_head_to_replace(self._session, request)
        if request.HasField("expected_revision"):
            check_revision(request.key, head, request.expected_revision, self._store_revision())
        if request.HasField("lease"):
            _check_lease(self._session, request.lease)
        live = head is not None and head.live
        entry = state_pb2.Entry(key=request.key, value=request.value)
        entry.version = head.version + 1 if head is not None and live else 1
        ttl_ns = request.ttl.ToNanoseconds() if request.HasField("ttl") else 0
        if ttl_ns:
            entry.ttl.CopyFrom(request.ttl)
            entry.expires.FromNanoseconds(self._session.now_ns + ttl_ns)
        entry.lease_node_id = request.lease.node_id
        revision = self._take_revision()
        entry.create_revision = head.create_revision if head is not None and live else revision
        previous = head.change_id if head is not None else 0
        identifier = self._record(entry, state_pb2.CHANGE_KIND_PUT, previous)
        self._save(
            Head(
                request.key,
                identifier,
                entry.version,
                entry.create_revision,
                live=True,
                ttl_ns=ttl_ns,
                expires_ns=self._session.now_ns + ttl_ns if ttl_ns else 0,
                lease_node=request.lease.node_id,
                lease_token=request.lease.fencing_token,
            )
        )
        bare = state_pb2.Entry()
        bare.CopyFrom(entry)
        bare.ClearField("value")
        return state_pb2.PutResponse(
            entry=bare, revision=self._revision, durability=self._session.level
        )

    def _delete(self, request: state_pb2.DeleteRequest) -> state_pb2.DeleteResponse:
        head = find_head(self._session, request.key)
        if request.HasField("expected_revision"):
            check_revision(request.key, head, request.expected_revision, self._store_revision())
        deleted = head is not None and head.live
        if head is not None and deleted:
            self.remove(head, state_pb2.CHANGE_KIND_DELETE)
        return state_pb2.DeleteResponse(
            deleted=deleted, revision=self._revision, durability=self._session.level
        )

    def _get(self, key: str) -> state_pb2.GetResponse:
        head = find_head(self._session, key)
        response = state_pb2.GetResponse(revision=self._revision)
        if head is not None and head.live:
            row = self._session.row("SELECT * FROM changes WHERE id=?", head.change_id)
            response.entry.CopyFrom(entry_of(row, head))
            self._count_read(response.entry.ByteSize())
        return response

    def _count_read(self, size: int) -> None:
        before, self._read_bytes = self._read_bytes, self._read_bytes + size
        if before and self._read_bytes > READ_BYTES_MAX:
            raise errors.MessageTooLarge(
                f"the reads of the transaction answer more than {READ_BYTES_MAX} bytes; read less "
                "at once, nothing was done",
                metadata={"limit": READ_BYTES_MAX},
            )

    def _store_revision(self) -> int:
        return self._session.number("state_revision")

    def _take_revision(self) -> int:
        if not self._changes:
            self._revision = self._store_revision() + 1
        return self._revision

    def _record(
        self, entry: state_pb2.Entry, kind: state_pb2.ChangeKind.ValueType, previous: int
    ) -> int:
        entry.revision = self._take_revision()
        entry.time.FromNanoseconds(self._session.now_ns)
        identifier = schema.change_id(entry.revision, len(self._changes))
        data = entry.SerializeToString()
        crc = rows.seal(identifier, entry.key, kind, previous, data)
        self._session.execute(
            "INSERT INTO changes VALUES (?,?,?,?,?,?)",
            identifier,
            entry.key,
            kind,
            previous,
            crc,
            data,
        )
        self._changes.append(state_pb2.Change(kind=kind, entry=entry))
        return identifier

    def _save(self, head: Head) -> None:
        columns = head.columns()
        self._session.execute(
            "INSERT OR REPLACE INTO heads VALUES (?,?,?,?,?,?,?,?,?,?)",
            *columns,
            rows.seal(*columns),
        )

    def _entry(self, head: Head) -> state_pb2.Entry:
        row = self._session.row("SELECT * FROM changes WHERE id=?", head.change_id)
        entry = entry_of(row, head)
        entry.ClearField("value")
        return entry

    def touch(self, key: str, expected_revision: int | None) -> state_pb2.TouchResponse:
        """Give a key its full time to live again."""
        head = find_head(self._session, key)
        if head is None or not head.live:
            raise errors.KeyNotFound(f"there is no key {key!r}", metadata={"key": key})
        if expected_revision is not None:
            check_revision(key, head, expected_revision, self._store_revision())
        if head.ttl_ns:
            touched = Head(
                *head.columns()[:4],
                live=True,
                ttl_ns=head.ttl_ns,
                expires_ns=self._session.now_ns + head.ttl_ns,
                lease_node=head.lease_node,
                lease_token=head.lease_token,
            )
            self._save(touched)
            self._session.effects.touched.append(key)
            self._session.state_changed = True
            head = touched
        return state_pb2.TouchResponse(entry=self._entry(head), revision=self._revision)


def entry_of(
    row: Sequence[object] | None, head: Head | None = None, key: str = ""
) -> state_pb2.Entry:
    """
    The entry of a row of changes, with the expiry of its head (a touch moves it).

    Raises:
        DataCorrupt: The row is missing, does not fit its checksum, or is of another key.
    """
    wanted = head.key if head is not None else key
    if row is None:
        raise state_corrupt(wanted)
    identifier, row_key, kind, previous, crc, data = row
    if not rows.fits(crc, identifier, row_key, kind, previous, data) or (
        wanted and row_key != wanted
    ):
        raise state_corrupt(wanted or str(row_key))
    assert isinstance(data, bytes)
    entry = state_pb2.Entry.FromString(data)
    if head is not None and head.expires_ns:
        entry.expires.FromNanoseconds(head.expires_ns)
    return entry


def check_revision(key: str, head: Head | None, expected: int, store_revision: int) -> None:
    """Raise `errors.RevisionMismatch` unless the key is at this revision (0: not there)."""
    actual = head.revision if head is not None and head.live else 0
    if actual != expected:
        is_at = f"is at revision {actual}" if actual else "is not there"
        raise errors.RevisionMismatch(
            f"key {key!r} {is_at}, expected {expected or 'none'}; read it again",
            metadata={
                "subject": key,
                "key": key,
                "actual_revision": actual,
                "expected_revision": expected,
                "store_revision": store_revision,
            },
        )


def _holds(item: state_pb2.Compare, head: Head | None) -> bool:
    live = head if head is not None and head.live else None
    match item.WhichOneof("condition"):
        case "revision":
            return item.revision == (live.revision if live else 0)
        case "version":
            return item.version == (live.version if live else 0)
        case "exists":
            return item.exists == (live is not None)
        case _:
            raise errors.InvalidArgument(
                f"the comparison of key {item.key!r} has no condition: revision, version or exists"
            )


def _check_lease(session: Session, lease: state_pb2.LeaseRef) -> None:
    row = session.row("SELECT * FROM members WHERE node_id=?", lease.node_id)
    if row is not None and rows.fits(row[-1], *row[:-1]):
        held = row[2] == lease.fencing_token and not row[5]
        if held:
            return
    raise errors.LeaseNotHeld(
        f"member {lease.node_id!r} does not hold a lease with fencing token {lease.fencing_token}; "
        "join again",
        metadata={"subject": lease.node_id, "node_id": lease.node_id},
    )


# Removing by time and by lease.


def expire(session: Session, now_ns: int) -> int | None:
    """
    Remove keys that have expired, as many as one revision takes; return when the next one expires.
    """
    _remove_where(
        session,
        "SELECT * FROM heads WHERE expires_ns > 0 AND expires_ns <= ? ORDER BY expires_ns LIMIT ?",
        (now_ns, REMOVALS_PER_REVISION_MAX),
        state_pb2.CHANGE_KIND_EXPIRE,
    )
    following = session.row("SELECT min(expires_ns) FROM heads WHERE expires_ns > 0")
    return following if following is None else int(following)


def drop_leased(session: Session, node_id: str, fencing_token: int) -> int:
    """
    Remove keys on a lease of this member up to this token, as many as one revision takes; return
    how many.
    """
    return _remove_where(
        session,
        "SELECT * FROM heads WHERE lease_node=? AND lease_node != '' AND lease_token<=? LIMIT ?",
        (node_id, fencing_token, REMOVALS_PER_REVISION_MAX),
        state_pb2.CHANGE_KIND_LEASE_LOST,
    )


def _remove_where(
    session: Session,
    sql: str,
    bindings: tuple[object, ...],
    kind: state_pb2.ChangeKind.ValueType,
) -> int:
    found = [row for row in session.execute(sql, *bindings) if rows.fits(row[-1], *row[:-1])]
    writer = StateWriter(session)
    for row in found:
        writer.remove(parse_head(row), kind)
    writer.finish()
    return len(found)
