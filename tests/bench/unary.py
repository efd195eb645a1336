"""
Unary calls of one generated stub: raw TCP beside gRPC, in one run.

    python tests/bench/unary.py [--rounds 5] [--json]

Three servers in one other process answer the same calls: a raw listener and a gRPC server on our
router, and a bare grpc.aio server with nothing around the handler. Rounds are interleaved, so that
a noisy machine is noisy for all. Shown are the median over the rounds, and ratios to bare gRPC.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvloop

import tidewire.transport

# isort: split
import grpc.aio

from tidewire.v1 import state_pb2, state_pb2_grpc
from tidewire_server.router import Router

CALLS = 1_000
IN_FLIGHT = 64
PARALLEL_S = 1.0
PAYLOAD = "k" * 128


class Echo(state_pb2_grpc.StateServiceServicer):
    """Answers Get with the key it was asked for."""

    async def Get(self, request: state_pb2.GetRequest, context: Any) -> state_pb2.GetResponse:
        return state_pb2.GetResponse(entry=state_pb2.Entry(key=request.key))


async def serve() -> None:
    """Serve until standard input ends; print the URLs first."""
    router: Any = Router()
    echo = Echo()  # type: ignore[abstract]  # one method is enough
    state_pb2_grpc.add_StateServiceServicer_to_server(echo, router)
    raw = tidewire.transport.RawServer((router,))
    port = raw.add_listener("tcp://127.0.0.1:0")
    ours = tidewire.transport.grpc_server((router,))
    ours_port = ours.add_insecure_port("127.0.0.1:0")
    bare = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    state_pb2_grpc.add_StateServiceServicer_to_server(echo, bare)
    bare_port = bare.add_insecure_port("127.0.0.1:0")
    for server in (raw, ours, bare):
        await server.start()
    print(json.dumps({"tcp": port, "grpc": ours_port, "bare": bare_port}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for server in (raw, ours, bare):
        await server.stop(0)


async def serial_us(call: Callable[[], Awaitable[Any]]) -> float:
    """Median time of a call, one after the other, in microseconds."""
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await call()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


async def parallel_rate(call: Callable[[], Awaitable[Any]]) -> float:
    """Calls a second with `IN_FLIGHT` in flight."""
    done = 0
    stop = time.perf_counter() + PARALLEL_S

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < stop:
            await call()
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return done / (time.perf_counter() - began)


@contextlib.asynccontextmanager
async def channels() -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """Channels to the three servers of another process."""
    with subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        ports = json.loads(process.stdout.readline())
        opened = {
            "tcp": tidewire.transport.channel(f"tcp://127.0.0.1:{ports['tcp']}"),
            "grpc": tidewire.transport.channel(f"grpc://127.0.0.1:{ports['grpc']}"),
            "bare": grpc.aio.insecure_channel(f"127.0.0.1:{ports['bare']}"),
        }
        try:
            yield opened
        finally:
            for channel in opened.values():
                await channel.close()
            process.communicate()


async def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Measure all, interleaved; the median of the rounds."""
    async with channels() as opened:
        request = state_pb2.GetRequest(key=PAYLOAD)
        calls = {}
        for name, channel in opened.items():
            stub = state_pb2_grpc.StateServiceStub(channel)
            calls[name] = lambda stub=stub: stub.Get(request)
            await calls[name]()
        serial: dict[str, list[float]] = {name: [] for name in calls}
        parallel: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                serial[name].append(await serial_us(call))
            for name, call in calls.items():
                parallel[name].append(await parallel_rate(call))
    return {
        name: {
            "p50_us": statistics.median(serial[name]),
            "calls_per_s": statistics.median(parallel[name]),
        }
        for name in calls
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if arguments.serve:
            runner.run(serve())
            return
        figures = runner.run(measure(arguments.rounds))
    bare = figures["bare"]
    for name, row in figures.items():
        row["p50_ratio"] = row["p50_us"] / bare["p50_us"]
        row["rate_ratio"] = row["calls_per_s"] / bare["calls_per_s"]
        if arguments.json:
            print(json.dumps({"wire": name, **row}))
        else:
            print(
                f"{name:5} p50 {row['p50_us']:7.1f} us ({row['p50_ratio']:.2f}x)   "
                f"{IN_FLIGHT} in flight {row['calls_per_s']:9,.0f}/s ({row['rate_ratio']:.1f}x)"
            )


if __name__ == "__main__":
    main()
