"""
Many idle connections on one server process: its memory for each, the time to make them, and what
they do to a call.

    python tests/bench/connections.py [--wires tcp,tls,unix] [--count 10000] [--json]

One process serves; others, each with at most 5,000 connections, say HELLO and answer PINGs. Memory
is what the server has for itself alone (USS) after all have come, less what it had with ten, for
each connection; what the kernel holds for sockets is not in it. The call is a unary one of 128
bytes through a channel of its own, its median over 2,000 calls, with ten connections and with all.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import uvloop

import tidewire.transport

# isort: split
import psutil

from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echo_service import EchoService
from support.wires import ENCRYPTED, listen_url
from tidewire import certs
from tidewire.transport import RawServer, TlsConfig, TransportOptions, parse_url
from tidewire.transport.tls import client_context
from tidewire.wire.bodies import Hello, encode_hello
from tidewire.wire.frame import HELLO, PING, PONG, FrameDecoder, encode_frame
from tidewire.wire.limits import FRAME_BYTES_MAX, WireLimits

FEW: Final = 10
CALLS: Final = 2_000
CALL_BYTES: Final = 128
PROCESS_CONNECTIONS_MAX: Final = 5_000
AT_ONCE: Final = 64
"""Connections that one client process makes at the same time."""
SPARE: Final = 100
GREETING: Final = encode_frame(HELLO, encode_hello(Hello(agent="idle"), WireLimits()))


def raise_descriptors() -> None:
    """Let this process have as many descriptors as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Idle(asyncio.Protocol):
    """A connection that greets, answers PINGs and does nothing else."""

    def __init__(self) -> None:
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._decoder = FrameDecoder(FRAME_BYTES_MAX)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(GREETING)

    def data_received(self, data: bytes) -> None:
        """Note HELLO, answer PING."""
        for kind, _, _, _, body in self._decoder.feed(data):
            if kind == HELLO:
                self.greeted.set_result(None)
            elif kind == PING:
                self._transport.write(encode_frame(PONG, body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so when nobody expected it."""
        if not self.greeted.done():
            self.greeted.set_exception(exc or ConnectionError("closed before HELLO"))


def tls_of(folder: str, side: str) -> TlsConfig:
    """Certificates of one side."""
    stem = Path(folder) / side
    ca = str(Path(folder) / "ca.pem")
    return TlsConfig(certificate=f"{stem}.pem", key=f"{stem}.key", ca=ca)


async def serve(wire: str, folder: str, count: int) -> None:
    """Serve echo until standard input ends."""
    server = RawServer(options=TransportOptions(connections_max=count + SPARE))
    echo_pb2_grpc.add_EchoServiceServicer_to_server(EchoService(), server)
    tls = tls_of(folder, "server") if wire in ENCRYPTED else None
    print(server.listen(listen_url(wire, Path(folder)), tls).url.text, flush=True)
    await server.start()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


async def idle(url: str, folder: str, count: int) -> None:
    """Make connections, say so, and keep them until standard input ends."""
    loop = asyncio.get_running_loop()
    target = parse_url(url)
    context: ssl.SSLContext | None = None
    if target.scheme in ENCRYPTED:
        context = client_context(tls_of(folder, "client"))
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            protocol: Any
            if target.scheme == "unix":
                _, protocol = await loop.create_unix_connection(Idle, target.path)
            else:
                _, protocol = await loop.create_connection(
                    Idle, target.host, target.port, ssl=context
                )
            await protocol.greeted

    await asyncio.gather(*(one() for _ in range(count)))
    print("connected", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


class Child:
    """A process of this file, or another, that runs until its input is closed."""

    def __init__(self, *arguments: str, program: str = __file__) -> None:
        self._process = subprocess.Popen(
            [sys.executable, program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def own_bytes(self) -> int:
        """Memory that only this process has."""
        own: int = psutil.Process(self._process.pid).memory_full_info().uss
        return own

    def tell(self, line: str) -> None:
        """Write a line to its input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    async def line(self) -> str:
        """Return the next line it says."""
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        if not line:
            raise RuntimeError("the process has ended")
        return line.strip()

    def close(self) -> None:
        """End it."""
        self._process.communicate()


async def call_us(url: str, tls: TlsConfig | None) -> float:
    """Median time of a unary call, in microseconds."""
    request = echo_pb2.SayRequest(body=bytes(CALL_BYTES))
    async with tidewire.transport.channel(url, tls=tls) as channel:
        stub: Any = echo_pb2_grpc.EchoServiceStub(channel)
        took = []
        for _ in range(CALLS):
            began = time.perf_counter()
            await stub.Say(request)
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


@contextlib.asynccontextmanager
async def children() -> AsyncIterator[Callable[..., Child]]:
    """Start processes; end them all."""
    started: list[Child] = []

    def start(*arguments: str, program: str = __file__) -> Child:
        started.append(Child(*arguments, program=program))
        return started[-1]

    try:
        yield start
    finally:
        for child in reversed(started):
            child.close()


async def measure(wire: str, count: int) -> dict[str, Any]:
    """Measure one wire."""
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        server_names = ("localhost", "127.0.0.1")
        leaves = [certs.Leaf("server", "server", server_names), certs.Leaf("client", "client")]
        certs.init(Path(folder), leaves)
        tls = tls_of(folder, "client") if wire in ENCRYPTED else None
        async with children() as start:
            server = start("--serve", wire, "--folder", folder, "--count", str(count))
            url = await server.line()

            async def connect(number: int) -> None:
                child = start("--idle", url, "--folder", folder, "--count", str(number))
                await child.line()

            await connect(FEW)
            few_us = await call_us(url, tls)
            before = server.own_bytes
            began = time.perf_counter()
            left = count - FEW
            shares = [
                min(PROCESS_CONNECTIONS_MAX, left - at)
                for at in range(0, left, PROCESS_CONNECTIONS_MAX)
            ]
            await asyncio.gather(*(connect(share) for share in shares))
            took_s = time.perf_counter() - began
            own = server.own_bytes - before
            all_us = await call_us(url, tls)
    return {
        "wire": wire,
        "connections": count,
        "bytes_each": round(own / (count - FEW)),
        "connect_s": round(took_s, 1),
        f"call_us_{FEW}": round(few_us, 1),
        "call_us_all": round(all_us, 1),
        "slower": round(all_us / few_us, 2),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wires", default="tcp,tls,unix")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--idle", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    raise_descriptors()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if arguments.serve:
            runner.run(serve(arguments.serve, arguments.folder, arguments.count))
        elif arguments.idle:
            runner.run(idle(arguments.idle, arguments.folder, arguments.count))
        else:
            for wire in arguments.wires.split(","):
                row = runner.run(measure(wire, arguments.count))
                if arguments.json:
                    print(json.dumps(row))
                else:
                    print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
