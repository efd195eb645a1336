"""One's own membership: joined once, kept by beats, won back when it was lost."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from tidewire.client.session import PRIORITY_HEARTBEAT, Session, log, notify
from tidewire.client.times import to_duration, to_seconds
from tidewire.errors import (
    ConnectionLost,
    MemberFenced,
    NodeInUse,
    NotAMember,
    TidewireError,
)
from tidewire.v1 import heartbeat_pb2, state_pb2
from tidewire.v1.heartbeat_pb2_grpc import HeartbeatServiceStub

LEAVE_TIMEOUT_S: Final = 3.0
INTERVAL_S_LEAST: Final = 0.05


@dataclass(slots=True)
class Figures:
    """
    What an application adds to its beats. What is ``None`` is not told.

    Attributes:
        health: "healthy", "degraded" or "unhealthy".
        connections: Open connections of the node.
        events_per_second: Events handled a second since the last beat.
        labels: Anything else; at most 32 entries of at most 256 bytes.
    """

    health: str = "healthy"
    connections: int | None = None
    events_per_second: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


_HEALTH = {
    "healthy": heartbeat_pb2.NODE_HEALTH_HEALTHY,
    "degraded": heartbeat_pb2.NODE_HEALTH_DEGRADED,
    "unhealthy": heartbeat_pb2.NODE_HEALTH_UNHEALTHY,
}


class Meter:
    """Measures this process: CPU since the last time, and resident memory where the system says."""

    def __init__(self) -> None:
        self._cpu_s = time.process_time()
        self._wall_s = time.monotonic()

    def fill(self, status: heartbeat_pb2.NodeStatus) -> None:
        """Set what can be measured."""
        cpu_s, wall_s = time.process_time(), time.monotonic()
        if wall_s > self._wall_s:
            status.cpu_cores = (cpu_s - self._cpu_s) / (wall_s - self._wall_s)
        self._cpu_s, self._wall_s = cpu_s, wall_s
        memory_bytes = _resident_bytes()
        if memory_bytes is not None:
            status.memory_bytes = memory_bytes


class Membership:
    """
    A member of the cluster, alive as long as its beats go through.

    Attributes:
        node_id: Node id.
        incarnation: Grows with every join under this id.
        fencing_token: Grows with every join of any node; to be given with what only the newest
            incarnation may do.
        lease_s: Lease granted.
        interval_s: Time between beats.
        rejoined: Times membership was lost and won back.
        beats: Beats the server has taken.
        error: Why membership ended, when it did.
    """

    def __init__(
        self,
        session: Session,
        node_id: str,
        *,
        groups: Sequence[str],
        lease_s: float,
        take_over: bool,
        version: str,
        figures: Callable[[], Figures] | None,
        on_change: "MembershipListener | None",
    ) -> None:
        self.node_id = node_id
        self.incarnation = 0
        self.fencing_token = 0
        self.lease_s = lease_s
        self.interval_s = lease_s / 3
        self.rejoined = 0
        self.beats = 0
        self.error: TidewireError | None = None
        self._session = session
        self._stub = HeartbeatServiceStub(session.channel)
        self._groups = groups
        self._lease_asked_s = lease_s
        self._take_over = take_over
        self._version = version
        self._figures = figures
        self._on_change = on_change
        self._meter = Meter()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> Self:
        """Join and begin to beat."""
        self._session.track(self)
        try:
            await self._join(take_over=self._take_over)
        except BaseException:
            self._session.untrack(self)
            raise
        self._task = asyncio.create_task(self._beat_on(), name=f"tidewire beats of {self.node_id}")
        return self

    async def close(self) -> None:
        """Leave in order."""
        self._session.untrack(self)
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        if self.error is not None:
            return
        request = heartbeat_pb2.LeaveRequest(node_id=self.node_id, incarnation=self.incarnation)
        try:
            await self._session.unary(
                self._stub.Leave, request, timeout_s=LEAVE_TIMEOUT_S, metadata=PRIORITY_HEARTBEAT
            )
        except TidewireError as error:
            log.warning("%s could not leave in order: %s", self.node_id, error)
        self.error = ConnectionLost(f"{self.node_id} has left")
        self._tell("left")

    @property
    def alive(self) -> bool:
        """Beats go on."""
        return self._task is not None and not self._task.done()

    async def join(self) -> None:
        """Wait until membership ends; raises why, unless it was closed."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self.error is not None:
            raise self.error

    def lease_ref(self) -> state_pb2.LeaseRef:
        """The lease, for `State.put`."""
        return state_pb2.LeaseRef(node_id=self.node_id, fencing_token=self.fencing_token)

    async def beat(self) -> heartbeat_pb2.BeatResponse:
        """Beat now, beside the regular beats."""
        request = heartbeat_pb2.BeatRequest(
            node_id=self.node_id, incarnation=self.incarnation, status=self._status()
        )
        response: heartbeat_pb2.BeatResponse = await self._session.unary(
            self._stub.Beat,
            request,
            timeout_s=max(self.interval_s, INTERVAL_S_LEAST),
            metadata=PRIORITY_HEARTBEAT,
        )
        self.beats += 1
        return response

    async def _join(self, *, take_over: bool) -> None:
        request = heartbeat_pb2.JoinRequest(
            node_id=self.node_id,
            groups=self._groups,
            lease=to_duration(self._lease_asked_s),
            status=self._status(),
            take_over=take_over,
        )
        # Not repeated by itself: a join whose answer was lost would find its own incarnation.
        response = await self._session.unary(
            self._stub.Join, request, metadata=PRIORITY_HEARTBEAT, repeatable=take_over
        )
        self.incarnation = response.incarnation
        self.fencing_token = response.fencing_token
        self.lease_s = to_seconds(response.lease) or self._lease_asked_s
        self.interval_s = to_seconds(response.interval) or self.lease_s / 3

    async def _beat_on(self) -> None:
        while True:
            await self._session.sleep(max(self.interval_s, INTERVAL_S_LEAST))
            try:
                await self.beat()
            except (NotAMember, MemberFenced) as error:
                if not await self._rejoin(error):
                    return
            except TidewireError as error:
                log.warning("a beat of %s failed: %s", self.node_id, error)

    async def _rejoin(self, reason: TidewireError) -> bool:
        """Join again; false when another one has the node id now."""
        log.warning("%s is no longer a member, joining again: %s", self.node_id, reason)
        try:
            await self._join(take_over=False)
        except NodeInUse as error:
            self.error = MemberFenced(
                f"another incarnation of {self.node_id} is alive: {error.message}",
                metadata=error.metadata,
            )
            log.error("%s was fenced: %s", self.node_id, error)
            self._session.untrack(self)
            self._tell("fenced")
            return False
        except TidewireError as error:
            log.warning("%s could not join again: %s", self.node_id, error)
            self._tell("lost")
            return True  # the next beat tells that it is no member, and this is tried again
        self.rejoined += 1
        self._tell("rejoined")
        return True

    def _tell(self, what: str) -> None:
        if self._on_change is not None:
            notify(self._on_change, what, self)

    def _status(self) -> heartbeat_pb2.NodeStatus:
        figures = self._figures() if self._figures is not None else Figures()
        status = heartbeat_pb2.NodeStatus(
            health=_HEALTH.get(figures.health, heartbeat_pb2.NODE_HEALTH_UNSPECIFIED),
            version=self._version,
            labels=dict(figures.labels),
        )
        if figures.connections is not None:
            status.connections = figures.connections
        if figures.events_per_second is not None:
            status.events_per_second = figures.events_per_second
        self._meter.fill(status)
        return status


MembershipListener = Callable[[str, Membership], None]


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
