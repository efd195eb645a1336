"""Worker processes: the same service behind them, and who calls is known behind them too."""

import asyncio
import contextlib
import json
import os
import signal
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tidewire
from support.server import Running, running
from tidewire.v1 import server_pb2, server_pb2_grpc
from tidewire_server.listeners import Listeners
from tidewire_server.ops.config import ConfigError
from tidewire_server.workers.identity import KEY, decode_peer

WIRES = ("tcp", "tls", "ws", "grpc")
LIMIT_S = 20.0


@asynccontextmanager
async def working(folder: Path, workers: int = 2, **more: Any) -> AsyncIterator[Running]:
    """A server with worker processes."""
    async with running(folder, WIRES, server={"workers": workers}, **more) as it:
        yield it


def processes(it: Running) -> Any:
    """Its workers."""
    workers = it.server.listeners._workers
    assert workers is not None
    return workers.processes


async def until(condition: Any) -> None:
    """Wait until something holds, within the limit."""
    stop = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < stop, "it did not come to be in time"
        await asyncio.sleep(0.05)


async def test_every_kind_goes_through_workers(tmp_path: Path) -> None:
    """Events, queries, state, control, members and checkpoints, on each wire a worker has."""
    async with working(tmp_path) as it:
        for wire in ("tcp", "tls", "ws"):
            async with tidewire.connect(it.url(wire), tls=it.tls(wire)) as client:
                got: list[tidewire.Message] = []
                async with client.events.subscribe(f"{wire}.>", handler=got.append):
                    await client.events.publish(f"{wire}.a", b"x" * 300_000)
                    await until(partial(list.__len__, got))
                assert [300_000] == [len(message.payload) for message in got]
                async with client.queries.serve(wire, lambda query: query.payload * 2):
                    assert b"abab" == (await client.queries.ask(wire, b"ab")).payload
                entry = await client.state.put(f"{wire}/a", b"1")
                with pytest.raises(tidewire.errors.RevisionMismatch):
                    await client.state.put(f"{wire}/a", b"2", expected_revision=entry.revision + 1)
                async with client.control.attend(wire, {"stop": lambda _: b"stopped"}):
                    outcome = await client.control.send("stop", node_id=wire)
                    assert outcome.succeeded
                operator = client.checkpoints.operator(wire)
                await operator.acquire()
                await operator.commit(b"state")
                async with client.members.join(f"node-{wire}", lease_s=5):
                    assert f"node-{wire}" in [one.node_id for one in await client.members.list()]


async def test_the_engine_knows_who_calls(tmp_path: Path) -> None:
    """The principal behind a worker is the one the certificate of the client names."""
    async with working(tmp_path) as it:
        async with tidewire.connect(it.url("tls"), tls=it.tls("tls")) as client:
            behind = (await client.info()).principal
        async with tidewire.connect(it.url("tcp")) as client:
            nobody = (await client.info()).principal

    assert ("client.test", "") == (behind, nobody)


async def test_nobody_says_who_they_are_by_metadata(tmp_path: Path) -> None:
    """
    A client that sends what workers tell each call stays who it is: at a worker, and at a listener
    of the engine's process too. The same words are believed from a worker, or this proves nothing.
    """
    forged = json.dumps(
        {
            "name": "ipv4:1.2.3.4:5",
            "key": "x509_subject_alternative_name",
            "encrypted": True,
            "auth": {"x509_subject_alternative_name": ["root.test"]},
        }
    ).encode()
    assert (b"root.test",) == decode_peer(forged).identities
    async with working(tmp_path) as it:
        found = []
        for wire in ("tcp", "ws", "grpc"):
            async with tidewire.channel(it.url(wire)) as channel:
                stub: Any = server_pb2_grpc.ServerServiceStub(channel)
                answer = await stub.GetInfo(server_pb2.GetInfoRequest(), metadata=((KEY, forged),))
                found.append(answer.principal)

    assert ["", "", ""] == found


async def test_a_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    """Killed with SIGKILL: its clients come back by themselves, and nothing stored is gone."""
    async with working(tmp_path, workers=1) as it, tidewire.connect(it.url("tcp")) as client:
        entry = await client.state.put("a", b"1")
        (worker,) = processes(it)
        before = worker._process.pid
        os.kill(before, signal.SIGKILL)
        await until(lambda: worker._process.pid != before)
        again = None
        stop = time.monotonic() + LIMIT_S
        while again is None and time.monotonic() < stop:
            with contextlib.suppress(tidewire.errors.Unavailable):  # it is not there yet
                again = await client.state.get("a")

    assert again is not None
    assert (entry.revision, b"1") == (again.revision, again.value)


async def test_a_drain_reaches_the_clients_of_workers(tmp_path: Path) -> None:
    """A call in flight is finished, and the worker ends with exit code 0."""
    async with working(tmp_path, workers=1) as it:
        async with (
            tidewire.connect(it.url("tcp")) as client,
            tidewire.connect(it.url("grpc")) as other,
        ):
            release = asyncio.Event()
            asked = asyncio.Event()

            async def answer(_query: tidewire.Query) -> bytes:
                asked.set()
                await release.wait()
                return b"late"

            async with other.queries.serve("slow", answer):
                asking = asyncio.create_task(client.queries.ask("slow", b""))
                await asked.wait()
                (worker,) = processes(it)
                stopping = asyncio.create_task(worker.stop(10))
                await asyncio.sleep(0.1)
                release.set()
                reply = await asking
        await stopping

    assert (b"late", 0) == (reply.payload, worker._process.returncode)


async def test_connections_of_workers_are_counted_listed_and_ended(tmp_path: Path) -> None:
    """Metrics add up over workers; the list names them; disconnecting one ends that one."""
    async with working(tmp_path) as it:
        listeners: Listeners = it.server.listeners
        clients = [await tidewire.connect(it.url("tcp")) for _ in range(8)]
        await until(lambda: listeners.raw["tcp"].counters.connections_active == 8)
        listed = (await listeners.connections())["tcp"]
        ended = await listeners.disconnect("tcp", listed[0].identifier)
        nobody = await listeners.disconnect("tcp", 999)
        assert it.server.admin is not None
        page = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"{it.server.admin.url}/metrics").read().decode()  # type: ignore[union-attr]
        )
        await until(lambda: listeners.raw["tcp"].counters.connections_active == 7)
        for client in clients:
            await client.close()

    assert (8, True, False) == (len(listed), ended, nobody)
    assert 'tidewire_wire_connections_active{wire="tcp"}' in page


async def test_a_port_that_is_taken_is_not_shared(tmp_path: Path) -> None:
    """Workers share their port with each other only: a second server on it does not start."""
    async with working(tmp_path / "a") as it:
        port = it.url("tcp")
        with pytest.raises(ConfigError, match="cannot be listened on"):
            async with working(tmp_path / "b", listen={"urls": [port]}):
                pass


async def test_certificates_are_read_anew_by_all_workers(tmp_path: Path) -> None:
    """
    A file that is none is refused and the old certificate goes on; a good one is taken. What
    SIGHUP does, in both workers, and each says how it went.
    """
    async with working(tmp_path) as it:
        file = it.certificates.server_certificate
        good = file.read_bytes()
        listeners: Listeners = it.server.listeners
        said = [await listeners.reload_certificates()]
        file.write_bytes(b"no certificate")
        said.append(await listeners.reload_certificates())
        for _ in range(4):
            async with tidewire.connect(it.url("tls"), tls=it.tls("tls")) as client:
                assert "client.test" == (await client.info()).principal
        file.write_bytes(good)
        said.append(await listeners.reload_certificates())

    assert [True, False, True] == said


async def test_lines_of_a_worker_carry_its_number(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its log is JSON lines in the stream of its server's; what it prints is not taken for news."""
    async with working(tmp_path, log={"format": "json"}) as it:
        for process in processes(it):
            assert await process.ask("disconnect", scheme="nothing", identifier=1) is None
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"worker"' in line]

    assert {0, 1} == {line["worker"] for line in lines}
