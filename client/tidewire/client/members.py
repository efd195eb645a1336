"""Members: who is alive."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tidewire.client.membership import Figures, Membership, MembershipListener
from tidewire.client.opening import Opening
from tidewire.client.pull import PullStream
from tidewire.client.session import PRIORITY_CONTROL, PRIORITY_HEARTBEAT, Session
from tidewire.v1 import heartbeat_pb2
from tidewire.v1.heartbeat_pb2_grpc import HeartbeatServiceStub
from tidewire.wire.subject import check_name

STATUS_NAMES = {
    heartbeat_pb2.MEMBER_STATUS_ALIVE: "alive",
    heartbeat_pb2.MEMBER_STATUS_SUSPECT: "suspect",
    heartbeat_pb2.MEMBER_STATUS_DEAD: "dead",
    heartbeat_pb2.MEMBER_STATUS_LEFT: "left",
}


@dataclass(frozen=True, slots=True)
class MemberEvent:
    """
    One event of a watch of members.

    Attributes:
        member: The member as it is.
        status: "alive", "suspect", "dead" or "left".
        status_before: Status before; empty for a new member, and for those that were there.
        snapshot: It was there when the watch began, or when it was opened again.
        revision: Revision of the membership.
    """

    member: heartbeat_pb2.Member
    status: str
    status_before: str
    snapshot: bool
    revision: int


class MemberWatch(PullStream[MemberEvent]):
    """Members as they are, then every change: iterate over it."""

    def __init__(self, session: Session, group: str) -> None:
        stub = HeartbeatServiceStub(session.channel)
        super().__init__(session, "a watch of members", stub.WatchMembers, PRIORITY_CONTROL)
        self._group = group

    async def _request(self) -> heartbeat_pb2.WatchMembersRequest:
        return heartbeat_pb2.WatchMembersRequest(group=self._group)

    def _read(
        self, kind: str, response: heartbeat_pb2.WatchMembersResponse
    ) -> Iterable[MemberEvent]:
        if kind == "snapshot":
            revision = response.snapshot.revision
            return [
                MemberEvent(member, _name(member.status), "", snapshot=True, revision=revision)
                for member in response.snapshot.members
            ]
        change = response.change
        before = _name(change.status_before)
        return [
            MemberEvent(
                change.member,
                _name(change.member.status),
                before,
                snapshot=False,
                revision=change.revision,
            )
        ]


class Members:
    """The membership part of a client; see `tidewire.connect`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stub = HeartbeatServiceStub(session.channel)

    def join(
        self,
        node_id: str,
        *,
        groups: Sequence[str] = (),
        lease_s: float = 15.0,
        take_over: bool = False,
        version: str = "",
        figures: Callable[[], Figures] | None = None,
        on_change: MembershipListener | None = None,
    ) -> Opening[Membership]:
        """
        Join, and beat by itself: ``async with client.members.join("node-7") as membership``.

        Args:
            node_id: Node id: one subject token.
            groups: Groups it is in.
            lease_s: Without a beat for this long the member is DEAD; 1 s to 1 h.
            take_over: Fence an incarnation under this id that is still alive.
            version: Version of the software, told to others.
            figures: Called before each beat for what this client cannot measure itself.
            on_change: Called with "rejoined", "fenced", "lost" or "left" and the membership.

        Raises:
            NodeInUse: Another one beats under this id, and `take_over` is false.
        """
        check_name(node_id, "node id")
        membership = Membership(
            self._session,
            node_id,
            groups=groups,
            lease_s=lease_s,
            take_over=take_over,
            version=version,
            figures=figures,
            on_change=on_change,
        )
        return Opening(membership.open)

    async def list(
        self, group: str = "", *, include_gone: bool = False
    ) -> Sequence[heartbeat_pb2.Member]:
        """Members by node id; with `include_gone` also those DEAD or LEFT, kept for 1 h."""
        request = heartbeat_pb2.ListMembersRequest(group=group, include_gone=include_gone)
        response = await self._session.unary(
            self._stub.ListMembers, request, metadata=PRIORITY_HEARTBEAT
        )
        return tuple(response.members)

    def watch(self, group: str = "") -> Opening[MemberWatch]:
        """Watch the members: those that are there, then every change."""
        return Opening(MemberWatch(self._session, group).open)

    async def cluster(self) -> heartbeat_pb2.GetClusterResponse:
        """Summary of the cluster."""
        response: heartbeat_pb2.GetClusterResponse = await self._session.unary(
            self._stub.GetCluster,
            heartbeat_pb2.GetClusterRequest(),
            metadata=PRIORITY_HEARTBEAT,
        )
        return response


def _name(status: heartbeat_pb2.MemberStatus.ValueType) -> str:
    return STATUS_NAMES.get(status, "")
