"""An echo server on any wire, and a client of it."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from support.authority import Authority
from support.echo.v1 import echo_pb2_grpc
from support.echo_service import EchoService
from support.wires import ENCRYPTED, listen_url
from tidewire.transport import (
    RawServer,
    ServerCredentials,
    TlsConfig,
    TransportOptions,
    channel,
    grpc_server,
    parse_url,
)
from tidewire.transport.socket_file import bind_grpc


@dataclass
class Echoing:
    """What a test of a wire gets."""

    wire: str
    url: str
    service: EchoService
    server: Any
    tls: TlsConfig | None
    channel: Any
    stub: Any


@asynccontextmanager
async def serving_echo(
    wire: str,
    *,
    server_tls: TlsConfig | None = None,
    options: TransportOptions | None = None,
    service: Any = None,
) -> AsyncIterator[tuple[str, Any, Any]]:
    """Serve echo on a wire; give the URL, the server and the service."""
    service = service or EchoService()
    server: Any
    if wire.startswith("grpc"):
        server = grpc_server(limits=(options or TransportOptions()).limits)
    else:
        server = RawServer(options=options)
    echo_pb2_grpc.add_EchoServiceServicer_to_server(service, server)
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        url = listen_url(wire, Path(folder))
        if wire == "grpc":
            url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        elif wire == "grpcs":
            assert server_tls is not None
            credentials = ServerCredentials(server_tls).credentials
            url = f"grpcs://127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        elif wire == "grpc+unix":
            bind_grpc(server, parse_url(url).path)
        else:
            url = server.listen(url, tls=server_tls).url.text
        await server.start()
        try:
            yield url, server, service
        finally:
            await server.stop(None)


@asynccontextmanager
async def echoing(
    wire: str,
    folder: Path,
    *,
    options: TransportOptions | None = None,
    server_options: TransportOptions | None = None,
    service: Any = None,
    **more: Any,
) -> AsyncIterator[Echoing]:
    """Serve echo on a wire and connect to it, with certificates where the wire has them."""
    server_tls = client_tls = None
    if wire in ENCRYPTED:
        authority = Authority(folder)
        server_tls = authority.config(authority.issue("server"))
        client = authority.issue(
            "client", common_name="alice", names=(), addresses=(), uris=("spiffe://test/alice",)
        )
        client_tls = authority.config(client)
    async with (
        serving_echo(wire, server_tls=server_tls, options=server_options, service=service) as (
            url,
            server,
            servicer,
        ),
        channel(url, tls=client_tls, options=options, **more) as connected,
    ):
        assert isinstance(connected, grpc.aio.Channel)
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        yield Echoing(wire, url, servicer, server, client_tls, connected, stub)
