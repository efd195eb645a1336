"""A server whose calls go through what a worker process runs, without the process."""

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc

from tidewire.testing import Served
from tidewire.transport import TlsConfig, TransportOptions, channel
from tidewire_server.ops.config import Config
from tidewire_server.workers.channel import engine_options
from tidewire_server.workers.forward import ClientServer, Forwarder, Shape
from tidewire_server.workers.upstream import WorkerServer


class Forwarding:
    """
    A worker and the engine's side of it, in this process.

    Attributes:
        upstream: The server that has the handlers.
        server: The server that clients reach.
        counts: How many connections it had, each time that changed.
    """

    def __init__(
        self,
        handlers: grpc.GenericRpcHandler,
        shapes: Mapping[str, Shape],
        options: TransportOptions | None = None,
    ) -> None:
        inside = engine_options(Config())
        self._folder = tempfile.TemporaryDirectory(prefix="tw")
        self.upstream = WorkerServer((handlers,), options=inside)
        engine = f"unix://{self._folder.name}/engine.sock"
        self.upstream.listen(engine)
        self.channel: Any = channel(engine, options=inside)
        self.counts: list[int] = []
        forwarder = Forwarder(self.channel, shapes)
        self.server = ClientServer((forwarder,), options=options, count=self.counts.append)

    async def start(self) -> None:
        """Serve."""
        await self.upstream.start()
        await self.server.start()

    async def close(self) -> None:
        """Stop everything."""
        await self.server.stop(None)
        await self.channel.close()
        await self.upstream.stop(None)
        self._folder.cleanup()


@asynccontextmanager
async def forwarding(
    handlers: grpc.GenericRpcHandler, shapes: Mapping[str, Shape], **more: Any
) -> AsyncIterator[Forwarding]:
    """Make one; clients' listeners are added to its server."""
    made = Forwarding(handlers, shapes, **more)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def maker(shapes: Mapping[str, Shape]) -> Any:
    """Return what the conformance kit takes to serve through a worker."""

    @asynccontextmanager
    async def serve(
        handlers: grpc.GenericRpcHandler, url: str, tls: TlsConfig | None
    ) -> AsyncIterator[Served]:
        async with forwarding(handlers, shapes) as it:
            bound = it.server.listen(url, tls=tls).url
            yield Served(bound.text, it.server, it.server.reload_tls)

    return serve
