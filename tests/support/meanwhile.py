"""An honest client that goes on while others misbehave, and an eye on the server's memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import psutil

import tidewire
from support.hostile import Place

PAUSE_S: Final = 0.005
WAIT_S: Final = 30.0
GAP_S_MAX: Final = 5.0
"""Longest time the honest client may wait for one acknowledgement, on a machine that is busy."""
LEAST: Final = 20
"""Acknowledgements the honest client must get, so that a test proves something."""
GROWTH_BYTES_MAX: Final = 200 << 20
"""What the server's resident memory may grow by over what it was when the test began."""


@dataclass
class Honest:
    """What the honest client did."""

    acked: list[bytes] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    longest_s: float = 0.0
    resident_first: int = 0
    resident_most: int = 0

    @property
    def growth_bytes(self) -> int:
        """What the server's memory grew by."""
        return self.resident_most - self.resident_first

    async def get_on(self) -> None:
        """Wait until so many more are acknowledged that it proves something."""
        until = len(self.acked) + LEAST
        async with asyncio.timeout(WAIT_S):
            while len(self.acked) < until:  # noqa: ASYNC110 (no event)
                await asyncio.sleep(PAUSE_S)


@asynccontextmanager
async def meanwhile(process: Place, wire: str, name: str) -> AsyncIterator[Honest]:
    """
    Publish to a stream and read it back, all the time; then hold what was promised.

    At the end: it got on without a longer pause than `GAP_S_MAX`, everything acknowledged was
    received in order, and the server's memory grew by no more than `GROWTH_BYTES_MAX`.
    """
    honest = Honest()
    url, tls = process.url(wire), process.tls(wire)
    async with tidewire.connect(url, tls=tls, timeout_s=WAIT_S) as client:
        await client.events.stream(name).create(name)
        async with client.events.read(name, handler=lambda m: honest.received.append(m.payload)):
            stop = asyncio.Event()
            working = asyncio.create_task(_work(client, name, honest, process.pid, stop))
            try:
                await honest.get_on()  # so that what was before is known
                yield honest
                await honest.get_on()
            finally:
                stop.set()
                await working
            async with asyncio.timeout(WAIT_S):
                while len(honest.received) < len(honest.acked):  # noqa: ASYNC110 (no event)
                    await asyncio.sleep(PAUSE_S)
    assert honest.acked == honest.received
    assert honest.longest_s < GAP_S_MAX
    assert honest.growth_bytes < GROWTH_BYTES_MAX, f"grew by {honest.growth_bytes >> 20} MiB"


async def _work(
    client: tidewire.Client, name: str, honest: Honest, pid: int, stop: asyncio.Event
) -> None:
    eye = psutil.Process(pid)
    honest.resident_first = honest.resident_most = eye.memory_info().rss
    loop = asyncio.get_running_loop()
    while not stop.is_set():
        payload = str(len(honest.acked)).encode()
        began = loop.time()
        await client.events.publish(name, payload)
        honest.longest_s = max(honest.longest_s, loop.time() - began)
        honest.acked.append(payload)
        honest.resident_most = max(honest.resident_most, eye.memory_info().rss)
        await asyncio.sleep(PAUSE_S)
