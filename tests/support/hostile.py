"""A whole server with short waits on any wire, and peers that say to it what they like."""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

from support import http2
from support import websocket as ws
from support.certificates import Certificates
from support.process import ServerProcess
from support.server import Running, running
from support.wires import WIRES
from tidewire.transport import TlsConfig
from tidewire.transport import memory as memory_wire
from tidewire.transport.tls import client_context
from tidewire.transport.url import parse_url
from tidewire.wire.bodies import Hello, encode_head, encode_hello
from tidewire.wire.frame import END, HELLO, OPEN, OPEN_PREFIX, WITH_MESSAGE, encode_frame
from tidewire.wire.limits import WireLimits

SHORT: Final[dict[str, dict[str, Any]]] = {
    "wire": {
        "hello_timeout_s": 1.0,
        "frame_timeout_s": 1.0,
        "handshake_timeout_s": 1.0,
        "keepalive_s": 1.0,
        "ping_timeout_s": 1.0,
    },
    "limits": {"subscriber_stall_s": 2.0},
}
"""What the server waits for a peer."""
CUT_S_MAX: Final = 15.0
"""What cannot be answered is cut off within this time, on a machine that is busy."""
STREAM_WIRES: Final = tuple(w for w in WIRES if w not in ("udp", "dtls", "quic"))
"""Wires whose connections are one stream of bytes each way."""
PROCESS_WIRES: Final = tuple(wire for wire in WIRES if wire != "memory")
"""Wires that reach another process."""
HTTP2: Final = ("grpc", "grpcs", "grpc+unix")
_GREETING: Final = encode_frame(HELLO, encode_hello(Hello(), WireLimits()))


class Place(Protocol):
    """A server, wherever it runs."""

    @property
    def pid(self) -> int:
        """Its process."""
        ...

    def url(self, wire: str) -> str:
        """Where to connect."""
        ...

    def tls(self, wire: str) -> TlsConfig | None:
        """What a client needs there."""
        ...


def short_process(folder: Path) -> ServerProcess:
    """Return a server process on every wire that reaches one, with short waits."""
    flags = ["--log-level", "error"]
    for section, options in SHORT.items():
        for name, value in options.items():
            flags += [f"--{section}-{name.replace('_', '-')}", str(value)]
    certificates = Certificates.make(folder / "certificates")
    return ServerProcess(folder, PROCESS_WIRES, flags=flags, certificates=certificates)


@asynccontextmanager
async def place_of(wire: str, process: ServerProcess, folder: Path) -> AsyncIterator[Place]:
    """Give the process, or for ``memory`` a server in this one."""
    if wire != "memory":
        yield process
        return
    async with running(folder, ("memory",), None, **SHORT) as it:
        yield Here(it)


@dataclass(frozen=True, slots=True)
class Here:
    """A server in this process."""

    server: Running

    @property
    def pid(self) -> int:
        """This process."""
        return os.getpid()

    def url(self, wire: str) -> str:
        """Where to connect."""
        return self.server.url(wire)

    def tls(self, wire: str) -> TlsConfig | None:
        """What a client needs there."""
        return self.server.tls(wire)


# Peers that say what they like --------------------------------------------------------------------


class Stranger:
    """
    One end of a connection, after TLS and upgrade, without a client.

    Attributes:
        reader: What the server says, as bytes; of a WebSocket with its frames around them.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        transport: Any,
        wire: str,
        writer: asyncio.StreamWriter | None = None,
    ) -> None:
        self.reader = reader
        self.transport = transport
        self._writer = writer  # it closes its transport when nobody holds it
        self._wire = wire

    def write(self, data: bytes) -> None:
        """Say something; in a WebSocket as one binary message."""
        if data and not self.transport.is_closing():
            self.transport.write(ws.client_frame(data) if self._wire in ("ws", "wss") else data)

    async def cut_off(self) -> bytes:
        """Read until the server closes, which it must in time; return what it said."""
        said = bytearray()
        async with asyncio.timeout(CUT_S_MAX):
            try:
                while data := await self.reader.read(1 << 16):
                    said += data
            except (ConnectionError, ssl.SSLError):
                pass
        return bytes(said)

    async def cut_off_or_closed(self) -> None:
        """Read, however long it takes, until either side has closed."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while await self.reader.read(1 << 20):
                pass

    def deaf(self) -> None:
        """Read nothing any more."""
        self.transport.pause_reading()

    async def drain(self) -> None:
        """Wait until the transport has taken what was written, or is gone."""
        async with asyncio.timeout(CUT_S_MAX):
            while self.transport.get_write_buffer_size() > 1 << 16:
                if self.transport.is_closing():
                    return
                await asyncio.sleep(0.001)

    def close(self) -> None:
        """Leave."""
        self.transport.close()
        if self._writer is not None:
            self._writer.close()

    def reset(self) -> None:
        """Leave with RST, as a process that is killed with unread bytes does."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None:  # the server was not faster
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
        if self._writer is not None:
            self._writer.close()


async def meet(place: Place, wire: str) -> Stranger:
    """
    Connect to a wire of a byte stream, through TLS and upgrade, and say nothing yet.

    Raises:
        OSError: The server closed before that, as it does when this process was too slow.
        EOFError: The same, within the upgrade.
    """
    url = place.url(wire)
    if wire == "memory":
        return _meet_in_memory(url)
    context = None
    if (config := place.tls(wire)) is not None:
        context = client_context(config)
        if wire == "grpcs":
            context.set_alpn_protocols(["h2"])
    reader, writer = await open_stream(url, context)
    if wire in ("ws", "wss"):
        try:
            writer.write(ws.request())
            status, _ = await ws.read_answer(reader)
            if status != 101:
                raise ConnectionRefusedError(f"the upgrade was answered with {status}")
        except BaseException:
            writer.close()
            raise
    return Stranger(reader, writer.transport, wire, writer)


async def open_stream(
    url: str, context: ssl.SSLContext | None = None, **more: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the socket of a URL, with TLS where a context is given, and no more."""
    parsed = parse_url(url)
    if parsed.path and parsed.scheme in ("unix", "grpc+unix"):
        return await asyncio.open_unix_connection(parsed.path, **more)
    host = "127.0.0.1" if context is not None else None
    return await asyncio.open_connection(
        parsed.host, parsed.port, ssl=context, server_hostname=host, **more
    )


class _Ear:
    """What a ``MemoryTransport`` speaks to: hands what comes to a reader."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def take(self, data: bytes) -> None:
        self.reader.feed_data(data)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        """`Stranger.drain` looks by itself."""

    resume_writing = pause_writing

    def connection_lost(self, _: Exception | None) -> None:
        self.reader.feed_eof()


def _meet_in_memory(url: str) -> Stranger:
    ear = _Ear()
    memory_wire._dial(cast(Any, ear), parse_url(url))
    return Stranger(ear.reader, ear.transport, "memory")


# What they say ------------------------------------------------------------------------------------


def greeting(wire: str) -> bytes:
    """What comes first on a wire."""
    return http2.GREETING if wire in HTTP2 else _GREETING


def opening(wire: str, method: str, message: bytes, number: int) -> bytes:
    """A whole unary call, the n-th of its connection."""
    if wire in HTTP2:
        return http2.call(method, message, 2 * number - 1)
    return encode_frame(
        OPEN,
        open_body(method, message),
        flags=END | WITH_MESSAGE,
        priority=5,
        call_id=number,
    )


def open_body(method: str, message: bytes) -> bytes:
    """The body of an OPEN."""
    head = encode_head(method)
    return OPEN_PREFIX.pack(0, len(head)) + head + message
