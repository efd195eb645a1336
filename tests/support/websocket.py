"""RFC 6455 by hand: a peer that can break every rule of it."""

import asyncio
import base64
import hashlib
from collections.abc import Mapping
from urllib.parse import urlsplit

KEY = base64.b64encode(bytes(range(16))).decode()
ACCEPT = base64.b64encode(
    hashlib.sha1(f"{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
).decode()
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
LIMIT_S = 10.0


def request(path: str = "/", *, drop: str = "", **changed: str) -> bytes:
    """
    Return an upgrade request.

    Args:
        path: Path.
        drop: Name of a header to leave out.
        changed: Headers over the usual ones, with ``_`` for ``-``.
    """
    headers = {
        "host": "127.0.0.1",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": KEY,
        "sec-websocket-protocol": "tidewire.v1",
    }
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    headers.pop(drop, None)
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def client_frame(
    payload: bytes,
    kind: int = BINARY,
    *,
    fin: bool = True,
    reserved: int = 0,
    mask: bytes | None = b"\x01\x02\x03\x04",
    size: int | None = None,
) -> bytes:
    """Return a frame as a client sends it; ``mask=None`` and ``size`` break the rules."""
    size = len(payload) if size is None else size
    head = bytearray([fin << 7 | reserved << 4 | kind])
    masked = 0x80 if mask is not None else 0
    if size < 126:
        head.append(masked | size)
    elif size < 1 << 16:
        head += bytes([masked | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([masked | 127]) + size.to_bytes(8, "big")
    if mask is None:
        return bytes(head) + payload
    return bytes(head) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return opcode and payload of a frame of the server; it must be whole and not masked."""
    async with asyncio.timeout(LIMIT_S):
        first, second = await reader.readexactly(2)
        size = second & 0x7F
        assert not second & 0x80, "a server must not mask"
        assert 0x80 == first & 0xF0, "the frame is the whole message, without extensions"
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await reader.readexactly(8), "big")
        return first & 0xF, await reader.readexactly(size)


async def read_until(reader: asyncio.StreamReader, kind: int) -> bytes:
    """Skip frames until one of this opcode, and return its payload."""
    while True:
        got, payload = await read_frame(reader)
        if got == kind:
            return payload


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, Mapping[str, str]]:
    """Return status and headers of the answer to an upgrade request."""
    async with asyncio.timeout(LIMIT_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = head.split("\r\n")[:-2]
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status.split(" ")[1]), {name.lower(): value for name, value in headers.items()}


async def ask(url: str, sent: bytes) -> tuple[int, Mapping[str, str]]:
    """Send bytes to a server and return status and headers of its answer."""
    reader, writer = await connect(url)
    writer.write(sent)
    try:
        return await read_answer(reader)
    finally:
        writer.close()


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the port of a URL, and no more."""
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def upgrade(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect and upgrade as an honest client does."""
    reader, writer = await connect(url)
    try:
        writer.write(request(urlsplit(url).path or "/"))
        status, headers = await read_answer(reader)
        assert (101, ACCEPT) == (status, headers["sec-websocket-accept"])
        assert "tidewire.v1" == headers["sec-websocket-protocol"]
    except BaseException:
        writer.close()
        raise
    return reader, writer
