"""Members and documents: small records of the services."""

import json
from collections.abc import Sequence

from tidewire import errors
from tidewire_server.engine.base import MemberRecord
from tidewire_server.engine.embedded import rows
from tidewire_server.engine.embedded.connections import Connection
from tidewire_server.engine.embedded.session import Session


def _parse(row: Sequence[object]) -> MemberRecord:
    node_id, incarnation, fencing_token, lease_ns, groups, gone, crc = row
    if not rows.fits(crc, node_id, incarnation, fencing_token, lease_ns, groups, gone):
        raise errors.DataCorrupt(
            f"the stored record of member {node_id!r} is damaged; let it join again",
            metadata={"node_id": str(node_id)},
        )
    assert isinstance(node_id, str)
    assert isinstance(incarnation, int)
    assert isinstance(fencing_token, int)
    assert isinstance(lease_ns, int)
    assert isinstance(groups, str)
    return MemberRecord(
        node_id,
        incarnation,
        fencing_token,
        lease_ns / 1e9,
        tuple(json.loads(groups)),
        gone=bool(gone),
    )


def _save(session: Session, member: MemberRecord) -> None:
    columns = (
        member.node_id,
        member.incarnation,
        member.fencing_token,
        round(member.lease_s * 1e9),
        json.dumps(member.groups),
        int(member.gone),
    )
    session.execute(
        "INSERT OR REPLACE INTO members VALUES (?,?,?,?,?,?,?)", *columns, rows.seal(*columns)
    )


def join(session: Session, node_id: str, lease_s: float, groups: Sequence[str]) -> MemberRecord:
    """Give a node its next incarnation and the next fencing token of the store."""
    row = session.row("SELECT * FROM members WHERE node_id=?", node_id)
    token = session.number("fencing_token") + 1
    # A damaged row cannot say the last incarnation; the token is higher than any incarnation there
    # was.
    incarnation = token
    if row is not None and rows.fits(row[-1], *row[:-1]):
        incarnation = row[1] + 1
    elif row is None and "members" not in session.connection.damaged:
        incarnation = 1
    session.set_number("fencing_token", token)
    member = MemberRecord(node_id, incarnation, token, lease_s, tuple(groups))
    _save(session, member)
    return member


def mark_gone(session: Session, node_id: str, incarnation: int) -> None:
    """Record that this incarnation is gone; a newer one is left alone."""
    row = session.row("SELECT * FROM members WHERE node_id=?", node_id)
    if row is None:
        return
    member = _parse(row)
    if member.incarnation == incarnation and not member.gone:
        _save(
            session,
            MemberRecord(
                node_id,
                incarnation,
                member.fencing_token,
                member.lease_s,
                member.groups,
                gone=True,
            ),
        )


def list_all(connection: Connection) -> list[MemberRecord]:
    """
    All members, by node id.

    One whose record is damaged is left out: it has to join again, and gets a higher token.
    """
    found = connection.execute("SELECT * FROM members ORDER BY node_id")
    return [_parse(row) for row in rows.readable(found) if rows.fits(row[-1], *row[:-1])]


# Documents.


def put_document(session: Session, kind: str, name: str, body: bytes, expires_ns: int) -> None:
    """Store a document, over the one of this name if there is one."""
    if session.row("SELECT 1 FROM documents WHERE kind=? AND name=?", kind, name) is None:
        count = _count_documents(session, kind)
        if count >= session.options.documents_max:
            raise errors.Overloaded(
                f"{count} documents of kind {kind!r} are kept, and no more are taken",
                retry_after_s=1.0,
            )
        _set_documents(session, kind, count + 1)
    crc = rows.seal(kind, name, expires_ns, body)
    session.execute(
        "INSERT OR REPLACE INTO documents VALUES (?,?,?,?,?)", kind, name, expires_ns, crc, body
    )


def list_documents(connection: Connection, kind: str, now_ns: int) -> list[tuple[str, bytes]]:
    """Names and bodies of the documents of a kind that are whole and have not expired."""
    found: list[tuple[str, bytes]] = []
    stored = connection.execute("SELECT * FROM documents WHERE kind=? ORDER BY name", (kind,))
    for row_kind, name, expires_ns, crc, body in rows.readable(stored):
        whole = rows.fits(crc, row_kind, name, expires_ns, body)
        if whole and (not expires_ns or expires_ns > now_ns):
            found.append((name, body))
    return found


def delete_documents(session: Session, kind: str, names: Sequence[str]) -> None:
    """Delete documents; those that are not there are no error."""
    removed = 0
    for name in names:
        session.execute("DELETE FROM documents WHERE kind=? AND name=?", kind, name)
        removed += session.connection.changes()
    if kind in session.documents:
        _set_documents(session, kind, session.documents[kind] - removed)


def _count_documents(session: Session, kind: str) -> int:
    """Documents of a kind; counted in the store once."""
    if kind not in session.documents:
        count = session.row("SELECT count(*) FROM documents WHERE kind=?", kind)
        session.documents[kind] = count
    return session.documents[kind]


def _set_documents(session: Session, kind: str, count: int) -> None:
    before = session.documents[kind]
    session.on_undo(lambda: session.documents.__setitem__(kind, before))
    session.documents[kind] = count


def sweep_documents(session: Session, rows_max: int) -> int:
    """Remove documents that have expired; return how many."""
    found = list(
        session.execute(
            "SELECT kind, name FROM documents WHERE expires_ns > 0 AND expires_ns<=? LIMIT ?",
            session.now_ns,
            rows_max,
        )
    )
    for kind, name in found:
        delete_documents(session, kind, [name])
    return len(found)
