"""The server a page talks to: streams it finds, and a way to be disconnected."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import tidewire
from support.server import Running, running
from tidewire.transport import RawServer

LARGE: Final = ("a long text, " * 5_000)[:50_000].encode()
CODECS: Final = ("none", "lz4", "snappy", "zstd")
MANY: Final = 400
STEPS: Final = 10
"""What scenario.js shows."""


@asynccontextmanager
async def prepared(
    folder: Path, wires: tuple[str, ...] = ("ws", "tcp"), **websocket: Any
) -> AsyncIterator[Running]:
    """Run a server with what scenario.js expects to find; ``websocket`` are options of it."""
    async with (
        running(folder, wires, websocket=websocket) as it,
        tidewire.connect(it.url("tcp")) as client,
    ):
        await client.events.stream("kept").create(["kept.>"])
        await client.events.stream("kept").consumer("readers").create()
        await client.events.stream("packed").create(["packed.>"])
        await client.events.stream("much").create(["much"])
        for _ in range(MANY):
            await client.events.publish("much", bytes(20_000))
        for codec in CODECS:
            compression = None if codec == "none" else codec
            async with tidewire.connect(it.url("tcp"), compression=compression) as packer:
                await packer.events.publish(f"packed.{codec}", LARGE)
        async with client.events.subscribe("kick") as kicks:
            kicking = asyncio.create_task(_kick(raw_server(it, "ws"), kicks))
            try:
                yield it
            finally:
                kicking.cancel()


def raw_server(it: Running, wire: str) -> RawServer:
    """Return what accepts the connections of a wire."""
    server = it.server.listeners.raw[wire]
    assert isinstance(server, RawServer)
    return server


async def _kick(server: RawServer, kicks: Any) -> None:
    """Disconnect everybody on WebSockets whenever somebody asks for it."""
    async for _ in kicks:
        for connection in server.connections():
            server.disconnect(connection.identifier, "kicked")
