"""
Whatever a peer sends to a WebSocket port, nothing but its own connection suffers.

Sessions of honest clients are damaged at random and fed to the server's shell without sockets, so
that many fit in a second. FUZZ_SESSIONS sets how many; 1,000,000 were run once.
"""

import asyncio
import os
import random
import socket
from collections.abc import Iterator
from typing import Final

from support.websocket import BINARY, CLOSE, CONTINUATION, PING, client_frame, request
from tidewire.transport import RawServer
from tidewire.transport.link import ServerLink
from tidewire.transport.websocket_shell import ServerWebSocket
from tidewire.wire.bodies import Hello, encode_head, encode_hello
from tidewire.wire.frame import END, HELLO, OPEN, OPEN_PREFIX, WITH_MESSAGE, encode_frame
from tidewire.wire.frame import PING as WIRE_PING
from tidewire.wire.limits import WireLimits
from tidewire.wire.upgrade import UpgradePolicy

SESSIONS: Final = int(os.environ.get("FUZZ_SESSIONS", "3000"))
SEED: Final = 2455
OUT_BYTES_MAX: Final = 64 * 1024
"""What a session of a few hundred bytes may be answered with."""

_HEAD: Final = encode_head("/support.echo.v1.EchoService/Say")
_OPEN: Final = encode_frame(
    OPEN,
    OPEN_PREFIX.pack(0, len(_HEAD)) + _HEAD + b"message",
    flags=END | WITH_MESSAGE,
    priority=5,
    call_id=1,
)
_HELLO: Final = encode_frame(HELLO, encode_hello(Hello(), WireLimits()))
HONEST: Final = (
    request(),
    client_frame(_HELLO),
    client_frame(b"ping", PING),
    client_frame(_OPEN[:9], fin=False),
    client_frame(_OPEN[9:], CONTINUATION),
    client_frame(encode_frame(WIRE_PING, b"tidewire"), BINARY),
    client_frame((1000).to_bytes(2, "big"), CLOSE),
)


class Wire(asyncio.Transport):
    """A transport that counts what is written and remembers that it was closed."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})
        self.out_bytes = 0
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.out_bytes += len(data)

    def close(self) -> None:
        self.ended = True

    abort = close

    def is_closing(self) -> bool:
        return self.ended

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Take everything."""

    def pause_reading(self) -> None:
        """Give what there is."""

    resume_reading = pause_reading


def damaged(chance: random.Random) -> Iterator[bytes]:
    """Cut an honest session anywhere, after changing, repeating, dropping or adding some of it."""
    parts = list(HONEST)
    for _ in range(chance.randint(0, 3)):
        at = chance.randrange(len(parts))
        kind = chance.randrange(5)
        if kind == 0:
            parts.insert(at, parts[chance.randrange(len(parts))])
        elif kind == 1:
            parts.insert(at, chance.randbytes(chance.randint(1, 40)))
        elif kind == 2 and len(parts) > 1:
            parts.pop(at)
        elif parts[at]:
            part = bytearray(parts[at])
            for _ in range(chance.randint(1, 4)):
                part[chance.randrange(len(part))] = chance.randrange(256)
            parts[at] = bytes(part)
    whole = b"".join(parts)
    while whole:
        size = chance.randint(1, len(whole))
        yield whole[:size]
        whole = whole[size:]


def play(server: RawServer, sock: socket.socket, cuts: list[bytes]) -> Wire:
    """Feed a session as a transport does."""
    shell: ServerWebSocket[ServerLink] = ServerWebSocket(
        lambda shell, now_s: server.admit(shell, "ws://fuzz", now_s),
        server.counters,
        server.options.limits,
        UpgradePolicy(),
    )
    wire = Wire(sock)
    shell.connection_made(wire)
    for cut in cuts:
        rest = cut
        while rest and not wire.ended:
            buffer = shell.get_buffer(-1)
            taken = min(len(rest), len(buffer))
            buffer[:taken] = rest[:taken]
            rest = rest[taken:]
            shell.buffer_updated(taken)
            if shell._begun:
                shell.flush()
    wire.ended = True
    shell.connection_lost(None)
    return wire


async def test_damaged_sessions() -> None:
    """No damage raises, leaves a call or a connection behind, or makes the server say much."""
    chance = random.Random(SEED)
    server = RawServer()
    await server.start()
    kept: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: kept.append(str(context)))

    with socket.socket() as sock:
        for number in range(SESSIONS):
            wire = play(server, sock, list(damaged(chance)))
            assert wire.out_bytes < OUT_BYTES_MAX
            if number % 100 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0.05)

    assert [] == kept
    assert (0, 0) == (server.counters.connections_active, server.counters.calls_active)
    assert server.counters.connections_opened > SESSIONS // 3  # many got past the upgrade
    assert server.counters.errors["ProtocolViolation"] > SESSIONS // 10  # and were refused after it
    await server.stop(None)


async def test_an_honest_session() -> None:
    """The control: what is not damaged is taken whole and ends in order."""
    server = RawServer()
    await server.start()
    with socket.socket() as sock:
        play(server, sock, list(HONEST))

    assert 1 == server.counters.connections_opened
    assert 1 == server.counters.calls_ended.total()
    assert 0 == server.counters.errors["ProtocolViolation"]
    await server.stop(None)
