"""What the machine itself can do: one TCP stream of iperf3, a copy of memory, bare sockets."""

import json
import multiprocessing
import shutil
import socket
import statistics
import subprocess
import time
from multiprocessing.connection import Connection
from typing import Any, Final

LISTEN_TIMEOUT_S: Final = 30.0
COPY_BUFFERS_BYTES: Final = 64 << 20
"""Copies go around in buffers larger than the caches, as messages that nobody has touched do."""


def iperf_missing() -> str | None:
    """Why iperf3 cannot run here; ``None`` when it can."""
    return None if shutil.which("iperf3") else "iperf3 is not installed (Debian: apt install it)"


def iperf(seconds: float, block_bytes: int = 128 << 10) -> dict[str, Any]:
    """
    One stream of iperf3 over loopback, written in blocks of this size.

    Returns:
        ``bytes_per_s`` as the receiver counted them, ``bytes``, and ``cpu_s`` of both processes.

    Raises:
        OSError: iperf3 did not work; the message is its own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    server = ["iperf3", "-s", "-1", "-p", port, "--forceflush"]
    client = ["iperf3", "-c", "127.0.0.1", "-p", port, "-J"]
    client += ["-t", str(max(round(seconds), 1)), "-l", str(block_bytes)]
    limit_s = seconds + LISTEN_TIMEOUT_S
    with subprocess.Popen(
        server, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "listening" in line:
                    break
            done = subprocess.run(
                client, capture_output=True, text=True, check=False, timeout=limit_s
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"iperf3 did not end in {limit_s:g} s") from error
        finally:
            process.terminate()
            process.communicate()
    said = json.loads(done.stdout or "{}")
    if done.returncode or "error" in said:
        raise OSError(f"iperf3: {said.get('error') or done.stderr.strip() or done.returncode}")
    received, used = said["end"]["sum_received"], said["end"]["cpu_utilization_percent"]
    return {
        "bytes_per_s": received["bits_per_second"] / 8,
        "bytes": received["bytes"],
        "cpu_s": (used["host_total"] + used["remote_total"]) / 100 * received["seconds"],
    }


def memory_copy(seconds: float, block_bytes: int) -> dict[str, Any]:
    """
    Copy blocks of this size from one place to another, on one core, as fast as it goes.

    Returns:
        ``bytes_per_s``, ``bytes`` and ``cpu_s``.
    """
    blocks = max(COPY_BUFFERS_BYTES // block_bytes, 1)
    source = memoryview(bytes(range(256)) * (blocks * block_bytes // 256))
    target = memoryview(bytearray(len(source)))
    spans = [slice(at * block_bytes, (at + 1) * block_bytes) for at in range(blocks)]
    target[:] = source  # the kernel gives the pages now
    done = 0
    began, cpu_s = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        for span in spans:
            target[span] = source[span]
        done += len(source)
    took = time.perf_counter() - began
    return {"bytes_per_s": done / took, "bytes": done, "cpu_s": time.process_time() - cpu_s}


def hops(seconds: float, block_bytes: int, processes: int) -> dict[str, Any]:
    """
    Pass a block there and back, one at a time, with nothing but blocking sockets.

    Args:
        seconds: How long.
        block_bytes: Size of the block.
        processes: How many it passes after this one; the last one sends it back.

    Returns:
        ``p50_us`` and ``p99_us`` of a round, ``calls``, and ``cpu_s`` of this process.
    """
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    chain = context.Process(target=_pass_on, args=(theirs, block_bytes, processes), daemon=False)
    chain.start()
    try:
        port = mine.recv()
        with socket.create_connection(("127.0.0.1", port), timeout=LISTEN_TIMEOUT_S) as there:
            there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            took = _rounds(there, bytes(block_bytes), seconds)
    finally:
        chain.join(LISTEN_TIMEOUT_S)
        chain.kill()
    return took


def _rounds(there: socket.socket, block: bytes, seconds: float) -> dict[str, Any]:
    took: list[float] = []
    until_s, cpu_s = time.perf_counter() + seconds, time.process_time()
    while (began := time.perf_counter()) < until_s:
        there.sendall(block)
        _receive(there, len(block))
        took.append(time.perf_counter() - began)
    cuts = statistics.quantiles(took, n=100)
    return {
        "p50_us": cuts[49] * 1e6,
        "p99_us": cuts[98] * 1e6,
        "calls": len(took),
        "cpu_s": time.process_time() - cpu_s,
    }


def _pass_on(told: Connection, block_bytes: int, processes: int) -> None:
    """Be one process of the chain: pass blocks to the next one and back, or just back."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        following: socket.socket | None = None
        rest = None
        if processes > 1:
            context = multiprocessing.get_context("spawn")
            mine, theirs = context.Pipe()
            rest = context.Process(target=_pass_on, args=(theirs, block_bytes, processes - 1))
            rest.start()
            following = socket.create_connection(("127.0.0.1", mine.recv()))
            following.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        told.send(listening.getsockname()[1])
        here, _ = listening.accept()
    with here:
        here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while block := _receive(here, block_bytes):
            if following is not None:
                following.sendall(block)
                block = _receive(following, block_bytes)
            here.sendall(block)
    if following is not None:
        following.close()
    if rest is not None:
        rest.join()


def _receive(here: socket.socket, size: int) -> bytes:
    """Return a block, or nothing at the end."""
    block = here.recv(size)
    while block and len(block) < size:
        more = here.recv(size - len(block))
        if not more:
            return b""
        block += more
    return block
