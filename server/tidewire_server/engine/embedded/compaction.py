"""
Forgetting State's history.

Compacting to a revision is a promise made at once (one number); the rows go afterwards, a bounded
number with each sweep.
"""

from tidewire import errors
from tidewire.v1 import state_pb2
from tidewire_server.engine.embedded import schema
from tidewire_server.engine.embedded.session import Session


def compact(session: Session, revision: int) -> int:
    """
    Promise nothing before a revision any more; return the oldest revision one can resume from.
    """
    current = session.number("state_revision")
    if revision > current:
        raise errors.RevisionInFuture(
            f"the store is at revision {current}; {revision} does not exist yet",
            metadata={"revision": current},
        )
    if revision > session.number("compacted_revision"):
        session.set_number("compacted_revision", revision)
    return session.number("compacted_revision")


def bound_history(session: Session) -> None:
    """Compact by itself when there are more changes than are kept."""
    kept = session.options.history_changes_max
    oldest = session.number("compacted_revision") + 1
    current = session.number("state_revision")
    # Each revision has at least one change: fewer revisions than the bound need no counting.
    if current - oldest < kept * 1.1:
        return
    identifier = session.row("SELECT id FROM changes ORDER BY id DESC LIMIT 1 OFFSET ?", kept)
    if identifier is not None:
        compact(
            session, max(identifier >> schema.CHANGE_BITS, session.number("compacted_revision"))
        )


def sweep(session: Session, rows_max: int) -> int:
    """
    Remove rows that the promise does not cover, looking at no more than so many; return how many
    were looked at.
    """
    swept = session.number("swept_revision")
    compacted = session.number("compacted_revision")
    if swept >= compacted:
        return 0
    low, high = schema.change_id(swept + 1), schema.change_id(compacted + 1)
    found = list(
        session.execute(
            "SELECT id, key, kind FROM changes WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
            low,
            high,
            rows_max + schema.CHANGES_PER_REVISION_MAX,
        )
    )
    done = compacted
    if len(found) == rows_max + schema.CHANGES_PER_REVISION_MAX:
        # The last revision may be cut: it waits for the next sweep.
        done = (found[-1][0] >> schema.CHANGE_BITS) - 1
    for identifier, key, kind in found:
        if identifier >> schema.CHANGE_BITS > done:
            break
        session.execute("DELETE FROM changes WHERE key=? AND id<?", key, identifier)
        if kind != state_pb2.CHANGE_KIND_PUT:
            session.execute("DELETE FROM changes WHERE id=?", identifier)
            session.execute(
                "DELETE FROM heads WHERE key=? AND change_id=? AND live=0", key, identifier
            )
    session.set_number("swept_revision", done)
    return len(found)
