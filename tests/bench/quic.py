"""
quic:// beside aioquic's own streams, in one run.

    python tests/bench/quic.py [--rounds 5] [--mebibytes 16] [--datagram-bytes 16332]

One server process has our listener with a generated service, and aioquic's own asyncio server, as
it comes, with a handler that echoes 128 bytes, or counts what a stream brings. Both have the same
certificates; ours also requires the client's. Rounds are interleaved, so that a noisy machine is
noisy for all. Shown are medians over rounds: the median time of a round trip, and MB/s of 1 MiB
messages through a stream, counted where they arrive. aioquic sends datagrams of 1,200 bytes; with
``--datagram-bytes 1200`` so does ours, which shows what the probed path is worth.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import uvloop
from aioquic.asyncio.client import connect
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration

from support.authority import Authority
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from tidewire.transport import RawServer, TlsConfig, channel
from tidewire.transport.quic import listener
from tidewire.transport.quic.backend import DATAGRAM_BYTES_MAX

CALLS: Final = 1_000
SMALL: Final = b"k" * 128
MIB: Final = 1 << 20
ALPN: Final = "bare"


class Echo(echo_pb2_grpc.EchoServiceServicer):
    """Echoes, and counts what comes."""

    async def Say(self, request: echo_pb2.SayRequest, context: Any) -> echo_pb2.SayResponse:
        return echo_pb2.SayResponse(body=request.body)

    async def Collect(
        self, request_iterator: AsyncIterator[echo_pb2.CollectRequest], context: Any
    ) -> echo_pb2.CollectResponse:
        size = 0
        async for request in request_iterator:
            size += len(request.body)
        return echo_pb2.CollectResponse(body_bytes=size)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo messages of 128 bytes; of a stream that begins with B count the bytes."""
    first = await reader.readexactly(1)
    if first == b"B":
        size = 0
        while data := await reader.read(1 << 18):
            size += len(data)
        writer.write(size.to_bytes(8, "big"))
        writer.write_eof()
        return
    try:
        while True:
            writer.write(await reader.readexactly(len(SMALL)))
    except asyncio.IncompleteReadError:
        writer.write_eof()


_KEPT: Final[set[asyncio.Task[None]]] = set()


def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer a stream of aioquic's."""
    task = asyncio.ensure_future(answer(reader, writer))
    _KEPT.add(task)
    task.add_done_callback(_KEPT.discard)


async def run_server(folder: Path) -> None:
    """Serve until standard input ends; print the ports first."""
    server = RawServer()
    echo_pb2_grpc.add_EchoServiceServicer_to_server(Echo(), server)  # type: ignore[abstract]
    tls = TlsConfig(folder / "server.pem", folder / "server.key", folder / "ca.pem")
    ours = server.listen("quic://127.0.0.1:0", tls=tls).url.port
    await server.start()
    configuration = QuicConfiguration(is_client=False, alpn_protocols=[ALPN])
    configuration.load_cert_chain(folder / "server.pem", folder / "server.key")
    bare = await serve("127.0.0.1", 0, configuration=configuration, stream_handler=begin)
    port = bare._transport.get_extra_info("sockname")[1]  # type: ignore[union-attr]
    print(json.dumps({"ours": ours, "bare": port}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    bare.close()
    await server.stop(None)


async def median_us(call: Callable[[], Awaitable[Any]]) -> float:
    """Median time of a round trip, one after the other, in microseconds."""
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await call()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


async def measure(folder: Path, ports: dict[str, int], rounds: int, mebibytes: int) -> None:
    """Measure round by round and print."""
    tls = TlsConfig(folder / "client.pem", folder / "client.key", folder / "ca.pem")
    configuration = QuicConfiguration(alpn_protocols=[ALPN], server_name="localhost")
    configuration.load_verify_locations(str(folder / "ca.pem"))
    small: dict[str, list[float]] = {"ours": [], "bare": []}
    bulk: dict[str, list[float]] = {"ours": [], "bare": []}
    block = b"b" * MIB
    async with (
        channel(f"quic://127.0.0.1:{ports['ours']}", tls=tls) as connected,
        connect("127.0.0.1", ports["bare"], configuration=configuration) as protocol,
    ):
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        reader, writer = await protocol.create_stream()
        writer.write(b"E")

        async def bare_echo() -> None:
            writer.write(SMALL)
            await reader.readexactly(len(SMALL))

        async def bare_bulk() -> int:
            back, out = await protocol.create_stream()
            out.write(b"B")
            for _ in range(mebibytes):
                out.write(block)
            out.write_eof()
            return int.from_bytes(await back.readexactly(8), "big")

        async def our_bulk() -> int:
            call: Any = stub.Collect()
            for _ in range(mebibytes):
                await call.write(echo_pb2.CollectRequest(body=block))
            await call.done_writing()
            return int((await call).body_bytes)

        request = echo_pb2.SayRequest(body=SMALL)
        for _ in range(rounds):
            small["ours"].append(await median_us(lambda: stub.Say(request)))
            small["bare"].append(await median_us(bare_echo))
            for name, run in (("ours", our_bulk), ("bare", bare_bulk)):
                began = time.perf_counter()
                assert mebibytes * MIB == await run()
                bulk[name].append(mebibytes * MIB / 1e6 / (time.perf_counter() - began))
    for title, found, unit in (("echo 128 B, p50", small, "us"), ("bulk", bulk, "MB/s")):
        ours, bare = (statistics.median(found[name]) for name in ("ours", "bare"))
        print(f"{title:16} ours {ours:8.1f} {unit}  bare {bare:8.1f} {unit}  {ours / bare:.2f}x")


def main() -> None:
    """Start the server, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mebibytes", type=int, default=16)
    parser.add_argument("--datagram-bytes", type=int, default=DATAGRAM_BYTES_MAX)
    parser.add_argument("--serve", type=Path)
    options = parser.parse_args()
    settings: Any = listener
    settings.DATAGRAM_BYTES_MAX = options.datagram_bytes
    if options.serve:
        uvloop.run(run_server(options.serve))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority(folder)
        authority.issue("server")
        authority.issue("client")
        command = [sys.executable, __file__, "--serve", name]
        command += ["--datagram-bytes", str(options.datagram_bytes)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            assert server.stdin is not None
            ports = json.loads(server.stdout.readline())
            uvloop.run(measure(folder, ports, options.rounds, options.mebibytes))
            server.stdin.close()


if __name__ == "__main__":
    main()
