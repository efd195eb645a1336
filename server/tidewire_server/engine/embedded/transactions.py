"""A transaction of several kinds, and requests that are safe to repeat."""

from tidewire import errors
from tidewire.v1 import checkpoint_pb2, state_pb2
from tidewire_server.engine.base import REQUEST_WINDOW_S, Committed, RequestKey, Transaction
from tidewire_server.engine.embedded import appends, checkpoints, consumers, rows
from tidewire_server.engine.embedded.session import Session
from tidewire_server.engine.embedded.state import StateWriter


def perform(session: Session, transaction: Transaction) -> Committed:
    """Do all of it, or raise; what was done before the raise is taken back by the writer."""
    request = transaction.request
    if request is not None:
        known = _recall(session, request)
        if known is not None:
            return known
    stored = [appends.append(session, item) for item in transaction.appends]
    writer = StateWriter(session)
    state = _perform_state(session, writer, transaction)
    for settle in transaction.settles:
        consumers.settle(session, settle)
    revision = 0
    if transaction.checkpoint is not None:
        revision = checkpoints.write(session, transaction.checkpoint)
    done = Committed(
        durability=session.level,
        appends=stored,
        state=state,
        state_revision=writer.finish(),
        checkpoint_revision=revision,
    )
    if request is not None:
        _remember(session, request, done)
    return done


def is_atomic(transaction: Transaction) -> bool:
    """
    Whether a transaction judges everything before it writes anything, so that it needs no
    savepoint.
    """
    pieces = len(transaction.appends) + len(transaction.settles)
    pieces += len(transaction.then) + len(transaction.otherwise)
    return transaction.checkpoint is None and transaction.request is None and pieces <= 1


def _perform_state(
    session: Session, writer: StateWriter, transaction: Transaction
) -> state_pb2.TransactResponse | None:
    if not (transaction.compare or transaction.then or transaction.otherwise):
        return None
    actual = writer.compare(transaction.compare) if transaction.compare else None
    if actual is not None and transaction.compare_required:
        raise _mismatch(session, transaction, actual)
    operations = transaction.then if actual is None else transaction.otherwise
    results = [writer.perform(operation) for operation in operations]
    return state_pb2.TransactResponse(
        succeeded=actual is None,
        results=results,
        revision=writer.revision,
        durability=session.level,
        actual=actual or (),
    )


def _mismatch(
    session: Session, transaction: Transaction, actual: list[state_pb2.Entry]
) -> errors.RevisionMismatch:
    revisions = {entry.key: entry.revision for entry in actual}
    shown = ", ".join(
        f"{item.key!r} at {revisions.get(item.key, 0) or 'none'}"
        for item in transaction.compare[:8]
    )
    first = transaction.compare[0].key
    return errors.RevisionMismatch(
        f"not all comparisons hold ({shown}); read again",
        metadata={
            "subject": first,
            "actual_revision": revisions.get(first, 0),
            "store_revision": session.number("state_revision"),
        },
    )


# Requests that are safe to repeat.


def _recall(session: Session, request: RequestKey) -> Committed | None:
    row = session.row(
        "SELECT * FROM requests WHERE scope=? AND request_id=?", request.scope, request.request_id
    )
    if row is None:
        return None
    if not rows.fits(row[-1], *row[:-1]):
        raise errors.DataCorrupt(
            f"the stored answer of request {request.request_id!r} is damaged; ask what became of "
            "it",
            metadata={"request_id": request.request_id},
        )
    if row[2] < session.now_ns - int(REQUEST_WINDOW_S * 1e9):
        return None
    answer = checkpoint_pb2.CommitResponse()
    size = int.from_bytes(row[3][:4], "big")
    answer.ParseFromString(row[3][4 : 4 + size])
    rest = row[3][4 + size :]
    state = state_pb2.TransactResponse.FromString(rest[1:]) if rest[:1] == b"\x01" else None
    return Committed(
        durability=max(answer.durability, session.level),
        appends=list(answer.outputs),
        state=state,
        state_revision=answer.state_revision,
        checkpoint_revision=answer.revision,
        repeated=True,
    )


def _remember(session: Session, request: RequestKey, done: Committed) -> None:
    answer = checkpoint_pb2.CommitResponse(
        revision=done.checkpoint_revision,
        durability=done.durability,
        outputs=done.appends,
        state_revision=done.state_revision,
    ).SerializeToString()
    state = b"\x00" if done.state is None else b"\x01" + done.state.SerializeToString()
    columns = (
        request.scope,
        request.request_id,
        session.now_ns,
        len(answer).to_bytes(4, "big") + answer + state,
    )
    session.execute(
        "INSERT OR REPLACE INTO requests VALUES (?,?,?,?,?)", *columns, rows.seal(*columns)
    )


def sweep_requests(session: Session, rows_max: int) -> int:
    """Forget requests whose window is over; return how many."""
    session.execute(
        "DELETE FROM requests WHERE (scope, request_id) IN (SELECT scope, request_id FROM requests "
        "WHERE time_ns<? LIMIT ?)",
        session.now_ns - int(REQUEST_WINDOW_S * 1e9),
        rows_max,
    )
    return session.connection.changes()
