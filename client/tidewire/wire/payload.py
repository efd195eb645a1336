"""Single values on their way: query bodies, state values, command arguments."""

from collections.abc import Sequence
from typing import TypeAlias

from tidewire.v1 import common_pb2
from tidewire.wire.batch import PAYLOAD_BYTES_MAX, Headers, check_headers
from tidewire.wire.codec import CodecName, decompress, shrink

Value: TypeAlias = bytes | bytearray | memoryview | str


def as_bytes(value: Value) -> bytes:
    """Return the bytes of a value; text becomes UTF-8."""
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else bytes(value)


def encode_payload(
    value: Value,
    *,
    codec: CodecName = common_pb2.CODEC_NONE,
    headers: Headers = (),
    content_type: str = "",
) -> common_pb2.Payload:
    """
    Build the payload of a value.

    Args:
        value: Bytes, or text that becomes UTF-8.
        codec: How it is compressed when that makes it smaller.
        headers: Application headers.
        content_type: Media type, at most 128 bytes.

    Raises:
        InvalidArgument: A header breaks the limits.
    """
    raw = as_bytes(value)
    used, data = shrink(codec, raw)
    # Field by field: arguments by name take twice as long.
    payload = common_pb2.Payload()
    payload.codec = used
    payload.data = data
    if content_type:
        payload.content_type = content_type
    if used != common_pb2.CODEC_NONE:
        payload.raw_size = len(raw)
    if headers:
        check_headers(headers)
        for key, entry in headers:
            payload.header.add(key=key, value=entry)
    return payload


def decode_payload(payload: common_pb2.Payload, bytes_max: int = PAYLOAD_BYTES_MAX) -> bytes:
    """
    Return the value of a payload.

    Raises:
        MessageTooLarge: Its decompressed size is over `bytes_max`.
        BodyCorrupt: It does not decompress to what it says.
        CodecUnsupported: Its codec cannot be read here.
    """
    raw_size = payload.raw_size
    if payload.codec <= common_pb2.CODEC_NONE and raw_size == 0:
        raw_size = len(payload.data)
    return decompress(payload.codec, payload.data, raw_size, bytes_max)


def headers_of(source: common_pb2.Payload | common_pb2.Message) -> Sequence[tuple[str, bytes]]:
    """Headers of a payload or message, in order."""
    return tuple((header.key, header.value) for header in source.header)
