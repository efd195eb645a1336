"""EventFlux messages as the server takes and makes them."""

import asyncio
import logging
import uuid
from dataclasses import dataclass
from typing import Final

from google.rpc import code_pb2

from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire.v1 import common_pb2
from tidewire.wire.batch import HEADERS_MAX
from tidewire.wire.codec import CodecName, decompress_unsized, shrink
from tidewire.wire.subject import check_subject
from tidewire_server.core import Core
from tidewire_server.services.payload import bad_field

MessageType = transport_pb2.MessageType
TransportMessage = transport_pb2.TransportMessage

ID_BYTES_MAX: Final = 64
NODE_BYTES_MAX: Final = 256
PRIORITY_DEFAULT: Final = 5
PRIORITY_MAX: Final = 9
HEADERS_TAKEN_MAX: Final = HEADERS_MAX - 5
"""The rest is for those the server adds when it publishes."""
AHEAD_MS_MAX: Final = 5 * 60 * 1000
"""A message's time may be this much ahead of the server's clock."""
INLINE_BYTES_MAX: Final = 128 * 1024
"""More than this is compressed and decompressed beside the event loop."""
MILLISECOND_NS: Final = 1_000_000
TEXT_MAX: Final = 2048
"""Characters of an error's message in a header."""
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"

CODECS: Final = {
    transport_pb2.COMPRESSION_TYPE_NONE: common_pb2.CODEC_NONE,
    transport_pb2.COMPRESSION_TYPE_LZ4: common_pb2.CODEC_LZ4,
    transport_pb2.COMPRESSION_TYPE_SNAPPY: common_pb2.CODEC_SNAPPY,
    transport_pb2.COMPRESSION_TYPE_ZSTD: common_pb2.CODEC_ZSTD,
}
COMPRESSIONS: Final = {codec: compression for compression, codec in CODECS.items()}
SUBJECTS: Final = {
    transport_pb2.MESSAGE_TYPE_EVENT: "eventflux.event",
    transport_pb2.MESSAGE_TYPE_METADATA: "eventflux.metadata",
    transport_pb2.MESSAGE_TYPE_QUERY: "eventflux.query",
}
TAKEN: Final = frozenset(MessageType.values()) - {
    transport_pb2.MESSAGE_TYPE_UNSPECIFIED,
    transport_pb2.MESSAGE_TYPE_ACKNOWLEDGMENT,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Incoming:
    """
    A message of a client, checked.

    Attributes:
        id: What identifies it; made here when the client gave none.
        is_named: Whether the client gave the id, so that a repetition can be told.
        payload: Its content, decompressed.
        codec: How the client compressed it, really.
        time_ms: Its time, milliseconds since 1970 UTC.
    """

    id: str
    is_named: bool
    kind: MessageType.ValueType
    payload: bytes
    codec: CodecName
    headers: dict[str, str]
    source_node: str
    target_node: str
    priority: int
    time_ms: int

    @property
    def subject(self) -> str:
        """
        Subject of an EVENT, METADATA or QUERY.

        Raises:
            InvalidSubject: The header names none that can be.
        """
        headers = self.headers
        named = headers.get("stream") or headers.get("subject")
        if named:
            return check_subject(named)
        subject = SUBJECTS[self.kind]
        if self.kind == transport_pb2.MESSAGE_TYPE_QUERY and self.target_node:
            subject = f"{subject}.{self.target_node}"
        return check_subject(subject)


class Reader:
    """
    Checks messages and decompresses them.

    Args:
        core: Shared parts.
        accept_mislabelled_zstd: Take payloads that say ZSTD and are no Zstandard frame as they
            are.
    """

    def __init__(self, core: Core, *, accept_mislabelled_zstd: bool = False) -> None:
        self._core = core
        self._accept_mislabelled_zstd = accept_mislabelled_zstd
        self._has_warned = False

    async def read(self, message: TransportMessage) -> Incoming:
        """
        Check a message.

        Raises:
            InvalidArgument: A field cannot be.
            BodyCorrupt: The payload is not compressed as it says.
            MessageTooLarge: The payload is too large, also when only decompressed.
            CodecUnsupported: This server does not take its codec.
        """
        kind = message.message_type
        if kind not in TAKEN:
            raise _bad_type(kind)
        headers = dict(message.headers)
        if len(headers) > HEADERS_TAKEN_MAX:
            raise bad_field("headers", f"has {len(headers)}; at most {HEADERS_TAKEN_MAX} are taken")
        _check_text("id", message.id, ID_BYTES_MAX)
        source = message.source_node or headers.get("source_node", "")
        target = message.target_node or headers.get("target_node", "")
        _check_text("source_node", source, NODE_BYTES_MAX)
        _check_text("target_node", target, NODE_BYTES_MAX)
        if not 0 <= message.priority <= PRIORITY_MAX:
            raise bad_field("priority", f"is {message.priority}; 0 (highest) to 9 (lowest) go")
        codec = self._codec(message)
        self._core.counters.add(f"eventflux_{_word(kind)}_total")
        return Incoming(
            id=message.id or uuid.uuid4().hex,
            is_named=bool(message.id),
            kind=kind,
            payload=await self._unpack(codec, message.payload),
            codec=codec,
            headers=headers,
            source_node=source,
            target_node=target,
            priority=message.priority,
            time_ms=self._time_ms(message.timestamp),
        )

    def _time_ms(self, timestamp: int) -> int:
        now_ms = self._core.wall_ns() // MILLISECOND_NS
        if not timestamp:
            return now_ms
        if not 0 < timestamp <= now_ms + AHEAD_MS_MAX:
            raise bad_field(
                "timestamp",
                f"is {timestamp}; milliseconds since 1970 are taken, at most"
                f" {AHEAD_MS_MAX // 60_000} min ahead of the server's {now_ms}",
            )
        return timestamp

    def _codec(self, message: TransportMessage) -> CodecName:
        """How the payload is compressed, really."""
        codec = CODECS.get(message.compression)
        if codec is None or codec not in self._core.codecs:
            raise errors.CodecUnsupported(
                f"compression {message.compression} is not taken here",
                fields={"compression": "not taken here"},
            )
        if codec != common_pb2.CODEC_ZSTD or message.payload.startswith(ZSTD_MAGIC):
            return codec
        if not self._accept_mislabelled_zstd:
            raise errors.BodyCorrupt(
                "compression says ZSTD, and the payload is no Zstandard frame. EventFlux's own"
                " client sends every payload like this: switch its compression off, or set"
                " eventflux.accept_mislabelled_zstd here",
                fields={"compression": "payload is no Zstandard frame"},
            )
        self._core.counters.add("eventflux_mislabelled_zstd_total")
        if not self._has_warned:
            self._has_warned = True
            log.warning("payloads that say ZSTD and are not compressed are taken as they are")
        return common_pb2.CODEC_NONE

    async def _unpack(self, codec: CodecName, payload: bytes) -> bytes:
        limit = self._core.limits.payload_bytes_max
        if len(payload) > limit:
            raise errors.MessageTooLarge(
                f"payload has {len(payload)} bytes; at most {limit} are taken",
                metadata={"size": len(payload), "limit": limit},
            )
        if codec == common_pb2.CODEC_NONE:
            return payload
        if len(payload) <= INLINE_BYTES_MAX:
            return decompress_unsized(codec, payload, limit)
        return await asyncio.to_thread(decompress_unsized, codec, payload, limit)


class Writer:
    """Makes the answers of one server."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def answer(
        self,
        asked: Incoming | TransportMessage,
        headers: dict[str, str],
        *,
        kind: MessageType.ValueType = transport_pb2.MESSAGE_TYPE_ACKNOWLEDGMENT,
        payload: bytes = b"",
        compression: transport_pb2.CompressionType.ValueType = transport_pb2.COMPRESSION_TYPE_NONE,
    ) -> TransportMessage:
        """Answer a message: its id and priority, our name and time."""
        return TransportMessage(
            id=asked.id,
            message_type=kind,
            payload=payload,
            headers=headers,
            timestamp=self._core.wall_ns() // MILLISECOND_NS,
            source_node=self._core.node_id,
            target_node=asked.source_node,
            priority=asked.priority,
            compression=compression,
        )

    async def reply(
        self,
        asked: Incoming,
        headers: dict[str, str],
        kind: MessageType.ValueType,
        value: common_pb2.Payload,
    ) -> TransportMessage:
        """
        Answer with a value, compressed only as the request was: EventFlux's own client does not
        look at `compression` and would take compressed bytes for the value.
        """
        big = max(len(value.data), value.raw_size) > INLINE_BYTES_MAX
        limit = self._core.limits.payload_bytes_max
        if big:
            codec, data = await asyncio.to_thread(_repack, value, asked.codec, limit)
        else:
            codec, data = _repack(value, asked.codec, limit)
        compression = COMPRESSIONS[codec]
        return self.answer(asked, headers, kind=kind, payload=data, compression=compression)

    def failure(self, asked: TransportMessage, error: errors.TidewireError) -> TransportMessage:
        """Answer a message of a stream that failed; the stream goes on."""
        status = error.to_status()
        headers = {
            "status": code_pb2.Code.Name(error.code),
            "reason": errors.reason_name(error.reason),
            "message": error.message[:TEXT_MAX],
        }
        return self.answer(asked, headers, payload=status.SerializeToString())


def _repack(value: common_pb2.Payload, codec: CodecName, limit: int) -> tuple[CodecName, bytes]:
    """A value in a codec where that is smaller; as it is when it has that codec already."""
    had = value.codec or common_pb2.CODEC_NONE
    if had == codec:
        return had, value.data
    data = (
        value.data if had == common_pb2.CODEC_NONE else decompress_unsized(had, value.data, limit)
    )
    return shrink(codec, data)


def _check_text(field: str, text: str, bytes_max: int) -> None:
    size = len(text.encode())
    if size > bytes_max:
        raise bad_field(field, f"has {size} bytes; at most {bytes_max} are taken")


def _bad_type(kind: int) -> errors.InvalidArgument:
    if kind == transport_pb2.MESSAGE_TYPE_ACKNOWLEDGMENT:
        return bad_field("message_type", "is ACKNOWLEDGMENT, which only the server sends")
    known = ", ".join(
        MessageType.Name(each).removeprefix("MESSAGE_TYPE_") for each in sorted(TAKEN)
    )
    return bad_field("message_type", f"is {kind}, which says nothing to do; it must be {known}")


def _word(kind: MessageType.ValueType) -> str:
    return MessageType.Name(kind).removeprefix("MESSAGE_TYPE_").lower()
