"""
What the server checks of a `Payload`: its figures, never its content.

A value stays compressed from the writer to the reader; the server judges only what it says of
itself.
"""

from typing import Final

from tidewire import errors
from tidewire.v1 import common_pb2
from tidewire_server.core import Core

HEADER_KEY_BYTES_MAX: Final = 256
HEADER_VALUE_BYTES_MAX: Final = 64 * 1024
CONTENT_TYPE_BYTES_MAX: Final = 128

_UNCOMPRESSED: Final = (common_pb2.CODEC_UNSPECIFIED, common_pb2.CODEC_NONE)


def check_payload(payload: common_pb2.Payload, field: str, core: Core) -> None:
    """
    Refuse a payload whose figures are over the limits, or do not fit each other.

    Args:
        payload: What came.
        field: Path of the payload in the request, for BadRequest.
        core: Has the limits and the codecs.

    Raises:
        MessageTooLarge: It is, or decompresses to, more than ``payload_bytes_max``, or its headers
            are too large.
        CodecUnsupported: The codec is not one of ``core.codecs``.
        InvalidArgument: A figure does not fit; the field says which.
    """
    size = len(payload.data)
    if (
        payload.codec in _UNCOMPRESSED
        and (not payload.codec or payload.codec in core.codecs)
        and payload.raw_size in (0, size)
        and size <= core.limits.payload_bytes_max
        and not payload.header
        and not payload.content_type
    ):
        return  # plain bytes, the usual case: nothing is said that could be wrong
    _check_codec(payload, field, core)
    _check_sizes(payload, field, core.limits.payload_bytes_max)
    _check_headers(payload, field, core.limits.overhead_bytes_max)


def check_size(size: int, field: str, bytes_max: int) -> None:
    """
    Refuse bytes over the limit of a payload.

    Raises:
        MessageTooLarge: They are.
    """
    if size > bytes_max:
        raise errors.MessageTooLarge(
            f"{field} is {size} bytes; at most {bytes_max} are taken, after decompression too",
            metadata={"size": size, "limit": bytes_max},
        )


def _check_codec(payload: common_pb2.Payload, field: str, core: Core) -> None:
    if payload.codec in core.codecs or payload.codec == common_pb2.CODEC_UNSPECIFIED:
        return
    known = ", ".join(common_pb2.Codec.Name(codec) for codec in core.codecs)
    raise errors.CodecUnsupported(
        f"{field} has codec {payload.codec}; this server takes {known}",
        fields={f"{field}.codec": f"one of {known}"},
    )


def _check_sizes(payload: common_pb2.Payload, field: str, bytes_max: int) -> None:
    check_size(max(len(payload.data), payload.raw_size), field, bytes_max)
    compressed = payload.codec not in _UNCOMPRESSED
    if compressed and not payload.raw_size:
        raise bad_field(f"{field}.raw_size", "is needed with a codec: the size after decompression")
    if not compressed and payload.raw_size not in (0, len(payload.data)):
        raise bad_field(
            f"{field}.raw_size",
            f"is {payload.raw_size} without a codec, but data has {len(payload.data)} bytes",
        )


def _check_headers(payload: common_pb2.Payload, field: str, bytes_max: int) -> None:
    if len(payload.content_type.encode()) > CONTENT_TYPE_BYTES_MAX:
        raise bad_field(f"{field}.content_type", f"is over {CONTENT_TYPE_BYTES_MAX} bytes")
    total = 0
    for index, header in enumerate(payload.header):
        key_bytes = len(header.key.encode())
        if not 1 <= key_bytes <= HEADER_KEY_BYTES_MAX:
            raise bad_field(
                f"{field}.header[{index}].key",
                f"has {key_bytes} bytes; 1 to {HEADER_KEY_BYTES_MAX} are taken",
            )
        if len(header.value) > HEADER_VALUE_BYTES_MAX:
            raise bad_field(
                f"{field}.header[{index}].value",
                f"has {len(header.value)} bytes; at most {HEADER_VALUE_BYTES_MAX} are taken",
            )
        total += key_bytes + len(header.value)
    if total > bytes_max:
        raise errors.MessageTooLarge(
            f"the headers of {field} have {total} bytes; at most {bytes_max} are taken",
            metadata={"size": total, "limit": bytes_max},
        )


def bad_field(field: str, what: str) -> errors.InvalidArgument:
    """Make the error for one field that has a value that cannot be."""
    return errors.InvalidArgument(f"{field} {what}", fields={field: what})
