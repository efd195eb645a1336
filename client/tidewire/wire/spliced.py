"""
Serialized messages whose long field is kept apart, so that nobody copies it.

Protobuf copies a ``bytes`` field when it is set, when it is serialized (into buffers that double,
with fresh pages for each), when it is parsed and each time it is looked at: some two dozen copies
from a publisher to a subscriber. Fields may travel in any order, so a sender can put the long
one last at every level: what goes before it is short and made anew, and the field itself goes from
the application's memory into the socket. A receiver parses the message without the field.
"""

from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from google.protobuf.message import Message

Path: TypeAlias = tuple[int, ...]
"""Numbers of the fields that lead to the long one, outermost first; the last is its own."""

PUBLISH_BODY: Final[Path] = (2, 2, 1, 7)
"""``PublishStreamRequest.publish.request.batch.body``."""
DELIVERY_BODY: Final[Path] = (2, 1, 7)
"""``SubscribeResponse.delivery.batch.body``."""

SPLICED_BYTES_MIN: Final = 32 * 1024
"""Bodies below this are cheaper to copy than to keep apart."""
FIELDS_MAX: Final = 256
"""Fields looked at in a message on the way to its long one; protobuf reads what has more."""
VARINT_BYTES_MAX: Final = 10

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

MessageT = TypeVar("MessageT", bound=Message)
HandlerT = TypeVar("HandlerT", bound=Callable[..., object])


class Apart(NamedTuple, Generic[MessageT]):
    """A message as it was parsed, without its long field, and that field."""

    message: MessageT
    body: memoryview

    def WhichOneof(self, group: str) -> str | None:
        """Which field of a group the message has."""
        chosen: str | None = self.message.WhichOneof(group)
        return chosen


class Spliced:
    """A serialized message in two pieces; ``bytes()`` of it makes one of them, by a copy."""

    __slots__ = ("_size", "head", "tail")

    def __init__(self, head: bytes, tail: bytes | memoryview) -> None:
        self.head = head
        self.tail = tail
        self._size = len(head) + len(tail)

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join((self.head, self.tail))

    def __radd__(self, before: bytes) -> bytes:
        """Return it behind something, as one."""
        return b"".join((before, self.head, self.tail))

    def piece(self, start: int, stop: int) -> bytes | memoryview:
        """Return a part; only one that holds some of the head is copied."""
        cut = len(self.head)
        view = memoryview(self.tail)
        if start >= cut:
            return view[start - cut : stop - cut]
        return b"".join((self.head[start:stop], view[: max(0, stop - cut)]))


def splice(data: bytes, path: Path, tail: bytes | memoryview, before: bytes = b"") -> Spliced:
    """
    Put a long field into a serialized message that has none yet.

    Args:
        data: The message; all that the path leads through is there, once.
        path: Where the field belongs.
        tail: Its end, which is not copied.
        before: Its beginning, if that is not in ``tail``.
    """
    levels, there = _walk(data, path)
    if there is not None:
        raise ValueError("the message has the field already")
    size = len(before) + len(tail)
    head = before
    for number, rest in zip(reversed(path), reversed(levels), strict=True):
        fields = b"".join((*rest, _varint(number << 3 | _LENGTH), _varint(size)))
        head = fields + head
        size += len(fields)
    return Spliced(head, tail)


def takes_apart(path: Path) -> Callable[[HandlerT], HandlerT]:
    """Mark a handler that takes messages of which the field at ``path`` is apart, as `Apart`."""

    def mark(handler: HandlerT) -> HandlerT:
        handler.body_path = path  # type: ignore[attr-defined]  # a function has what it is given
        return handler

    return mark


def gives_spliced(handler: HandlerT) -> HandlerT:
    """Mark a handler that may respond with `Spliced`."""
    handler.gives_spliced = True  # type: ignore[attr-defined]
    return handler


def path_of(handler: object) -> Path:
    """Return what `takes_apart` said of a handler; nothing when it was not marked."""
    path: Path = getattr(handler, "body_path", ())
    return path


def may_splice(handler: object) -> bool:
    """Say whether a handler is marked by `gives_spliced`."""
    return bool(getattr(handler, "gives_spliced", False))


def parse_apart(kind: type[MessageT], data: bytes, path: Path) -> MessageT | Apart[MessageT]:
    """
    Parse a message, and leave its long field apart when it is long.

    Raises:
        google.protobuf.message.DecodeError: It is no such message.
    """
    if len(data) >= SPLICED_BYTES_MIN:
        parts = split(data, path)
        if parts is not None and len(parts[1]) >= SPLICED_BYTES_MIN:
            return Apart(kind.FromString(parts[0]), parts[1])
    return kind.FromString(data)


def split(data: bytes, path: Path) -> tuple[bytes, memoryview] | None:
    """
    Return a serialized message without its long field, and the field.

    ``None`` when it is not there exactly once, or anything is unusual: then protobuf must look.
    """
    try:
        levels, body = _walk(data, path)
    except ValueError:
        return None
    if body is None:
        return None
    inner = b"".join(levels[-1])
    for number, rest in zip(reversed(path[:-1]), reversed(levels[:-1]), strict=True):
        inner = b"".join((*rest, _varint(number << 3 | _LENGTH), _varint(len(inner)), inner))
    return inner, body


def _walk(data: bytes, path: Path) -> tuple[list[list[bytes]], memoryview | None]:
    """
    Return the other fields of each level and the field at the end of the path, if it is there.

    Raises:
        ValueError: A field of the path comes twice, one that leads on is missing, or the bytes are
            no message.
    """
    levels: list[list[bytes]] = []
    at, end = 0, len(data)
    for depth, number in enumerate(path):
        others, found = _fields(data, at, end, number)
        levels.append(others)
        if found is None:
            if depth + 1 < len(path):
                raise ValueError("a field that leads on is missing")
            return levels, None
        at, end = found
    return levels, memoryview(data)[at:end]


def _fields(
    data: bytes, at: int, end: int, wanted: int
) -> tuple[list[bytes], tuple[int, int] | None]:
    """Cut one level: its other fields in order, and where the wanted one begins and ends."""
    others: list[bytes] = []
    found: tuple[int, int] | None = None
    begin = at
    for _ in range(FIELDS_MAX):
        if at >= end:
            break
        field = at
        tag, at = _read_varint(data, at, end)
        kind = tag & 7
        if kind == _LENGTH:
            size, at = _read_varint(data, at, end)
            at += size
        elif kind == _VARINT:
            _, at = _read_varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("a field of a kind that is not looked into")
        if at > end:
            raise ValueError("a field is cut short")
        if tag >> 3 == wanted:
            if found is not None or kind != _LENGTH:
                raise ValueError("the field comes twice, or is of another kind")
            others.append(data[begin:field])
            found, begin = (at - size, at), at
    if at != end:
        raise ValueError("more fields than are looked at")
    others.append(data[begin:end])
    return others, found


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    for index in range(at, min(end, at + VARINT_BYTES_MAX)):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise ValueError("a number is cut short or too long")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
