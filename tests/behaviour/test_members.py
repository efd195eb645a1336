"""Heartbeats over every wire: lives, and what hangs on them."""

import asyncio
from typing import Any

import pytest

import tidewire
from support.server import Running
from tidewire import errors
from tidewire.v1 import heartbeat_pb2, heartbeat_pb2_grpc, state_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 20.0


async def silent(client: tidewire.Client, node_id: str) -> Any:
    """Join with the shortest lease, and never beat."""
    stub = heartbeat_pb2_grpc.HeartbeatServiceStub(client.channel)
    request = heartbeat_pb2.JoinRequest(node_id=node_id)
    request.lease.FromMilliseconds(1_000)
    return await stub.Join(request, timeout=WAIT_S)


async def test_members_carry_measured_figures(client: tidewire.Client, name: str) -> None:
    """What a member reports is listed: groups, version, memory; incarnations and tokens grow."""
    async with client.members.join(name, groups=[name], version="1.2") as membership:
        await membership.beat()
        with pytest.raises(errors.NodeInUse):
            await client.members.join(name)
        (member,) = await client.members.list(name)
        cluster = await client.members.cluster()
        first = (membership.incarnation, membership.fencing_token)
    async with client.members.join(name) as membership:
        second = (membership.incarnation, membership.fencing_token)

    assert "1.2" == member.node.version
    assert member.node.memory_bytes > 1 << 20
    assert member.lease.ToSeconds() > 0
    assert cluster.members >= 1
    assert "test-server" == cluster.server_node_id
    assert second > first
    assert second[1] > first[1]


async def test_a_beat_is_answered_with_the_servers_own_figures(
    client: tidewire.Client, name: str
) -> None:
    """What the server says of itself is measured: connections, events a second, memory, CPU."""
    joined = await silent(client, name)
    stub = heartbeat_pb2_grpc.HeartbeatServiceStub(client.channel)
    beat = heartbeat_pb2.BeatRequest(node_id=name, incarnation=joined.incarnation)
    async with asyncio.timeout(WAIT_S):
        while True:  # rates are of the last whole second
            await client.events.publish(f"{name}.a", b"x")
            server = (await stub.Beat(beat, timeout=WAIT_S)).server
            if server.events_per_second:
                break
            await asyncio.sleep(0.1)

    assert server.HasField("connections")
    assert server.memory_bytes > 1 << 20
    assert server.cpu_cores > 0


async def test_whoever_takes_over_fences_the_one_before(client: tidewire.Client, name: str) -> None:
    """The old incarnation learns by its next beat, and its lease writes no more."""
    told: list[str] = []
    before = await client.members.join(name, on_change=lambda what, _: told.append(what))
    async with client.members.join(name, take_over=True):
        with pytest.raises(errors.MemberFenced):
            await before.beat()
        with pytest.raises(errors.LeaseNotHeld):
            await client.state.put(name, "x", lease=before)
    await before.close()


@pytest.mark.needs("streams")
async def test_silence_is_suspect_then_dead(client: tidewire.Client, name: str) -> None:
    """A watch sees alive, suspect, dead in this order and not before the lease is over."""
    loop = asyncio.get_running_loop()
    async with client.members.watch() as watch:
        began = loop.time()
        await silent(client, name)
        seen: list[str] = []
        while "dead" not in seen:
            event = await watch.next(timeout_s=WAIT_S)
            if event.member.node_id == name:
                seen.append(event.status)
        lasted_s = loop.time() - began
    gone = [m.node_id for m in await client.members.list(include_gone=True)]

    assert ["alive", "suspect", "dead"] == seen
    assert 0.95 <= lasted_s < 10
    assert name in gone
    assert name not in [m.node_id for m in await client.members.list()]


@pytest.mark.needs("streams")
async def test_a_death_has_its_effects(
    server: Running, wire: str, client: tidewire.Client, name: str
) -> None:
    """Deliveries go to others at once, leased keys go with their kind, gather no longer waits."""
    stream = client.events.stream(name)
    await stream.create(name)
    await stream.consumer("c").create(ack_wait_s=3_600)
    await client.events.publish(name, "work")
    joined = await silent(client, name)
    lease: Any = Lease(name, joined.fencing_token)
    hang = asyncio.Event()

    async def never(_: tidewire.Query) -> str:
        await hang.wait()
        return ""

    url, tls = server.url(wire), server.tls(wire)
    async with (
        tidewire.connect(url, tls=tls, node_id=name) as doomed,
        client.state.watch(name, changes_only=True) as watch,
        doomed.queries.serve(name, never),
        client.queries.serve(name, lambda _: "here"),
        doomed.events.consume(name, "c") as taken,
    ):
        assert 1 == (await taken.next(timeout_s=WAIT_S)).attempt
        await doomed.state.put(name, "x", lease=lease)
        asking = asyncio.create_task(client.queries.gather(name, timeout_s=60))
        async with client.events.consume(name, "c") as other:
            again = await other.next(timeout_s=WAIT_S)
            await again.ack(confirm=True)
        kinds = [(await watch.next(timeout_s=WAIT_S)).kind.value for _ in range(2)]
        async with asyncio.timeout(WAIT_S):
            gathered = await asking
        hang.set()

    assert 2 == again.attempt
    assert ["put", "lease_lost"] == kinds
    assert ["here"] == [reply.text for reply in gathered.replies]


class Lease:
    """A lease of a member that no client of this library keeps."""

    def __init__(self, node_id: str, fencing_token: int) -> None:
        self._lease = state_pb2.LeaseRef(node_id=node_id, fencing_token=fencing_token)

    def lease_ref(self) -> state_pb2.LeaseRef:
        return self._lease


@pytest.mark.needs("streams")
async def test_leaving_is_told_and_takes_what_it_leased(client: tidewire.Client, name: str) -> None:
    """A member that leaves is LEFT, not DEAD, and its keys go at once."""
    async with client.members.watch() as watch:
        async with client.members.join(name) as membership:
            await client.state.put(name, "x", lease=membership)
            assert await client.state.get(name) is not None
        seen: list[str] = []
        while "left" not in seen:
            event = await watch.next(timeout_s=WAIT_S)
            if event.member.node_id == name:
                seen.append(event.status)
    async with asyncio.timeout(WAIT_S):
        while await client.state.get(name) is not None:
            pass

    assert ["alive", "left"] == seen
