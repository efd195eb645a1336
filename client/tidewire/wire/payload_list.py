"""
Bodies of bare payloads: a serialized ``PayloadList``, joined and cut.

Payloads of one size, which is what most senders send, need no varint for each: they are joined by
their common prefix and cut at a fixed stride. 1,616 payloads of 128 bytes, per payload: 24 ns to
join (interleaving with prefixes 42 to 100, protobuf more) and 16 ns to cut (protobuf 28).
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from struct import Struct
from typing import Final

from tidewire.v1 import common_pb2

SHORT_BYTES: Final = 2_048
"""Payloads below this have their prefixes ready, and are cut here."""
CUT_AT_ONCE: Final = 64
"""Payloads cut by one structure."""
CUT_SIZES_MAX: Final = 256
"""Sizes whose structures are kept."""
EQUAL_LEAST: Final = 16
"""Shorter lists are not looked at for equal sizes."""
_TAG: Final = 10
_TAGS: Final = tuple(
    bytes((_TAG, size)) if size < 128 else bytes((_TAG, size & 127 | 128, size >> 7))
    for size in range(SHORT_BYTES)
)
"""What goes before a payload of each size: the tag of the field and the length."""


def join_payloads(payloads: Sequence[bytes]) -> bytes:
    """Return the serialized list."""
    sizes = list(map(len, payloads))
    if not sizes or max(sizes) >= SHORT_BYTES:
        return b"".join(chain.from_iterable(zip(map(prefix_of, sizes), payloads, strict=True)))
    if sizes.count(sizes[0]) == len(sizes):
        return _TAGS[sizes[0]].join((b"", *payloads))
    parts: list[bytes] = [b""] * (2 * len(sizes))
    parts[::2] = map(_TAGS.__getitem__, sizes)
    parts[1::2] = payloads
    return b"".join(parts)


def prefix_of(size: int) -> bytes:
    """Return what goes before a payload of any size: protobuf takes 0.9 ms to list 1 MiB."""
    if size < SHORT_BYTES:
        return _TAGS[size]
    encoded = bytearray((_TAG,))
    while size >= 128:
        encoded.append(size & 127 | 128)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)


def cut_one(raw: memoryview) -> bytes | None:
    """Return the payload of a list that is one payload; ``None`` when protobuf must look."""
    prefix = prefix_of(len(raw))  # of the payload, or longer by what the prefix itself adds
    for begin in range(len(prefix) - 1, len(prefix) + 1):
        size = len(raw) - begin
        if size >= 0 and raw[:begin] == prefix_of(size):
            return bytes(raw[begin:])
    return None


def cut_payloads(raw: bytes, count: int) -> list[bytes]:
    """
    Return the payloads of a serialized list.

    Args:
        raw: The list as it came; nothing of it was checked.
        count: How many its header states. Another number may be returned: the caller compares.

    Raises:
        google.protobuf.message.DecodeError: It is no such list.
    """
    equal = _cut_equal(raw, count) if count >= EQUAL_LEAST else None
    return common_pb2.PayloadList.FromString(raw).payload[:] if equal is None else equal


def _cut_equal(raw: bytes, count: int) -> list[bytes] | None:
    """The payloads if they are `count` of one size; ``None`` when protobuf must look."""
    stride, rest = divmod(len(raw), count)
    if rest or not 2 <= stride < SHORT_BYTES:
        return None
    size = stride - (2 if stride < 130 else 3)
    tag = _TAGS[size]
    if len(tag) + size != stride:  # 127 and 128 bytes have prefixes of two lengths
        return None
    for index in range(len(tag)):
        if raw[index::stride] != tag[index : index + 1] * count:
            return None
    whole = count - count % CUT_AT_ONCE
    cut = _cutter(len(tag), size)
    payloads = list(chain.from_iterable(cut.iter_unpack(memoryview(raw)[: whole * stride])))
    first = whole * stride + len(tag)
    payloads += [raw[begin : begin + size] for begin in range(first, len(raw) + 1, stride)]
    return payloads


@lru_cache(CUT_SIZES_MAX)
def _cutter(tag_bytes: int, size: int) -> Struct:
    return Struct(f"{tag_bytes}x{size}s" * CUT_AT_ONCE)
