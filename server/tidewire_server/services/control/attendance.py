"""Who attends: one stream for each node, and the groups it is in."""

from collections.abc import Sequence
from typing import Final

from tidewire import errors
from tidewire.v1 import control_pb2
from tidewire_server.services.control.commands import PENDING_PER_NODE_MAX, Command
from tidewire_server.services.outbox import Outbox

UNWRITTEN_BYTES_MAX: Final = 64 * 1024 * 1024


class Attendant:
    """
    One stream of Attend, or the server itself.

    Attributes:
        outbox: Commands to hand over, and other responses. Bounded by what may wait for one node.
    """

    def __init__(self, node_id: str, groups: Sequence[str]) -> None:
        self.node_id = node_id
        self.groups = tuple(dict.fromkeys(groups))
        self.outbox: Outbox[Command | control_pb2.AttendResponse] = Outbox(
            PENDING_PER_NODE_MAX, UNWRITTEN_BYTES_MAX
        )


class Attendance:
    """The attendants of one server."""

    def __init__(self) -> None:
        self._attendants: dict[str, Attendant] = {}
        self._groups: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._attendants)

    def get(self, node_id: str) -> Attendant | None:
        """Look up who attends as this node."""
        return self._attendants.get(node_id)

    def everyone(self) -> list[Attendant]:
        """All attendants, in the order they came."""
        return list(self._attendants.values())

    def nodes(self, group: str | None = None) -> list[str]:
        """Nodes that attend now; with this group, when one is given."""
        return list(self._attendants if group is None else self._groups.get(group, ()))

    def enter(self, attendant: Attendant) -> None:
        """Let a stream attend; another one of the same node ends with ATTENDANCE_TAKEN."""
        before = self._attendants.get(attendant.node_id)
        if before is not None:
            self.leave(before)
            before.outbox.fail(
                errors.AttendanceTaken(
                    f"another stream attends as node {attendant.node_id!r} now",
                    metadata={"subject": attendant.node_id},
                )
            )
        self._attendants[attendant.node_id] = attendant
        for group in attendant.groups:
            self._groups.setdefault(group, {})[attendant.node_id] = None

    def leave(self, attendant: Attendant) -> None:
        """Let a stream go; nothing happens when another one has taken its place."""
        if self._attendants.get(attendant.node_id) is not attendant:
            return
        del self._attendants[attendant.node_id]
        for group in attendant.groups:
            nodes = self._groups[group]
            nodes.pop(attendant.node_id, None)
            if not nodes:
                del self._groups[group]
