"""
Every wire beside the others, in one run: small calls, and bulk through a stream call.

    python tests/bench/wires.py [--wires tcp,unix] [--rounds 5] [--seconds 1] [--bulk | --small]

One echo server in one other process listens on every wire; on ``memory`` it is in this process.
Rounds are interleaved, so that a noisy machine is noisy for all. Shown are medians over rounds:
the median time of a unary call with 128 bytes, and MB/s of 1 MiB messages in a client-streaming
call, counted where they arrive. ``iperf3``, one stream, where it is installed, and a plain socket
between two Python processes say what the machine can do; ratios are to tcp, and of tcp to iperf3.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import uvloop

import tidewire.transport

# isort: split
import grpc.aio

from bench.limits import iperf, iperf_missing
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.wires import ENCRYPTED, WIRES, listen_url
from tidewire import certs
from tidewire.transport import (
    RawServer,
    ServerCredentials,
    TlsConfig,
    grpc_server,
    listener_schemes,
    parse_url,
    transports,
)
from tidewire.transport.socket_file import bind_grpc
from tidewire_server.ops.allocator import keep_freed_memory

CALLS: Final = 1_000
SMALL_BYTES: Final = 128
BULK_BYTES: Final = 1 << 20
IPERF_S: Final = 1
BULK_UNABLE: Final = frozenset({"udp", "dtls"})
"""Wires of single datagrams carry no stream calls."""
CHUNK_BYTES: Final = 1 << 17


class Echo(echo_pb2_grpc.EchoServiceServicer):
    """Echoes, and counts what arrives."""

    async def Say(self, request: echo_pb2.SayRequest, context: Any) -> echo_pb2.SayResponse:
        return echo_pb2.SayResponse(text=request.text, body=request.body)

    async def Collect(self, request_iterator: Any, context: Any) -> echo_pb2.CollectResponse:
        """Take messages; answer with MB/s from the first to the last."""
        size, began = -1, 0.0
        async for request in request_iterator:
            if size < 0:
                size, began = 0, time.perf_counter()
            else:
                size += len(request.body)
        took = time.perf_counter() - began
        return echo_pb2.CollectResponse(text=f"{size / took / 1e6}", body_bytes=size)


@contextlib.asynccontextmanager
async def listening(wires: tuple[str, ...], tls: TlsConfig) -> AsyncIterator[dict[str, str]]:
    """Serve echo on wires; give their URLs."""
    urls: dict[str, str] = {}
    servers: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        for wire in wires:
            server: Any = grpc_server() if wire.startswith("grpc") else RawServer()
            servers.append(server)
            echo_pb2_grpc.add_EchoServiceServicer_to_server(Echo(), server)  # type: ignore[abstract]
            url = listen_url(wire, Path(folder))
            if wire == "grpc+unix":
                bind_grpc(server, parse_url(url).path)
            elif wire == "grpc":
                url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            elif wire == "grpcs":
                credentials = ServerCredentials(tls).credentials
                url = f"grpcs://127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
            else:
                url = server.listen(url, tls=tls if wire in ENCRYPTED else None).url.text
            urls[wire] = url
            await server.start()
        try:
            yield urls
        finally:
            for server in servers:
                await server.stop(None)


async def serve(wires: tuple[str, ...], folder: str) -> None:
    """Serve until standard input ends; print the URLs first."""
    keep_freed_memory()  # as `tidewire serve` does
    sink = socket.create_server(("127.0.0.1", 0))
    async with listening(wires, _tls(Path(folder), "server")) as urls:
        port = sink.getsockname()[1]
        print(json.dumps({"urls": urls, "sink": port}), flush=True)
        loop = asyncio.get_running_loop()
        drain = loop.run_in_executor(None, _drain, sink)
        await loop.run_in_executor(None, sys.stdin.read)
        sink.shutdown(socket.SHUT_RDWR)
        await drain


def _tls(folder: Path, side: str) -> TlsConfig:
    stem = folder / side
    return TlsConfig(certificate=f"{stem}.pem", key=f"{stem}.key", ca=str(folder / "ca.pem"))


def _drain(sink: socket.socket) -> None:
    """Take what comes over a plain socket and answer with MB/s: what Python and the kernel can."""
    buffer = bytearray(CHUNK_BYTES)
    while True:
        try:
            taken, _ = sink.accept()
        except OSError:
            return
        with taken:
            size, began = 0, time.perf_counter()
            while count := taken.recv_into(buffer):
                size += count
            took = time.perf_counter() - began
            taken.sendall(f"{size / took / 1e6}".encode())


async def small_us(stub: Any) -> float:
    """Median time of a call, one after the other, in microseconds."""
    request = echo_pb2.SayRequest(body=bytes(SMALL_BYTES))
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await stub.Say(request)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


async def bulk_mb_per_s(stub: Any, seconds: float) -> float:
    """MB/s of large messages, as the server counted them."""
    request = echo_pb2.CollectRequest(body=bytes(BULK_BYTES))

    async def requests() -> AsyncIterator[echo_pb2.CollectRequest]:
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            yield request

    return float((await stub.Collect(requests())).text)


def plain_mb_per_s(port: int, seconds: float) -> float:
    """MB/s over a plain socket between two Python processes."""
    data = bytes(BULK_BYTES)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return float(sock.recv(100))


def iperf_mb_per_s() -> float:
    """MB/s of one stream of iperf3, at the receiver."""
    received: float = iperf(IPERF_S)["bytes_per_s"]
    return received / 1e6


@contextlib.asynccontextmanager
async def connected(wires: tuple[str, ...]) -> AsyncIterator[tuple[dict[str, Any], int]]:
    """Channels to a server process, and to one here for ``memory``; the port of the plain sink."""
    far = tuple(wire for wire in wires if wire != "memory")
    with tempfile.TemporaryDirectory(prefix="tw") as name:
        folder = Path(name)
        certs.init(
            folder,
            [
                certs.Leaf("server", "server", ("localhost", "127.0.0.1")),
                certs.Leaf("client", "client"),
            ],
        )
        command = [sys.executable, __file__, "--serve", name, "--wires", ",".join(far)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            client = _tls(folder, "client")
            near = ("memory",) if "memory" in wires else ()
            async with listening(near, client) as here:
                urls = told["urls"] | here
                channels = {
                    wire: tidewire.transport.channel(
                        urls[wire], tls=client if wire in ENCRYPTED else None
                    )
                    for wire in wires
                }
                try:
                    yield channels, told["sink"]
                finally:
                    for channel in channels.values():
                        await channel.close()
                    process.communicate()


Measure = Callable[[], Awaitable[float]]


def measures(
    channels: dict[str, grpc.aio.Channel], sink: int, seconds: float, kinds: tuple[str, ...]
) -> dict[tuple[str, str], Measure]:
    """What is measured, by kind and wire."""
    found: dict[tuple[str, str], Measure] = {}
    loop = asyncio.get_running_loop()
    if "bulk" in kinds:
        if iperf_missing() is None:
            found["bulk", "iperf3"] = lambda: loop.run_in_executor(None, iperf_mb_per_s)
        found["bulk", "socket"] = lambda: loop.run_in_executor(None, plain_mb_per_s, sink, seconds)
    for wire, channel in channels.items():
        stub: Any = echo_pb2_grpc.EchoServiceStub(channel)
        if "small" in kinds:
            found["small", wire] = partial(small_us, stub)
        if "bulk" in kinds and wire not in BULK_UNABLE:
            found["bulk", wire] = partial(bulk_mb_per_s, stub, seconds)
    return found


async def measure(
    wires: tuple[str, ...], rounds: int, seconds: float, kinds: tuple[str, ...]
) -> dict[tuple[str, str], float]:
    """Measure all, interleaved; medians of the rounds."""
    async with connected(wires) as (channels, sink):
        todo = measures(channels, sink, seconds, kinds)
        taken: dict[tuple[str, str], list[float]] = {key: [] for key in todo}
        for round_ in range(rounds + 1):
            for key, run in todo.items():
                figure = await run()
                if round_:  # the first one warms up
                    taken[key].append(figure)
    return {key: statistics.median(figures) for key, figures in taken.items()}


def show(figures: dict[tuple[str, str], float], *, as_json: bool) -> None:
    """Print one line for each figure."""
    units = {"small": "us", "bulk": "MB/s"}
    for (kind, wire), figure in figures.items():
        row: dict[str, Any] = {"kind": kind, "wire": wire, "figure": figure, "unit": units[kind]}
        for base in ("tcp", "iperf3"):
            if (kind, base) in figures and base != wire:
                row[f"to_{base}"] = figure / figures[kind, base]
        if as_json:
            print(json.dumps(row))
        else:
            ratios = "  ".join(
                f"{value:.2f}x {key.removeprefix('to_')}"
                for key, value in row.items()
                if key.startswith("to_")
            )
            print(f"{kind:5} {wire:9} {figure:9.1f} {units[kind]:4}  {ratios}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wires", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--bulk", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    both = ("grpc", "grpcs", "grpc+unix", *listener_schemes())
    able = tuple(wire for wire in WIRES if wire in transports() and wire in both)
    wires = tuple(filter(None, arguments.wires.split(","))) or able
    kinds = tuple(kind for kind in ("small", "bulk") if getattr(arguments, kind))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if arguments.serve:
            runner.run(serve(wires, arguments.serve))
            return
        job = measure(wires, arguments.rounds, arguments.seconds, kinds or ("small", "bulk"))
        figures = runner.run(job)
    show(figures, as_json=arguments.json)


if __name__ == "__main__":
    main()
