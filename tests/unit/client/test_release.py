"""What is closed holds no connection, however long the program keeps the closed objects."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import tidewire
from support.server import running
from tidewire.client.client import Client

LIMIT_S = 10.0


@asynccontextmanager
async def watched(url: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Stand before a server; the event says that the client closed a connection."""
    target, closed = urlsplit(url), asyncio.Event()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(target.hostname, target.port)
        back = asyncio.create_task(copy(from_server, writer))
        try:
            await copy(reader, to_server)
            closed.set()
        finally:
            back.cancel()
            to_server.close()
            writer.close()

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"{target.scheme}://127.0.0.1:{proxy.sockets[0].getsockname()[1]}", closed
    finally:
        proxy.close()


async def subscribes(client: Client) -> object:
    async with client.events.subscribe("a") as messages:
        return messages


async def serves(client: Client) -> object:
    async with client.queries.serve("a", lambda _: b"y") as responder:
        await client.queries.ask("a", b"x")
        return responder


async def watches(client: Client) -> object:
    async with client.state.watch("a") as changes:
        return changes


async def publishes(client: Client) -> object:
    async with client.events.publisher() as publisher:
        await publisher.publish("a", b"x")
        return publisher


@pytest.mark.parametrize("wire", ["grpc", "tcp"])
@pytest.mark.parametrize("use", [subscribes, serves, watches, publishes])
async def test_closed_objects_hold_no_connection(
    wire: str, use: Callable[[Client], Awaitable[object]], tmp_path: Path
) -> None:
    """
    A task that was cancelled keeps its traceback, whose frames kept the call: gRPC's library left
    the connection open until the subscription was collected.
    """
    async with (
        running(tmp_path, (wire,)) as server,
        watched(server.url(wire)) as (url, closed),
    ):
        async with tidewire.connect(url) as client:
            kept = await use(client)
        async with asyncio.timeout(LIMIT_S):
            await closed.wait()
        assert kept is not None
