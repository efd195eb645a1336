"""
Redis streams and keys with redis-py on asyncio, hiredis when it is there.

Durable means the append-only file, flushed for each command (``always``) or each second
(``everysec``). Pipelining is redis-py's ``pipeline(transaction=False)``, 512 commands at a time.
"""

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.systems.base import (
    SUBJECT,
    Peer,
    Served,
    System,
    free_port,
    process,
    publish_loop,
    wait_for_port,
)

PIPELINE = 512


class RedisPeer(Peer):
    """redis-py on asyncio."""

    client: Any

    async def open(self) -> None:
        """Connect."""
        import redis.asyncio

        self.client = redis.asyncio.Redis.from_url(self.served.address, max_connections=512)
        await self.client.ping()

    async def close(self) -> None:
        """Disconnect."""
        await self.client.aclose()

    async def subscribe(self, handler: Callable[[Any], None], subject: str = SUBJECT) -> None:
        """Redis publish and subscribe."""
        channel = self.client.pubsub()
        await channel.subscribe(subject)

        async def read() -> None:
            async for message in channel.listen():
                if message["type"] == "message":
                    handler(message)

        self._reading = asyncio.create_task(read())
        await asyncio.sleep(0.2)

    async def publish_for(
        self, seconds: float, payload: bytes, subjects: tuple[str, ...] = (SUBJECT,)
    ) -> int:
        """In pipelines, the way redis-py advises for many commands."""
        count = 0
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            pipe = self.client.pipeline(transaction=False)
            for _ in range(PIPELINE):
                pipe.publish(subjects[count % len(subjects)], payload)
                count += 1
            await pipe.execute()
        return count

    async def publish(self, payload: bytes) -> None:
        """One message."""
        await self.client.publish(SUBJECT, payload)

    async def make_stream(self) -> None:
        """A stream and its group."""
        await self.client.xgroup_create("bench", "bench", id="0", mkstream=True)

    async def publish_durable(self, payload: bytes) -> None:
        """One XADD."""
        await self.client.xadd("bench", {"d": payload})

    async def pipeline_for(self, seconds: float, payload: bytes) -> int:
        """XADD in pipelines."""
        count = 0
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            pipe = self.client.pipeline(transaction=False)
            for _ in range(PIPELINE):
                pipe.xadd("bench", {"d": payload})
            count += len(await pipe.execute())
        return count

    async def consume(self, total: int) -> None:
        """XREADGROUP in batches, one XACK for each batch of ids."""
        taken = 0
        while taken < total:
            answer = await self.client.xreadgroup("bench", "me", {"bench": ">"}, count=1_000)
            identifiers = [identifier for identifier, _ in answer[0][1]]
            await self.client.xack("bench", "bench", *identifiers)
            taken += len(identifiers)

    async def put(self, key: str, value: bytes) -> None:
        """SET."""
        await self.client.set(key, value)

    async def get(self, key: str) -> None:
        """GET."""
        await self.client.get(key)


class Redis(System):
    """redis-server with its append-only file."""

    peer = RedisPeer

    def __init__(self, flush: str) -> None:
        self.flush = flush
        self.name = f"redis {flush}"
        self.durability = {"always": "fsync", "everysec": "flushed each second"}[flush]

    def missing(self) -> str | None:
        """Why it cannot run."""
        return None if shutil.which("redis-server") else "redis-server is not installed (apt)"

    @contextlib.contextmanager
    def serve(self, folder: Path) -> Iterator[Served]:
        """redis-server on a port that was free."""
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(folder), "--appendonly", "yes", "--appendfsync", self.flush]
        with process(command, folder) as running:
            wait_for_port(port)
            yield Served(f"redis://127.0.0.1:{port}", [running.pid])


__all__ = ["Redis", "publish_loop"]
