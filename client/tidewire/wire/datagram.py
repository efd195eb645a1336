"""
Datagrams of ``udp://`` and ``dtls://``: ``proto/WIRE.md`` section 9, without I/O.

A parsed datagram is a plain tuple ``(type, flags, priority, session, number, body)``, as a frame is
on the wires of streams and for the same reason. Nothing that comes is ever more than dropped: on a
wire without connections anybody can send anything in anybody's name.
"""

from enum import IntEnum
from struct import Struct, error
from typing import Final, NamedTuple, TypeAlias

from tidewire.errors import ProtocolViolation
from tidewire.wire.bodies import (
    ENDING_OK,
    Ending,
    Hello,
    Metadata,
    decode_ending,
    decode_headers,
    decode_hello,
    encode_ending,
    encode_headers,
    encode_hello,
)
from tidewire.wire.limits import WireLimits

MAGIC: Final = 0x7477
VERSION: Final = 1
PRELUDE: Final = MAGIC << 8 | VERSION
HEADER: Final = Struct(">HBBBBHQQ")
"""Magic, version, type, flags, priority, zero, session, number."""
_IDS: Final = Struct(">QQ")
_BEGIN_BYTES: Final = 8
"""What comes before the ids; there are few that are legal, and looking one up judges all of it."""
HEADER_BYTES: Final = 24
COOKIE_BYTES: Final = 24
RETRY_BYTES: Final = HEADER_BYTES + COOKIE_BYTES
"""Size of RETRY, and of the shortest datagram that is answered before its address is verified."""
PADDING: Final = bytes(COOKIE_BYTES)
PROOF_BYTES: Final = 16
COMMITMENT_BYTES: Final = 32
NO_PROOF: Final = bytes(PROOF_BYTES)
REQUEST_PREFIX: Final = Struct(">QQI")
"""Timeout in microseconds, floor, length of the head."""
LENGTH: Final = Struct(">I")
POSITION: Final = Struct(">Q")
DELIVER_PREFIX: Final = Struct(">QI")
"""Position and weight."""
PONG_BODY: Final = Struct(">QQ")
"""Highest sequence of a ONEWAY, and how many were taken."""
PRIORITY_LAST: Final = 9


class DatagramType(IntEnum):
    """What a datagram is."""

    HELLO = 1
    RETRY = 2
    WELCOME = 3
    REQUEST = 4
    RESPONSE = 5
    WORKING = 6
    POLL = 7
    CANCEL = 8
    ONEWAY = 9
    DELIVER = 10
    PING = 11
    PONG = 12
    GOAWAY = 13


# Plain integers for the hot paths, as in ``tidewire.wire.frame``.
HELLO: Final = 1
RETRY: Final = 2
WELCOME: Final = 3
REQUEST: Final = 4
RESPONSE: Final = 5
WORKING: Final = 6
POLL: Final = 7
CANCEL: Final = 8
ONEWAY: Final = 9
DELIVER: Final = 10
PING: Final = 11
PONG: Final = 12
GOAWAY: Final = 13

MOVE: Final = 0x01
LOSSY: Final = 0x01
PLAIN: Final = 0x01
OPENED: Final = 0x02
WITH_MESSAGE: Final = 0x04

_FLAGS: Final = {
    HELLO: frozenset({0, MOVE}),
    WELCOME: frozenset({0, MOVE}),
    REQUEST: frozenset({0, LOSSY}),
    RESPONSE: frozenset({0, PLAIN, OPENED, WITH_MESSAGE}),
}
_NO_FLAGS: Final = frozenset({0})
_FROM_CLIENT: Final = frozenset({HELLO, REQUEST, POLL, CANCEL, ONEWAY, PING, GOAWAY})
_FROM_SERVER: Final = frozenset({RETRY, WELCOME, RESPONSE, WORKING, DELIVER, PONG, GOAWAY})
_WITH_PRIORITY: Final = frozenset({REQUEST, ONEWAY})
_SIZES: Final = {
    RETRY: COOKIE_BYTES,
    WORKING: POSITION.size,
    POLL: len(PADDING),
    CANCEL: len(PADDING),
    PING: len(PADDING),
    PONG: PONG_BODY.size,
}
"""Bytes of bodies that have one size."""

_Begin: TypeAlias = tuple[int, int, int, int | None]
"""Type, flags, priority, bytes of the body where it has one size."""


def _begins(kinds: frozenset[int]) -> dict[bytes, _Begin]:
    return {
        HEADER.pack(MAGIC, VERSION, kind, flags, priority, 0, 0, 0)[:_BEGIN_BYTES]: (
            kind,
            flags,
            priority,
            _SIZES.get(kind),
        )
        for kind in kinds
        for flags in _FLAGS.get(kind, _NO_FLAGS)
        for priority in range(PRIORITY_LAST + 1 if kind in _WITH_PRIORITY else 1)
    }


_BEGIN_OF_CLIENT: Final = _begins(_FROM_CLIENT)
_BEGIN_OF_SERVER: Final = _begins(_FROM_SERVER)

Datagram: TypeAlias = tuple[int, int, int, int, int, bytes]
"""Type, flags, priority, session, number, body."""


def encode_datagram(
    kind: int,
    session: int,
    number: int,
    body: bytes = b"",
    *,
    flags: int = 0,
    priority: int = 0,
) -> bytes:
    """Return the bytes of one datagram. Nothing is judged: see :func:`parse_datagram`."""
    return HEADER.pack(MAGIC, VERSION, kind, flags, priority, 0, session, number) + body


def parse_datagram(data: bytes, *, from_client: bool) -> Datagram:
    """
    Take a datagram apart.

    Args:
        data: All of it.
        from_client: Whether clients send to here.

    Raises:
        ProtocolViolation: It is none of this protocol, or none the other side sends.
    """
    known = (_BEGIN_OF_CLIENT if from_client else _BEGIN_OF_SERVER).get(data[:_BEGIN_BYTES])
    if known is None or len(data) < HEADER_BYTES:
        raise _illegal(data)
    session, number = _IDS.unpack_from(data, _BEGIN_BYTES)
    if not session:
        raise ProtocolViolation("the session is 0")
    kind, flags, priority, size = known
    if size is not None and len(data) != HEADER_BYTES + size:
        raise ProtocolViolation(
            f"{DatagramType(kind).name} has {len(data) - HEADER_BYTES} bytes of body, not {size}"
        )
    return kind, flags, priority, session, number, data[HEADER_BYTES:]


def _illegal(data: bytes) -> ProtocolViolation:
    if len(data) < HEADER_BYTES:
        return ProtocolViolation(f"a datagram of {len(data)} bytes has no header")
    magic, version, kind, flags, priority, zero, _, _ = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        return ProtocolViolation(f"a datagram begins with {data[:3].hex()}, not {PRELUDE:06x}")
    return ProtocolViolation(
        f"a datagram of type {kind}, flags {flags:#04x}, priority {priority} and {zero} where 0 "
        "must be does not come from there"
    )


class Greeting(NamedTuple):
    """Body of HELLO."""

    cookie: bytes
    """Empty, or what RETRY brought."""
    proof: bytes
    commitment: bytes
    hello: Hello


def encode_greeting(greeting: Greeting, limits: WireLimits) -> bytes:
    """Return the body of HELLO; ``limits`` are the client's own."""
    return b"".join(
        (
            bytes((len(greeting.cookie),)),
            greeting.cookie,
            greeting.proof,
            greeting.commitment,
            encode_hello(greeting.hello, limits),
        )
    )


def decode_greeting(body: bytes) -> Greeting:
    """Parse the body of HELLO; raise :class:`ProtocolViolation` when it is none."""
    cookie_bytes = body[0] if body else 1
    if cookie_bytes not in (0, COOKIE_BYTES):
        raise ProtocolViolation(f"HELLO has a cookie of {cookie_bytes} bytes")
    proof_at = 1 + cookie_bytes
    commitment_at = proof_at + PROOF_BYTES
    hello_at = commitment_at + COMMITMENT_BYTES
    if len(body) < hello_at:
        raise ProtocolViolation(f"HELLO has {len(body)} bytes of body; it has at least {hello_at}")
    return Greeting(
        body[1:proof_at],
        body[proof_at:commitment_at],
        body[commitment_at:hello_at],
        decode_hello(body[hello_at:]),
    )


class Asked(NamedTuple):
    """Body of REQUEST; of ONEWAY the last two."""

    timeout_us: int
    floor: int
    head: bytes
    message: bytes


def decode_request(body: bytes) -> Asked:
    """Take the body of REQUEST apart; raise :class:`ProtocolViolation` when it is none."""
    if len(body) < REQUEST_PREFIX.size:
        raise ProtocolViolation(f"REQUEST has {len(body)} bytes of body; it has at least 20")
    timeout_us, floor, head_bytes = REQUEST_PREFIX.unpack_from(body)
    cut = REQUEST_PREFIX.size + head_bytes
    if cut > len(body):
        raise ProtocolViolation(f"REQUEST has a head of {head_bytes} bytes in {len(body)} of body")
    return Asked(timeout_us, floor, body[REQUEST_PREFIX.size : cut], body[cut:])


def encode_oneway(head: bytes, message: bytes) -> bytes:
    """Return the body of ONEWAY."""
    return LENGTH.pack(len(head)) + head + message


def decode_oneway(body: bytes) -> Asked:
    """Take the body of ONEWAY apart; raise :class:`ProtocolViolation` when it is none."""
    head, rest = _cut(body, "ONEWAY")
    return Asked(0, 0, head, rest)


class Answer(NamedTuple):
    """How a request was answered."""

    ending: Ending
    headers: Metadata | None = None
    """Initial metadata, when there is some."""
    message: bytes | None = None


def encode_answer(answer: Answer) -> tuple[int, bytes]:
    """Return flags and body of RESPONSE."""
    ending, headers, message = answer
    if headers is None and message is not None and (ending is ENDING_OK or ending == ENDING_OK):
        return PLAIN, message
    head = b"" if headers is None else encode_headers(headers)
    status = encode_ending(ending)
    parts = (LENGTH.pack(len(head)), head, LENGTH.pack(len(status)), status, message or b"")
    return 0 if message is None else WITH_MESSAGE, b"".join(parts)


def decode_answer(flags: int, body: bytes) -> Answer:
    """Parse the body of RESPONSE without OPENED; raise :class:`ProtocolViolation`."""
    if flags & PLAIN:
        return Answer(ENDING_OK, None, body)
    head, rest = _cut(body, "RESPONSE")
    status, message = _cut(rest, "RESPONSE")
    if message and not flags & WITH_MESSAGE:
        raise ProtocolViolation(f"RESPONSE has {len(message)} bytes behind its status")
    return Answer(
        decode_ending(status),
        decode_headers(head) if head else None,
        message if flags & WITH_MESSAGE else None,
    )


def decode_opened(body: bytes) -> tuple[int, bytes]:
    """Return position and message of RESPONSE with OPENED; raise :class:`ProtocolViolation`."""
    try:
        (position,) = POSITION.unpack_from(body)
    except error as short:
        raise ProtocolViolation(f"OPENED has {len(body)} bytes of body") from short
    return position, body[POSITION.size :]


def decode_delivery(body: bytes) -> tuple[int, int, bytes]:
    """Return position, weight and message of DELIVER; raise :class:`ProtocolViolation`."""
    try:
        position, weight = DELIVER_PREFIX.unpack_from(body)
    except error as short:
        raise ProtocolViolation(f"DELIVER has {len(body)} bytes of body") from short
    return position, weight, body[DELIVER_PREFIX.size :]


def _cut(body: bytes, what: str) -> tuple[bytes, bytes]:
    """Cut off what a length announces; return it and the rest."""
    if len(body) < LENGTH.size:
        raise ProtocolViolation(f"{what} ends in the middle of a length")
    (size,) = LENGTH.unpack_from(body)
    stop = LENGTH.size + size
    if stop > len(body):
        raise ProtocolViolation(f"{what} announces {size} bytes and has {len(body)}")
    return body[LENGTH.size : stop], body[stop:]
