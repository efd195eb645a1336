"""
How much of a serialized request is not payload, judged before protobuf builds objects of it.

A legal 10 MiB request of empty submessages becomes 300 MiB of objects. Payloads do not have that
trait, so what is outside of ``bytes`` fields is held to a small limit, and the number of fields
to another.
"""

from typing import Final, TypeAlias, Union

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tidewire.errors import MalformedRequest, MessageTooLarge

OVERHEAD_BYTES_MAX: Final = 256 * 1024
FIELDS_MAX: Final = 10_000
DEPTH_MAX: Final = 32
VARINT_BYTES_MAX: Final = 10

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_BYTES: Final = "bytes"
# What a field number stands for: a message to look into, or bytes that cost nothing but themselves.
_Shape: TypeAlias = dict[int, Union["_Shape", str]]

_shapes: dict[str, _Shape] = {}


def check_request_size(
    data: bytes,
    overhead_bytes_max: int = OVERHEAD_BYTES_MAX,
    descriptor: Descriptor | None = None,
    *,
    fields_max: int = FIELDS_MAX,
) -> None:
    """
    Refuse a serialized request that would become much larger than its payload.

    Args:
        data: The request.
        overhead_bytes_max: Most bytes outside of ``bytes`` fields.
        descriptor: Message type of the request: fields of nested messages are judged too.
            Without it only the first level is looked at, and its largest length-delimited
            field is taken for the payload.
        fields_max: Most fields, on all levels.

    Raises:
        MessageTooLarge: One of the two limits is passed.
        MalformedRequest: The bytes are not protobuf.
    """
    # The smallest field takes two bytes: a short request can break neither limit.
    if len(data) <= overhead_bytes_max and len(data) <= 2 * fields_max:
        return
    scan = _Scan(data, fields_max)
    if descriptor is None:
        scan.run({}, 0, len(data), 0)
        payload = scan.largest
    else:
        scan.run(_shape_of(descriptor), 0, len(data), 0)
        payload = scan.payload
    if len(data) - payload > overhead_bytes_max:
        raise MessageTooLarge(
            f"a request has {len(data) - payload} bytes beside its payload, the limit is "
            f"{overhead_bytes_max}",
            metadata={"bytes": len(data) - payload, "bytes_max": overhead_bytes_max},
        )


def count_fields(data: bytes, fields_max: int) -> int:
    """Fields of the first level of a message; gives up with `MessageTooLarge` beyond the limit."""
    scan = _Scan(data, fields_max)
    scan.run({}, 0, len(data), 0)
    return scan.fields


class _Scan:
    """One walk over serialized bytes that stops at the first excess."""

    __slots__ = ("data", "fields", "fields_max", "largest", "payload")

    def __init__(self, data: bytes, fields_max: int) -> None:
        self.data = data
        self.fields_max = fields_max
        self.fields = 0
        self.payload = 0
        self.largest = 0

    def run(self, shape: _Shape, at: int, end: int, depth: int) -> None:
        """Walk the message between two offsets."""
        if depth > DEPTH_MAX:
            raise MalformedRequest(f"a request nests deeper than {DEPTH_MAX} messages")
        while at < end:
            self.fields += 1
            if self.fields > self.fields_max:
                raise MessageTooLarge(
                    f"a request has more than {self.fields_max} fields",
                    metadata={"fields_max": self.fields_max},
                )
            tag, at = self._varint(at, end)
            kind = tag & 7
            if kind == _LENGTH:
                size, at = self._varint(at, end)
                if size > end - at:
                    raise MalformedRequest(f"a field of {size} bytes is cut at {end - at}")
                self._length(shape.get(tag >> 3), at, size, depth)
                at += size
            elif kind == _VARINT:
                _, at = self._varint(at, end)
            elif kind in (_FIXED64, _FIXED32):
                at += 8 if kind == _FIXED64 else 4
            else:
                raise MalformedRequest(f"a request has a field of wire type {kind}")
        if at != end:
            raise MalformedRequest("the last field of a request is cut short")

    def _length(self, child: _Shape | str | None, at: int, size: int, depth: int) -> None:
        if child is None:
            self.largest = max(self.largest, size)
        elif isinstance(child, str):
            self.payload += size
        else:
            self.run(child, at, at + size, depth + 1)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        data = self.data
        value = shift = 0
        last = min(end, at + VARINT_BYTES_MAX)
        while at < last:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise MalformedRequest("a number of a request is cut short or too long")


def _shape_of(descriptor: Descriptor) -> _Shape:
    shape = _shapes.get(descriptor.full_name)
    if shape is None:
        # Entered before its fields: a message may contain itself.
        shape = _shapes[descriptor.full_name] = {}
        for field in descriptor.fields:
            if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None:
                shape[field.number] = _shape_of(field.message_type)
            elif field.type == FieldDescriptor.TYPE_BYTES:
                shape[field.number] = _BYTES
    return shape
