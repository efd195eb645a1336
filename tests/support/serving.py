"""Serve servicers to a test, over real sockets on loopback."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from tidewire_server.core import Core
from tidewire_server.router import Router

Registration = tuple[Callable[[Any, Any], None], Any]
"""A generated ``add_*Servicer_to_server`` and the servicer."""


@asynccontextmanager
async def serving(
    core: Core | None, registrations: Sequence[Registration]
) -> AsyncIterator[grpc.aio.Channel]:
    """
    Yield a channel to a gRPC server with these servicers; started and closed when they have such
    methods.
    """
    router = Router(drain=core.drain if core is not None else None)
    for add, servicer in registrations:
        add(servicer, router)
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 11_000_000)]
    )
    server.add_generic_rpc_handlers((router,))
    port = server.add_insecure_port("127.0.0.1:0")
    for _, servicer in registrations:
        if hasattr(servicer, "start"):
            await servicer.start()
    await server.start()
    options = [("grpc.max_receive_message_length", 11_000_000)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield channel
    finally:
        await server.stop(0.2)
        for _, servicer in reversed(registrations):
            if hasattr(servicer, "close"):
                await servicer.close()
