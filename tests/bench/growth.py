"""
How cost grows: subscribers, subjects, consumers, stored records, members.

    ./run bench --growth [subscribers subjects consumers records members] [--sizes-max N]

Each row is a size; beside it the CPU of the server for a million deliveries (or of its other unit),
its memory, and the time of one operation. What is flat has equal figures in every row. tidewire
alone: the question is how it grows, not how it compares.
"""

import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

import tidewire
from support.process import ServerProcess

Figures = dict[str, Any]
DATA: Final = b"x" * 128
SECONDS: Final = 2.0
SIZE_TIMEOUT_S: Final = 240.0
POLL_S: Final = 0.01
QUIET_S: Final = 1.0
AHEAD_MAX: Final = 131_072
CONNECTIONS: Final = 8
"""Clients that share subscriptions, so that the loads of one process are like those of few."""


class Usage:
    """CPU and memory of a server's process since a moment."""

    def __init__(self, server: ServerProcess) -> None:
        self._process = psutil.Process(server.pid)
        self._began_s = self._cpu_s()

    def _cpu_s(self) -> float:
        return float(sum(self._process.cpu_times()[:2]))

    def since(self) -> float:
        """CPU seconds until now."""
        return self._cpu_s() - self._began_s

    def mib(self) -> float:
        """Resident memory."""
        return float(self._process.memory_info().rss) / (1 << 20)


async def subscribers(server: ServerProcess, size: int) -> Figures:
    """One publisher, ``size`` subscriptions to its subject."""
    got = 0

    def handle(_message: tidewire.Message) -> None:
        nonlocal got
        got += 1

    url = server.url("tcp")
    clients = [await tidewire.connect(url) for _ in range(min(size, CONNECTIONS))]
    for number in range(size):
        client = clients[number % len(clients)]
        await client.events.subscribe("bench.growth", handler=handle)
    usage = Usage(server)
    async with tidewire.connect(url) as client, client.events.publisher() as publisher:
        sent = 0
        stop = time.perf_counter() + SECONDS
        while time.perf_counter() < stop:
            for _ in range(32):
                await publisher.publish("bench.growth", DATA)
            sent += 32
            await publisher.flush()
            # The readers of this process set the pace.
            while sent * size - got > AHEAD_MAX and time.perf_counter() < stop:  # noqa: ASYNC110
                await asyncio.sleep(0)
        await _quiet(lambda: got)
        cpu_s = usage.since()
    for client in clients:
        await client.close()
    lost = sent * size - got
    return {"delivered": got, "lost": lost, "cpu_s_per_million": cpu_s / got * 1e6} | _mib(usage)


async def subjects(server: ServerProcess, size: int) -> Figures:
    """One publisher on ``size`` subjects in turn, a subscription to each, one client for all."""
    got = 0

    def handle(_message: tidewire.Message) -> None:
        nonlocal got
        got += 1

    names = [f"bench.growth.s{number}" for number in range(size)]
    async with (
        tidewire.connect(server.url("tcp")) as client,
        client.events.subscribe("bench.growth.>", handler=handle),
        client.events.publisher() as publisher,
    ):
        usage, sent = Usage(server), 0
        stop = time.perf_counter() + SECONDS
        while time.perf_counter() < stop:
            for _ in range(256):
                await publisher.publish(names[sent % size], DATA)
                sent += 1
        await publisher.flush()
        await _quiet(lambda: got)
        cpu_s = usage.since()
    return {"delivered": got, "lost": sent - got, "cpu_s_per_million": cpu_s / got * 1e6} | _mib(
        usage
    )


async def consumers(server: ServerProcess, size: int) -> Figures:
    """``size`` durable consumers of one stream, each of which takes and acknowledges everything."""
    total = max(200_000 // size, 200)
    taken = 0

    def handle(_message: tidewire.Message) -> None:
        nonlocal taken
        taken += 1

    async with tidewire.connect(server.url("tcp"), timeout_s=120) as client:
        stream = client.events.stream(f"growth{size}")
        await stream.create([f"growth{size}.>"])
        async with client.events.publisher(acknowledge=True) as publisher:
            for _ in range(total):
                await publisher.publish(f"growth{size}.a", DATA)
        for number in range(size):
            await stream.consumer(f"c{number}").create()
        usage = Usage(server)
        running = [
            await client.events.consume(f"growth{size}", f"c{number}", handler=handle)
            for number in range(size)
        ]
        await _quiet(lambda: taken)
        for subscription in running:
            await subscription.close()
        cpu_s = usage.since()
        await stream.delete()
    expected = total * size
    return {
        "delivered": taken,
        "lost": expected - taken,
        "cpu_s_per_million": cpu_s / taken * 1e6,
    } | _mib(usage)


async def records(server: ServerProcess, size: int) -> Figures:
    """A stream of ``size`` records: publish at its end, fetch from its middle."""
    async with tidewire.connect(server.url("tcp"), timeout_s=120) as client:
        stream = client.events.stream("growth")
        await stream.create(["growth.>"])
        async with client.events.publisher(acknowledge=True) as publisher:
            for _ in range(size):
                await publisher.publish("growth.a", DATA)
            await publisher.flush(timeout_s=300)
        publish_us = await _median_us(lambda: client.events.publish("growth.a", DATA), 300)

        async def read() -> None:
            await client.events.fetch_from("growth", start=max(size // 2, 1), messages_max=1)

        fetch_us = await _median_us(read, 300)
        usage = Usage(server)
        began = time.perf_counter()
        await stream.purge(size // 2)
        purge_s = time.perf_counter() - began
    return {"publish_us": publish_us, "fetch_us": fetch_us, "purge_half_s": purge_s} | _mib(usage)


async def members(server: ServerProcess, size: int) -> Figures:
    """``size`` members that beat each second, and one that lists them."""
    async with tidewire.connect(server.url("tcp"), timeout_s=60) as client:
        joined = []
        for start in range(0, size, 100):
            names = [f"m{number}" for number in range(start, min(start + 100, size))]
            joined += await asyncio.gather(*(_joined(client, name) for name in names))
        await asyncio.sleep(1.0)
        usage, began = Usage(server), time.perf_counter()
        await asyncio.sleep(3.0)
        cpu_s = usage.since() / (time.perf_counter() - began)
        list_us = await _median_us(client.members.list, 5)
        for membership in joined:
            await membership.close()
    return {"cores_at_a_beat_a_second_each": cpu_s, "list_us": list_us} | _mib(usage)


async def _joined(client: tidewire.Client, name: str) -> Any:
    return await client.members.join(name, lease_s=3)


def _mib(usage: Usage) -> Figures:
    return {"server_mib": usage.mib()}


async def _quiet(count: Callable[[], int]) -> None:
    seen, since = count(), time.perf_counter()
    while time.perf_counter() - since < QUIET_S:
        await asyncio.sleep(POLL_S)
        if count() != seen:
            seen, since = count(), time.perf_counter()


async def _median_us(call: Callable[[], Awaitable[Any]], times: int) -> float:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


SIZES: Final[dict[str, tuple[Callable[[ServerProcess, int], Awaitable[Figures]], list[int]]]] = {
    "subscribers": (subscribers, [1, 10, 100, 1_000]),
    "subjects": (subjects, [1, 100, 10_000, 100_000]),
    "consumers": (consumers, [1, 10, 100]),
    "records": (records, [10_000, 100_000, 1_000_000, 10_000_000]),
    "members": (members, [10, 100, 1_000, 5_000]),
}


def grow(kind: str, sizes_max: int) -> list[Figures]:
    """Measure a kind at all its sizes, each with a fresh server; after records, open it again."""
    rows = []
    for size in SIZES[kind][1]:
        if size > sizes_max:
            continue
        began = time.perf_counter()
        try:
            figures = _one(kind, size)
        except Exception as error:  # noqa: BLE001 (a size that fails is a row; the others go on)
            lines = str(error).strip().splitlines() or [""]
            figures = {"failed": f"{type(error).__name__}: {lines[-1]}"}
        rows.append({"size": size, **figures})
        said = {"growth": kind, **rows[-1], "took_s": round(time.perf_counter() - began, 1)}
        print(json.dumps(said), file=sys.stderr, flush=True)
    return rows


def _one(kind: str, size: int) -> Figures:
    import uvloop

    measure = SIZES[kind][0]
    with tempfile.TemporaryDirectory(prefix="tw") as name:
        folder = Path(name)
        with ServerProcess(folder, ("tcp",)) as server:
            figures = uvloop.run(_bounded(measure(server, size)))
            if kind == "records":
                server.end(signal.SIGKILL)
        if kind == "records":
            with ServerProcess(folder, ("tcp",)) as again:
                figures["open_after_kill_s"] = again.ready_s
    return figures


async def _bounded(work: Awaitable[Figures]) -> Figures:
    return await asyncio.wait_for(work, SIZE_TIMEOUT_S)


def table(kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; a size that failed has its reason below it."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "failed"))
    lines = [f"### {kind}", "", f"| {' | '.join(columns)} |", "| ---: " * len(columns) + "|"]
    lines += [f"| {' | '.join(_text(row.get(name)) for name in columns)} |" for row in rows]
    failed = [f"\nAt {row['size']:,}: {row['failed']}" for row in rows if "failed" in row]
    return "\n".join([*lines, *failed, ""])


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
