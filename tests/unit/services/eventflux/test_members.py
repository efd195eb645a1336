"""EventFlux nodes as members: joins, leases, whose node it is, and what is answered."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from support.eventflux import error_of, message
from support.eventflux_service import EventFlux, FakeContext, eventflux
from support.scripted import eventually
from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire.v1 import heartbeat_pb2, heartbeat_pb2_grpc
from tidewire_server.members import Life
from tidewire_server.services.eventflux.members import server_status

HEALTHY = transport_pb2.NODE_HEALTH_HEALTHY


def beat_of(node_id: str, **status: Any) -> transport_pb2.HeartbeatRequest:
    request = transport_pb2.HeartbeatRequest(node_id=node_id)
    if status:
        request.status.CopyFrom(transport_pb2.NodeStatus(**status))
    return request


async def beat(
    server: EventFlux, node_id: str, principal: str = "", **status: Any
) -> transport_pb2.HeartbeatResponse:
    """A heartbeat of an authenticated client, without a wire."""
    context: Any = FakeContext(principal)
    return await server.service.Heartbeat(beat_of(node_id, **status), context)


async def members(server: EventFlux) -> dict[str, heartbeat_pb2.Member]:
    stub: Any = heartbeat_pb2_grpc.HeartbeatServiceStub(server.channel)
    listed = await stub.ListMembers(heartbeat_pb2.ListMembersRequest(include_gone=True))
    return {member.node_id: member for member in listed.members}


async def test_counts_are_those_of_the_table(tmp_path: Path) -> None:
    """Members of every kind of client count, at once; healthy are those that say so and beat."""
    async with eventflux(tmp_path) as server:
        native: Any = heartbeat_pb2_grpc.HeartbeatServiceStub(server.channel)
        await native.Join(heartbeat_pb2.JoinRequest(node_id="native"))
        first = await beat(server, "a", health=HEALTHY)
        second = await beat(server, "b", health=transport_pb2.NODE_HEALTH_UNHEALTHY)
        third = await beat(server, "c", health=HEALTHY)
        server.core.members.set_life("x", Life.DEAD, 1)  # any change makes them new

    assert [2, 3, 4] == [r.cluster_info.total_nodes for r in (first, second, third)]
    assert [1, 1, 2] == [r.cluster_info.healthy_nodes for r in (first, second, third)]
    assert (server.core.engine.cluster_id, "1.2.3") == (
        third.cluster_info.cluster_id,
        third.cluster_info.cluster_version,
    )


async def test_heartbeats_that_come_together_join_once(tmp_path: Path) -> None:
    """One incarnation, however many were the first; control: a later life has another."""
    async with eventflux(tmp_path) as server:
        await asyncio.gather(*(beat(server, "a", health=HEALTHY) for _ in range(20)))
        first = (await members(server))["a"]
        await beat(server, "a", health=transport_pb2.NODE_HEALTH_OFFLINE)
        left = (await members(server))["a"]
        await beat(server, "a", health=HEALTHY)
        second = (await members(server))["a"]

    assert (1, 2) == (first.incarnation, second.incarnation)
    assert heartbeat_pb2.MEMBER_STATUS_LEFT == left.status
    assert 10 == first.lease.seconds
    assert ["eventflux"] == list(first.groups)


async def test_a_node_belongs_to_who_beats_for_it(tmp_path: Path) -> None:
    """
    Another client may neither beat for it nor send it away; control: its own client may, also when
    the name is free again.
    """
    async with eventflux(tmp_path) as server:
        await beat(server, "a", "spiffe://x/one", health=HEALTHY)
        offline = transport_pb2.NODE_HEALTH_OFFLINE
        for health in (HEALTHY, offline):
            with pytest.raises(errors.NodeInUse):
                await beat(server, "a", "spiffe://x/two", health=health)
        assert heartbeat_pb2.MEMBER_STATUS_ALIVE == (await members(server))["a"].status
        await beat(server, "a", "spiffe://x/one", health=offline)
        await beat(server, "a", "spiffe://x/two", health=HEALTHY)

        assert 2 == (await members(server))["a"].incarnation


async def test_nodes_of_tidewire_are_left_alone(tmp_path: Path) -> None:
    """A member that joined by HeartbeatService is not touched, and neither is the server's name."""
    async with eventflux(tmp_path) as server:
        native: Any = heartbeat_pb2_grpc.HeartbeatServiceStub(server.channel)
        await native.Join(heartbeat_pb2.JoinRequest(node_id="native"))
        for node_id in ("native", "server-1"):
            error = await error_of(server.stub.Heartbeat(beat_of(node_id)))
            assert isinstance(error, errors.NodeInUse)
            again = await error_of(
                server.stub.SendMessage(message("HEARTBEAT", source_node=node_id))
            )
            assert isinstance(again, errors.NodeInUse)

        assert 1 == (await members(server))["native"].incarnation


async def test_who_takes_a_node_over_has_it(tmp_path: Path) -> None:
    """A client of HeartbeatService that takes the node over is not beaten for any more."""
    async with eventflux(tmp_path) as server:
        await beat(server, "a")
        native: Any = heartbeat_pb2_grpc.HeartbeatServiceStub(server.channel)
        await native.Join(heartbeat_pb2.JoinRequest(node_id="a", take_over=True))
        error = await error_of(server.stub.Heartbeat(beat_of("a")))

    assert isinstance(error, errors.NodeInUse)


async def test_a_new_start_of_the_server_knows_its_nodes(tmp_path: Path) -> None:
    """A node goes on as the same incarnation: nothing that hangs on it is lost by a restart."""
    async with eventflux(tmp_path) as server:
        await beat(server, "a", health=HEALTHY)
    async with eventflux(tmp_path) as server:
        before = (await members(server))["a"]
        await beat(server, "a", health=HEALTHY)
        after = (await members(server))["a"]

    assert (1, 1) == (before.incarnation, after.incarnation)
    assert (0, 1) == (before.node.health, after.node.health)


async def test_who_stops_is_declared_dead_and_may_come_back(tmp_path: Path) -> None:
    """After its lease, which is one of EventFlux's ten heartbeats; then it is a new incarnation."""
    now = [1000.0]
    async with eventflux(tmp_path, clock=lambda: now[0]) as server:
        await beat(server, "a", health=HEALTHY)
        while now[0] < 1012.0:  # in steps: a leap would be taken for a pause of the server
            now[0] += 0.04
            server.backends.heartbeat._tick()
        dead = server.core.members.life("a")
        counted = await beat(server, "b", health=HEALTHY)
        await beat(server, "a", health=HEALTHY)
        back = (await members(server))["a"]

    assert Life.DEAD is dead
    assert (2, 1) == (counted.cluster_info.total_nodes, counted.cluster_info.healthy_nodes)
    assert (2, heartbeat_pb2.MEMBER_STATUS_ALIVE) == (back.incarnation, back.status)


@pytest.mark.parametrize(
    "status",
    [
        {"health": 5},
        {"cpu_usage": -1.0},
        {"cpu_usage": float("nan")},
        {"memory_usage": float("inf")},
        {"active_connections": -1},
        {"events_per_second": -1},
        {"version": "x" * 65},
        {"metadata": {str(number): "x" for number in range(40)}},
    ],
)
async def test_figures_that_cannot_be_are_refused(tmp_path: Path, status: dict[str, Any]) -> None:
    """And nobody joins by them."""
    async with eventflux(tmp_path) as server:
        request = beat_of("a")
        request.status.SetInParent()
        for name, value in status.items():
            if isinstance(value, dict):
                request.status.metadata.update(value)
            else:
                setattr(request.status, name, value)
        error = await error_of(server.stub.Heartbeat(request))
        there = await members(server)

    assert isinstance(error, errors.InvalidArgument)
    assert {} == there


def test_what_is_not_measured_is_named() -> None:
    """A figure that nobody measured is not passed off as a measured zero."""
    nothing = server_status(heartbeat_pb2.NodeStatus())
    everything = server_status(
        heartbeat_pb2.NodeStatus(
            cpu_cores=0.5, memory_bytes=1 << 20, connections=3, events_per_second=2.6
        )
    )

    assert (
        "cpu_usage,memory_usage,active_connections,events_per_second"
        == (nothing.metadata["unmeasured"])
    )
    assert "unmeasured" not in everything.metadata
    assert (3, 3) == (everything.active_connections, everything.events_per_second)
    assert 0 < everything.cpu_usage <= 50
    assert 0 < everything.memory_usage < 1


async def test_a_heartbeat_that_says_nothing_takes_nothing_back(tmp_path: Path) -> None:
    """EventFlux's own client sends no status: what was known of the node stays."""
    async with eventflux(tmp_path) as server:
        await beat(server, "a", health=HEALTHY, active_connections=4)
        await beat(server, "a")
        node = (await members(server))["a"].node

    assert (heartbeat_pb2.NODE_HEALTH_HEALTHY, 4) == (node.health, node.connections)


async def test_a_watcher_of_tidewire_hears_of_it(tmp_path: Path) -> None:
    """Members are members: the other services hear of their lives as of any."""
    heard: list[tuple[str, Life]] = []
    async with eventflux(tmp_path) as server:
        server.core.members.listen(lambda node_id, life, _: heard.append((node_id, life)))
        await beat(server, "a")
        await beat(server, "a", health=transport_pb2.NODE_HEALTH_OFFLINE)
        await eventually(lambda: len(heard) == 2)

    assert [("a", Life.ALIVE), ("a", Life.LEFT)] == heard
