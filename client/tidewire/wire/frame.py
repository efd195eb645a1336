"""
Frames of a raw wire: ``proto/WIRE.md`` section 1, without I/O.

A frame is a plain tuple ``(type, flags, priority, call_id, body)`` and not an object with a class
of its own: at 60,000 calls/s each object made per frame costs more than everything else done here.
"""

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, TypeAlias

from tidewire.errors import ProtocolViolation

HEADER: Final = Struct(">IBBHI")
"""Length, type, flags, priority, call id."""
OPEN_HEADER: Final = Struct(">IBBHIQI")
"""``HEADER``, timeout in microseconds, length of the call head."""
OPEN_PREFIX: Final = Struct(">QI")
CREDIT_BODY: Final = Struct(">Q")

HEADER_BYTES: Final = 12
PREFIX_BYTES: Final = 4
LENGTH_LEAST: Final = 8
"""What the length prefix counts besides the body."""
OPEN_PREFIX_BYTES: Final = 12
PING_BYTES: Final = 8
CALL_ID_MAX: Final = (1 << 32) - 1
PRIORITY_LAST: Final = 9
PRIORITY_DEFAULT: Final = 5


class FrameType(IntEnum):
    """What a frame is."""

    HELLO = 1
    OPEN = 2
    MESSAGE = 3
    HEADERS = 4
    STATUS = 5
    CANCEL = 6
    CREDIT = 7
    PING = 8
    PONG = 9
    GOAWAY = 10


class Flag(IntFlag):
    """Flags of OPEN and MESSAGE."""

    END = 0x01
    MORE = 0x02
    WITH_MESSAGE = 0x04
    NONE = 0x08


# Plain integers for the hot paths: an IntEnum member costs an attribute look-up and a method call.
HELLO: Final = 1
OPEN: Final = 2
MESSAGE: Final = 3
HEADERS: Final = 4
STATUS: Final = 5
CANCEL: Final = 6
CREDIT: Final = 7
PING: Final = 8
PONG: Final = 9
GOAWAY: Final = 10
END: Final = 0x01
MORE: Final = 0x02
WITH_MESSAGE: Final = 0x04
NONE: Final = 0x08

_FLAGS_LEGAL: Final = (
    frozenset[int](),
    frozenset({0}),
    frozenset({0, END, WITH_MESSAGE, END | WITH_MESSAGE}),
    frozenset({0, END, MORE, END | NONE}),
    *(frozenset({0}),) * 7,
)
_CONNECTION_FRAMES: Final = frozenset({HELLO, PING, PONG, GOAWAY})

Frame: TypeAlias = tuple[int, int, int, int, bytes]
"""Type, flags, priority, call id, body."""


def encode_frame(
    kind: int, body: bytes = b"", *, flags: int = 0, priority: int = 0, call_id: int = 0
) -> bytes:
    """Return the bytes of one frame. Nothing is judged: see :class:`FrameDecoder`."""
    return HEADER.pack(LENGTH_LEAST + len(body), kind, flags, priority, call_id) + body


def judge_header(length: int, kind: int, flags: int, priority: int, call_id: int) -> None:
    """
    Raise if a header is illegal by itself, whatever the state of the connection.

    Raises:
        ProtocolViolation: Type or flags are unknown, a reserved field is set, or the call id does
            not suit the type.
    """
    if not HELLO <= kind <= GOAWAY:
        raise ProtocolViolation(f"frame type {kind} does not exist")
    if flags not in _FLAGS_LEGAL[kind]:
        raise ProtocolViolation(f"flags {flags:#04x} cannot stand on {FrameType(kind).name}")
    if priority > (PRIORITY_LAST if kind == OPEN else 0):
        raise ProtocolViolation(f"priority {priority} cannot stand on {FrameType(kind).name}")
    if kind in _CONNECTION_FRAMES:
        if call_id:
            raise ProtocolViolation(f"{FrameType(kind).name} names call {call_id}, it must not")
    elif not call_id and kind != CREDIT:
        raise ProtocolViolation(f"{FrameType(kind).name} names no call")
    if flags & NONE and length != LENGTH_LEAST:
        raise ProtocolViolation("MESSAGE says NONE and has a body")


class FrameDecoder:
    """
    Turn a byte stream into frames.

    Every buffer is bounded: the length prefix and the header are judged before the body is kept,
    and at most one frame is kept. Not for two tasks at once.
    """

    __slots__ = ("_need", "_rest", "frame_bytes_max", "violation")

    def __init__(self, frame_bytes_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.violation: ProtocolViolation | None = None
        """Why the stream cannot go on; the decoder ignores everything after it."""
        self._rest = bytearray()
        self._need = PREFIX_BYTES

    @property
    def incomplete(self) -> bool:
        """Whether a frame has begun that is not complete."""
        return bool(self._rest)

    @property
    def kept_bytes(self) -> int:
        """What is held of that frame."""
        return len(self._rest)

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """
        Take bytes from the peer and return the frames they complete, in order.

        Args:
            data: Any number of bytes, cut anywhere; nothing of it is needed afterwards.

        Returns:
            Frames; after a violation those that came before it, then ``violation`` is set.
        """
        frames: list[Frame] = []
        if self.violation is not None:
            return frames
        try:
            position = self._complete(data, frames) if self._rest else 0
            if position < len(data):
                position = self._split(data, position, frames)
        except ProtocolViolation as violation:
            self.violation = violation
            return frames
        if position < len(data):
            self._rest += data[position:] if position else data
        return frames

    def _complete(self, data: bytes | memoryview, frames: list[Frame]) -> int:
        """
        Complete the frame that has begun; return how much of ``data`` belonged to it.

        Only that much is copied: what follows may be many times as long.
        """
        rest, position = self._rest, 0
        while len(rest) + len(data) - position >= self._need:
            stop = position + self._need - len(rest)
            rest += data[position:stop]
            position = stop
            # Prefix, header, frame: each says how much the next one needs.
            with memoryview(rest) as begun:
                whole = self._split(begun, 0, frames)
            if whole:
                rest.clear()
                return position
        rest += data[position:]
        return len(data)

    def _split(self, data: bytes | memoryview, position: int, frames: list[Frame]) -> int:
        """
        Append the whole frames of ``data`` from ``position``; return where the incomplete one
        begins.
        """
        end = len(data)
        unpack, longest, legal = HEADER.unpack_from, self.frame_bytes_max, _FLAGS_LEGAL
        while end - position >= HEADER_BYTES:
            length, kind, flags, priority, call_id = unpack(data, position)
            if not LENGTH_LEAST <= length <= longest:
                raise self._illegal_length(length)
            # The usual frames pass on four comparisons; the rest is judged in full.
            if not call_id or not (
                (kind == MESSAGE and flags < NONE and not priority and flags in legal[MESSAGE])
                or (kind == OPEN and flags in legal[OPEN] and priority <= PRIORITY_LAST)
            ):
                judge_header(length, kind, flags, priority, call_id)
            stop = position + PREFIX_BYTES + length
            if stop > end:
                self._need = stop - position
                return position
            # Of bytes that are bytes already this makes no second copy.
            body = bytes(data[position + HEADER_BYTES : stop])
            frames.append((kind, flags, priority, call_id, body))
            position = stop
        self._need = HEADER_BYTES
        if end - position >= PREFIX_BYTES:
            length = int.from_bytes(data[position : position + PREFIX_BYTES], "big")
            if not LENGTH_LEAST <= length <= longest:
                raise self._illegal_length(length)
        elif position < end:
            self._need = PREFIX_BYTES
        return position

    def _illegal_length(self, length: int) -> ProtocolViolation:
        return ProtocolViolation(
            f"the length prefix says {length} bytes; a frame has {LENGTH_LEAST} to "
            f"{self.frame_bytes_max} (does the peer speak this protocol?)"
        )
