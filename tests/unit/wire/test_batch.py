"""Batches: what is built is read back, and what cannot be is refused on its header."""

from dataclasses import dataclass

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from tidewire.errors import (
    BodyCorrupt,
    ChecksumMismatch,
    CodecUnsupported,
    InvalidArgument,
    InvalidSubject,
    MessageTooLarge,
    TidewireError,
)
from tidewire.v1 import common_pb2
from tidewire.wire.batch import (
    HEADERS_MAX,
    check_batch,
    decode,
    decode_payloads,
    encode_messages,
    encode_payloads,
)
from tidewire.wire.codec import CodecName
from tidewire.wire.payload import decode_payload, encode_payload, headers_of

LIMITS = common_pb2.Limits(payload_bytes_max=10 << 20, batch_messages_max=65_536)
CODECS: list[CodecName] = [1, 2, 3, 4]  # type: ignore[list-item]  # all of the enum


@pytest.mark.parametrize("codec", CODECS)
@given(payloads=st.lists(st.binary(max_size=400), min_size=1, max_size=30))
def test_payloads_come_back(codec: CodecName, payloads: list[bytes]) -> None:
    """A batch of payloads passes the check and is read back in order."""
    batch = encode_payloads("a.b", payloads, codec=codec)

    check_batch(batch, LIMITS)

    assert payloads == decode(batch)
    assert payloads == decode_payloads(batch)
    assert len(payloads) == batch.count


@pytest.mark.parametrize("codec", CODECS)
def test_headers_come_back(codec: CodecName) -> None:
    """Headers keep their order and may repeat."""
    headers = [("a", b"1"), ("b", b"\xff"), ("a", b"2")]
    sent: list[tuple[bytes, list[tuple[str, bytes]]]] = [(b"x" * 500, headers), (b"", [])]

    batch = encode_messages("a", sent, codec=codec)
    check_batch(batch, LIMITS)
    read = decode(batch)

    assert sent == [
        (message.payload, list(headers_of(message)))
        for message in read
        if isinstance(message, common_pb2.Message)
    ]
    assert [b"x" * 500, b""] == decode_payloads(batch)


def good() -> common_pb2.Batch:
    return encode_payloads("a.b", [b"one", b"two"])


def body(raw: bytes) -> dict[str, object]:
    return {"body": raw, "raw_size": len(raw), "crc32c": crc32c(raw)}


REFUSED: list[tuple[dict[str, object], type[TidewireError]]] = [
    ({"subject": ""}, InvalidSubject),
    ({"subject": "a.*"}, InvalidSubject),
    ({"count": 0}, InvalidArgument),
    ({"count": 6}, InvalidArgument),
    ({"count": 65_537}, MessageTooLarge),
    ({"raw_size": 11 << 20}, MessageTooLarge),
    ({"raw_size": 9}, InvalidArgument),
    (body(bytes((10 << 20) + 1)), MessageTooLarge),
    ({"crc32c": 1}, ChecksumMismatch),
    ({"body": b"changed it"}, ChecksumMismatch),
    ({"codec": 9}, CodecUnsupported),
    ({"codec": common_pb2.CODEC_ZSTD}, CodecUnsupported),
    ({"form": 3}, InvalidArgument),
    ({"selected": [common_pb2.IndexRange(last=1)]}, InvalidArgument),
    ({"message_ids": ["a"]}, InvalidArgument),
    ({"message_ids": ["a", "b" * 129]}, InvalidArgument),
    ({"message_ids": ["a", "\u00e9" * 65]}, InvalidArgument),
    ({"producer_sequence": 1}, InvalidArgument),
    ({"producer_id": "p" * 65}, InvalidArgument),
    ({"signature": bytes(65)}, InvalidArgument),
    ({"traceparent": "t" * 257}, InvalidArgument),
]


@pytest.mark.parametrize(("change", "error"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused(change: dict[str, object], error: type[TidewireError]) -> None:
    """Each field of the header is judged; the control is the same batch without the change."""
    fields = {field.name: value for field, value in good().ListFields()}
    changed = common_pb2.Batch(**{**fields, **change})
    codecs = (common_pb2.CODEC_NONE, common_pb2.CODEC_LZ4)

    check_batch(good(), LIMITS, codecs=codecs)
    with pytest.raises(error) as caught:
        check_batch(changed, LIMITS, codecs=codecs)

    assert error is type(caught.value)


@dataclass
class Figures:
    payload_bytes_max: int
    batch_messages_max: int


def test_limits_of_any_shape_do() -> None:
    """The limits are asked for two figures and nothing else."""
    limits = Figures(10, 2)

    check_batch(good(), limits)
    with pytest.raises(MessageTooLarge):
        check_batch(good(), Figures(9, 2))
    with pytest.raises(MessageTooLarge):
        check_batch(good(), Figures(10, 1))


def test_a_flipped_bit_is_found() -> None:
    """Every single flipped bit of a body is an error when it is read."""
    batch = good()

    for bit in range(8 * len(batch.body)):
        broken = bytearray(batch.body)
        broken[bit // 8] ^= 1 << bit % 8
        damaged = common_pb2.Batch()
        damaged.CopyFrom(batch)
        damaged.body = bytes(broken)
        with pytest.raises(ChecksumMismatch):
            decode(damaged)


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("entries", [1, 3, 2_000_000])
def test_a_count_that_does_not_fit_is_refused(form: int, entries: int) -> None:
    """The body must hold exactly the messages its header states; a bomb of them is found early."""
    raw = b"\x0a\x00" * entries
    batch = common_pb2.Batch(subject="a", form=form, count=2, codec=1, **body(raw))  # type: ignore[arg-type]

    with pytest.raises(BodyCorrupt):
        decode(batch)


def test_a_body_of_a_future_form_is_refused() -> None:
    """An unknown form is not guessed at; broken protobuf is an error of the body."""
    batch = good()
    batch.form = 7  # type: ignore[assignment]  # a number of the future
    with pytest.raises(BodyCorrupt):
        decode(batch)
    for form in (1, 2):
        raw = b"\x0a\x7fshort"
        broken = common_pb2.Batch(subject="a", form=form, count=1, **body(raw))  # type: ignore[arg-type]
        with pytest.raises(BodyCorrupt):
            decode(broken)


@pytest.mark.parametrize(
    "headers",
    [
        [("", b"")],
        [("k" * 257, b"")],
        [("k", bytes(64 * 1024 + 1))],
        [("k", b"")] * (HEADERS_MAX + 1),
    ],
    ids=["empty key", "long key", "long value", "many"],
)
def test_headers_have_limits(headers: list[tuple[str, bytes]]) -> None:
    """Headers beyond their limits are refused where they are made."""
    with pytest.raises(InvalidArgument):
        encode_messages("a", [(b"", headers)])
    with pytest.raises(InvalidArgument):
        encode_payload(b"", headers=headers)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "value", [b"", "text \u00e9", b"x" * 10_000], ids=["empty", "text", "long"]
)
def test_single_values_come_back(codec: CodecName, value: bytes | str) -> None:
    """A payload is its value, compressed only when that helps; text is UTF-8."""
    payload = encode_payload(value, codec=codec, headers=[("a", b"b")], content_type="text/plain")

    expected = value.encode() if isinstance(value, str) else value
    assert expected == decode_payload(payload)
    assert (("a", b"b"),) == headers_of(payload)
    with pytest.raises(MessageTooLarge):
        decode_payload(encode_payload(b"x" * 11, codec=codec), 10)


@pytest.mark.parametrize("sizes", [[0], [1, 127, 128, 129], [2047, 0, 300], [2048], [5, 70_000]])
def test_bodies_are_those_of_protobuf(sizes: list[int]) -> None:
    """Short payloads are joined by hand, to the very bytes that protobuf makes of them."""
    payloads = [bytes([size % 251]) * size for size in sizes]

    assert common_pb2.PayloadList(payload=payloads).SerializeToString() == (
        encode_payloads("a", payloads).body
    )
