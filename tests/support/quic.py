"""A server over QUIC for tests, clients of it, and strangers that send datagrams."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from support.authority import Authority
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echo_service import EchoService
from support.echoing import serving_echo
from support.impairment import ImpairmentProxy
from tidewire.transport import RawServer, TlsConfig, TransportOptions, channel
from tidewire.transport.quic.backend import DATAGRAM_BYTES_LEAST
from tidewire.transport.quic.listener import QuicListener
from tidewire.transport.quic.shell import QuicShell

LIMIT_S = 10.0
FAST = TransportOptions(connect_timeout_s=2.0, backoff_first_s=0.05)
VERSION_1 = b"\x00\x00\x00\x01"


@dataclass
class Quic:
    """A server over QUIC, and what its clients need."""

    url: str
    server: RawServer
    service: EchoService
    authority: Authority
    tls: TlsConfig

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", int(self.url.rpartition(":")[2])

    @property
    def listener(self) -> QuicListener:
        """Its listener."""
        (listener,) = self.server._listeners
        assert isinstance(listener, QuicListener)
        return listener

    def shells(self) -> list[QuicShell]:
        """Its connections."""
        return [shell for shell in self.server._shells if isinstance(shell, QuicShell)]


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[Quic]:
    """Serve echo over QUIC with a certificate for 127.0.0.1."""
    authority = Authority(folder)
    server_tls = authority.config(authority.issue("server"))
    client = authority.issue("client", common_name="alice", names=("alice.test",), addresses=())
    async with serving_echo("quic", server_tls=server_tls, **options) as (url, server, service):
        yield Quic(url, server, service, authority, authority.config(client))


@asynccontextmanager
async def client(
    served: Quic, between: ImpairmentProxy | None = None, **options: Any
) -> AsyncIterator[tuple[Any, Any]]:
    """Connect, by way of a proxy where there is one; give the channel and its stub."""
    port = between.address[1] if between is not None else served.address[1]
    tls = options.pop("tls", served.tls)
    async with channel(f"quic://127.0.0.1:{port}", tls=tls, **{"options": FAST, **options}) as made:
        yield made, echo_pb2_grpc.EchoServiceStub(made)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has no event."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def say(stub: Any, text: str = "hello") -> str:
    """Say something; return what came back."""
    return str((await stub.Say(echo_pb2.SayRequest(text=text), timeout=LIMIT_S)).text)


def shell_of(connected: Any) -> QuicShell:
    """Return the shell of a channel's connection."""
    shell = connected.link.protocol
    assert isinstance(shell, QuicShell)
    return shell


class Stranger:
    """A plain UDP socket that talks to a server."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.connect(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, data: bytes) -> None:
        """Send a datagram."""
        self._sock.send(data)

    def answers(self) -> list[bytes]:
        """Return what has come so far."""
        found = []
        try:
            while True:
                found.append(self._sock.recv(65_536))
        except BlockingIOError:
            return found


def initial(
    token: bytes = b"", version: bytes = VERSION_1, size: int = DATAGRAM_BYTES_LEAST
) -> bytes:
    """Return a datagram that looks like the first of a client, with nothing in it."""
    head = b"\xc0" + version + b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
    head += (len(token) | 0x4000).to_bytes(2, "big") + token
    rest = size - len(head) - 2
    return head + (rest | 0x4000).to_bytes(2, "big") + os.urandom(rest)
