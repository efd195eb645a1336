"""
HeartbeatService: who is alive.

Joins are stored, beats are not: after a start of the server everybody who was alive has a whole
lease to beat again. What becomes of a member is told to the other services through `core.members`,
of which this service is the only writer.
"""

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from google.protobuf.message import Message

from tidewire import errors
from tidewire.v1 import heartbeat_pb2, heartbeat_pb2_grpc
from tidewire.wire.subject import check_name
from tidewire_server.core import Core
from tidewire_server.members import Life
from tidewire_server.services.heartbeat.detector import INTERVALS_PER_LEASE
from tidewire_server.services.heartbeat.figures import ServerFigures
from tidewire_server.services.heartbeat.table import STATUSES, Change, MemberTable
from tidewire_server.services.outbox import Outbox, OutboxClosed
from tidewire_server.services.payload import bad_field

LEASE_DEFAULT_S: Final = 15.0
LEASE_S_MIN: Final = 1.0
LEASE_S_MAX: Final = 3600.0
GROUPS_MAX: Final = 64
LABELS_MAX: Final = 32
LABEL_BYTES_MAX: Final = 256
VERSION_BYTES_MAX: Final = 64
CHANGES_PENDING_MAX: Final = 16_384
"""Changes that wait for one slow watcher; with more it is ended, and watches again."""
CHANGES_PENDING_BYTES_MAX: Final = 16 * 1024 * 1024
CHANGE_BYTES: Final = 256
"""What a change is counted as, at least: all watchers share one message."""
WATCHERS_MAX: Final = 10_000
TIMER_S_MAX: Final = 1.0
"""The timer looks at least this often: it notices pauses of the server itself by being late."""
RECORDS_AT_ONCE_MAX: Final = 100
RECORDS_PENDING_MAX: Final = 100_000

log = logging.getLogger(__name__)


class Watcher:
    """One stream of WatchMembers."""

    __slots__ = ("group", "outbox")

    def __init__(self, group: str) -> None:
        self.group = group
        self.outbox: Outbox[heartbeat_pb2.WatchMembersResponse] = Outbox(
            CHANGES_PENDING_MAX, CHANGES_PENDING_BYTES_MAX
        )

    def wants(self, change: Change) -> bool:
        """Whether the member is, or was until now, in the watched group."""
        return (
            not self.group
            or self.group in change.entry.record.groups
            or self.group in change.groups_before
        )


class HeartbeatService(heartbeat_pb2_grpc.HeartbeatServiceServicer):
    """
    Serves membership; one instance for all wires. Beats should go with ``tidewire-priority: 0``.

    Args:
        core: Shared parts; ``core.members`` is written here only.
        connections: Counts open connections of the server; ``None``: the figure is absent.
        events: Counts events the server has handled; ``None``: the figure is absent.
    """

    def __init__(
        self,
        core: Core,
        *,
        connections: Callable[[], int] | None = None,
        events: Callable[[], int] | None = None,
    ) -> None:
        self._core = core
        self._table = MemberTable()
        self._figures = ServerFigures(
            core.version, connections=connections, events=events, clock=core.clock
        )
        self._watchers: dict[Watcher, None] = {}
        self._joining: set[str] = set()
        self._joins: set[asyncio.Task[Change]] = set()
        self._gone: deque[tuple[str, int]] = deque(maxlen=RECORDS_PENDING_MAX)
        self._gone_event = asyncio.Event()
        self._is_closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Take the stored members back, and start to judge."""
        records = await self._core.engine.list_members()
        for entry in self._table.restore(records, self._core.clock()):
            record = entry.record
            self._core.members.set_life(record.node_id, entry.life, record.fencing_token)
        self._tasks = [
            asyncio.create_task(self._record_gone(), name="heartbeat-record"),
            asyncio.create_task(self._watch_drain(), name="heartbeat-drain"),
        ]
        self._set_timer()

    async def close(self) -> None:
        """Stop judging, and store who has left; nobody dies because the server goes."""
        if self._timer is not None:
            self._timer.cancel()
        self._is_closing = True
        self._gone_event.set()
        for task in self._tasks[1:]:  # the first one ends when all is stored
            task.cancel()
        await asyncio.gather(*self._tasks, *self._joins, return_exceptions=True)
        for watcher in list(self._watchers):
            watcher.outbox.close()

    # Members.

    async def Join(
        self, request: heartbeat_pb2.JoinRequest, context: Any
    ) -> heartbeat_pb2.JoinResponse:
        """Join, or come back."""
        lease_s = self._check_join(request)
        node_id = request.node_id
        self._table.check_join(node_id, take_over=request.take_over)
        if node_id in self._joining:
            raise errors.NodeInUse(
                f"another join of node {node_id!r} is under way; try again",
                metadata={"node_id": node_id},
                retry_after_s=0.1,
            )
        self._joining.add(node_id)
        # A task of its own: a caller that goes away must not leave a join stored and unknown here.
        task = asyncio.create_task(self._join(request, lease_s), name="heartbeat-join")
        self._joins.add(task)
        task.add_done_callback(self._end_join)
        change = await asyncio.shield(task)
        record = change.entry.record
        response = heartbeat_pb2.JoinResponse(
            incarnation=record.incarnation,
            fencing_token=record.fencing_token,
            server_node_id=self._core.node_id,
        )
        response.lease.FromNanoseconds(int(lease_s * 1e9))
        response.interval.FromNanoseconds(int(lease_s / INTERVALS_PER_LEASE * 1e9))
        return response

    async def Beat(
        self, request: heartbeat_pb2.BeatRequest, context: Any
    ) -> heartbeat_pb2.BeatResponse:
        """Take a beat."""
        _check_status(request.status)
        core = self._core
        now_ns = core.wall_ns()
        before, change = self._table.beat(
            request.node_id, request.incarnation, request.status, core.clock(), now_ns
        )
        if change is not None:
            self._publish(change)
        response = heartbeat_pb2.BeatResponse(
            server=self._server_status(), status_before=STATUSES[before]
        )
        response.time.FromNanoseconds(now_ns)
        return response

    async def Leave(
        self, request: heartbeat_pb2.LeaveRequest, context: Any
    ) -> heartbeat_pb2.LeaveResponse:
        """Let a member go."""
        change = self._table.leave(request.node_id, request.incarnation, self._core.clock())
        self._publish(change)
        return heartbeat_pb2.LeaveResponse()

    async def ListMembers(
        self, request: heartbeat_pb2.ListMembersRequest, context: Any
    ) -> heartbeat_pb2.ListMembersResponse:
        """List members."""
        if request.group:
            check_name(request.group, "group")
        now_s = self._core.clock()
        entries = self._table.select(request.group, with_gone=request.include_gone)
        response = heartbeat_pb2.ListMembersResponse(
            members=[entry.to_proto(now_s) for entry in entries], revision=self._table.revision
        )
        self._fit(response, response.members)
        return response

    async def WatchMembers(  # type: ignore[override]  # writes to the context
        self, request: heartbeat_pb2.WatchMembersRequest, context: Any
    ) -> None:
        """Members, then every change."""
        if request.group:
            check_name(request.group, "group")
        if len(self._watchers) >= WATCHERS_MAX:
            raise errors.Overloaded(
                f"{WATCHERS_MAX} watchers are here already, which is the limit",
                metadata={"watchers_max": WATCHERS_MAX},
            )
        watcher = Watcher(request.group)
        outbox = watcher.outbox
        outbox.put(heartbeat_pb2.WatchMembersResponse(opened=self._core.opened()))
        outbox.put(self._snapshot(request.group))
        self._watchers[watcher] = None
        try:
            with contextlib.suppress(OutboxClosed):
                while True:
                    await context.write(outbox.take_nowait() or await outbox.take())
        finally:
            self._watchers.pop(watcher, None)

    async def GetCluster(
        self, request: heartbeat_pb2.GetClusterRequest, context: Any
    ) -> heartbeat_pb2.GetClusterResponse:
        """Summarise."""
        lives = dict.fromkeys(Life, 0)
        healthy = 0
        for entry in self._table.select(with_gone=True):
            lives[entry.life] += 1
            healthy += (
                entry.life is Life.ALIVE and entry.node.health == heartbeat_pb2.NODE_HEALTH_HEALTHY
            )
        return heartbeat_pb2.GetClusterResponse(
            cluster_id=self._core.engine.cluster_id,
            members=lives[Life.ALIVE] + lives[Life.SUSPECT] + lives[Life.DEAD],
            healthy=healthy,
            suspect=lives[Life.SUSPECT],
            dead=lives[Life.DEAD],
            server_node_id=self._core.node_id,
            server_version=self._core.version,
            server=self._server_status(),
        )

    def _check_join(self, request: heartbeat_pb2.JoinRequest) -> float:
        check_name(request.node_id, "node_id")
        if request.node_id == self._core.node_id:
            raise errors.NodeInUse(
                f"node id {request.node_id!r} is the server's own; choose another",
                metadata={"node_id": request.node_id},
            )
        if len(request.groups) > GROUPS_MAX:
            raise bad_field("groups", f"has {len(request.groups)} entries, over {GROUPS_MAX}")
        for group in request.groups:
            check_name(group, "group")
        _check_status(request.status)
        if not request.HasField("lease"):
            return LEASE_DEFAULT_S
        lease_s = request.lease.ToNanoseconds() / 1e9
        if not LEASE_S_MIN <= lease_s <= LEASE_S_MAX:
            raise bad_field("lease", f"is {lease_s:g} s; 1 s to 1 h are granted")
        return lease_s

    async def _join(self, request: heartbeat_pb2.JoinRequest, lease_s: float) -> Change:
        core = self._core
        try:
            groups = tuple(dict.fromkeys(request.groups))
            record = await core.engine.join_member(request.node_id, lease_s, groups)
            change = self._table.join(record, request.status, core.clock(), core.wall_ns())
        finally:
            self._joining.discard(request.node_id)
        self._publish(change)
        self._set_timer()
        return change

    def _end_join(self, task: asyncio.Task[Change]) -> None:
        self._joins.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone; who is there has got it

    def _server_status(self) -> heartbeat_pb2.NodeStatus:
        failed = self._core.engine.failure is not None
        draining = self._core.drain.started.is_set()
        if failed:
            return self._figures.read(heartbeat_pb2.NODE_HEALTH_UNHEALTHY)
        if draining:
            return self._figures.read(heartbeat_pb2.NODE_HEALTH_DEGRADED)
        return self._figures.read(heartbeat_pb2.NODE_HEALTH_HEALTHY)

    # News.

    def _publish(self, change: Change) -> None:
        """Tell the other services and the watchers."""
        record, life = change.entry.record, change.entry.life
        if change.joined or change.before is not life:
            self._core.members.set_life(record.node_id, life, record.fencing_token)
        if life in (Life.DEAD, Life.LEFT):
            self._core.counters.add(f"members_{life.value}_total")
            self._gone.append((record.node_id, record.incarnation))
            self._gone_event.set()
        if not self._watchers:
            return
        response = heartbeat_pb2.WatchMembersResponse()
        response.change.member.CopyFrom(change.entry.to_proto(self._core.clock()))
        if change.before is not None:
            response.change.status_before = STATUSES[change.before]
        response.change.revision = change.revision
        size = max(CHANGE_BYTES, response.ByteSize())
        for watcher in self._watchers:
            if watcher.wants(change):
                _tell(watcher.outbox, response, size)

    def _snapshot(self, group: str) -> heartbeat_pb2.WatchMembersResponse:
        now_s = self._core.clock()
        response = heartbeat_pb2.WatchMembersResponse()
        response.snapshot.members.extend(
            entry.to_proto(now_s) for entry in self._table.select(group)
        )
        response.snapshot.revision = self._table.revision
        self._fit(response, response.snapshot.members)
        return response

    def _fit(self, response: Message, members: Iterable[heartbeat_pb2.Member]) -> None:
        """Leave the labels out when an answer with them would be too large for a message."""
        if response.ByteSize() > self._core.limits.payload_bytes_max:
            for member in members:
                member.node.ClearField("labels")

    # Time.

    def _set_timer(self) -> None:
        """Look again when the next member is due, and at least once a second."""
        if self._timer is not None:
            self._timer.cancel()
        due_s = self._table.next_due_s()
        wait_s = TIMER_S_MAX if due_s is None else due_s - self._core.clock()
        wait_s = min(max(wait_s, 0.0), TIMER_S_MAX)
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    def _tick(self) -> None:
        now_s = self._core.clock()
        try:
            for change in self._table.advance(now_s):
                self._publish(change)
            for node_id in self._table.forget_gone(now_s):
                self._core.members.forget(node_id)
        finally:
            self._set_timer()

    async def _record_gone(self) -> None:
        """
        Store who is gone, many at once.

        What cannot be stored is no harm: after a start such a member has one more lease, and dies.
        """
        engine = self._core.engine
        while self._gone or not self._is_closing:
            await self._gone_event.wait()
            batch = [self._gone.popleft() for _ in range(min(len(self._gone), RECORDS_AT_ONCE_MAX))]
            if not self._gone:
                self._gone_event.clear()
            results = await asyncio.gather(
                *(engine.mark_member_gone(node_id, incarnation) for node_id, incarnation in batch),
                return_exceptions=True,
            )
            failed = [result for result in results if isinstance(result, BaseException)]
            if failed:
                self._core.counters.add("members_gone_unrecorded_total", len(failed))
                log.warning("cannot record that members are gone", extra={"error": str(failed[0])})

    async def _watch_drain(self) -> None:
        drain = self._core.drain
        await drain.started.wait()
        announcement = heartbeat_pb2.WatchMembersResponse(draining=drain.message())
        for watcher in self._watchers:
            watcher.outbox.put(announcement)
            watcher.outbox.close()


def _tell(
    outbox: Outbox[heartbeat_pb2.WatchMembersResponse],
    response: heartbeat_pb2.WatchMembersResponse,
    size: int,
) -> None:
    if outbox.full:
        outbox.fail(
            errors.SlowConsumer(
                f"{len(outbox)} changes of members wait unread, which is the limit; watch again",
                metadata={"changes_pending": len(outbox)},
            )
        )
    outbox.put(response, size)


def _check_status(status: heartbeat_pb2.NodeStatus) -> None:
    if len(status.version.encode()) > VERSION_BYTES_MAX:
        raise bad_field("status.version", f"is over {VERSION_BYTES_MAX} bytes")
    for name in ("cpu_cores", "events_per_second"):
        figure = getattr(status, name)
        if figure < 0 or not math.isfinite(figure):
            raise bad_field(f"status.{name}", f"is {figure}; a measured figure is 0 or more")
    if len(status.labels) > LABELS_MAX:
        raise bad_field("status.labels", f"has {len(status.labels)} entries, over {LABELS_MAX}")
    for key, value in status.labels.items():
        if len(key.encode()) + len(value.encode()) > LABEL_BYTES_MAX:
            raise bad_field(
                "status.labels", f"has an entry over {LABEL_BYTES_MAX} bytes: {key[:64]!r}"
            )
