"""
100,000 idle connections on one server with worker processes: time to make them, memory for each,
and what they do to calls.

    python tests/bench/crowd.py [--wires tcp,tls] [--count 100000] [--workers 6] [--json]

The server is ``tidewire serve --server-workers N`` with its store and services. Client processes
hold up to 15,000 connections each, from a loopback address of their own (127.0.0.2 and on: one
address has 28,000 ports), say HELLO, answer PINGs, and make unary calls on connections picked at
random, one call at a time. Memory is what the server's processes have for themselves alone (USS)
after all have come, less what they had with ten; what the kernel holds for sockets is not in it,
and told beside it (``kernel_bytes_each``, both ends of all sockets, as the kernel's own accounts
of TCP and slabs say).
"""

import argparse
import asyncio
import json
import random
import ssl
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import uvloop

import tidewire.transport  # noqa: F401  (first: it tunes grpcio before that is imported)

# isort: split
import psutil

from bench.connections import FEW, Child, Idle, children, raise_descriptors, tls_of
from support.process import ServerProcess
from support.wires import ENCRYPTED
from tidewire import certs
from tidewire.transport import parse_url
from tidewire.transport.tls import client_context
from tidewire.v1 import server_pb2
from tidewire.wire.bodies import encode_head
from tidewire.wire.frame import (
    END,
    OPEN,
    OPEN_PREFIX,
    STATUS,
    WITH_MESSAGE,
    FrameDecoder,
    encode_frame,
)
from tidewire.wire.limits import FRAME_BYTES_MAX

PROCESS_CONNECTIONS_MAX: Final = 15_000
CALLS: Final = 4_000
SPARE: Final = 100
AT_ONCE: Final = 16
"""Connections that one client process makes at the same time."""
LOG_CHARS: Final = 2_000
AGAIN_MAX: Final = 100
AGAIN_S: Final = 1.0
SETTLE_S: Final = 2.0
HEAD: Final = encode_head("/tidewire.v1.ServerService/GetInfo")
BODY: Final = OPEN_PREFIX.pack(0, len(HEAD)) + HEAD
REQUEST: Final = server_pb2.GetInfoRequest().SerializeToString()


class Caller(Idle):
    """A connection that may also call."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0
        self._answered: asyncio.Future[None] | None = None
        self._frames = FrameDecoder(FRAME_BYTES_MAX)
        self.lost = False

    def data_received(self, data: bytes) -> None:
        """Note the end of a call; the rest as any idle one."""
        answered = self._answered
        if answered is not None:
            for kind, flags, _, call_id, _ in self._frames.feed(data):
                if call_id == self._calls and (kind == STATUS or flags & END):
                    answered.set_result(None)
                    self._answered = None
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remember it."""
        self.lost = True
        super().connection_lost(exc)

    async def call(self) -> float:
        """Make a call; return how long it took, in seconds."""
        self._calls += 1
        answered = self._answered = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        flags = END | WITH_MESSAGE
        self._transport.write(
            encode_frame(OPEN, BODY + REQUEST, flags=flags, priority=5, call_id=self._calls)
        )
        await answered
        return time.perf_counter() - began


async def hold(url: str, folder: str, count: int, source: str) -> None:
    """Make connections; then do what standard input says until it ends."""
    loop = asyncio.get_running_loop()
    target = parse_url(url)
    context: ssl.SSLContext | None = None
    if target.scheme in ENCRYPTED:
        context = client_context(tls_of(folder, "client"))
    gate = asyncio.Semaphore(AT_ONCE)
    callers: list[Caller] = []

    again = 0

    async def one() -> None:
        nonlocal again
        async with gate:
            while True:
                try:
                    _, caller = await loop.create_connection(
                        Caller, target.host, target.port, ssl=context, local_addr=(source, 0)
                    )
                    await caller.greeted
                except OSError as error:
                    again += 1
                    if again > AGAIN_MAX:
                        raise
                    print(f"{source}: {error}", file=sys.stderr)
                    await asyncio.sleep(AGAIN_S)
                else:
                    callers.append(caller)
                    return

    await asyncio.gather(*(one() for _ in range(count)))
    print(again, flush=True)
    while command := await loop.run_in_executor(None, sys.stdin.readline):
        took = [await random.choice(callers).call() for _ in range(int(command))]
        lost = sum(caller.lost for caller in callers)
        print(json.dumps({"took": took, "lost": lost}), flush=True)


def own_bytes(server: int) -> int:
    """Memory of the server's processes that is theirs alone."""
    parent = psutil.Process(server)
    family = [parent, *parent.children(recursive=True)]
    return sum(int(each.memory_full_info().uss) for each in family)


def kernel_bytes() -> int:
    """What the kernel holds in slabs, where sockets and their files are."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    figures = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return figures["Slab"] * 1024


async def ask(holders: list[Child], calls: int) -> tuple[list[float], int]:
    """Let each holder in turn make its part of the calls; return the times and what was lost."""
    took: list[float] = []
    lost = 0
    for holder in holders:
        holder.tell(str(calls // len(holders)))
        said = json.loads(await holder.line())
        took += said["took"]
        lost += said["lost"]
    return took, lost


async def measure(wire: str, count: int, workers: int) -> dict[str, Any]:
    """Measure one wire."""
    with tempfile.TemporaryDirectory(prefix="tw") as name:
        folder = Path(name)
        names = ("localhost", "127.0.0.1")
        certs.init(folder, [certs.Leaf("server", "server", names), certs.Leaf("client", "client")])
        flags = ["--server-workers", str(workers), "--engine-ballast-bytes", "0"]
        flags += ["--wire-connections-max", str(count + SPARE), "--wire-backlog", "4096"]
        # All ends share the processors here: what a client says may come late.
        flags += ["--wire-hello-timeout-s", "30", "--wire-handshake-timeout-s", "30"]
        if wire in ENCRYPTED:
            tls = tls_of(name, "server")
            flags += ["--tls-ca", str(tls.ca), "--tls-certificate", str(tls.certificate)]
            flags += ["--tls-key", str(tls.key)]
        with ServerProcess(folder, (wire,), flags=flags) as server:
            async with children() as start:
                try:
                    return await _measure(wire, count, workers, folder, server, start)
                finally:
                    print(server.log()[-LOG_CHARS:], file=sys.stderr)


async def _measure(
    wire: str, count: int, workers: int, folder: Path, server: ServerProcess, start: Any
) -> dict[str, Any]:
    holders: list[Child] = []
    again: list[int] = []

    async def connect(number: int, share: int) -> None:
        source = f"127.0.0.{number + 2}"
        arguments = ["--hold", server.url(wire), "--folder", str(folder), "--count", str(share)]
        holder = start(*arguments, "--source", source, program=__file__)
        again.append(int(await holder.line()))
        holders.append(holder)

    await connect(0, FEW)
    few, _ = await ask(holders, CALLS)
    own, kernel = own_bytes(server.pid), kernel_bytes()
    left = count - FEW
    shares = [
        min(PROCESS_CONNECTIONS_MAX, left - at) for at in range(0, left, PROCESS_CONNECTIONS_MAX)
    ]
    began = time.perf_counter()
    await asyncio.gather(*(connect(at + 1, share) for at, share in enumerate(shares)))
    connect_s = time.perf_counter() - began
    await asyncio.sleep(SETTLE_S)
    own = own_bytes(server.pid) - own
    kernel = kernel_bytes() - kernel
    many, lost = await ask(holders[1:], CALLS)
    cuts = statistics.quantiles(many, n=100)
    few_cuts = statistics.quantiles(few, n=100)
    return {
        "wire": wire,
        "connections": count,
        "workers": workers,
        "lost": lost,
        "bytes_each": round(own / left),
        "kernel_bytes_each": round(kernel / left),
        "tried_again": sum(again),
        "connect_s": round(connect_s, 1),
        "connects_per_s": round(left / connect_s),
        f"call_p50_us_{FEW}": round(few_cuts[49] * 1e6),
        "call_p50_us_all": round(cuts[49] * 1e6),
        f"call_p99_us_{FEW}": round(few_cuts[98] * 1e6),
        "call_p99_us_all": round(cuts[98] * 1e6),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wires", default="tcp")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--hold", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    raise_descriptors()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if arguments.hold:
            runner.run(hold(arguments.hold, arguments.folder, arguments.count, arguments.source))
            return
        for wire in arguments.wires.split(","):
            row = runner.run(measure(wire, arguments.count, arguments.workers))
            if arguments.json:
                print(json.dumps(row))
            else:
                print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
