"""What is over is removed: a bounded piece with each sweep, in the writer thread."""

from tidewire_server.engine.embedded import checkpoints, compaction, members, transactions
from tidewire_server.engine.embedded.facts import bounds
from tidewire_server.engine.embedded.session import Session
from tidewire_server.engine.embedded.trimming import trim_by_age


def sweep(session: Session) -> int:
    """Remove a bounded number of rows that are over; return about how many."""
    rows_max = session.options.sweep_rows_max
    removed = 0
    for stream in session.streams.by_name.values():
        removed += trim_by_age(session, stream, rows_max)
        session.execute(
            "DELETE FROM removed_ids WHERE stream=? AND time_ns<?",
            stream.number,
            session.now_ns - stream.dedup_window_ns,
        )
    removed += _sweep_deleted_streams(session, rows_max)
    compaction.bound_history(session)
    removed += compaction.sweep(session, rows_max)
    removed += transactions.sweep_requests(session, rows_max)
    removed += checkpoints.sweep_chunks(session, rows_max)
    removed += members.sweep_documents(session, rows_max)
    return removed


def sweep_producers(session: Session) -> None:
    """Forget producers that have been silent for long."""
    before_ns = session.now_ns - int(session.options.producer_idle_s * 1e9)
    session.execute("DELETE FROM producers WHERE time_ns<?", before_ns)
    for key, producer in list(session.producers.items()):
        if producer.time_ns < before_ns and key not in session.dirty_producers:
            del session.producers[key]


def _sweep_deleted_streams(session: Session, rows_max: int) -> int:
    number = session.row("SELECT number FROM streams WHERE deleted=1 LIMIT 1")
    if number is None:
        return 0
    session.execute(
        "DELETE FROM batches WHERE id IN (SELECT id FROM batches WHERE id BETWEEN ? AND ? LIMIT ?)",
        *bounds(number),
        rows_max,
    )
    removed: int = session.connection.changes()
    if removed < rows_max:
        for table in ("removed_ids", "producers", "quarantine"):
            session.execute(f"DELETE FROM {table} WHERE stream=?", number)  # noqa: S608
        session.execute("DELETE FROM streams WHERE number=? AND deleted=1", number)
    return removed
