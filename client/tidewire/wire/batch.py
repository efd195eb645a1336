"""
Batches: the messages of one subject on their way, built, checked and read.

The server checks the header of a batch and the checksum over its body (`check_batch`) and never
looks inside; clients build and read bodies. A body of bare payloads costs about 120 ns a message
to build and 40 ns to read; one with headers 600 and 300 ns, which is why there are two forms.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeAlias

from crc32c import crc32c
from google.protobuf.message import DecodeError

from tidewire.errors import (
    BodyCorrupt,
    ChecksumMismatch,
    CodecUnsupported,
    InvalidArgument,
    MessageTooLarge,
)
from tidewire.v1 import common_pb2
from tidewire.wire.codec import CodecName, decompress, name_of, shrink
from tidewire.wire.payload_list import cut_one, cut_payloads, join_payloads, prefix_of
from tidewire.wire.scan import check_request_size, count_fields
from tidewire.wire.signed import (
    AUDIENCE_BYTES_MAX,
    KEY_ID_BYTES_MAX,
    NONCE_BYTES_MAX,
    SIGNATURE_BYTES,
)
from tidewire.wire.subject import check_subject

Headers: TypeAlias = Sequence[tuple[str, bytes]]
Body: TypeAlias = bytes | memoryview

BATCH_MESSAGES_MAX: Final = 65_536
PAYLOAD_BYTES_MAX: Final = 10 * 1024 * 1024
MESSAGE_ID_BYTES_MAX: Final = 128
PRODUCER_ID_BYTES_MAX: Final = 64
TRACEPARENT_BYTES_MAX: Final = 256
HEADER_KEY_BYTES_MAX: Final = 256
HEADER_VALUE_BYTES_MAX: Final = 64 * 1024
HEADERS_MAX: Final = 64
"""Headers of one message."""
SCAN_BYTES_MIN: Final = 256 * 1024
"""Bodies beyond this are counted on their bytes before protobuf builds objects of them."""
MESSAGE_BYTES_LEAST: Final = 2
"""Bytes an empty message takes in a body: its tag and its length."""

CODECS: Final[tuple[CodecName, ...]] = (
    common_pb2.CODEC_NONE,
    common_pb2.CODEC_LZ4,
    common_pb2.CODEC_SNAPPY,
    common_pb2.CODEC_ZSTD,
)


class BatchLimits(Protocol):
    """What `check_batch` needs to know of the limits of a server; ``common_pb2.Limits`` has it."""

    @property
    def payload_bytes_max(self) -> int:
        """Largest decompressed body, in bytes."""
        ...

    @property
    def batch_messages_max(self) -> int:
        """Most messages in a batch."""
        ...


def encode_payloads(
    subject: str,
    payloads: Sequence[bytes],
    *,
    codec: CodecName = common_pb2.CODEC_NONE,
    into: common_pb2.Batch | None = None,
) -> common_pb2.Batch:
    """
    Build a batch of messages without headers.

    Args:
        subject: Subject of all of them; not checked here.
        payloads: 1 to 65,536 payloads, in order.
        codec: How the body is compressed when that makes it smaller.
        into: An empty batch to fill: a batch inside of a request saves copies of the body.
    """
    raw = join_payloads(payloads)
    return seal(subject, common_pb2.BODY_FORM_PAYLOADS, len(payloads), raw, codec, into)


def encode_messages(
    subject: str,
    messages: Iterable[tuple[bytes, Headers]],
    *,
    codec: CodecName = common_pb2.CODEC_NONE,
    into: common_pb2.Batch | None = None,
) -> common_pb2.Batch:
    """
    Build a batch of messages with headers.

    Args:
        subject: Subject of all of them; not checked here.
        messages: Payload and headers of each, in order.
        codec: How the body is compressed when that makes it smaller.
        into: An empty batch to fill.

    Raises:
        InvalidArgument: A header breaks the limits.
    """
    body = common_pb2.MessageList()
    add = body.message.add
    for payload, headers in messages:
        check_headers(headers)
        message = add(payload=payload)
        for key, value in headers:
            message.header.add(key=key, value=value)
    raw = body.SerializeToString()
    return seal(subject, common_pb2.BODY_FORM_MESSAGES, len(body.message), raw, codec, into)


def seal(
    subject: str,
    form: common_pb2.BodyForm.ValueType,
    count: int,
    raw: bytes,
    codec: CodecName = common_pb2.CODEC_NONE,
    into: common_pb2.Batch | None = None,
) -> common_pb2.Batch:
    """Compress a serialized body where that pays and put it in a batch with its checksum."""
    used, body = shrink(codec, raw)
    batch = common_pb2.Batch() if into is None else into
    batch.subject = subject
    batch.codec = used
    batch.form = form
    batch.count = count
    batch.raw_size = len(raw)
    batch.crc32c = crc32c(body)
    batch.body = body
    return batch


def seal_apart(
    batch: common_pb2.Batch,
    subject: str,
    payloads: Sequence[bytes],
    codec: CodecName = common_pb2.CODEC_NONE,
) -> tuple[bytes, bytes]:
    """
    Fill a batch of messages without headers, but for its body, and return that in two pieces.

    The second is the payload itself where there is one alone that is not compressed.
    """
    if len(payloads) == 1 and codec <= common_pb2.CODEC_NONE:
        used, before, tail = common_pb2.CODEC_NONE, prefix_of(len(payloads[0])), payloads[0]
        raw_size = len(before) + len(tail)
    else:
        raw = join_payloads(payloads)
        raw_size, before = len(raw), b""
        used, tail = shrink(codec, raw)
    batch.subject = subject
    batch.codec = used
    batch.form = common_pb2.BODY_FORM_PAYLOADS
    batch.count = len(payloads)
    batch.raw_size = raw_size
    batch.crc32c = crc32c(tail, crc32c(before))
    return before, tail


def check_headers(headers: Headers) -> None:
    """Raise `InvalidArgument` when headers of a message break the limits."""
    if len(headers) > HEADERS_MAX:
        raise InvalidArgument(f"a message has {len(headers)} headers, at most {HEADERS_MAX} go")
    for key, value in headers:
        if not 1 <= len(key.encode()) <= HEADER_KEY_BYTES_MAX:
            raise InvalidArgument(f"header key {key[:80]!r} must have 1 to 256 bytes")
        if len(value) > HEADER_VALUE_BYTES_MAX:
            raise InvalidArgument(
                f"header {key!r} has {len(value)} bytes, at most {HEADER_VALUE_BYTES_MAX} go"
            )


def check_batch(
    batch: common_pb2.Batch,
    limits: BatchLimits,
    *,
    codecs: Sequence[CodecName] = CODECS,
    body: Body | None = None,
) -> None:
    """
    Check a batch as it comes from a publisher, without decompressing it.

    Args:
        batch: The batch.
        limits: Limits of the server.
        codecs: Codecs bodies may use.
        body: Its body where that is kept apart from it.

    Raises:
        InvalidSubject: The subject is not one to publish on.
        MessageTooLarge: It has too many messages or bytes.
        CodecUnsupported: Its codec is not among `codecs`.
        ChecksumMismatch: The checksum does not fit the body.
        InvalidArgument: Another field cannot be.
    """
    check_subject(batch.subject)
    count, raw_size = batch.count, batch.raw_size
    if body is None:
        body = batch.body
    if count > limits.batch_messages_max:
        raise _over("messages in a batch", count, limits.batch_messages_max)
    if raw_size > limits.payload_bytes_max or len(body) > limits.payload_bytes_max:
        raise _over("bytes in a batch", max(raw_size, len(body)), limits.payload_bytes_max)
    codec = batch.codec or common_pb2.CODEC_NONE
    if codec not in codecs:
        raise CodecUnsupported(
            f"codec {name_of(codec)} is not used here; use one of {', '.join(map(name_of, codecs))}"
        )
    if count < 1 or raw_size < MESSAGE_BYTES_LEAST * count:
        raise _invalid("count", f"{count} messages in a body of {raw_size} bytes cannot be")
    if codec == common_pb2.CODEC_NONE and len(body) != raw_size:
        raise _invalid("raw_size", f"{raw_size} is stated, the body has {len(body)} bytes")
    if crc32c(body) != batch.crc32c:
        raise ChecksumMismatch(
            f"the checksum of a body of {len(body)} bytes on {batch.subject!r} does not fit: it "
            "was changed on its way or computed differently (CRC32C over the body as sent)"
        )
    _check_rest(batch)


def _check_rest(batch: common_pb2.Batch) -> None:
    if batch.form > common_pb2.BODY_FORM_MESSAGES:
        raise _invalid("form", f"{batch.form} is unknown")
    if batch.selected:
        raise _invalid("selected", "it is the server's to set")
    if batch.message_ids:
        _check_message_ids(batch)
    producer_bytes = len(batch.producer_id.encode())
    if producer_bytes > PRODUCER_ID_BYTES_MAX or (batch.producer_sequence and not producer_bytes):
        raise _invalid("producer_id", f"it must have 1 to {PRODUCER_ID_BYTES_MAX} bytes")
    if len(batch.signature) > SIGNATURE_BYTES:
        raise _invalid("signature", f"it must have at most {SIGNATURE_BYTES} bytes")
    if len(batch.signature_key_id.encode()) > KEY_ID_BYTES_MAX:
        raise _invalid("signature_key_id", f"at most {KEY_ID_BYTES_MAX} bytes go")
    if len(batch.signature_nonce) > NONCE_BYTES_MAX:
        raise _invalid("signature_nonce", f"at most {NONCE_BYTES_MAX} bytes go")
    if len(batch.signature_audience.encode()) > AUDIENCE_BYTES_MAX:
        raise _invalid("signature_audience", f"at most {AUDIENCE_BYTES_MAX} bytes go")
    if len(batch.traceparent) > TRACEPARENT_BYTES_MAX:
        raise _invalid("traceparent", f"it must have at most {TRACEPARENT_BYTES_MAX} bytes")


def _check_message_ids(batch: common_pb2.Batch) -> None:
    if len(batch.message_ids) != batch.count:
        raise _invalid("message_ids", f"{len(batch.message_ids)} ids for {batch.count} messages")
    for message_id in batch.message_ids:
        if len(message_id) > MESSAGE_ID_BYTES_MAX or (
            not message_id.isascii() and len(message_id.encode()) > MESSAGE_ID_BYTES_MAX
        ):
            raise _invalid("message_ids", f"each must have at most {MESSAGE_ID_BYTES_MAX} bytes")


def check_body(batch: common_pb2.Batch, body: Body | None = None) -> None:
    """Raise `ChecksumMismatch` when the body is not what the publisher sealed."""
    if body is None:
        body = batch.body
    if crc32c(body) != batch.crc32c:
        raise ChecksumMismatch(
            f"the checksum of a body of {len(body)} bytes on {batch.subject!r} does not fit"
        )


def decode(
    batch: common_pb2.Batch, bytes_max: int = PAYLOAD_BYTES_MAX, body: memoryview | None = None
) -> list[bytes] | list[common_pb2.Message]:
    """
    Verify and read the whole body of a batch, whatever `selected` says.

    Args:
        batch: The batch.
        bytes_max: Largest decompressed body.
        body: Its body where that is kept apart from it.

    Returns:
        Payloads, or messages with headers, as the form of the batch says.

    Raises:
        ChecksumMismatch: The body was damaged.
        BodyCorrupt: The body is not what the header says.
        CodecUnsupported: Its codec cannot be read here.
        MessageTooLarge: Its decompressed size is over `bytes_max`.
    """
    whole: bytes | None = None
    if body is None:
        whole = batch.body
    check_body(batch, whole if body is None else body)
    if body is not None:
        alone = _read_alone(batch, body, bytes_max)
        if alone is not None:
            return [alone]
        whole = bytes(body)
    assert whole is not None
    raw = decompress(batch.codec, whole, batch.raw_size, bytes_max)
    if batch.form == common_pb2.BODY_FORM_MESSAGES:
        return _read_messages(raw, batch.count)
    if batch.form > common_pb2.BODY_FORM_MESSAGES:
        raise BodyCorrupt(f"a body of form {batch.form} cannot be read by this version")
    return _read_payloads(raw, batch.count)


def decode_payloads(batch: common_pb2.Batch, bytes_max: int = PAYLOAD_BYTES_MAX) -> list[bytes]:
    """Verify and read a body of either form, without headers. Errors: see `decode`."""
    return [
        entry if isinstance(entry, bytes) else entry.payload for entry in decode(batch, bytes_max)
    ]


def _read_alone(batch: common_pb2.Batch, body: memoryview, bytes_max: int) -> bytes | None:
    """The payload of a body that is one payload, not compressed, by one copy; else ``None``."""
    if (
        batch.count != 1
        or batch.codec > common_pb2.CODEC_NONE
        or batch.form > common_pb2.BODY_FORM_PAYLOADS
        or batch.raw_size != len(body)
        or len(body) > bytes_max
    ):
        return None
    return cut_one(body)


def _read_payloads(raw: bytes, count: int) -> list[bytes]:
    if len(raw) > SCAN_BYTES_MIN:
        _check_count(raw, count)
    try:
        payloads = cut_payloads(raw, count)
    except DecodeError as error:
        raise BodyCorrupt(f"a body of {len(raw)} bytes is not a PayloadList") from error
    if len(payloads) != count:
        raise BodyCorrupt(f"a body has {len(payloads)} messages, its header states {count}")
    return payloads


def _read_messages(raw: bytes, count: int) -> list[common_pb2.Message]:
    if len(raw) > SCAN_BYTES_MIN:
        _check_count(raw, count)
        fields_max = count * (3 * HEADERS_MAX + 2)
        check_request_size(raw, len(raw), common_pb2.MessageList.DESCRIPTOR, fields_max=fields_max)
    try:
        messages = common_pb2.MessageList.FromString(raw).message
    except DecodeError as error:
        raise BodyCorrupt(f"a body of {len(raw)} bytes is not a MessageList") from error
    if len(messages) != count:
        raise BodyCorrupt(f"a body has {len(messages)} messages, its header states {count}")
    return list(messages)


def _check_count(raw: bytes, count: int) -> None:
    try:
        found = count_fields(raw, count)
    except MessageTooLarge as error:
        raise BodyCorrupt(f"a body has more messages than its header states ({count})") from error
    if found != count:
        raise BodyCorrupt(f"a body has {found} messages, its header states {count}")


def _over(what: str, amount: int, limit: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"{amount} {what}, the limit is {limit}", metadata={"size": amount, "size_max": limit}
    )


def _invalid(field: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"batch.{field}: {why}", fields={f"batch.{field}": why})
