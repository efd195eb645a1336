"""A server on the event loop that blocking code shares: one loop in the process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.echo.v1 import echo_pb2_grpc
from support.echo_service import EchoService
from support.server import Running, running
from tidewire.sync.loop import shared_loop
from tidewire.transport import RawServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A whole server on raw TCP."""
    loop = shared_loop()
    context = running(tmp_path, wires=("tcp",))
    yield loop.run(context.__aenter__())
    loop.run(context.__aexit__(None, None, None))


@pytest.fixture
def echo() -> Iterator[tuple[str, EchoService]]:
    """Somebody's echo service on raw TCP: its URL and its servicer."""
    loop = shared_loop()

    async def start() -> tuple[RawServer, EchoService, int]:
        server, service = RawServer(), EchoService()
        echo_pb2_grpc.add_EchoServiceServicer_to_server(service, server)
        port = server.add_listener("tcp://127.0.0.1:0")
        await server.start()
        return server, service, port

    server, service, port = loop.run(start())
    yield f"tcp://127.0.0.1:{port}", service
    loop.run(server.stop(0.2))
