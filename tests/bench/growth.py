"""
How cost grows: subscribers, subjects, consumers, connections, stored records, members.

    ./run bench --growth [subscribers subjects consumers connections records members]
                         [--sizes-max N]

Each row is a size; beside it the CPU of the server for a million deliveries (or of its other unit),
its memory, and the time of one operation. What is flat has equal figures in every row. tidewire
alone: the question is how it grows, not how it compares.
"""

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tidewire
from bench.usage import cpu_s, resident_bytes
from support.process import ServerProcess

Figures = dict[str, Any]
DATA: Final = b"x" * 128
SECONDS: Final = 2.0
SIZE_TIMEOUT_S: Final = 240.0
POLL_S: Final = 0.01
BEATS_S: Final = 4.0
IN_FLIGHT: Final = 64
BATCH: Final = 100
CALLS: Final = 1_000
"""Publishes and fetches whose median is told."""
QUIET_S: Final = 1.0
AHEAD_MAX: Final = 131_072
CONNECTIONS: Final = 8
"""Clients that share subscriptions, so that the loads of one process are like those of few."""


class Usage:
    """CPU and memory of a server's process since a moment."""

    def __init__(self, server: ServerProcess) -> None:
        self._pid = server.pid
        self._began_s = cpu_s(server.pid)

    def since(self) -> float:
        """CPU seconds until now."""
        return cpu_s(self._pid) - self._began_s

    def mib(self) -> float:
        """Resident memory."""
        return resident_bytes(self._pid) / (1 << 20)


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
        used_s = usage.since()
    for client in clients:
        await client.close()
    lost = sent * size - got
    return {"delivered": got, "lost": lost, "cpu_s_per_million": used_s / got * 1e6} | _mib(usage)


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
        used_s = usage.since()
    return {"delivered": got, "lost": sent - got, "cpu_s_per_million": used_s / got * 1e6} | _mib(
        usage
    )


async def consumers(server: ServerProcess, size: int) -> Figures:
    """``size`` durable consumers of one stream, each of which takes and acknowledges everything."""
    total = max(200_000 // size, 1_000)
    taken = 0

    def handle(_message: tidewire.Message) -> None:
        nonlocal taken
        taken += 1

    async with tidewire.connect(server.url("tcp"), timeout_s=120) as client:
        stream = client.events.stream(f"growth{size}")
        await stream.create([f"growth{size}.>"])
        began, running = time.perf_counter(), []
        for number in range(size):
            await stream.consumer(f"c{number}").create()
            running.append(
                await client.events.consume(f"growth{size}", f"c{number}", handler=handle)
            )
        open_us = (time.perf_counter() - began) / size * 1e6
        usage = Usage(server)
        async with client.events.publisher(acknowledge=True) as publisher:
            for _ in range(total):
                await publisher.publish(f"growth{size}.a", DATA)
        await _quiet(lambda: taken)
        for subscription in running:
            await subscription.close()
        used_s = usage.since()
        figures = _mib(usage)
        await stream.delete()
    return {
        "delivered": taken,
        "lost": total * size - taken,
        "cpu_s_per_million": used_s / taken * 1e6,
        "open_us_each": open_us,
    } | figures


async def connections(server: ServerProcess, size: int) -> Figures:
    """``size`` clients, each of which makes a call in its turn, with some in flight."""
    url = server.url("tcp")
    clients = [await tidewire.connect(url) for _ in range(size)]
    usage, turn, calls = Usage(server), 0, 0
    stop = time.perf_counter() + SECONDS

    async def caller() -> None:
        nonlocal turn, calls
        while time.perf_counter() < stop:
            turn += 1
            await clients[turn % size].info()
            calls += 1

    await asyncio.gather(*(caller() for _ in range(min(size, IN_FLIGHT))))
    figures = {"calls": calls, "cpu_s_per_million": usage.since() / calls * 1e6} | _mib(usage)
    for client in clients:
        await client.close()
    return figures


async def records(server: ServerProcess, size: int) -> Figures:
    """A stream of ``size`` records: publish at its end, fetch from its middle."""
    async with tidewire.connect(server.url("tcp"), timeout_s=120) as client:
        stream = client.events.stream("growth")
        await stream.create(["growth.>"])
        filling, began = Usage(server), time.perf_counter()
        await _fill(client, size)
        fill_s, fill_cpu_s = time.perf_counter() - began, filling.since()
        stored = (await stream.info()).state.messages
        assert stored == size, f"{stored:,} records of {size:,} are stored"
        # What filling left to the disk is not a publish's: the kernel writes gigabytes meanwhile.
        await asyncio.to_thread(os.sync)
        usage = Usage(server)
        publish_us = await _median_us(lambda: client.events.publish("growth.a", DATA), CALLS)
        publish_s = usage.since()

        async def read() -> None:
            got, _ = await client.events.fetch_from("growth", start=size // 2 + 1, messages_max=1)
            assert len(got) == BATCH, f"{len(got)} messages are in the middle"

        fetch_us = await _median_us(read, CALLS)
        fetch_s = usage.since() - publish_s
        figures = {
            "filled_per_s": size / fill_s,
            "fill_cpu_s_per_million": fill_cpu_s / size * 1e6,
            "publish_us": publish_us,
            "cpu_s_per_million": publish_s / CALLS * 1e6,
            "fetch_us": fetch_us,
            "fetch_cpu_s_per_million": fetch_s / CALLS * 1e6,
        } | _mib(usage)
        began = time.perf_counter()
        await stream.purge(size // 2)
        figures["purge_half_s"] = time.perf_counter() - began
    return figures


async def _fill(client: tidewire.Client, size: int) -> None:
    """Store ``size`` records in batches of the same size: a fetch reads a batch, at any size."""
    left = iter(range(size // BATCH))
    payloads = [DATA] * BATCH

    async def filler() -> None:
        for _ in left:
            await client.events.publish_many("growth.a", payloads)

    await asyncio.gather(*(filler() for _ in range(IN_FLIGHT)))


async def members(server: ServerProcess, size: int) -> Figures:
    """``size`` members that beat each second, and one that lists them."""
    async with tidewire.connect(server.url("tcp"), timeout_s=60) as client:
        joined = []
        for start in range(0, size, 100):
            names = [f"m{number}" for number in range(start, min(start + 100, size))]
            joined += await asyncio.gather(*(_joined(client, name) for name in names))
        await asyncio.sleep(1.0)
        usage, began = Usage(server), time.perf_counter()
        await asyncio.sleep(BEATS_S)
        used_s, took_s = usage.since(), time.perf_counter() - began
        list_us = await _median_us(client.members.list, 5)
        await asyncio.gather(*(membership.close() for membership in joined))
    beats = size * took_s  # a third of the lease is a second
    return {
        "cores_at_a_beat_a_second_each": used_s / took_s,
        "cpu_s_per_million": used_s / beats * 1e6,
        "list_us": list_us,
    } | _mib(usage)


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
    "consumers": (consumers, [1, 10, 100, 1_000]),
    "connections": (connections, [1, 10, 100, 1_000]),
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
    if not rows:
        return f"### {kind}\n\nno sizes\n"
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "failed"))
    lines = [f"### {kind}", "", f"| {' | '.join(columns)} |", "| ---: " * len(columns) + "|"]
    lines += [f"| {' | '.join(_text(row.get(name)) for name in columns)} |" for row in rows]
    failed = [f"\nAt {row['size']:,}: {row['failed']}" for row in rows if "failed" in row]
    return "\n".join([*lines, *failed, ""])


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
