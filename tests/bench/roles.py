"""
What a worker process does: it connects, says that it is ready, and does its part when it is told.

    python tests/bench/roles.py '{"system": ..., "served": ..., "role": ..., ...}'

One JSON object on standard output when it is ready, one with its figures at the end; each line of
standard input is a signal to go on. Closed loops measure each call; counts are the receiver's.
"""

import asyncio
import json
import math
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.systems import NotSupportedError, Peer, Served, all_systems
from bench.systems.base import SUBJECT, windowed
from tidewire_server.ops.descriptors import raise_limit

POLL_S: Final = 0.005
IDLE_S: Final = 2.0
"""A receiver ends when nothing has come for this long after the sender is done."""
DRAIN_MAX_S: Final = 10.0
"""Messages that waited longer than this behind the sender's end are not waited for."""
HOLDER_AT_ONCE: Final = 64


class Worker:
    """The process's end of the pipe to the harness, and what it was asked to do."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.served = Served(**spec["served"])
        self.served.options["in_flight"] = spec.get("in_flight", 1)
        self.seconds = float(spec.get("seconds", 3.0))
        self.payload = b"x" * int(spec.get("bytes", 128))
        if spec.get("text"):
            unit = b'{"station":"oslo","temperature":-3.5,"unit":"C","quality":"good"},'
            self.payload = (unit * (len(self.payload) // len(unit) + 1))[: len(self.payload)]
        self._lines: asyncio.Queue[str] = asyncio.Queue()

    def peer(self) -> Peer:
        """A client that is not connected yet."""
        return all_systems()[self.spec["system"]].peer(self.served)

    def listen(self) -> None:
        """Read signals from now on."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            for line in sys.stdin:
                loop.call_soon_threadsafe(self._lines.put_nowait, line)
            loop.call_soon_threadsafe(self._lines.put_nowait, "")

        # A daemon: a worker that fails must end though nobody tells it anything more.
        threading.Thread(target=read, daemon=True).start()

    async def told(self) -> str:
        """Wait for a signal; return its word."""
        return (await self._lines.get()).strip()

    @property
    def is_told(self) -> bool:
        """Whether a signal waits."""
        return not self._lines.empty()

    @staticmethod
    def say(**figures: Any) -> None:
        """Write a line."""
        print(json.dumps(figures), flush=True)


async def subscriber(worker: Worker) -> dict[str, Any]:
    """
    Count what handlers get, on one or more connections; the time is from first to last.

    The signal says how many were sent in all: it ends when it has them, when nothing comes, or when
    what waits somewhere still comes after a long time; then it is cut off, and says so.
    """
    received = 0

    def handle(_message: Any) -> None:
        nonlocal received
        received += 1

    peers = [worker.peer() for _ in range(worker.spec.get("connections", 1))]
    for peer in peers:
        await peer.open()
    subject = worker.spec.get("subject", SUBJECT)
    await asyncio.gather(*(peer.subscribe(handle, subject) for peer in peers))
    worker.say(ready=True)
    first = last = told = 0.0
    seen, cpu_s = 0, time.process_time()
    expected = math.inf
    while received < expected:
        await asyncio.sleep(POLL_S)
        now = time.perf_counter()
        if worker.is_told and expected == math.inf:
            expected = int(await worker.told() or 0)
            told, last = now, last or now
        if received != seen:
            last, seen = now, received
            first = first or now
        elif expected < math.inf and now - last > IDLE_S:
            break
        if told and now - told > DRAIN_MAX_S:
            worker.say(received=received, seconds=last - first, cpu_s=time.process_time() - cpu_s)
            os._exit(0)  # its client would hand out the rest before it closes
    if received != seen:
        last = time.perf_counter()
    cpu_s = time.process_time() - cpu_s
    for peer in peers:
        await peer.close()
    return {"received": received, "seconds": max(last - first, 1e-9), "cpu_s": cpu_s}


async def publisher(worker: Worker) -> dict[str, Any]:
    """Publish as fast as the system lets us, on one or more connections."""
    peers = [worker.peer() for _ in range(worker.spec.get("connections", 1))]
    for peer in peers:
        await peer.open()
    subjects = tuple(f"bench.s{n}" for n in range(worker.spec.get("subjects", 1)))
    if len(subjects) == 1:
        subjects = (SUBJECT,)
    worker.say(ready=True)
    await worker.told()
    cpu_s, began = time.process_time(), time.perf_counter()
    counts = await asyncio.gather(
        *(peer.publish_for(worker.seconds, worker.payload, subjects) for peer in peers)
    )
    figures = {"published": sum(counts), "publish_s": time.perf_counter() - began}
    figures["cpu_s"] = time.process_time() - cpu_s
    for peer in peers:
        await peer.close()
    return figures


async def responder(worker: Worker) -> dict[str, Any]:
    """Answer until told to stop."""
    peer = worker.peer()
    await peer.open()
    await peer.respond()
    worker.say(ready=True)
    await worker.told()
    await peer.close()
    return {}


async def caller(worker: Worker) -> dict[str, Any]:
    """Make one kind of call in a closed loop: p50, p99 and calls a second."""
    peer = worker.peer()
    await peer.open()
    call = _calls(worker, peer)[worker.spec["call"]]
    if worker.spec["call"] in ("durable", "consume", "pipeline"):
        await peer.make_stream()
    if worker.spec["call"] in ("get", "swap"):
        await peer.put("bench/1", worker.payload)
        await peer.put("bench/swap", worker.payload)
    await _warm(call)
    worker.say(ready=True)
    await worker.told()
    took: list[float] = []

    async def timed() -> None:
        began = time.perf_counter()
        await call()
        took.append(time.perf_counter() - began)

    cpu_s, began = time.process_time(), time.perf_counter()
    done = await windowed(timed, worker.spec.get("in_flight", 1), worker.seconds)
    seconds = time.perf_counter() - began
    figures = {"calls": done, "per_s": done / seconds, "cpu_s": time.process_time() - cpu_s}
    await peer.close()
    return figures | percentiles_us(took)


async def _warm(call: Callable[[], Awaitable[None]], times: int = 50) -> None:
    for _ in range(times):
        await call()


def _calls(worker: Worker, peer: Peer) -> dict[str, Callable[[], Awaitable[None]]]:
    payload = worker.payload
    turn = 0

    def key() -> str:
        nonlocal turn
        turn += 1
        return f"bench/{turn % 256}"

    return {
        "echo": lambda: peer.echo(payload),
        "ask": lambda: peer.ask(payload),
        "durable": lambda: peer.publish_durable(payload),
        "put": lambda: peer.put(key(), payload),
        "get": lambda: peer.get("bench/1"),
        "swap": lambda: peer.swap("bench/swap", payload),
        "checkpoint": lambda: peer.checkpoint(payload),
        "connect": lambda: _connect(worker),
    }


async def _connect(worker: Worker) -> None:
    peer = worker.peer()
    await peer.open()
    await peer.close()


async def pipeliner(worker: Worker) -> dict[str, Any]:
    """Publish durably without waiting for each."""
    peer = worker.peer()
    await peer.open()
    await peer.make_stream()
    worker.say(ready=True)
    await worker.told()
    cpu_s, began = time.process_time(), time.perf_counter()
    count = await peer.pipeline_for(worker.seconds, worker.payload)
    seconds = time.perf_counter() - began
    await peer.close()
    cpu_s = time.process_time() - cpu_s
    return {"calls": count, "per_s": count / seconds, "cpu_s": cpu_s}


async def consumer(worker: Worker) -> dict[str, Any]:
    """Store messages, then take and acknowledge them; only the taking is measured."""
    peer = worker.peer()
    await peer.open()
    await peer.make_stream()
    stored = await peer.pipeline_for(worker.seconds / 2, worker.payload)
    worker.say(ready=True)
    await worker.told()
    total = min(stored, int(worker.spec.get("total", 200_000)))
    cpu_s, began = time.process_time(), time.perf_counter()
    await peer.consume(total)
    seconds = time.perf_counter() - began
    cpu_s = time.process_time() - cpu_s
    await peer.close()
    return {"calls": total, "per_s": total / seconds, "cpu_s": cpu_s}


async def open_loop(worker: Worker) -> dict[str, Any]:
    """
    Publish at a fixed rate and take the latency of each message from the time it was meant to go.

    The publisher and the subscriber are two connections of this process, so that there is one
    clock. A message is late from its intended time on, whether it was sent then or not.
    """
    rate = float(worker.spec["rate"])
    total = int(rate * worker.seconds)
    sender, receiver = worker.peer(), worker.peer()
    await sender.open()
    await receiver.open()
    arrived: list[float] = []
    await receiver.subscribe(lambda _message: arrived.append(time.perf_counter()))
    worker.say(ready=True)
    await worker.told()
    begin = time.perf_counter() + 0.1
    sent = 0
    while sent < total:
        due = begin + sent / rate
        wait_s = due - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
            continue
        await sender.publish(worker.payload)
        sent += 1
    stop = time.perf_counter() + IDLE_S
    while len(arrived) < total and time.perf_counter() < stop:  # noqa: ASYNC110 (threads count too)
        await asyncio.sleep(POLL_S)
    # One publisher and one subject: they come in order, so the n-th is the n-th.
    took = [at - (begin + n / rate) for n, at in enumerate(arrived)]
    await sender.close()
    await receiver.close()
    return {"calls": len(arrived), "lost": total - len(arrived)} | percentiles_us(took)


async def watcher(worker: Worker) -> dict[str, Any]:
    """Watch keys on many connections while one writes; counted are the changes seen."""
    seen = 0

    def handle(_event: Any) -> None:
        nonlocal seen
        seen += 1

    writer = worker.peer()
    await writer.open()
    await writer.put("bench/0", worker.payload)
    peers = [worker.peer() for _ in range(worker.spec.get("connections", 100))]
    for peer in peers:
        await peer.open()
        await peer.watch(handle)
    await asyncio.sleep(0.5)
    seen = 0
    worker.say(ready=True)
    await worker.told()
    began = time.perf_counter()
    done = await windowed(lambda: writer.put("bench/1", worker.payload), 8, worker.seconds)
    expected = done * len(peers)
    stop = time.perf_counter() + IDLE_S
    last, last_at = seen, time.perf_counter()
    while seen < expected and time.perf_counter() < stop:
        await asyncio.sleep(POLL_S)
        if seen != last:
            last, last_at = seen, time.perf_counter()
            stop = last_at + IDLE_S
    for peer in [writer, *peers]:
        await peer.close()
    return {"per_s": seen / (last_at - began), "calls": seen, "lost": expected - seen}


async def holder(worker: Worker) -> NoReturn:
    """Make idle connections, a few first; say when all are there, keep them until it is told."""
    raise_limit()
    first = worker.spec["first"]
    peers = [worker.peer() for _ in range(worker.spec["connections"])]
    gate = asyncio.Semaphore(HOLDER_AT_ONCE)

    async def opened(peer: Peer) -> None:
        async with gate:
            await peer.open()

    await asyncio.gather(*map(opened, peers[:first]))
    worker.say(ready=True)
    await worker.told()
    began = time.perf_counter()
    await asyncio.gather(*map(opened, peers[first:]))
    seconds = time.perf_counter() - began
    worker.say(connects_per_s=(len(peers) - first) / seconds)
    await worker.told()
    worker.say(connections=len(peers))
    os._exit(0)  # to end so many clients in order takes longer than all that was measured


def percentiles_us(took: list[float]) -> dict[str, float]:
    """p50, p99 and p99.9 in microseconds."""
    ranked = sorted(took)
    if not ranked:
        return {}

    def at(share: float) -> float:
        return ranked[min(len(ranked) - 1, math.ceil(share * len(ranked)) - 1)] * 1e6

    return {"p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999)}


ROLES: Final = {
    role.__name__: role
    for role in (
        *(subscriber, publisher, responder, caller, pipeliner),
        *(consumer, open_loop, watcher, holder),
    )
}


async def main() -> None:
    """Do one role."""
    worker = Worker(json.loads(sys.argv[1]))
    worker.listen()
    try:
        figures = await ROLES[worker.spec["role"]](worker)
    except NotSupportedError as error:
        worker.say(unsupported=str(error))
        return
    worker.say(**figures)


if __name__ == "__main__":
    uvloop.run(main())
