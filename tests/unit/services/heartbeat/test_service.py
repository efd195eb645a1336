"""HeartbeatService over a real server, with a clock that the test turns."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf import duration_pb2
from google.rpc import status_pb2

from support.live_fake_engine import MemoryEngine, make_core
from support.serving import serving
from tidewire import errors
from tidewire.v1 import heartbeat_pb2, heartbeat_pb2_grpc
from tidewire_server.core import Core
from tidewire_server.engine.embedded import open_engine
from tidewire_server.members import Life
from tidewire_server.services.heartbeat import HeartbeatService
from tidewire_server.services.heartbeat import service as module

WAIT_S = 10.0
Stub = Any


def seconds(value: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(value * 1e9))
    return duration


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine()


@pytest.fixture
def core(engine: MemoryEngine) -> Core:
    return make_core(engine)


@pytest.fixture
async def stub(core: Core) -> AsyncIterator[Stub]:
    service = HeartbeatService(core, connections=lambda: 7)
    register = heartbeat_pb2_grpc.add_HeartbeatServiceServicer_to_server
    async with serving(core, [(register, service)]) as channel:
        yield heartbeat_pb2_grpc.HeartbeatServiceStub(channel)


async def reason(call: Any) -> str:
    """Wait for the call to fail and name the reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(WAIT_S):
            await call
    details = dict(caught.value.trailing_metadata())[errors.STATUS_TRAILER]
    assert isinstance(details, bytes)
    return errors.reason_name(errors.from_status(status_pb2.Status.FromString(details)).reason)


async def join(stub: Stub, node_id: str = "n1", lease_s: float = 1.0, **options: Any) -> Any:
    request = heartbeat_pb2.JoinRequest(node_id=node_id, lease=seconds(lease_s), **options)
    return await stub.Join(request, timeout=WAIT_S)


async def beat(stub: Stub, node_id: str, incarnation: int, **status: Any) -> Any:
    request = heartbeat_pb2.BeatRequest(
        node_id=node_id, incarnation=incarnation, status=heartbeat_pb2.NodeStatus(**status)
    )
    return await stub.Beat(request, timeout=WAIT_S)


async def next_change(watch: Any) -> heartbeat_pb2.MemberChange:
    async with asyncio.timeout(WAIT_S):
        response = await watch.read()
    assert response.WhichOneof("kind") == "change", response
    assert isinstance(response.change, heartbeat_pb2.MemberChange)
    return response.change


async def open_watch(stub: Stub, group: str = "") -> tuple[Any, heartbeat_pb2.MembersSnapshot]:
    watch = stub.WatchMembers(heartbeat_pb2.WatchMembersRequest(group=group), timeout=60)
    assert "opened" == (await watch.read()).WhichOneof("kind")
    response = await watch.read()
    return watch, response.snapshot


async def test_a_join_gives_lease_interval_and_tokens(stub: Stub, core: Core) -> None:
    """Incarnations count per node, fencing tokens over all nodes."""
    first = await join(stub, "a", 3.0)
    other = await join(stub, "b", 3.0)
    again = await join(stub, "a", 3.0, take_over=True)

    assert (1, 1, 2) == (first.incarnation, other.incarnation, again.incarnation)
    assert first.fencing_token < other.fencing_token < again.fencing_token
    assert (3_000_000_000, 1_000_000_000) == (
        again.lease.ToNanoseconds(),
        again.interval.ToNanoseconds(),
    )
    assert core.node_id == again.server_node_id
    assert Life.ALIVE is core.members.life("a")


async def test_a_lease_not_set_is_fifteen_seconds(stub: Stub) -> None:
    """As the proto says."""
    response = await stub.Join(heartbeat_pb2.JoinRequest(node_id="a"))

    assert 15_000_000_000 == response.lease.ToNanoseconds()


async def test_taking_over_is_told_to_the_other_services(stub: Stub, core: Core) -> None:
    """A new incarnation without groups and with the same life is news: the old token is void."""
    heard: list[tuple[str, Life, int]] = []
    core.members.listen(lambda node_id, life, token: heard.append((node_id, life, token)))
    first = await join(stub)
    second = await join(stub, take_over=True)

    assert [
        ("n1", Life.ALIVE, first.fencing_token),
        ("n1", Life.ALIVE, second.fencing_token),
    ] == heard


async def test_beats_answer_with_measured_figures(stub: Stub, core: Core) -> None:
    """Memory and connections are measured; the event rate is not, and absent."""
    joined = await join(stub)
    response = await beat(stub, "n1", joined.incarnation)

    assert heartbeat_pb2.MEMBER_STATUS_ALIVE == response.status_before
    assert response.server.memory_bytes > 1_000_000
    assert 7 == response.server.connections
    assert not response.server.HasField("events_per_second")
    assert core.version == response.server.version
    assert response.time.seconds > 0


async def test_a_silent_member_dies_and_its_store_record_too(
    stub: Stub, core: Core, engine: MemoryEngine
) -> None:
    """A watcher sees SUSPECT, then DEAD, with rising revisions; then it must join again."""
    watch, snapshot = await open_watch(stub)
    joined = await join(stub, groups=["g"])
    changes = [await next_change(watch) for _ in range(3)]

    assert [
        heartbeat_pb2.MEMBER_STATUS_ALIVE,
        heartbeat_pb2.MEMBER_STATUS_SUSPECT,
        heartbeat_pb2.MEMBER_STATUS_DEAD,
    ] == [change.member.status for change in changes]
    assert [snapshot.revision + i for i in (1, 2, 3)] == [change.revision for change in changes]
    assert heartbeat_pb2.MEMBER_STATUS_UNSPECIFIED == changes[0].status_before
    assert heartbeat_pb2.MEMBER_STATUS_SUSPECT == changes[2].status_before
    assert Life.DEAD is core.members.life("n1")
    assert "NOT_A_MEMBER" == await reason(beat(stub, "n1", joined.incarnation))
    assert engine.members["n1"].gone


async def test_beating_keeps_alive(stub: Stub) -> None:
    """A member that beats is never suspected, though another one dies meanwhile."""
    watch, _ = await open_watch(stub)
    await join(stub, "beats", 1.0)
    await join(stub, "silent", 1.0)
    stop = asyncio.Event()

    async def keep_beating() -> None:
        while not stop.is_set():
            await beat(stub, "beats", 1)
            await asyncio.sleep(0.1)

    beating = asyncio.create_task(keep_beating())
    changes = [await next_change(watch) for _ in range(4)]
    stop.set()
    await beating

    assert ["beats", "silent", "silent", "silent"] == [c.member.node_id for c in changes]


async def test_leaving_is_not_dying(stub: Stub, core: Core) -> None:
    """LEFT at once; listed only with the gone."""
    joined = await join(stub)
    await stub.Leave(heartbeat_pb2.LeaveRequest(node_id="n1", incarnation=joined.incarnation))
    here = await stub.ListMembers(heartbeat_pb2.ListMembersRequest())
    gone = await stub.ListMembers(heartbeat_pb2.ListMembersRequest(include_gone=True))

    assert 0 == len(here.members)
    assert [heartbeat_pb2.MEMBER_STATUS_LEFT] == [member.status for member in gone.members]
    assert Life.LEFT is core.members.life("n1")


async def test_members_survive_a_start_of_the_server(engine: MemoryEngine) -> None:
    """They beat on as the same incarnation; who does not dies after one lease."""
    register = heartbeat_pb2_grpc.add_HeartbeatServiceServicer_to_server
    core = make_core(engine)
    async with serving(core, [(register, HeartbeatService(core))]) as channel:
        stub = heartbeat_pb2_grpc.HeartbeatServiceStub(channel)
        await join(stub, "a", 60.0)
        await join(stub, "b", 1.0)
    core = make_core(engine)
    async with serving(core, [(register, HeartbeatService(core))]) as channel:
        stub = heartbeat_pb2_grpc.HeartbeatServiceStub(channel)
        watch, snapshot = await open_watch(stub)
        assert ["a", "b"] == [member.node_id for member in snapshot.members]
        await beat(stub, "a", 1)
        suspect, dead = [await next_change(watch) for _ in range(2)]

    assert ["b", "b"] == [suspect.member.node_id, dead.member.node_id]
    assert Life.DEAD is core.members.life("b")
    assert Life.ALIVE is core.members.life("a")


async def test_the_embedded_store_keeps_members(tmp_path: Path) -> None:
    """Incarnations go on counting over starts, and who is gone stays gone."""
    register = heartbeat_pb2_grpc.add_HeartbeatServiceServicer_to_server
    joins = []
    for take_over in (False, True):
        engine = await open_engine(tmp_path)
        core = make_core(engine)
        async with serving(core, [(register, HeartbeatService(core))]) as channel:
            stub = heartbeat_pb2_grpc.HeartbeatServiceStub(channel)
            if take_over:
                listed = await stub.ListMembers(heartbeat_pb2.ListMembersRequest())
                assert ["a"] == [member.node_id for member in listed.members]
                assert Life.DEAD is core.members.life("b")
            joins.append(await join(stub, "a", 60.0, take_over=take_over))
            if not take_over:
                await join(stub, "b", 60.0)
                await stub.Leave(heartbeat_pb2.LeaveRequest(node_id="b", incarnation=1))
                async with asyncio.timeout(WAIT_S):
                    while not all(r.gone for r in await engine.list_members() if r.node_id == "b"):
                        continue
        await engine.close()

    assert [1, 2] == [each.incarnation for each in joins]
    assert joins[0].fencing_token < joins[1].fencing_token


async def test_a_watched_group_tells_also_who_leaves_it(stub: Stub) -> None:
    """A new incarnation without the group is the last that is heard of it."""
    await join(stub, "other", 60.0, groups=["x"])
    watch, snapshot = await open_watch(stub, "g")
    assert 0 == len(snapshot.members)
    await join(stub, "n1", 60.0, groups=["g"])
    await join(stub, "n1", 60.0, take_over=True)
    await join(stub, "n1", 60.0, take_over=True)
    await join(stub, "n2", 60.0, groups=["g"])
    changes = [await next_change(watch) for _ in range(3)]

    assert [("n1", 1), ("n1", 2), ("n2", 1)] == [
        (change.member.node_id, change.member.incarnation) for change in changes
    ]


async def test_a_watcher_that_does_not_read_is_ended(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its changes are bounded; it is told to watch again, and others go on."""
    monkeypatch.setattr(module, "CHANGES_PENDING_MAX", 4)
    service = HeartbeatService(core)
    reads = asyncio.Event()
    context = StuckContext(reads)
    watch = asyncio.create_task(service.WatchMembers(heartbeat_pb2.WatchMembersRequest(), context))
    await context.writing.wait()
    await service.Join(heartbeat_pb2.JoinRequest(node_id="n1"), context)
    for i in range(6):
        health = heartbeat_pb2.NODE_HEALTH_HEALTHY if i % 2 else heartbeat_pb2.NODE_HEALTH_DEGRADED
        status = heartbeat_pb2.NodeStatus(health=health)
        await service.Beat(
            heartbeat_pb2.BeatRequest(node_id="n1", incarnation=1, status=status), context
        )
    reads.set()

    with pytest.raises(errors.SlowConsumer):
        await watch
    await service.close()


class StuckContext:
    """A context whose writes wait until the peer reads."""

    def __init__(self, reads: asyncio.Event) -> None:
        self.writing = asyncio.Event()
        self._reads = reads

    async def write(self, _response: Any) -> None:
        self.writing.set()
        await self._reads.wait()


async def test_a_draining_server_says_so_to_watchers(stub: Stub, core: Core) -> None:
    """Then the stream ends OK; beats still count."""
    joined = await join(stub, lease_s=60.0)
    watch, _ = await open_watch(stub)
    core.drain.start(3.0)
    response = await watch.read()

    assert "draining" == response.WhichOneof("kind")
    assert grpc.aio.EOF is await watch.read()
    assert grpc.StatusCode.OK == await watch.code()
    response = await beat(stub, "n1", joined.incarnation)
    assert heartbeat_pb2.NODE_HEALTH_DEGRADED == response.server.health


async def test_the_cluster_in_figures(stub: Stub) -> None:
    """Who left does not count; health is what the members say."""
    await join(
        stub, "a", 60.0, status=heartbeat_pb2.NodeStatus(health=heartbeat_pb2.NODE_HEALTH_HEALTHY)
    )
    await join(
        stub, "b", 60.0, status=heartbeat_pb2.NodeStatus(health=heartbeat_pb2.NODE_HEALTH_UNHEALTHY)
    )
    await join(stub, "c", 60.0)
    await stub.Leave(heartbeat_pb2.LeaveRequest(node_id="c", incarnation=1))
    cluster = await stub.GetCluster(heartbeat_pb2.GetClusterRequest())

    assert ("cluster", 2, 1, 0, 0) == (
        cluster.cluster_id,
        cluster.members,
        cluster.healthy,
        cluster.suspect,
        cluster.dead,
    )
    assert ("server-1", "1.2.3") == (cluster.server_node_id, cluster.server_version)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"node_id": "a.b"}, "INVALID_SUBJECT"),
        ({"node_id": "server-1"}, "NODE_IN_USE"),
        ({"node_id": "a", "groups": ["x y"]}, "INVALID_SUBJECT"),
        ({"node_id": "a", "groups": [f"g{i}" for i in range(65)]}, "INVALID_ARGUMENT"),
        ({"node_id": "a", "lease": seconds(0.5)}, "INVALID_ARGUMENT"),
        ({"node_id": "a", "lease": seconds(3601)}, "INVALID_ARGUMENT"),
        (
            {"node_id": "a", "status": heartbeat_pb2.NodeStatus(cpu_cores=float("nan"))},
            "INVALID_ARGUMENT",
        ),
        (
            {"node_id": "a", "status": heartbeat_pb2.NodeStatus(labels={"k": "v" * 256})},
            "INVALID_ARGUMENT",
        ),
        (
            {"node_id": "a", "status": heartbeat_pb2.NodeStatus(version="v" * 65)},
            "INVALID_ARGUMENT",
        ),
    ],
)
async def test_bad_joins_are_refused(stub: Stub, request_: dict[str, Any], expected: str) -> None:
    """Each with its reason, and nothing is stored."""
    assert expected == await reason(stub.Join(heartbeat_pb2.JoinRequest(**request_)))


async def test_two_joins_at_once_are_one(stub: Stub) -> None:
    """Without take_over exactly one of two gets the node."""
    results = await asyncio.gather(join(stub), join(stub), return_exceptions=True)

    assert 1 == sum(not isinstance(result, Exception) for result in results)
