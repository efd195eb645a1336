"""Channels over several connections, on every raw wire."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from support.echo.v1 import echo_pb2
from support.echoing import Echoing, echoing
from support.wires import WIRES
from tidewire.transport import RawChannel, TransportOptions
from tidewire.transport.pool import PoolOptions
from tidewire.wire.limits import WireLimits

Say = echo_pb2.SayRequest
LIMIT_S = 10.0
RAW = tuple(wire for wire in WIRES if wire not in ("grpc", "grpcs", "grpc+unix", "udp", "dtls"))
POOLED = PoolOptions(calls_per_connection=2, connections_max=3, idle_timeout_s=0.2)


@pytest.fixture(params=RAW)
async def pooled(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Echoing]:
    """Echo over each raw wire, two calls on a connection, three connections at most."""
    options = TransportOptions(pool=POOLED, backoff_first_s=0.02)
    async with echoing(request.param, tmp_path, options=options) as served:
        yield served


async def until(condition: Any) -> None:
    """Wait for what the event loop will do."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.005)


def sleepers(served: Echoing, count: int, **options: Any) -> list[Any]:
    """Start calls whose handler waits."""
    return [served.stub.Say(Say(fault="sleep"), **options) for _ in range(count)]


async def test_one_connection_carries_concurrent_streams(tmp_path: Path) -> None:
    """Control and default: a hundred calls at the same time need one connection, one socket."""
    async with echoing("tcp", tmp_path) as served:
        calls = [served.stub.Converse() for _ in range(100)]
        for number, call in enumerate(calls):
            await call.write(echo_pb2.ConverseRequest(text=str(number)))
        answers = [(await call.read()).text for call in calls]
        for call in calls:
            await call.done_writing()

        assert list(map(str, range(100))) == answers
        assert 1 == served.server.counters.connections_opened
        assert 1 == len(sockets_to(served.url))


def sockets_to(url: str) -> list[str]:
    """Return the established TCP sockets of this machine whose peer is the port of a URL."""
    port = f":{int(url.rpartition(':')[2]):04X}"
    tables = [Path(f"/proc/net/{name}").read_text("ascii") for name in ("tcp", "tcp6")]
    rows = [row for table in tables for row in table.splitlines()[1:]]
    return [row for row in rows if row.split()[2].endswith(port) and row.split()[3] == "01"]


async def test_concurrent_grpc_streams_share_one_socket(tmp_path: Path) -> None:
    """HTTP/2 does the same: a hundred bidirectional streams on one TCP connection."""
    async with echoing("grpc", tmp_path) as served:
        calls = [served.stub.Converse() for _ in range(100)]
        for number, call in enumerate(calls):
            await call.write(echo_pb2.ConverseRequest(text=str(number)))
        answers = [(await call.read()).text for call in calls]

        assert list(map(str, range(100))) == answers
        assert 1 == len(sockets_to(served.url))
        for call in calls:
            await call.done_writing()


async def test_full_connections_make_another_one(pooled: Echoing) -> None:
    """Calls that find no room get a connection, up to the limit; those over it wait their turn."""
    calls = sleepers(pooled, 8)
    channel: RawChannel = pooled.channel
    await until(lambda: channel.pool_stats().active == 3 and not channel.pool_stats().created)

    stats = channel.pool_stats()
    assert (3, 0, 2) == (stats.opened, stats.idle, stats.waiting)
    pooled.service.release.set()
    assert {"released"} == {(await call).text for call in calls}
    stats = channel.pool_stats()
    assert (0, 0) == (stats.active, stats.waiting)


async def test_waiters_honour_their_deadlines(pooled: Echoing) -> None:
    """A call that waits for room ends at its deadline, and only that call."""
    held = sleepers(pooled, 6)
    await until(lambda: pooled.channel.pool_stats().active == 3)
    late = pooled.stub.Say(Say(text="late"), timeout=0.05)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(late, LIMIT_S)

    assert grpc.StatusCode.DEADLINE_EXCEEDED == caught.value.code()
    assert 0 == pooled.channel.pool_stats().waiting
    pooled.service.release.set()
    assert {"released"} == {(await call).text for call in held}


async def test_a_waiter_may_be_cancelled(pooled: Echoing) -> None:
    """It leaves the queue, and the next in line gets the room."""
    held = sleepers(pooled, 6)
    await until(lambda: pooled.channel.pool_stats().active == 3)
    first, second = (pooled.stub.Say(Say(text=text)) for text in ("first", "second"))
    assert 2 == pooled.channel.pool_stats().waiting
    first.cancel()
    pooled.service.release.set()

    assert "second" == (await asyncio.wait_for(second, LIMIT_S)).text
    assert {"released"} == {(await call).text for call in held}


async def test_idle_connections_are_closed_but_one(pooled: Echoing) -> None:
    """After the idle timeout one is left; it carries the next call."""
    pooled.service.release.set()
    await asyncio.gather(*sleepers(pooled, 6))
    channel: RawChannel = pooled.channel
    await until(lambda: channel.pool_stats().created == 0)  # some may still be on their way
    opened = channel.pool_stats().opened
    assert opened > 1
    await until(lambda: channel.pool_stats().idle == 1)

    assert {"idle": opened - 1} == channel.pool_stats().closed_by
    assert "on" == (await pooled.stub.Say(Say(text="on"), timeout=LIMIT_S)).text
    assert opened == channel.pool_stats().opened
    await until(lambda: len(pooled.server.connections()) == 1)


async def test_a_peer_that_closes_is_noticed_without_a_call(pooled: Echoing) -> None:
    """The end of an idle connection is seen by the event loop; the next call makes another one."""
    await pooled.stub.Say(Say())
    (link,) = pooled.server._links.values()
    link.protocol.abort()
    await until(lambda: pooled.channel.pool_stats().closed == 1)

    assert {"lost": 1} == pooled.channel.pool_stats().closed_by
    assert "again" == (await pooled.stub.Say(Say(text="again"), timeout=LIMIT_S)).text


async def test_one_lost_connection_takes_only_its_own_calls(pooled: Echoing) -> None:
    """Calls on it are told; those on others and those that wait go on; none is silent."""
    calls = [asyncio.ensure_future(call) for call in sleepers(pooled, 8)]
    await until(lambda: pooled.channel.pool_stats().active == 3)
    await until(lambda: sum(info.calls for info in pooled.server.connections()) == 6)
    pooled.server.disconnect(pooled.server.connections()[0].identifier)
    await until(lambda: sum(call.done() for call in calls) == 2)
    pooled.service.release.set()
    results = await asyncio.gather(*calls, return_exceptions=True)

    lost = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert [grpc.StatusCode.UNAVAILABLE] * 2 == [error.code() for error in lost]
    assert 6 == sum(1 for result in results if not isinstance(result, BaseException))


@pytest.mark.parametrize("wire", RAW)
async def test_prewarmed_connections_are_there_with_the_first(wire: str, tmp_path: Path) -> None:
    """They are opened at once, not when they are needed, and stay."""
    pool = PoolOptions(prewarm=3, idle_timeout_s=0.05)
    async with echoing(wire, tmp_path, options=TransportOptions(pool=pool)) as served:
        await served.channel.channel_ready()
        await until(lambda: served.channel.pool_stats().idle == 3)
        await asyncio.sleep(0.1)
        assert 3 == served.channel.pool_stats().idle
        await until(lambda: len(served.server.connections()) == 3)


async def test_an_idle_channel_may_close_its_last_connection(tmp_path: Path) -> None:
    """With nothing to keep, the last one goes as well, and comes back with a call."""
    pool = PoolOptions(idle_least=0, idle_timeout_s=0.05)
    async with echoing("tcp", tmp_path, options=TransportOptions(pool=pool)) as served:
        await served.stub.Say(Say())
        await until(lambda: served.channel.get_state() is grpc.ChannelConnectivity.IDLE)
        assert {"idle": 1} == served.channel.pool_stats().closed_by
        assert "back" == (await served.stub.Say(Say(text="back"), timeout=LIMIT_S)).text


async def test_a_server_that_takes_no_second_connection(tmp_path: Path) -> None:
    """Calls wait for room on the one there is; refusals do not end them and do not storm."""
    options = TransportOptions(pool=PoolOptions(calls_per_connection=1), backoff_first_s=0.05)
    few = TransportOptions(connections_max=1)
    async with echoing("tcp", tmp_path, options=options, server_options=few) as served:
        answers = await asyncio.gather(
            *(served.stub.Say(Say(text=str(n)), timeout=LIMIT_S) for n in range(200))
        )
        assert list(map(str, range(200))) == [answer.text for answer in answers]
        assert served.server.counters.connections_refused < 50


async def test_the_servers_limit_is_the_default(tmp_path: Path) -> None:
    """Without an option a connection is full when the server takes no more calls on it."""
    limits = TransportOptions(limits=WireLimits(calls_max=4))
    async with echoing("tcp", tmp_path, server_options=limits) as served:
        calls = sleepers(served, 9)
        await until(lambda: served.channel.pool_stats().active == 3)
        served.service.release.set()
        assert {"released"} == {(await call).text for call in calls}
        assert 3 == served.server.counters.connections_opened


async def test_calls_that_never_left_survive_a_lost_connection(tmp_path: Path) -> None:
    """What no server has seen goes to the next connection, by itself, once."""
    limits = TransportOptions(limits=WireLimits(calls_max=1))
    options = TransportOptions(pool=PoolOptions(calls_per_connection=100))
    async with echoing("tcp", tmp_path, options=options, server_options=limits) as served:
        await served.channel.channel_ready()
        link = served.channel.link
        link.room = 100  # more than the server takes: they wait on the connection
        (first,) = sleepers(served, 1)
        await served.service.started.wait()
        rest = [served.stub.Say(Say(text=str(n)), timeout=LIMIT_S) for n in range(5)]
        await asyncio.sleep(0)
        link.protocol.abort()

        assert list(map(str, range(5))) == [(await call).text for call in rest]
        with pytest.raises(grpc.aio.AioRpcError):
            await first
        assert [str(n) for n in range(5)] == served.service.order


OPERATIONS = int(os.environ.get("TIDEWIRE_POOL_OPERATIONS", "3000"))


def fds() -> int:
    """Return the file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("wire", RAW)
async def test_nothing_leaks(wire: str, tmp_path: Path) -> None:
    """
    After many calls, losses and idle closings: no task, descriptor, call or connection is left.

    TIDEWIRE_POOL_OPERATIONS=100000 runs it in full.
    """
    options = TransportOptions(pool=POOLED, backoff_first_s=0.005)
    async with echoing(wire, tmp_path, options=options) as served:
        await served.stub.Say(Say())
        gc.collect()
        tasks, descriptors = len(asyncio.all_tasks()), fds()
        links = count_links()
        done = failed = 0
        while done < OPERATIONS:
            calls = [served.stub.Say(Say(text="x"), timeout=LIMIT_S) for _ in range(20)]
            if done % 500 == 0:
                for info in served.server.connections():
                    served.server.disconnect(info.identifier)
            results = await asyncio.gather(*calls, return_exceptions=True)
            failed += sum(1 for result in results if isinstance(result, BaseException))
            done += len(calls)
        await until(lambda: served.channel.pool_stats().idle == 1)
        await until(lambda: len(served.server.connections()) == 1)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        await until(lambda: fds() <= descriptors)
        del calls, results
        gc.collect()

        stats = served.channel.pool_stats()
        assert done + 1 == sum(served.channel.counters.calls_ended.values())
        assert 0 == served.channel.counters.calls_active
        assert stats.opened == stats.closed + 1
        assert 1 == len(served.channel._links)
        assert count_links() <= links
        assert failed < OPERATIONS / 10


def count_links() -> int:
    """Return the connections of clients that are still in memory."""
    from tidewire.transport.client_link import ClientLink

    return sum(1 for thing in gc.get_objects() if type(thing) is ClientLink)
