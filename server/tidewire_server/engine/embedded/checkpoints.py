"""
Checkpoints and their chunks.

A chunk is stored once under its SHA-256 and counts the checkpoints that use it; one that none uses
is kept for a grace, so that an upload may precede its commit. A checkpoint is a row of its own: the
one before stays readable until the new one is durable.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tidewire import errors
from tidewire.v1 import checkpoint_pb2
from tidewire_server.engine.base import CheckpointWrite
from tidewire_server.engine.embedded import rows
from tidewire_server.engine.embedded.connections import Connection
from tidewire_server.engine.embedded.reserved import STEP_MIN
from tidewire_server.engine.embedded.session import Session

NUMBERS_SKIPPED = 2**20
"""More epochs, and more revisions, than a log can have lost of one operator."""
KEEP_DEFAULT = 3
CHUNK_GRACE_SLACK = 0.1
"""A grace is longer by this part, so that asking again and again does not write each time."""
_COLUMNS = "operator, revision, crc, head, chunks, inline"
_NEWEST_FIRST = (
    f"SELECT {_COLUMNS} FROM checkpoints WHERE operator=? AND revision<? "  # noqa: S608
    "ORDER BY revision DESC LIMIT ?"
)
_LAST_OF_EACH = (
    "SELECT operator, revision, checkpoints.crc, head, chunks, inline FROM checkpoints JOIN "
    "operators "
    "ON operator=name AND revision=current_revision WHERE name>? ORDER BY name LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class Operator:
    """
    An operator: who may commit, and how many checkpoints it keeps.

    Attributes:
        last_revision: Last revision given.
        current_revision: Revision of the last checkpoint; 0 when there is none.
    """

    name: str
    epoch: int
    keep: int
    last_revision: int
    current_revision: int

    def save(self, session: Session) -> None:
        """Store the row."""
        columns = (
            self.name,
            self.epoch,
            self.keep,
            self.last_revision,
            self.current_revision,
        )
        session.execute(
            "INSERT OR REPLACE INTO operators VALUES (?,?,?,?,?,?)", *columns, rows.seal(*columns)
        )


def _find_operator(session: Session, name: str) -> Operator | None:
    return find_operator(session.connection, name)


def find_operator(connection: Connection, name: str) -> Operator | None:
    """An operator; ``None`` when it was never acquired."""
    row = connection.execute("SELECT * FROM operators WHERE name=?", (name,)).get
    if row is None:
        connection.check_absence("operators", f"operator {name!r}")
        return None
    if not rows.fits(row[-1], *row[:-1]):
        raise _corrupt(name, 0)
    return Operator(*row[:5])


def acquire(session: Session, name: str, keep: int) -> tuple[int, checkpoint_pb2.Checkpoint | None]:
    """Give an operator its next epoch; return it with the last checkpoint, without its state."""
    known = _find_operator(session, name) or _new_operator(session, name)
    operator = replace(known, epoch=known.epoch + 1, keep=keep or known.keep)
    operator.save(session)
    _drop_old(session, operator)
    return operator.epoch, load(session.connection, name, 0, with_state=False)


def _new_operator(session: Session, name: str) -> Operator:
    """
    An operator that is not known. Where a damaged log has lost groups it may have been: the epoch
    of the store, which each loss moves by `STEP_MIN` at least, says where it begins.
    """
    skipped = session.number("epoch") // STEP_MIN * NUMBERS_SKIPPED
    return Operator(name, skipped, KEEP_DEFAULT, skipped, 0)


def skip_numbers(session: Session) -> None:
    """
    Let every operator go on with epochs and revisions that cannot have been given: a damaged log
    has lost some.
    """
    for row in list(rows.readable(session.execute("SELECT * FROM operators"))):
        if rows.fits(row[-1], *row[:-1]):
            known = Operator(*row[:5])
            replace(
                known,
                epoch=known.epoch + NUMBERS_SKIPPED,
                last_revision=known.last_revision + NUMBERS_SKIPPED,
            ).save(session)


def write(session: Session, item: CheckpointWrite) -> int:
    """Write a checkpoint and return its revision."""
    operator = _find_operator(session, item.operator)
    _check_epoch(operator, item)
    assert operator is not None
    last = operator.current_revision
    if item.expected_revision is not None and item.expected_revision != last:
        raise errors.RevisionMismatch(
            f"operator {item.operator!r} is at revision {last}, expected {item.expected_revision}; "
            "load it again",
            metadata={
                "subject": item.operator,
                "actual_revision": last,
                "expected_revision": item.expected_revision,
            },
        )
    head = _head(session, item, operator.last_revision + 1)
    _use_chunks(session, item)
    chunk_list = checkpoint_pb2.ChunkList(
        chunks=[checkpoint_pb2.ChunkRef(digest=d, bytes=n) for d, n in item.chunks]
    )
    columns = (
        item.operator,
        head.revision,
        head.SerializeToString(),
        chunk_list.SerializeToString(),
        item.inline,
    )
    session.execute(
        f"INSERT INTO checkpoints ({_COLUMNS}) VALUES (?,?,?,?,?,?)",  # noqa: S608 (our own names)
        *columns[:2],
        rows.seal(*columns),
        *columns[2:],
    )
    changed = replace(operator, last_revision=head.revision, current_revision=head.revision)
    changed.save(session)
    _drop_old(session, changed)
    return head.revision


def _check_epoch(operator: Operator | None, item: CheckpointWrite) -> None:
    epoch = operator.epoch if operator is not None else 0
    if operator is None or item.epoch != epoch:
        raise errors.OperatorFenced(
            f"operator {item.operator!r} is held with epoch {epoch}, not {item.epoch}; acquire it "
            "again",
            metadata={"subject": item.operator, "epoch": epoch},
        )


def _head(session: Session, item: CheckpointWrite, revision: int) -> checkpoint_pb2.Checkpoint:
    digest = item.digest
    if item.inline is not None:
        found = hashlib.sha256(item.inline).digest()
        if digest and digest != found:
            raise errors.DigestMismatch(
                f"the state of operator {item.operator!r} has SHA-256 {found.hex()}, not "
                f"{digest.hex()}"
            )
        digest = found
    size = len(item.inline) if item.inline is not None else sum(n for _, n in item.chunks)
    head = checkpoint_pb2.Checkpoint(
        operator=item.operator,
        revision=revision,
        epoch=item.epoch,
        state_bytes=size,
        digest=digest,
        positions=item.positions,
        note=item.note,
    )
    head.time.FromNanoseconds(session.now_ns)
    return head


def _drop_old(session: Session, operator: Operator) -> None:
    old = session.execute(
        "SELECT revision FROM checkpoints WHERE operator=? ORDER BY revision DESC LIMIT -1 OFFSET "
        "?",
        operator.name,
        operator.keep,
    )
    for (revision,) in list(old):
        _drop(session, operator.name, revision)


def _drop(session: Session, operator: str, revision: int) -> None:
    row = session.row(
        f"SELECT {_COLUMNS} FROM checkpoints WHERE operator=? AND revision=?",  # noqa: S608
        operator,
        revision,
    )
    session.execute("DELETE FROM checkpoints WHERE operator=? AND revision=?", operator, revision)
    if _whole(row):
        # The chunks of a damaged checkpoint stay: which they are cannot be known.
        refs = checkpoint_pb2.ChunkList.FromString(row[4]).chunks
        _count_uses(session, {ref.digest for ref in refs}, -1)


def delete(session: Session, operator: str, revision: int) -> int:
    """Delete one checkpoint that is not the last, or all (0); return how many."""
    known = _find_operator(session, operator)
    last = known.current_revision if known is not None else 0
    if revision == 0:
        found = session.execute("SELECT revision FROM checkpoints WHERE operator=?", operator)
        revisions = [value for (value,) in found]
    else:
        found = session.execute(
            "SELECT revision FROM checkpoints WHERE operator=? AND revision=?", operator, revision
        )
        revisions = [value for (value,) in found]
        if revision == last:
            raise errors.FailedPrecondition(
                f"revision {revision} is the last checkpoint of operator {operator!r}; it goes "
                "only with all of them (revision 0)",
                metadata={"subject": operator},
            )
    if not revisions:
        raise _not_found(operator, revision)
    for value in revisions:
        _drop(session, operator, value)
    if known is not None and revision == 0:
        replace(known, current_revision=0).save(session)
    return len(revisions)


# Chunks.


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where a chunk is, and how many checkpoints use it."""

    digest: bytes
    data_id: int
    size: int
    uses: int
    kept_until_ns: int = 0

    def save(self, session: Session) -> None:
        """Store the row, with its grace anew."""
        grace_ns = int(session.options.chunk_grace_s * (1 + CHUNK_GRACE_SLACK) * 1e9)
        kept_until_ns = session.now_ns + grace_ns
        columns = (self.digest, self.data_id, self.size, self.uses, kept_until_ns)
        session.execute(
            "INSERT OR REPLACE INTO chunks VALUES (?,?,?,?,?,?)", *columns, rows.seal(*columns)
        )


def put_chunk(session: Session, digest: bytes, data: bytes) -> bool:
    """Store a chunk; True when it was there. What was damaged is whole again."""
    row = session.row("SELECT * FROM chunks WHERE digest=?", digest)
    if row is None:
        session.execute("INSERT INTO chunk_data (data) VALUES (?)", data)
        Chunk(digest, session.connection.last_insert_rowid(), len(data), 0).save(session)
        return False
    if not rows.fits(row[-1], *row[:-1]):
        # Who uses it is not known any more: it is never removed.
        session.execute("INSERT INTO chunk_data (data) VALUES (?)", data)
        Chunk(digest, session.connection.last_insert_rowid(), len(data), 1).save(session)
        return False
    chunk = Chunk(*row[:-1])
    whole = _read_chunk(session.connection, chunk.data_id, digest) is not None
    if not whole:
        session.execute("INSERT OR REPLACE INTO chunk_data VALUES (?, ?)", chunk.data_id, data)
    chunk.save(session)
    return whole


def find_missing(session: Session, digests: Sequence[bytes]) -> list[bytes]:
    """Chunks that are not there; those that are get their grace anew."""
    return [digest for digest in digests if not _keep(session, digest)]


def _keep(session: Session, digest: bytes) -> bool:
    """Whether a chunk is there, for its whole grace. Its bytes are judged when they are read."""
    chunk = _find_chunk(session.connection, digest)
    if chunk is None:
        return False
    stored = session.row("SELECT length(data) FROM chunk_data WHERE id=?", chunk.data_id)
    if stored != chunk.size:
        return False
    grace_ns = int(session.options.chunk_grace_s * 1e9)
    # One that is used gets a grace when its last checkpoint goes.
    if not chunk.uses and chunk.kept_until_ns < session.now_ns + grace_ns:
        chunk.save(session)
    return True


def _find_chunk(connection: Connection, digest: bytes) -> Chunk | None:
    row = connection.execute("SELECT * FROM chunks WHERE digest=?", (digest,)).get
    if row is None or not rows.fits(row[-1], *row[:-1]):
        return None
    return Chunk(*row[:-1])


def _read_chunk(connection: Connection, data_id: int, digest: bytes) -> bytes | None:
    data = connection.execute("SELECT data FROM chunk_data WHERE id=?", (data_id,)).get
    if not isinstance(data, bytes) or not rows.fits_digest(digest, data):
        return None
    return data


def _use_chunks(session: Session, item: CheckpointWrite) -> None:
    missing = []
    for digest, size in dict(item.chunks).items():
        chunk = _find_chunk(session.connection, digest)
        if chunk is None:
            missing.append(digest)
        elif chunk.size != size:
            raise errors.DigestMismatch(
                f"chunk {digest.hex()} has {chunk.size} bytes, not {size}",
                metadata={"digest": digest.hex()},
            )
    if missing:
        raise errors.ChunksMissing(
            f"{len(missing)} chunks of the state are not there, the first is {missing[0].hex()}; "
            "store them first",
            metadata={"missing": len(missing), "first_missing": missing[0].hex()},
        )
    _count_uses(session, {digest for digest, _ in item.chunks}, 1)


def _count_uses(session: Session, digests: set[bytes], change: int) -> None:
    for digest in digests:
        chunk = _find_chunk(session.connection, digest)
        if chunk is not None:
            replace(chunk, uses=max(0, chunk.uses + change)).save(session)


def sweep_chunks(session: Session, rows_max: int) -> int:
    """Remove chunks that no checkpoint uses and whose grace is over; return how many."""
    found = list(
        session.execute(
            "SELECT * FROM chunks WHERE uses=0 AND kept_until_ns<? LIMIT ?",
            session.now_ns,
            rows_max,
        )
    )
    for digest, data_id, *rest, crc in found:
        if rows.fits(crc, digest, data_id, *rest):
            session.execute("DELETE FROM chunk_data WHERE id=?", data_id)
            session.execute("DELETE FROM chunks WHERE digest=?", digest)
    return len(found)


def get_chunk(connection: Connection, digest: bytes) -> bytes:
    """The bytes of a chunk, checked against its digest."""
    row = connection.execute("SELECT * FROM chunks WHERE digest=?", (digest,)).get
    if row is None:
        raise errors.ChunkNotFound(
            f"there is no chunk {digest.hex()}", metadata={"digest": digest.hex()}
        )
    data = _read_chunk(connection, row[1], digest)
    if data is None:
        raise errors.DataCorrupt(
            f"chunk {digest.hex()} is damaged; store it again", metadata={"digest": digest.hex()}
        )
    return data


# Reading.


def load(
    connection: Connection, operator: str, revision: int, *, with_state: bool
) -> checkpoint_pb2.Checkpoint | None:
    """A checkpoint (0: the last one); ``None`` when the operator has none at all."""
    known = find_operator(connection, operator)
    current = known.current_revision if known is not None else 0
    wanted = revision or current
    if not wanted:
        return None
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM checkpoints WHERE operator=? AND revision=?",  # noqa: S608
        (operator, wanted),
    ).get
    if row is None and wanted != current:
        raise _not_found(operator, revision)
    if row is None or row[:2] != (operator, wanted):
        raise _corrupt(operator, wanted)
    return _parse(row, with_state=with_state)


def _whole(row: Sequence[object]) -> bool:
    operator, revision, crc, head, chunks, inline = row
    return rows.fits(crc, operator, revision, head, chunks, inline)


def _parse(row: Sequence[object], *, with_state: bool) -> checkpoint_pb2.Checkpoint:
    operator, revision, _, head, chunks, inline = row
    if not _whole(row):
        raise _corrupt(str(operator), revision if isinstance(revision, int) else 0)
    assert isinstance(head, bytes)
    assert isinstance(chunks, bytes)
    checkpoint = checkpoint_pb2.Checkpoint.FromString(head)
    if with_state:
        if isinstance(inline, bytes):
            checkpoint.inline = inline
        else:
            checkpoint.chunks.ParseFromString(chunks)
    return checkpoint


def list_checkpoints(
    connection: Connection, operator: str, before: str, checkpoints_max: int
) -> tuple[list[checkpoint_pb2.Checkpoint], str]:
    """
    Checkpoints of one operator newest first, or the last one of each by name, and the token to go
    on with.
    """
    if operator:
        limit = int(before) if before.isdigit() else 2**62
        found = connection.execute(_NEWEST_FIRST, (operator, limit, checkpoints_max + 1))
    else:
        found = connection.execute(_LAST_OF_EACH, (before, checkpoints_max + 1))
    listed = [_parse(row, with_state=False) for row in found]
    if len(listed) <= checkpoints_max:
        return listed, ""
    listed.pop()
    return listed, str(listed[-1].revision) if operator else listed[-1].operator


def _not_found(operator: str, revision: int) -> errors.CheckpointNotFound:
    which = f"checkpoint {revision}" if revision else "checkpoint"
    return errors.CheckpointNotFound(
        f"operator {operator!r} has no {which}", metadata={"operator": operator}
    )


def _corrupt(operator: str, revision: int) -> errors.DataCorrupt:
    return errors.DataCorrupt(
        f"checkpoint {revision} of operator {operator!r} is damaged; load an older one",
        metadata={"operator": operator, "revision": revision},
    )
