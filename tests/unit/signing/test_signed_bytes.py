"""The signed bytes: as the specification has them, and no two batches have the same."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from tidewire.v1 import common_pb2
from tidewire.wire.signed import origin_digest, signed_bytes

GOLDEN = sorted((Path(__file__).resolve().parents[2] / "data" / "signing").glob("*.json"))
COVERED = {
    "subject": "a.b",
    "codec": common_pb2.CODEC_ZSTD,
    "form": common_pb2.BODY_FORM_MESSAGES,
    "count": 2,
    "raw_size": 9,
    "body": b"other",
    "producer_id": "p",
    "producer_epoch": 1,
    "producer_sequence": 5,
    "signature_key_id": "k",
    "signature_time_us": 1,
    "signature_nonce": b"n" * 16,
    "signature_audience": "x",
}
NOT_COVERED = {"crc32c": 7, "traceparent": "00-t", "signature": b"s"}


def by_the_specification(batch: common_pb2.Batch) -> tuple[bytes, bytes]:
    """Origin digest and signed bytes, written from proto/SIGNING.md and nothing else."""

    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, "big")

    def text(value: str | bytes) -> bytes:
        raw = value.encode() if isinstance(value, str) else value
        return number(len(raw), 4) + raw

    origin = b"tidewire-origin\x00"
    origin += number(batch.producer_epoch, 4) + number(batch.producer_sequence, 8)
    origin += text(batch.producer_id) + text(batch.signature_nonce)
    origin += number(len(batch.message_ids), 4) + b"".join(map(text, batch.message_ids))
    digest = sha256(origin).digest()
    whole = b"tidewire-signature\x00" + bytes((1, 1))
    whole += number(batch.codec or 1, 4) + number(batch.form or 1, 4)
    whole += number(batch.count, 4) + number(batch.raw_size, 4)
    whole += number(batch.signature_time_us, 8) + sha256(batch.body).digest() + digest
    whole += text(batch.signature_key_id) + text(batch.signature_audience) + text(batch.subject)
    return digest, whole


def bytes_of(batch: common_pb2.Batch) -> bytes:
    return signed_bytes(batch, origin_digest(batch))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_vectors(path: Path) -> None:
    """Batches that were signed once verify for ever, and other languages can compare."""
    data = {name: bytes.fromhex(value) for name, value in json.loads(path.read_text()).items()}
    batch = common_pb2.Batch.FromString(data["batch"])
    origin, whole = by_the_specification(batch)

    assert (data["origin_digest"], data["signed_bytes"]) == (origin, whole)
    assert (origin, whole) == (origin_digest(batch), bytes_of(batch))
    assert data["signature"] == batch.signature
    key = Ed25519PrivateKey.from_private_bytes(data["private_key"])
    assert data["public_key"] == key.public_key().public_bytes_raw()
    assert data["signature"] == key.sign(whole)
    Ed25519PublicKey.from_public_bytes(data["public_key"]).verify(batch.signature, whole)


def test_there_are_golden_vectors() -> None:
    """The test above has something to do."""
    assert ["nonce", "sequence"] == [path.stem for path in GOLDEN]


@pytest.mark.parametrize("field", COVERED)
def test_every_field_that_counts_is_signed(field: str) -> None:
    """Changing any of them changes the signed bytes."""
    batch = common_pb2.Batch(subject="a", count=1, raw_size=1, body=b"b")
    before = bytes_of(batch)
    setattr(batch, field, COVERED[field])

    assert before != bytes_of(batch)


@pytest.mark.parametrize("field", NOT_COVERED)
def test_what_is_not_signed_may_change(field: str) -> None:
    """The control: the specification names these as not covered."""
    batch = common_pb2.Batch(subject="a", count=1, raw_size=1, body=b"b")
    before = bytes_of(batch)
    setattr(batch, field, NOT_COVERED[field])

    assert before == bytes_of(batch)


def test_no_field_is_forgotten() -> None:
    """A new field of Batch must be signed, or named as not covered."""
    fields = {field.name for field in common_pb2.Batch.DESCRIPTOR.fields}

    assert fields == {*COVERED, *NOT_COVERED, "selected", "message_ids"}


def test_what_is_not_said_is_signed_as_its_default() -> None:
    """A hop that writes out a default does not break the signature."""
    bare = common_pb2.Batch(subject="a")
    said = common_pb2.Batch(
        subject="a", codec=common_pb2.CODEC_NONE, form=common_pb2.BODY_FORM_PAYLOADS
    )

    assert bytes_of(bare) == bytes_of(said)


TEXT = st.text(max_size=6)


def batches() -> st.SearchStrategy[common_pb2.Batch]:
    return st.builds(
        common_pb2.Batch,
        subject=TEXT,
        count=st.integers(0, 2),
        body=st.binary(max_size=3),
        producer_id=TEXT,
        producer_sequence=st.integers(0, 2),
        message_ids=st.lists(TEXT, max_size=3),
        signature_key_id=TEXT,
        signature_audience=TEXT,
        signature_nonce=st.binary(max_size=3),
    )


@given(batches(), batches())
def test_different_batches_have_different_bytes(
    one: common_pb2.Batch, other: common_pb2.Batch
) -> None:
    """No text runs into the next: lengths are part of what is signed."""
    assert (one == other) == (bytes_of(one) == bytes_of(other))


@given(batches())
def test_the_specification_describes_every_batch(batch: common_pb2.Batch) -> None:
    """The code and its specification agree on any batch."""
    assert by_the_specification(batch) == (origin_digest(batch), bytes_of(batch))
