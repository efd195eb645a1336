"""
A wire of somebody else, for the tests to install as a distribution of its own: the example of how
to write one. It uses what ``tidewire.transport`` exports, and nothing else of it.

``third://host:port`` is a plain stream of bytes whose every byte is turned around (xor 0x5A), so
that nothing else can serve it by mistake.
"""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import grpc.aio

from tidewire.errors import InvalidArgument
from tidewire.transport import (
    RawChannel,
    RawServer,
    ServerTls,
    TlsConfig,
    TransportOptions,
    WireUrl,
)

_TURNED = bytes(byte ^ 0x5A for byte in range(256))


class _Turning:
    """A transport that turns what is written; everything else is the one below it."""

    def __init__(self, below: Any) -> None:
        self._below = below

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    def write(self, data: bytes | memoryview) -> None:
        self._below.write(bytes(data).translate(_TURNED))

    def writelines(self, pieces: Sequence[bytes | memoryview]) -> None:
        self.write(b"".join(pieces))


class _TurningProtocol(asyncio.Protocol):
    """Between a stream and a shell: turns what comes."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.shell.connection_made(_Turning(transport))

    def data_received(self, data: bytes) -> None:
        self.shell.take(data.translate(_TURNED))

    def eof_received(self) -> bool:
        return bool(self.shell.eof_received())

    def pause_writing(self) -> None:
        self.shell.pause_writing()

    def resume_writing(self) -> None:
        self.shell.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.shell.connection_lost(exc)


def transport(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],
) -> RawChannel:
    """Make channels: the entry point of the group ``tidewire.transports``."""
    if tls is not None:
        raise InvalidArgument(f"{url.text} is not encrypted, but certificates are given")

    async def dial(raw: RawChannel) -> Any:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(
            lambda: _TurningProtocol(raw.stream_protocol()), url.host, url.port
        )
        return protocol.shell

    return RawChannel(
        url.text,
        dial,
        options=options,
        encrypted=False,
        interceptors=interceptors,
        codecs=codecs,
    )


class Listener:
    """Accept connections: made by the entry point of the group ``tidewire.listeners``."""

    tls: ServerTls | None = None

    def __init__(self, server: RawServer, url: WireUrl, tls: ServerTls | None) -> None:
        try:
            self._sock = socket.create_server((url.host, url.port))
        except OSError as error:
            raise InvalidArgument(f"cannot listen on {url.text}: {error}") from error
        self.url = url.at(self._sock.getsockname()[1])
        self._server = server
        self._accepting: asyncio.Task[asyncio.Server] | None = None

    def _protocol(self) -> _TurningProtocol:
        return _TurningProtocol(self._server.stream_protocol(self.url.text))

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._accepting = loop.create_task(loop.create_server(self._protocol, sock=self._sock))

    def close(self) -> None:
        if self._accepting is None:
            self._sock.close()
        elif self._accepting.done():
            self._accepting.result().close()
        else:
            self._accepting.cancel()
