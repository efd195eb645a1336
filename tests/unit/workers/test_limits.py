"""Bounds of worker processes: connections of all together, descriptors, restarts, orphans."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

import tidewire
from support.process import ServerProcess
from support.server import running
from tidewire_server.ops.descriptors import raise_limit, warn_if_few
from tidewire_server.workers import child
from tidewire_server.workers.child import WorkerProcess
from tidewire_server.workers.share import Shared

LIMIT_S: Final = 20.0


def until(condition: Any) -> None:
    """Wait until something holds, within the limit."""
    stop = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < stop, "it did not come to be in time"
        time.sleep(0.05)


async def is_open(host: str, port: int, kept: list[asyncio.StreamWriter]) -> bool:
    """Connect without a word; whether the server keeps the connection for the moment."""
    reader, writer = await asyncio.open_connection(host, port)
    kept.append(writer)
    try:
        return b"" != await asyncio.wait_for(reader.read(1), 0.5)
    except TimeoutError:
        return True
    except ConnectionResetError:
        return False


async def test_the_bound_of_connections_holds_over_all_workers(tmp_path: Path) -> None:
    """
    Of twelve connections eight are taken, however the kernel hands them out, and places that get
    free are taken again. Were the bound each worker's own, all twelve would be.
    """
    wire = {"connections_max": 8, "hello_timeout_s": 60.0}
    async with running(tmp_path, ("tcp",), server={"workers": 2}, wire=wire) as it:
        port = int(it.url("tcp").rpartition(":")[2])
        kept: list[asyncio.StreamWriter] = []
        taken = [await is_open("127.0.0.1", port, kept) for _ in range(12)]
        counters = it.server.listeners.raw["tcp"]
        stop = time.monotonic() + LIMIT_S
        while (8, 4) != (
            counters.counters.connections_active,
            counters.counters.refusals["too_many_connections"],
        ):
            assert time.monotonic() < stop
            await asyncio.sleep(0.05)
        for writer in kept:
            writer.close()
        again = False
        while not again:
            assert time.monotonic() < stop
            again = await is_open("127.0.0.1", port, kept)
        for writer in kept:
            writer.close()

    assert [True] * 8 + [False] * 4 == taken


def test_counts_of_a_worker_that_is_gone_are_forgotten(tmp_path: Path) -> None:
    """Two processes see one another's counts by the same file."""
    mine, other = (Shared(tmp_path / "counts", ["tcp", "tls"]) for _ in range(2))
    mine.put("tcp", 0, 3)
    other.put("tcp", 63, 4)
    other.put("tls", 63, 5)

    assert (4, 5, 3) == (mine.others("tcp", 0), mine.others("tls", 0), other.others("tcp", 63))

    mine.forget(63)
    assert (0, 0) == (mine.others("tcp", 0), mine.others("tls", 0))
    mine.close()
    other.close()


def test_server_and_workers_take_the_descriptors_they_may(tmp_path: Path) -> None:
    """A soft limit of 256, as a shell may give, becomes the hard one; control: ours stays 256."""
    program = (
        "import resource, sys, subprocess;"
        "h = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, h));"
        "sys.exit(subprocess.call(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, sys.executable, "-m", "tidewire.cli", "serve"]
    flags = ["--listen", "tcp://127.0.0.1:0", "--server-workers", "1", "--admin-address"]
    data = ["127.0.0.1:0", "--server-data-dir", str(tmp_path / "data")]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with subprocess.Popen([*command, *flags, *data], stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            ready = json.loads(parent.stdout.readline())
            server = psutil.Process(ready["pid"])
            (worker,) = server.children()
            soft = [each.rlimit(psutil.RLIMIT_NOFILE)[0] for each in (server, worker)]
            control = psutil.Process(parent.pid).rlimit(psutil.RLIMIT_NOFILE)[0]
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(parent.pid).children()[0].terminate()
            parent.wait(LIMIT_S)

    assert ([hard, hard], 256) == (soft, control)


def test_too_few_descriptors_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """A warning when the processes cannot hold what is allowed; none when they can."""
    assert raise_limit() is not None
    warn_if_few(1_064, 1_001, 0)
    warn_if_few(1_064, 2_001, 2)
    assert [1_000, 2_000] == [getattr(one, "connections_possible", 0) for one in caplog.records]

    warn_if_few(1_064, 2_000, 2)
    warn_if_few(None, 2_000, 2)
    assert 2 == len(caplog.records)


def test_no_worker_outlives_its_server(tmp_path: Path) -> None:
    """The server is killed with SIGKILL: the workers end by themselves."""
    with ServerProcess(tmp_path, ("tcp",), flags=["--server-workers", "2"]) as server:
        workers = psutil.Process(server.pid).children()
        assert 2 == len(workers)
        server.end(signal.SIGKILL)
        until(lambda: not any(each.is_running() for each in workers))


async def test_signals_for_the_whole_group_leave_workers_to_their_server(tmp_path: Path) -> None:
    """
    A service manager's SIGTERM, a terminal's SIGINT and SIGHUP reach workers too: they go on, and
    end when their server lets them. Control: SIGKILL ends one.
    """
    async with (
        running(tmp_path, ("tcp",), server={"workers": 1}) as it,
        tidewire.connect(it.url("tcp")) as client,
    ):
        workers = it.server.listeners._workers
        assert workers is not None
        (worker,) = workers.processes
        assert worker._process is not None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(worker._process.pid, number)
        await client.state.put("a", b"1")
        assert 0 == worker.restarts
        os.kill(worker._process.pid, signal.SIGKILL)
        assert -signal.SIGKILL == await worker._process.wait()


async def test_a_worker_that_hangs_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped with SIGSTOP it would keep its share of new connections for ever."""
    monkeypatch.setattr(child, "HANG_S", 1.0)
    async with running(tmp_path, ("tcp",), server={"workers": 1}) as it:
        workers = it.server.listeners._workers
        assert workers is not None
        (worker,) = workers.processes
        monkeypatch.setattr(worker, "ask", _impatient(worker))
        assert worker._process is not None
        os.kill(worker._process.pid, signal.SIGSTOP)
        stop = time.monotonic() + LIMIT_S
        while not worker.restarts:
            assert time.monotonic() < stop
            await asyncio.sleep(0.05)
        async with tidewire.connect(it.url("tcp")) as client:
            await client.state.put("a", b"1")


def _impatient(worker: WorkerProcess) -> Any:
    ask = worker.ask

    async def quick(do: str, **more: Any) -> Any:
        return await ask(do, **{"timeout_s": 0.5, **more})

    return quick


async def test_restarts_wait_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that cannot start is tried again after 0.5, 1, 2 s and so on, at most 30 s."""
    waits: list[float] = []

    async def note(wait_s: float) -> None:
        waits.append(wait_s)

    async def fail(_self: WorkerProcess) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(asyncio, "sleep", note)
    monkeypatch.setattr(WorkerProcess, "_spawn", fail)
    worker = WorkerProcess(0, {})
    assert [False] * 8 == [await worker._restarted() for _ in range(8)]
    assert [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] == waits


async def test_what_ended_workers_did_stays_counted(tmp_path: Path) -> None:
    """Counters never fall, or a collector takes it for a restart and counts everything twice."""
    async with running(tmp_path, ("tcp",), server={"workers": 1}) as it:
        wire = it.server.listeners.raw["tcp"]
        async with tidewire.connect(it.url("tcp")) as client:
            await client.state.put("a", b"1")
            stop = time.monotonic() + LIMIT_S
            while not wire.counters.calls_ended[0]:
                assert time.monotonic() < stop
                await asyncio.sleep(0.05)
            before = wire.counters
            workers = it.server.listeners._workers
            assert workers is not None
            (worker,) = workers.processes
            worker.kill()
            while not worker.restarts:
                assert time.monotonic() < stop
                await asyncio.sleep(0.05)
        after = wire.counters

    assert before.calls_ended[0] <= after.calls_ended[0]
    assert before.connections_opened <= after.connections_opened
