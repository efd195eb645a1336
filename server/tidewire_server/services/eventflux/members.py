"""
EventFlux nodes as members.

EventFlux knows one kind of heartbeat and no joining, so the first one of a node joins it, and the
server remembers its incarnation for the client that sent it. A node id that a client of
HeartbeatService has is never touched.
"""

import asyncio
import math
import os
from dataclasses import dataclass
from typing import Any, Final

from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire.v1 import heartbeat_pb2
from tidewire.wire.subject import check_name
from tidewire_server.core import Context, Core, principal
from tidewire_server.members import Life
from tidewire_server.services.eventflux.access import Backends
from tidewire_server.services.eventflux.messages import MILLISECOND_NS
from tidewire_server.services.payload import bad_field

GROUP: Final = "eventflux"
LEASE_S: Final = 10
"""EventFlux beats once a second and gives a node up after ten."""
CLUSTER_AGE_S_MAX: Final = 0.25
"""Counts of members are this old at most; a join, a death or a leave makes them new at once."""

_HEALTH: Final = {
    transport_pb2.NODE_HEALTH_UNKNOWN: heartbeat_pb2.NODE_HEALTH_UNSPECIFIED,
    transport_pb2.NODE_HEALTH_HEALTHY: heartbeat_pb2.NODE_HEALTH_HEALTHY,
    transport_pb2.NODE_HEALTH_DEGRADED: heartbeat_pb2.NODE_HEALTH_DEGRADED,
    transport_pb2.NODE_HEALTH_UNHEALTHY: heartbeat_pb2.NODE_HEALTH_UNHEALTHY,
    transport_pb2.NODE_HEALTH_OFFLINE: heartbeat_pb2.NODE_HEALTH_UNHEALTHY,
}
_HEALTH_BACK: Final = {
    heartbeat_pb2.NODE_HEALTH_UNSPECIFIED: transport_pb2.NODE_HEALTH_UNKNOWN,
    heartbeat_pb2.NODE_HEALTH_HEALTHY: transport_pb2.NODE_HEALTH_HEALTHY,
    heartbeat_pb2.NODE_HEALTH_DEGRADED: transport_pb2.NODE_HEALTH_DEGRADED,
    heartbeat_pb2.NODE_HEALTH_UNHEALTHY: transport_pb2.NODE_HEALTH_UNHEALTHY,
}


@dataclass(slots=True)
class _Known:
    """
    A node that beats through us: its incarnation, who sends its heartbeats, and the figures it said
    last.
    """

    incarnation: int
    principal: str
    node: heartbeat_pb2.NodeStatus


class Nodes:
    """Joins nodes, beats for them and tells them of the cluster."""

    def __init__(self, core: Core, backends: Backends) -> None:
        self._core = core
        self._backends = backends
        self._service = backends.heartbeat
        self._known: dict[str, _Known] = {}
        self._joins: dict[str, asyncio.Task[_Known]] = {}
        self._cluster: heartbeat_pb2.GetClusterResponse | None = None
        self._cluster_at_s = 0.0
        core.members.listen(self._on_life)

    async def close(self) -> None:
        """Wait for joins that are under way."""
        await asyncio.gather(*self._joins.values(), return_exceptions=True)

    async def heartbeat(
        self, request: transport_pb2.HeartbeatRequest, context: Context
    ) -> transport_pb2.HeartbeatResponse:
        """Take a heartbeat and say how the server and the cluster are."""
        status = request.status if request.HasField("status") else None
        if status is not None and status.health == transport_pb2.NODE_HEALTH_OFFLINE:
            await self._leave(request.node_id, context)
        else:
            await self.beat(request.node_id, status, context)
        cluster = await self._look(context)
        response = transport_pb2.HeartbeatResponse(
            server_timestamp=self._core.wall_ns() // MILLISECOND_NS,
            server_node_id=self._core.node_id,
            server_status=server_status(cluster.server),
        )
        response.cluster_info.cluster_id = cluster.cluster_id
        response.cluster_info.total_nodes = cluster.members
        response.cluster_info.healthy_nodes = cluster.healthy
        response.cluster_info.leader_node = self._core.node_id
        response.cluster_info.cluster_version = self._core.version
        return response

    async def beat(
        self, node_id: str, status: transport_pb2.NodeStatus | None, context: Context
    ) -> None:
        """
        Let a node beat; it joins when it is none.

        Raises:
            InvalidSubject: The node id cannot be.
            InvalidArgument: A figure cannot be.
            NodeInUse: Somebody else has this node id.
        """
        self._backends.check(context, "HeartbeatService/Beat")
        check_name(node_id, "node_id")
        node = _member_status(status)
        known = self._known.get(node_id)
        if known is None:
            await self._join(node_id, node, context)
            return
        self._check_sender(node_id, known, context)
        if status is None:
            node = known.node  # a heartbeat that says nothing takes nothing back
        else:
            known.node = node
        beat = heartbeat_pb2.BeatRequest(
            node_id=node_id, incarnation=known.incarnation, status=node
        )
        try:
            await self._service.Beat(beat, context)
        except (errors.NotAMember, errors.MemberFenced):
            # Given up meanwhile, or somebody took the node over: then the join says so.
            self._known.pop(node_id, None)
            await self._join(node_id, node, context)

    async def _join(self, node_id: str, node: heartbeat_pb2.NodeStatus, context: Context) -> None:
        self._backends.check(context, "HeartbeatService/Join")
        joining = self._joins.get(node_id)
        if joining is None:
            # A task of its own: heartbeats that come together join once, and a caller that goes
            # away leaves no member whose incarnation nobody knows.
            joining = asyncio.create_task(self._join_once(node_id, node, context))
            self._joins[node_id] = joining
            joining.add_done_callback(lambda task: self._end_join(node_id, task))
        known = await asyncio.shield(joining)
        self._check_sender(node_id, known, context)

    async def _join_once(
        self, node_id: str, node: heartbeat_pb2.NodeStatus, context: Context
    ) -> _Known:
        who = principal(context)
        incarnation = await self._incarnation_of(node_id, node, context)
        if incarnation is None:
            request = heartbeat_pb2.JoinRequest(node_id=node_id, groups=[GROUP], status=node)
            request.lease.seconds = LEASE_S
            incarnation = (await self._service.Join(request, context)).incarnation
        known = self._known[node_id] = _Known(incarnation, who, node)
        return known

    def _end_join(self, node_id: str, task: asyncio.Task[_Known]) -> None:
        self._joins.pop(node_id, None)
        if not task.cancelled():
            task.exception()  # its callers may all be gone

    async def _incarnation_of(
        self, node_id: str, node: heartbeat_pb2.NodeStatus, context: Context
    ) -> int | None:
        """Incarnation of a node that beat through us before the server was started again."""
        if self._core.members.life(node_id) not in (Life.ALIVE, Life.SUSPECT):
            return None
        request = heartbeat_pb2.ListMembersRequest(group=GROUP)
        for member in (await self._service.ListMembers(request, context)).members:
            if member.node_id == node_id:
                beat = heartbeat_pb2.BeatRequest(
                    node_id=node_id, incarnation=member.incarnation, status=node
                )
                await self._service.Beat(beat, context)
                return member.incarnation
        return None

    async def _leave(self, node_id: str, context: Context) -> None:
        self._backends.check(context, "HeartbeatService/Leave")
        check_name(node_id, "node_id")
        known = self._known.get(node_id)
        if known is None:
            return
        self._check_sender(node_id, known, context)
        request = heartbeat_pb2.LeaveRequest(node_id=node_id, incarnation=known.incarnation)
        await self._service.Leave(request, context)

    def _check_sender(self, node_id: str, known: _Known, context: Context) -> None:
        if principal(context) != known.principal:
            raise errors.NodeInUse(
                f"heartbeats of node {node_id!r} come from another client; choose another node id",
                metadata={"node_id": node_id},
            )

    def _on_life(self, node_id: str, life: Life, _token: int) -> None:
        self._cluster = None
        if life in (Life.DEAD, Life.LEFT):
            self._known.pop(node_id, None)

    async def _look(self, context: Any) -> heartbeat_pb2.GetClusterResponse:
        """
        How the cluster is; counting is work for every member, and every member asks every second.
        """
        now_s = self._core.clock()
        if self._cluster is None or now_s - self._cluster_at_s > CLUSTER_AGE_S_MAX:
            request = heartbeat_pb2.GetClusterRequest()
            self._cluster = await self._service.GetCluster(request, context)
            self._cluster_at_s = now_s
        return self._cluster


def server_status(measured: heartbeat_pb2.NodeStatus) -> transport_pb2.NodeStatus:
    """The figures of the server as EventFlux has them; those that are not measured are named."""
    status = transport_pb2.NodeStatus(
        health=_HEALTH_BACK[measured.health],
        active_connections=measured.connections,
        events_per_second=round(measured.events_per_second),
        version=measured.version,
    )
    status.cpu_usage = 100 * measured.cpu_cores / (os.cpu_count() or 1)
    memory_bytes = machine_bytes()
    if memory_bytes:
        status.memory_usage = 100 * measured.memory_bytes / memory_bytes
    unmeasured = [
        name
        for name, figure in (
            ("cpu_usage", "cpu_cores"),
            ("memory_usage", "memory_bytes"),
            ("active_connections", "connections"),
            ("events_per_second", "events_per_second"),
        )
        if not measured.HasField(figure)  # type: ignore[arg-type]  # names of fields
    ]
    if unmeasured:
        status.metadata["unmeasured"] = ",".join(unmeasured)
    return status


def machine_bytes() -> int:
    """Memory of the machine; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _member_status(status: transport_pb2.NodeStatus | None) -> heartbeat_pb2.NodeStatus:
    """
    A node's own figures as those of a member.

    Its percentages stay such, as labels: of how much is not said.
    """
    if status is None:
        return heartbeat_pb2.NodeStatus()
    health = _HEALTH.get(status.health)
    if health is None:
        raise bad_field("status.health", f"is {status.health}, which is unknown")
    node = heartbeat_pb2.NodeStatus(health=health, version=status.version, labels=status.metadata)
    for name in ("active_connections", "events_per_second"):
        if getattr(status, name) < 0:
            raise bad_field(f"status.{name}", "is negative; a measured figure is 0 or more")
    node.connections = status.active_connections
    node.events_per_second = status.events_per_second
    for name in ("cpu_usage", "memory_usage"):
        figure = getattr(status, name)
        if not math.isfinite(figure) or figure < 0:
            raise bad_field(f"status.{name}", f"is {figure}; a measured figure is 0 or more")
        node.labels[f"{name}_percent"] = f"{figure:.1f}"
    return node
