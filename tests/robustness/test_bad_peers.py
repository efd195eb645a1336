"""
Peers that do not speak the protocol, speak it too slowly, or leave with RST: on every wire of a
byte stream they are cut off in time, with a typed reason where the wire can carry one, and cost
nobody else anything. Those of datagrams and QUIC are in their own files; `test_coverage` has all.
"""

import asyncio
import functools
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest

from support import http2
from support import websocket as ws
from support.hostile import (
    CUT_S_MAX,
    HTTP2,
    STREAM_WIRES,
    Place,
    Stranger,
    greeting,
    meet,
    open_stream,
    opening,
    place_of,
    short_process,
)
from support.meanwhile import meanwhile
from support.process import ServerProcess
from support.wires import ENCRYPTED
from tidewire.wire.bodies import Hello, encode_hello
from tidewire.wire.frame import HELLO, encode_frame
from tidewire.wire.limits import WireLimits

EACH: Final = 5
"""Strangers of each kind, all at the same time."""
RESETS: Final = 150
RESETS_AT_ONCE: Final = 25
SPARE_FDS: Final = 20
"""Descriptors a server may have more than before, for what is about to be closed."""
METHOD: Final = "/tidewire.v1.StateService/Changes"
FOREIGN: Final = encode_frame(
    HELLO, encode_hello(Hello(version_min=98, version_max=99), WireLimits())
)
SOCKETS: Final = tuple(wire for wire in STREAM_WIRES if wire != "memory")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server process for all of them: each test meets what the ones before left behind."""
    with short_process(tmp_path_factory.mktemp("server")) as it:
        yield it


@pytest.fixture(params=STREAM_WIRES)
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def place(wire: str, process: ServerProcess, tmp_path: Path) -> AsyncIterator[Place]:
    """The process; for ``memory`` a server in this one."""
    async with place_of(wire, process, tmp_path) as it:
        yield it


@pytest.fixture
def name() -> str:
    return f"t{uuid.uuid4().hex[:10]}"


# Bytes --------------------------------------------------------------------------------------------

BYTES_OF_HTTP2: Final = {
    "garbage": b"\xff" * 64,
    "frame too large": http2.GREETING + b"\xff\xff\xff" + bytes(6),
    "wrong length": http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, b"12345"),
    "nothing": b"",
    "half a greeting": http2.PREFACE[:10],
}
"""No truncated frame: grpcio keeps such a connection beyond its keepalive."""
_HELLO: Final = greeting("tcp")
BYTES_OF_FRAMES: Final = {
    "garbage": (b"\xff" * 64, b"PROTOCOL_VIOLATION"),
    "frame too large": (_HELLO + b"\x7f\xff\xff\xff" + bytes(12), b"PROTOCOL_VIOLATION"),
    "wrong length": (_HELLO + b"\x00\x00\x00\x03abc", b"PROTOCOL_VIOLATION"),
    "nothing": (b"", b"PEER_TOO_SLOW"),
    "half a greeting": (_HELLO[:7], b"PEER_TOO_SLOW"),
    "truncated frame": (_HELLO + opening("tcp", METHOD, b"", 1)[:20], b"PEER_TOO_SLOW"),
    "another version": (FOREIGN, b"WIRE_VERSION_UNSUPPORTED"),
    "no greeting": (opening("tcp", METHOD, b"", 1), b"PROTOCOL_VIOLATION"),
}
CUT_IN_A_MESSAGE: Final = frozenset({"half a greeting", "truncated frame", "wrong length"})
"""In a WebSocket a message is whole: what a stream waits for is a violation there at once."""


def cases_of(wire: str) -> dict[str, tuple[bytes, bytes]]:
    """What strangers of a wire say, and what they must hear before the end."""
    if wire in HTTP2:
        return {what: (data, b"") for what, data in BYTES_OF_HTTP2.items()}
    if wire not in ("ws", "wss"):
        return BYTES_OF_FRAMES
    return {
        what: (data, b"PROTOCOL_VIOLATION" if what in CUT_IN_A_MESSAGE else reason)
        for what, (data, reason) in BYTES_OF_FRAMES.items()
    }


async def test_bad_bytes_are_cut_off(place: Place, wire: str, name: str) -> None:
    """Garbage, lengths that lie, other versions, frames that never end: the peer is told and cut
    off, and nobody else notices.
    """

    async def say(what: str, data: bytes, reason: bytes) -> str:
        stranger = await meet(place, wire)
        stranger.write(data)
        try:
            heard = await stranger.cut_off()
        except TimeoutError:
            return f"{what}: not cut off"
        finally:
            stranger.close()
        return "" if reason in heard else f"{what}: heard {heard!r}"

    cases = cases_of(wire)
    async with meanwhile(place, wire, name):
        found = await asyncio.gather(
            *(say(what, *case) for what, case in cases.items() for _ in range(EACH))
        )
    assert set() == {each for each in found if each}


async def test_one_byte_at_a_time_is_cut_off(place: Place, wire: str, name: str) -> None:
    """A greeting that comes byte by byte is not waited for, although something always comes."""
    whole = greeting(wire) * 100
    if wire in ("ws", "wss"):
        whole = ws.client_frame(whole)
    async with meanwhile(place, wire, name):
        stranger = await meet(place, wire)
        cutting = asyncio.create_task(stranger.cut_off())
        for byte in whole:
            if cutting.done() or stranger.transport.is_closing():
                break
            stranger.transport.write(bytes([byte]))
            await asyncio.sleep(0.2)
        await cutting
        stranger.close()


# Before the first frame ---------------------------------------------------------------------------

CLIENT_HELLO_BYTES: Final = 100


@functools.cache
def client_hello() -> bytes:
    """The first record of a TLS client."""
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    session = context.wrap_bio(into, out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return out.read()


def first_words(wire: str) -> dict[str, bytes]:
    """What comes over the bare socket of a wire instead of what it begins with."""
    whole = client_hello()
    words = {"silence": b"", "garbage": b"\xff" * 64}
    if wire in ENCRYPTED:
        words |= {
            "half a ClientHello": whole[:CLIENT_HELLO_BYTES],
            "ClientHello and silence": whole,
            "a plain client": greeting(wire.removesuffix("s")) if wire == "grpcs" else _HELLO,
            "a plain upgrade": ws.request(),
        }
    else:
        words |= {"a TLS client": whole, "an HTTP client": b"GET /x HTTP/1.0\r\n\r\n"}
    if wire == "ws":
        words |= {
            "half an upgrade": ws.request()[:60],
            "frames without an upgrade": _HELLO,
            "too long an upgrade": b"GET / HTTP/1.1\r\nX: " + b"x" * 9_000,
        }
    return words


@pytest.mark.parametrize("wire", SOCKETS)
async def test_beginnings_that_come_to_nothing(place: Place, wire: str, name: str) -> None:
    """
    Handshakes and upgrades that stop halfway, and clients of something else: a TLS client at a
    plain port, a plain one at an encrypted port.
    """

    async def begin(what: str, data: bytes) -> str:
        reader, writer = await open_stream(place.url(wire))
        writer.write(data)
        stranger = Stranger(reader, writer.transport, "tcp", writer)
        try:
            await stranger.cut_off()
        except TimeoutError:
            return what
        finally:
            stranger.close()
        return ""

    async with meanwhile(place, wire, name):
        words = first_words(wire)
        found = await asyncio.gather(
            *(begin(what, data) for what, data in words.items() for _ in range(EACH))
        )
    assert set() == {each for each in found if each}, f"not cut off within {CUT_S_MAX} s"


# Resets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", [w for w in SOCKETS if w not in ("unix", "grpc+unix")])
async def test_a_storm_of_resets(place: Place, wire: str, name: str) -> None:
    """
    Connections that end with RST, at once, halfway through the handshake, and with calls open:
    nothing of them is left behind.
    """
    request = b"\x0a\x01k"

    async def at_once() -> None:
        reader, writer = await open_stream(place.url(wire))
        Stranger(reader, writer.transport, "tcp", writer).reset()

    async def halfway() -> None:
        reader, writer = await open_stream(place.url(wire))
        writer.write(client_hello() if wire in ENCRYPTED else greeting(wire)[:9])
        await asyncio.sleep(0.01)
        Stranger(reader, writer.transport, "tcp", writer).reset()

    met = 0

    async def with_calls() -> None:
        nonlocal met
        stranger = await meet(place, wire)
        met += 1
        stranger.write(greeting(wire))
        for number in range(1, 4):
            stranger.write(opening(wire, METHOD, request, number))
        await asyncio.sleep(0.02)
        stranger.reset()

    kinds: tuple[Callable[[], Awaitable[None]], ...] = (at_once, halfway, with_calls)
    server = psutil.Process(place.pid)
    async with meanwhile(place, wire, name):
        before = server.num_fds()
        for start in range(0, RESETS, RESETS_AT_ONCE):
            storm = (kinds[(start + n) % len(kinds)]() for n in range(RESETS_AT_ONCE))
            for outcome in await asyncio.gather(*storm, return_exceptions=True):
                # Cut off before, if it is one of these: this process is slow.
                if outcome is not None and not isinstance(outcome, (OSError, EOFError)):
                    raise outcome
        async with asyncio.timeout(CUT_S_MAX):
            while server.num_fds() > before + SPARE_FDS:  # noqa: ASYNC110 (tells nobody)
                await asyncio.sleep(0.05)
    assert met > RESETS // 10
