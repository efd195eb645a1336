"""How many connections are open, of all wires."""

import asyncio
from pathlib import Path

import grpc.aio
import pytest

import tidewire
from support.scripted import eventually
from support.server import running
from tidewire_server.ops.connections import Connections, count_tcp, count_unix

TCP = b"""\
   0: 0100007F:C383 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0        0 1 1
   1: 0100007F:C383 0100007F:D431 01 00000000:00000000 00:00000000 00000000  0        0 2 1
   2: 0100007F:D431 0100007F:C383 01 00000000:00000000 00:00000000 00000000  0        0 3 1
   3: 0100007F:C383 0100007F:D432 06 00000000:00000000 00:00000000 00000000  0        0 0 1
   4: 0100007F:C384 0100007F:D433 01 00000000:00000000 00:00000000 00000000  0        0 4 1
""".splitlines()
UNIX = b"""\
0000000000000000: 00000002 00000000 00010000 0001 01 11 /run/t.sock
0000000000000000: 00000003 00000000 00000000 0001 03 12 /run/t.sock
0000000000000000: 00000003 00000000 00000000 0001 03 13
0000000000000000: 00000003 00000000 00000000 0001 03 14 /run/u.sock
""".splitlines()


def test_only_established_sockets_of_the_port_count() -> None:
    """Not who listens, not the other end, not what is closing, not another port."""
    assert 1 == count_tcp(TCP, {0xC383})
    assert 2 == count_tcp(TCP, {0xC383, 0xC384})
    assert 0 == count_tcp(TCP, {80})
    assert 0 == count_tcp([b"rubbish", b""], {80})


def test_only_connected_sockets_of_the_folder_count() -> None:
    """Not who listens, not the other end, which has no path, not those of other processes."""
    assert 1 == count_unix(UNIX, {b"/run"}, {b"11", b"12", b"13"})
    assert 2 == count_unix(UNIX, {b"/run"}, {b"11", b"12", b"13", b"14"})
    assert 0 == count_unix(UNIX, {b"/var"}, {b"11", b"12", b"13", b"14"})
    assert 0 == count_unix([b"rubbish", b""], {b"/run"}, set())


@pytest.mark.parametrize("wire", ["grpc", "tcp", "grpc+unix"])
async def test_each_wire_is_counted(tmp_path: Path, wire: str) -> None:
    """One client is one connection, and none when it has gone."""
    async with running(tmp_path, (wire,)) as it:
        connections = Connections(it.server.listeners)

        async def counts(wanted: int) -> None:
            await eventually(lambda: Connections(it.server.listeners).count() == wanted)

        await counts(0)
        async with tidewire.connect(it.url(wire)) as client:
            await client.info()
            await counts(1)
        await counts(0)
        assert 0 == connections.count()


async def test_the_kernel_is_asked_once_a_second(tmp_path: Path) -> None:
    """The tables of a busy machine are long."""
    now = [0.0]
    async with running(tmp_path, ("grpc",)) as it:
        connections = Connections(it.server.listeners, clock=lambda: now[0])
        before = connections.count()
        target = it.url("grpc").removeprefix("grpc://")
        async with grpc.aio.insecure_channel(target) as channel:
            async with asyncio.timeout(15):
                await channel.channel_ready()
            now[0] = 0.9
            same = connections.count()
            now[0] = 1.0
            after = connections.count()

    assert (0, 0, 1) == (before, same, after)
