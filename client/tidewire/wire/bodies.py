"""
Protobuf bodies of frames: what Python holds on one side, bytes of ``wire.proto`` on the other.

Metadata is a tuple of ``(key, value)``; values of keys that end in ``-bin`` are bytes, others str.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias, TypeVar

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from tidewire.errors import ProtocolViolation, TidewireError
from tidewire.v1 import wire_pb2
from tidewire.wire.limits import (
    CALL_CREDIT_BYTES,
    CALLS_MAX,
    CONNECTION_CREDIT_BYTES,
    FRAME_BYTES_LEAST,
    FRAME_BYTES_MAX,
    KEEPALIVE_S,
    MESSAGE_BYTES_MAX,
    WireLimits,
)

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]


class Metadatum(NamedTuple):
    """One entry of metadata, with the names gRPC gives its parts."""

    key: str
    value: str | bytes


VERSION: Final = 1
TEXT_BYTES_MAX: Final = 256
KEEPALIVE_LEAST_S: Final = 0.01
MessageT = TypeVar("MessageT")

STATUS_OK: Final = 0
STATUS_LAST: Final = 16
DETAILS_KEY: Final = "grpc-status-details-bin"
_KEY = re.compile(r"[0-9a-z_.\-]{1,256}")
_TEXT = re.compile(rb"[\x20-\x7e]*")


@dataclass(frozen=True, slots=True)
class Head:
    """Which method a call is for, and the caller's metadata."""

    method: str
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended: a gRPC status code, its message, details if there are any, and trailers."""

    code: int
    message: str = ""
    details: bytes = b""
    """Serialized ``google.rpc.Status`` when the status carries details; otherwise empty."""
    trailers: Metadata = ()

    @classmethod
    def of(cls, error: TidewireError) -> "Ending":
        """Return the ending a peer is told for an error of ours."""
        return cls(error.code, error.message, error.to_status().SerializeToString())


ENDING_OK: Final = Ending(STATUS_OK)


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """What the other side is ready to receive; defaults are those of WIRE.md."""

    frame_bytes_max: int = FRAME_BYTES_MAX
    message_bytes_max: int = MESSAGE_BYTES_MAX
    call_credit_bytes: int = CALL_CREDIT_BYTES
    connection_credit_bytes: int = CONNECTION_CREDIT_BYTES
    calls_max: int = CALLS_MAX
    keepalive_s: float = KEEPALIVE_S


LIMITS_CACHED_MAX: Final = 64
_peer_limits = lru_cache(maxsize=LIMITS_CACHED_MAX)(PeerLimits)
"""Ten thousand peers with the same limits share one object."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What one side says about itself."""

    agent: str = ""
    codecs: tuple[int, ...] = ()
    token: str = ""
    node_id: str = ""
    version_min: int = VERSION
    version_max: int = VERSION
    limits: PeerLimits = PeerLimits()


HELLOS_CACHED_MAX: Final = 64
"""The latest; a peer that says something of its own pushes out the oldest, not the common one for
good."""
HELLO_CACHED_BYTES_MAX: Final = 256
_HELLOS: Final[dict[bytes, Hello]] = {}


@dataclass(frozen=True, slots=True)
class Goaway:
    """The sender takes no new calls."""

    last_call_id: int
    reason: Ending
    grace_s: float


def encode_hello(hello: Hello, limits: WireLimits) -> bytes:
    """Return the body of HELLO; ``limits`` are the sender's own and replace ``hello.limits``."""
    body = wire_pb2.Hello(
        version_min=hello.version_min,
        version_max=hello.version_max,
        agent=hello.agent[:TEXT_BYTES_MAX],
        token=hello.token,
        node_id=hello.node_id[:TEXT_BYTES_MAX],
        limits=wire_pb2.WireLimits(
            frame_bytes_max=limits.frame_bytes_max,
            message_bytes_max=limits.message_bytes_max,
            call_credit_bytes=limits.call_credit_bytes,
            connection_credit_bytes=limits.connection_credit_bytes,
            calls_max=limits.calls_max,
        ),
    )
    body.codecs.extend(hello.codecs)  # type: ignore[arg-type]  # enum values are plain integers
    body.limits.keepalive.FromMicroseconds(int(limits.keepalive_s * 1e6))
    return body.SerializeToString()


def decode_hello(body: bytes) -> Hello:
    """
    Parse the body of HELLO; raise :class:`ProtocolViolation` when it is not one.

    Ten thousand peers that say the same share one object, unless it has a token: that is gone with
    its connection.
    """
    known = _HELLOS.get(body)
    if known is not None:
        return known
    hello = _decode_hello(body)
    if not hello.token and len(body) <= HELLO_CACHED_BYTES_MAX:
        if len(_HELLOS) >= HELLOS_CACHED_MAX:
            del _HELLOS[next(iter(_HELLOS))]
        _HELLOS[bytes(body)] = hello
    return hello


def _decode_hello(body: bytes) -> Hello:
    parsed = _parse(wire_pb2.Hello(), body)
    limits = parsed.limits
    frame_bytes_max = limits.frame_bytes_max or FRAME_BYTES_MAX
    if frame_bytes_max < FRAME_BYTES_LEAST:
        raise ProtocolViolation(
            f"HELLO announces frame_bytes_max {frame_bytes_max}; it must be at least "
            f"{FRAME_BYTES_LEAST}"
        )
    keepalive_s = limits.keepalive.ToMicroseconds() / 1e6
    return Hello(
        agent=parsed.agent[:TEXT_BYTES_MAX],
        codecs=tuple(parsed.codecs),
        token=parsed.token,
        node_id=parsed.node_id[:TEXT_BYTES_MAX],
        version_min=parsed.version_min,
        version_max=parsed.version_max,
        limits=_peer_limits(
            frame_bytes_max,
            limits.message_bytes_max or MESSAGE_BYTES_MAX,
            limits.call_credit_bytes or CALL_CREDIT_BYTES,
            limits.connection_credit_bytes or CONNECTION_CREDIT_BYTES,
            limits.calls_max or CALLS_MAX,
            max(keepalive_s, KEEPALIVE_LEAST_S) if keepalive_s > 0 else KEEPALIVE_S,
        ),
    )


def encode_head(method: str, metadata: Metadata = ()) -> bytes:
    """Return a serialized ``CallHead``; raise ``ValueError`` for metadata gRPC would refuse too."""
    head = wire_pb2.CallHead(method=method)
    _fill(head.metadata, metadata)
    return head.SerializeToString()


def decode_head(body: bytes) -> Head:
    """Parse a ``CallHead``."""
    parsed = _parse(wire_pb2.CallHead(), body)
    if not parsed.method.startswith("/"):
        raise ProtocolViolation("a call head names no method")
    return Head(parsed.method, _metadata(parsed.metadata))


def encode_headers(metadata: Metadata) -> bytes:
    """Return the body of HEADERS."""
    headers = wire_pb2.CallHeaders()
    _fill(headers.metadata, metadata)
    return headers.SerializeToString()


def decode_headers(body: bytes) -> Metadata:
    """Parse the body of HEADERS."""
    return _metadata(_parse(wire_pb2.CallHeaders(), body).metadata)


def encode_ending(ending: Ending) -> bytes:
    """Return the body of STATUS; empty for OK without trailers."""
    if ending.code == STATUS_OK and not ending.trailers and not ending.message:
        return b""
    body = wire_pb2.CallStatus(status=_status(ending))
    _fill(body.trailers, ending.trailers)
    return body.SerializeToString()


def decode_ending(body: bytes) -> Ending:
    """Parse the body of STATUS."""
    if not body:
        return ENDING_OK
    parsed = _parse(wire_pb2.CallStatus(), body)
    return _ending(parsed.status, _metadata(parsed.trailers))


def encode_goaway(goaway: Goaway) -> bytes:
    """Return the body of GOAWAY."""
    body = wire_pb2.GoAway(last_call_id=goaway.last_call_id, reason=_status(goaway.reason))
    body.grace.FromMicroseconds(int(goaway.grace_s * 1e6))
    return body.SerializeToString()


def decode_goaway(body: bytes) -> Goaway:
    """Parse the body of GOAWAY."""
    parsed = _parse(wire_pb2.GoAway(), body)
    grace_s = max(0.0, parsed.grace.ToMicroseconds() / 1e6)
    return Goaway(parsed.last_call_id, _ending(parsed.reason, ()), grace_s)


def _status(ending: Ending) -> status_pb2.Status:
    if not ending.details:
        return status_pb2.Status(code=ending.code, message=ending.message)
    status = status_pb2.Status.FromString(ending.details)
    # The code and message of the call win: gRPC clients see those, whatever the details repeat.
    status.code, status.message = ending.code, ending.message
    return status


def _ending(status: status_pb2.Status, trailers: Metadata) -> Ending:
    if not STATUS_OK <= status.code <= STATUS_LAST:
        raise ProtocolViolation(f"status code {status.code} does not exist")
    details = status.SerializeToString() if status.details else b""
    return Ending(status.code, status.message, details, trailers)


def _parse(message: MessageT, body: bytes) -> MessageT:
    try:
        message.ParseFromString(body)  # type: ignore[attr-defined]
    except DecodeError as error:
        raise ProtocolViolation(
            f"a body of {len(body)} bytes is not a {type(message).__name__}"
        ) from error
    return message


def _fill(entries: object, metadata: Metadata) -> None:
    for key, value in metadata:
        if not _KEY.fullmatch(key):
            raise ValueError(f"metadata key {key!r} is not 1 to 256 of [0-9a-z_.-]")
        raw = value.encode("utf-8") if isinstance(value, str) else bytes(value)
        if not key.endswith("-bin") and not _TEXT.fullmatch(raw):
            raise ValueError(f"the value of metadata key {key!r} is not printable ASCII")
        entries.add(key=key, value=raw)  # type: ignore[attr-defined]


def _metadata(entries: object) -> Metadata:
    taken: list[tuple[str, str | bytes]] = []
    for entry in entries:  # type: ignore[attr-defined]
        key, value = entry.key, entry.value
        if not _KEY.fullmatch(key):
            raise ProtocolViolation("a metadata key is not 1 to 256 of [0-9a-z_.-]")
        if key.endswith("-bin"):
            taken.append(Metadatum(key, value))
        elif _TEXT.fullmatch(value):
            taken.append(Metadatum(key, value.decode("ascii")))
        else:
            raise ProtocolViolation(f"the value of metadata key {key!r} is not printable ASCII")
    return tuple(taken)


class HeadCache:
    """
    Parsed call heads by their bytes: callers repeat few heads, and parsing one costs 3 us.

    Bounded in number and in the size of a head; the oldest entry goes first.
    """

    def __init__(self, heads_max: int, head_bytes_max: int) -> None:
        self._heads: dict[bytes, Head] = {}
        self._heads_max = heads_max
        self._head_bytes_max = head_bytes_max

    def parse(self, body: bytes) -> Head:
        """Return the parsed head; raise :class:`ProtocolViolation` when it is none."""
        head = self._heads.get(body)
        if head is None:
            head = decode_head(body)
            if len(body) <= self._head_bytes_max:
                if len(self._heads) >= self._heads_max:
                    del self._heads[next(iter(self._heads))]
                self._heads[body] = head
        return head
