"""A slow reader stops its sender and costs bounded memory; nobody waits behind somebody else."""

import asyncio
from typing import Any

import grpc

from tidewire.testing.behaviour import (
    LARGE,
    PRIORITIES,
    STREAMS,
    Absent,
    behaviour,
    expect,
    require,
    running,
    standing,
    within,
)
from tidewire.testing.site import Site, decoded, number_of, numbered

CHUNK_BYTES = 64 << 10
CHUNKS = 1_024
HELD_BYTES_MAX = 24 << 20
"""What may lie between a writer and a reader that stands: windows, and the kernel's buffers."""
LIMIT_S = 30.0
BULK_CALLS = 8
BULK_BYTES = 4 << 20
PRIORITY = "tidewire-priority"


@behaviour(STREAMS)
async def slow_client(site: Site) -> None:
    """A client that stops reading stops the server, and then gets everything."""
    call = site.repeat(CHUNKS, CHUNK_BYTES, timeout=LIMIT_S)
    expect(0, number_of(await call.read()), "the first number")
    held = await standing(lambda: site.echo.written) * CHUNK_BYTES
    require(held <= HELD_BYTES_MAX, f"{held} bytes were written for a client that does not read")
    numbers = [0]
    while (message := await call.read()) is not grpc.aio.EOF:
        numbers.append(number_of(message))
    expect(list(range(CHUNKS)), numbers, "the numbers of the answers")


@behaviour(STREAMS)
async def slow_server(site: Site) -> None:
    """A handler that stops reading stops the client, and then gets everything."""
    call = site.collect(timeout=LIMIT_S)
    await call.write(b"wait")
    await within(site.echo.started.wait(), "the handler's start")
    written = 0

    async def write() -> None:
        nonlocal written
        for number in range(CHUNKS):
            await call.write(numbered(number, CHUNK_BYTES))
            written = number + 1
        await call.done_writing()

    async with running(write()) as writing:
        held = await standing(lambda: written) * CHUNK_BYTES
        require(held <= HELD_BYTES_MAX, f"{held} bytes were taken for a server that does not read")
        site.echo.release.set()
        await within(writing, "writing the rest", LIMIT_S)
        expect(list(range(CHUNKS)), decoded(await call)["numbers"], "the numbers that arrived")


@behaviour(STREAMS)
async def others_go_on(site: Site) -> None:
    """A stream nobody reads does not stop other calls of the same channel."""
    call = site.repeat(CHUNKS, CHUNK_BYTES, timeout=LIMIT_S)
    await call.read()
    await standing(lambda: site.echo.written)
    expect(b"on", await site.say(b"on"), "the answer of another call")
    numbers = [number_of(message) async for message in site.repeat(50, 100)]
    expect(list(range(50)), numbers, "another stream")
    call.cancel()
    await within(site.echo.cancelled.wait(), "the cancellation of the handler that waits")


@behaviour(LARGE, PRIORITIES)
async def urgent_before_bulk(site: Site) -> None:
    """A call of the highest priority is answered before the bulk that was sent before it."""
    await site.say(b"connected")
    ended: list[str] = []

    async def one(name: str, size: int, priority: int) -> None:
        answer = await site.say(bytes(size), metadata=((PRIORITY, str(priority)),), timeout=LIMIT_S)
        expect(size, len(answer), f"the bytes of the {name} answer")
        ended.append(name)

    bulk: list[Any] = [asyncio.ensure_future(one("bulk", BULK_BYTES, 8)) for _ in range(BULK_CALLS)]
    await asyncio.sleep(0)
    await asyncio.gather(one("urgent", 8, 0), *bulk)
    before = ended.index("urgent")
    if before >= BULK_CALLS // 2:
        raise Absent(
            PRIORITIES, f"the urgent call was answered after {before} of {BULK_CALLS} bulk calls"
        )
