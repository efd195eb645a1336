"""
The bytes of a batch that its publisher signs; ``proto/SIGNING.md`` is their specification.

They are written out field by field, because a serialized protobuf message has no one form, and
begin with what they are for, so that no other signature of the same key fits them.
"""

from collections.abc import Iterable
from hashlib import sha256
from struct import Struct
from typing import Final

from tidewire.v1 import common_pb2

VERSION: Final = 1
PURPOSE_PUBLISH: Final = 1
"""A batch of events, as it is published."""
SIGNATURE_BYTES: Final = 64
NONCE_BYTES: Final = 16
DIGEST_BYTES: Final = 32
NONCE_BYTES_MAX: Final = 32
KEY_ID_BYTES_MAX: Final = 128
AUDIENCE_BYTES_MAX: Final = 128

_DOMAIN: Final = b"tidewire-signature\0"
_ORIGIN_DOMAIN: Final = b"tidewire-origin\0"
_HEAD: Final = Struct(">BBIIIIQ")
_ORIGIN: Final = Struct(">IQ")
_LENGTH: Final = Struct(">I")


def origin_digest(batch: common_pb2.Batch) -> bytes:
    """SHA-256 of what makes a publish the one it is: producer, sequence, nonce, message ids."""
    parts = [_ORIGIN_DOMAIN, _ORIGIN.pack(batch.producer_epoch, batch.producer_sequence)]
    _extend(parts, (batch.producer_id.encode(), batch.signature_nonce))
    ids = batch.message_ids
    parts.append(_LENGTH.pack(len(ids)))
    if ids:
        _extend(parts, (message_id.encode() for message_id in ids))
    return sha256(b"".join(parts)).digest()


def signed_bytes(batch: common_pb2.Batch, origin: bytes) -> bytes:
    """
    What the signature of a batch is over.

    Args:
        batch: The batch; key id, time, nonce and audience are set already.
        origin: Its origin digest; of a dead letter the one that comes with it.
    """
    head = _HEAD.pack(
        VERSION,
        PURPOSE_PUBLISH,
        # What is not said means the same as its default.
        batch.codec or common_pb2.CODEC_NONE,
        batch.form or common_pb2.BODY_FORM_PAYLOADS,
        batch.count,
        batch.raw_size,
        batch.signature_time_us,
    )
    parts = [_DOMAIN, head, sha256(batch.body).digest(), origin]
    names = (batch.signature_key_id, batch.signature_audience, batch.subject)
    _extend(parts, (name.encode() for name in names))
    return b"".join(parts)


def _extend(parts: list[bytes], fields: Iterable[bytes]) -> None:
    for field in fields:
        parts += (_LENGTH.pack(len(field)), field)
