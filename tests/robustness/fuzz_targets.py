"""
What `fuzz_wire` feeds: every parser of bytes from strangers, and both sides of a connection.

A target takes bytes and raises a :class:`~tidewire.errors.TidewireError` when it refuses them;
whatever else it raises is a fault. Connections are also held to their bounds after each input.
Each has a control: the same target without one of its checks, which the campaign must find.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from support.pipe import LoggedClientCall, PipeClient, PipeServer
from tidewire.errors import ProtocolViolation
from tidewire.wire import bodies, frame
from tidewire.wire.bodies import Head, Hello, decode_goaway, decode_head, decode_hello, encode_head
from tidewire.wire.call import Call
from tidewire.wire.connection import Connection
from tidewire.wire.datagram import (
    GOAWAY,
    HELLO,
    ONEWAY,
    OPENED,
    REQUEST,
    RESPONSE,
    WELCOME,
    decode_answer,
    decode_delivery,
    decode_greeting,
    decode_oneway,
    decode_opened,
    decode_request,
    parse_datagram,
)
from tidewire.wire.frame import (
    CREDIT,
    CREDIT_BODY,
    HEADER,
    HEADER_BYTES,
    PREFIX_BYTES,
    FrameDecoder,
)
from tidewire.wire.frame import HELLO as WIRE_HELLO
from tidewire.wire.limits import FRAME_BYTES_MAX, KIB, WireLimits
from tidewire.wire.streamed import StreamedClient, StreamedServer
from tidewire.wire.upgrade import HEAD_BYTES_MAX, Refusal, UpgradePolicy, UpgradeReader

CORPUS: Final = Path(__file__).parent.parent / "data" / "wire"
OUT_BYTES_MAX: Final = 64 * KIB
"""What an input of 2,000 bytes may be answered with."""
TIGHT: Final = WireLimits(
    frame_bytes_max=512,
    message_bytes_max=8 * KIB,
    call_credit_bytes=64,
    connection_credit_bytes=KIB,
    call_window_bytes_max=64,
    calls_max=3,
    incomplete_bytes_max=4 * KIB,
    unread_bytes_max=8 * KIB,
)
"""Limits that an input of 2,000 bytes can reach."""
CALLS: Final = 2
"""Calls a client has open when it is fed."""

Parser = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Target:
    """
    Something to feed.

    Attributes:
        name: As the report calls it.
        parse: Takes an input.
        folder: Of the samples, ``*.hex``.
        pieces_max: Samples one after the other that make an input.
        begins: Samples that come first in every honest session, without which little else is
            reached: most inputs begin with them.
        control: Takes one check out while it lasts.
    """

    name: str
    parse: Parser
    folder: Path
    control: Callable[[], AbstractContextManager[None]]
    pieces_max: int = 1
    begins: tuple[str, ...] = ()


def frames(data: bytes) -> None:
    """Parse a stream of frames."""
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    decoder.feed(data)
    if decoder.violation is not None:
        raise decoder.violation


def from_client(data: bytes) -> None:
    """Parse a datagram as a server does, with its body."""
    kind, _, _, _, _, body = parse_datagram(data, from_client=True)
    if kind == HELLO:
        decode_greeting(body)
    elif kind == REQUEST:
        decode_head(decode_request(body).head)
    elif kind == ONEWAY:
        decode_head(decode_oneway(body).head)
    elif kind == GOAWAY:
        decode_goaway(body)


def from_server(data: bytes) -> None:
    """Parse a datagram as a client does, with its body."""
    kind, flags, _, _, _, body = parse_datagram(data, from_client=False)
    if kind == RESPONSE and flags & OPENED:
        decode_opened(body)
    elif kind == RESPONSE:
        decode_answer(flags, body)
    elif kind == WELCOME:
        decode_hello(body)
    elif kind == GOAWAY:
        decode_goaway(body)
    else:
        decode_delivery(body)


def upgrade(data: bytes) -> None:
    """Read the request that opens a WebSocket, in two pieces."""
    reader = UpgradeReader(UpgradePolicy(origins=("https://app.example",)))
    middle = len(data) // 2
    found = reader.feed(data[:middle]) or reader.feed(data[middle:])
    if isinstance(found, Refusal):
        if len(found.encode()) > HEAD_BYTES_MAX:
            raise AssertionError("the answer is long")
        raise ProtocolViolation(found.text)


def held(connection: Connection, out: int) -> None:
    """Hold a connection to its bounds; raise why it ended, if it did."""
    limits = connection.limits
    bounds = (
        (len(connection.calls), limits.calls_max),
        (connection.incomplete_bytes, limits.connection_credit_bytes + limits.frame_bytes_max),
        (connection.unread_bytes, limits.connection_credit_bytes + limits.frame_bytes_max),
        (out, OUT_BYTES_MAX),
    )
    if any(actual > most for actual, most in bounds):
        raise AssertionError(f"beyond a bound: {bounds}")
    if connection.closed is not (connection.error is not None):
        raise AssertionError("closed without a reason, or the reverse")
    if connection.closed:
        if connection.calls:
            raise AssertionError("calls are left behind")
        assert connection.error is not None
        raise connection.error


def feed_whole(connection: Connection, data: bytes) -> None:
    """Feed a connection of one byte stream, in two pieces, and let time pass."""
    middle = len(data) // 2
    connection.receive_data(data[:middle], 0.1)
    connection.receive_data(data[middle:], 0.2)
    out = sum(map(len, connection.data_to_send(1 << 30, 0.3)))
    if connection.wake_s <= 1.0:
        connection.handle_timeout(1.0)
    held(connection, out)


def server_side(data: bytes) -> None:
    """A server's side of a byte stream."""
    feed_whole(PipeServer(TIGHT), data)


def client_side(data: bytes) -> None:
    """A client's side, with calls open."""
    client = PipeClient(TIGHT)
    for _ in range(CALLS):
        client.open(LoggedClientCall(), b"message", last=True)
    feed_whole(client, data)


class QuicServer(StreamedServer):
    """A server's side whose calls have streams of their own."""

    def __init__(self) -> None:
        super().__init__(Hello(), TIGHT, 0.0)
        self.begin_streams()

    def on_call(self, head: Head) -> Call:
        """Take every call."""
        return _Quiet()

    def on_call_opened(self, call: Call, message: bytes | None, last: bool) -> None:
        """Take its first message."""
        if message is not None:
            call.on_message(message, call.consumed, last)


class QuicClient(StreamedClient):
    """A client's side whose calls have streams of their own."""

    def __init__(self) -> None:
        super().__init__(Hello(), TIGHT, 0.0)
        self.begin_streams()


class _Quiet(Call):
    def on_message(self, body: bytes, mark: int, last: bool) -> None:
        self.take(mark)

    def on_half_closed(self) -> None:
        """Go on."""

    def on_end(self, ending: bodies.Ending) -> None:
        """Nothing is left to do."""

    def on_drained(self) -> None:
        """Nothing waits."""


def on_streams(connection: Any, data: bytes) -> None:
    """
    Feed frames on streams: mostly each on that of its call, sometimes on another one, cut in two,
    as the end of a stream, or an abort in its place. The bytes themselves say which.
    """
    place = 0
    while place < len(data):
        length = int.from_bytes(data[place : place + PREFIX_BYTES], "big")
        size = min(max(length + PREFIX_BYTES, 1), 512)
        piece = data[place : place + size]
        place += size
        whole = len(piece) >= HEADER_BYTES
        number = (
            HEADER.unpack_from(piece)[4] if whole and piece[4] not in (WIRE_HELLO, CREDIT) else 0
        )
        choice = (len(data) * 31 + place * 7 + piece[-1]) & 31
        if choice == 0:
            connection.receive_abort(number, 0.1)
        elif choice == 1:
            connection.receive_stop(number, 0.1)
        elif choice == 2:
            connection.receive_stream(number + 1, piece, False, 0.1)
        elif choice < 8:
            connection.receive_stream(number, piece[: size // 2], False, 0.1)
            connection.receive_stream(number, piece[size // 2 :], choice & 1 == 0, 0.2)
        else:
            connection.receive_stream(number, piece, number > 0 and choice > 20, 0.1)
    out = sum(len(each.data) for each in connection.streams_to_send(1 << 30, 0.3))
    if connection.wake_s <= 1.0:
        connection.handle_timeout(1.0)
    held(connection, out)


def quic_server(data: bytes) -> None:
    """A server's side, frames on streams."""
    on_streams(QuicServer(), data)


def quic_client(data: bytes) -> None:
    """A client's side, frames on streams, with calls open."""
    client = QuicClient()
    for _ in range(CALLS):
        call = LoggedClientCall()
        call.head = encode_head("/a.B/C")
        client.open(call, b"message", last=True)
    on_streams(client, data)


# Controls: each takes one check out of the code under test ----------------------------------------


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def unjudged_types() -> AbstractContextManager[None]:
    """Frame types are used as they come."""
    judge = frame.judge_header

    def careless(length: int, kind: int, flags: int, priority: int, call_id: int) -> None:
        _ = frame._FLAGS_LEGAL[kind]
        judge(length, kind, flags, priority, call_id)

    return _replaced(frame, "judge_header", careless)


def unjudged_text() -> AbstractContextManager[None]:
    """Values of metadata are decoded without a look at what is in them."""
    return _replaced(bodies, "_TEXT", re.compile(rb"(?s).*"))


def unjudged_lines() -> AbstractContextManager[None]:
    """The first line of a request is taken for three words."""
    judge = UpgradeReader._judge_line

    def careless(self: UpgradeReader, line: str) -> Refusal | None:
        _, _, _ = line.split(" ")
        return judge(self, line)

    return _replaced(UpgradeReader, "_judge_line", careless)


def unjudged_lengths() -> AbstractContextManager[None]:
    """The body of CREDIT is unpacked without a look at its length."""
    receive = Connection._receive_credit

    def careless(self: Connection, flags: int, priority: int, call_id: int, body: bytes) -> None:
        CREDIT_BODY.unpack(body)
        receive(self, flags, priority, call_id, body)

    return _replaced(Connection, "_receive_credit", careless)


_GREETED: Final = ("hello", "open")

TARGETS: Final = (
    Target("frames", frames, CORPUS, unjudged_types, pieces_max=3),
    Target("datagrams from clients", from_client, CORPUS / "datagrams", unjudged_text),
    Target("datagrams from servers", from_server, CORPUS / "datagrams", unjudged_text),
    Target("WebSocket upgrades", upgrade, CORPUS / "upgrades", unjudged_lines),
    Target("connections of servers", server_side, CORPUS, unjudged_lengths, 8, _GREETED),
    Target("connections of clients", client_side, CORPUS, unjudged_lengths, 8, _GREETED[:1]),
    Target("QUIC streams at servers", quic_server, CORPUS, unjudged_lengths, 8, _GREETED),
    Target("QUIC streams at clients", quic_client, CORPUS, unjudged_lengths, 8, _GREETED[:1]),
)
