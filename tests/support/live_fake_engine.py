"""An engine in memory with what the query, control and heartbeat services use of one."""

from collections.abc import Sequence
from typing import Any, cast

from tidewire.v1 import common_pb2
from tidewire_server.core import Core
from tidewire_server.engine.base import Engine, MemberRecord
from tidewire_server.members import Members


class MemoryEngine:
    """
    Members and documents in dictionaries; two cores may share one, as two starts of a server do.
    """

    def __init__(self) -> None:
        self.name = "fake"
        self.cluster_id = "cluster"
        self.epoch = 3
        self.durability_max = common_pb2.DURABILITY_OS
        self.failure: BaseException | None = None
        self.members: dict[str, MemberRecord] = {}
        self.documents: dict[tuple[str, str], bytes] = {}
        self.put_error: Exception | None = None

    async def join_member(
        self, node_id: str, lease_s: float, groups: Sequence[str]
    ) -> MemberRecord:
        """Count incarnations and tokens up."""
        before = self.members.get(node_id)
        record = MemberRecord(
            node_id=node_id,
            incarnation=before.incarnation + 1 if before else 1,
            fencing_token=1 + max((m.fencing_token for m in self.members.values()), default=0),
            lease_s=lease_s,
            groups=tuple(groups),
        )
        self.members[node_id] = record
        return record

    async def mark_member_gone(self, node_id: str, incarnation: int) -> None:
        """Mark it."""
        record = self.members[node_id]
        if record.incarnation == incarnation:
            self.members[node_id] = MemberRecord(
                node_id, incarnation, record.fencing_token, record.lease_s, record.groups, gone=True
            )

    async def list_members(self) -> Sequence[MemberRecord]:
        """List them."""
        return list(self.members.values())

    async def put_document(self, kind: str, name: str, body: bytes, expires_ns: int) -> None:
        """Keep it."""
        if self.put_error is not None:
            raise self.put_error
        self.documents[kind, name] = body

    async def list_documents(self, kind: str) -> Sequence[tuple[str, bytes]]:
        """List one kind."""
        return [(name, body) for (k, name), body in self.documents.items() if k == kind]

    async def delete_documents(self, kind: str, names: Sequence[str]) -> None:
        """Delete some."""
        for name in names:
            self.documents.pop((kind, name), None)


def make_core(engine: Any = None, **options: Any) -> Core:
    """A core on an engine; a new one in memory when none is given."""
    options.setdefault("node_id", "server-1")
    options.setdefault("version", "1.2.3")
    return Core(engine=cast("Engine", engine or MemoryEngine()), members=Members(), **options)
