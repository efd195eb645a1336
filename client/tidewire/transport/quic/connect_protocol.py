"""
The Connect protocol, as much of it as HTTP/3 clients get: unary calls and server streams of
protobuf. Pure functions between HTTP and calls; see https://connectrpc.com/docs/protocol.
"""

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, TypeAlias

from google.rpc import status_pb2

from tidewire.errors import InvalidArgument
from tidewire.wire.bodies import Ending, Metadata

Headers: TypeAlias = list[tuple[bytes, bytes]]

UNARY: Final = "application/proto"
STREAM: Final = "application/connect+proto"
ENVELOPE: Final = Struct(">BI")
"""Flags and length of a message in a stream."""
END_OF_STREAM: Final = 0x02
TIMEOUT_MS_MAX: Final = 9_999_999_999
_TIMEOUT = re.compile(r"[0-9]{1,10}")

CODES: Final = (
    "ok",
    "canceled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
)
"""Connect's names of the status codes, by number."""
_HTTP: Final = (200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)
_NOT_METADATA: Final = frozenset(
    {"content-type", "content-length", "accept", "accept-encoding", "te", "host", "origin"}
)


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a call."""

    method: str
    metadata: Metadata
    timeout_us: int
    streaming: bool
    """The answer is a stream of messages in envelopes."""


@dataclass(frozen=True, slots=True)
class NotACall(Exception):
    """A request that is no call of this protocol, and the HTTP status that says so."""

    status: int


def read_head(headers: Sequence[tuple[bytes, bytes]]) -> Request:
    """
    Judge the head of a request.

    Raises:
        NotACall: Another HTTP method, another content type.
        InvalidArgument: A timeout or metadata that cannot be.
    """
    fields = {key: value.decode("latin-1") for key, value in headers}
    if fields.get(b":method") != "POST":
        raise NotACall(405)
    kind = fields.get(b"content-type", "").partition(";")[0].strip().lower()
    if kind not in (UNARY, STREAM):
        raise NotACall(415)
    if fields.get(b"content-encoding", fields.get(b"connect-content-encoding", "identity")) != (
        "identity"
    ):
        raise NotACall(415)
    timeout = fields.get(b"connect-timeout-ms", "0")
    if not _TIMEOUT.fullmatch(timeout):
        raise InvalidArgument(f"connect-timeout-ms is {timeout!r}; it must be 1 to 10 digits")
    metadata: list[tuple[str, str | bytes]] = []
    for raw, value in headers:
        key = raw.decode("latin-1")
        if key.startswith((":", "connect-", "content-", "sec-")) or key in _NOT_METADATA:
            continue
        metadata.append((key, _value(key, value)))
    return Request(fields.get(b":path", ""), tuple(metadata), int(timeout) * 1_000, kind == STREAM)


def _value(key: str, value: bytes) -> str | bytes:
    if not key.endswith("-bin"):
        return value.decode("latin-1")
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f"the header {key} is not base64") from error


def read_envelope(body: bytes) -> bytes:
    """
    Return the one message of a stream's request.

    Raises:
        InvalidArgument: It is not one whole message.
    """
    if len(body) < ENVELOPE.size:
        raise InvalidArgument("the request ends within an envelope")
    flags, length = ENVELOPE.unpack_from(body)
    if flags or ENVELOPE.size + length != len(body):
        raise InvalidArgument("the request has to be one message in one envelope, not compressed")
    return body[ENVELOPE.size :]


def envelope(message: bytes, flags: int = 0) -> bytes:
    """Return a message of a stream."""
    return ENVELOPE.pack(flags, len(message)) + message


def metadata_headers(metadata: Metadata, prefix: str = "") -> Headers:
    """Return metadata as HTTP headers; bytes as base64 without padding."""
    return [
        (
            f"{prefix}{key}".encode(),
            base64.b64encode(value).rstrip(b"=") if isinstance(value, bytes) else value.encode(),
        )
        for key, value in metadata
    ]


def http_status(code: int) -> int:
    """Return the HTTP status of a unary call that ended with this code."""
    return _HTTP[code]


def error_json(ending: Ending) -> dict[str, Any]:
    """Return an error as Connect writes it: code, message, details."""
    error: dict[str, Any] = {"code": CODES[ending.code]}
    if ending.message:
        error["message"] = ending.message
    if ending.details:
        status = status_pb2.Status.FromString(ending.details)
        error["details"] = [
            {
                "type": detail.type_url.rpartition("/")[2],
                "value": base64.b64encode(detail.value).rstrip(b"=").decode(),
            }
            for detail in status.details
        ]
    return error


def end_of_stream(ending: Ending) -> bytes:
    """Return the envelope that ends a stream: the error, if there is one, and the trailers."""
    said: dict[str, Any] = {}
    if ending.code:
        said["error"] = error_json(ending)
    if ending.trailers:
        trailers: dict[str, list[str]] = {}
        for key, value in metadata_headers(ending.trailers):
            trailers.setdefault(key.decode(), []).append(value.decode())
        said["metadata"] = trailers
    return envelope(json.dumps(said, separators=(",", ":")).encode(), END_OF_STREAM)
