"""Signing batches."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from tidewire.errors import InvalidArgument
from tidewire.signing import keys
from tidewire.signing.keys import KeyUnusable, PublicKey
from tidewire.v1 import common_pb2
from tidewire.wire.signed import (
    AUDIENCE_BYTES_MAX,
    NONCE_BYTES,
    SIGNATURE_BYTES,
    origin_digest,
    signed_bytes,
)

_FIELDS_BYTES: Final = 32
"""Tags, lengths and the time of the fields of a signature."""


class Signer:
    """
    Signs batches with one Ed25519 key; for any number of clients.

    Attributes:
        key_id: Name of the key, as receivers know it.
        audience: Whom it signs for; empty: for who expects no name.
        public_key: What receivers need.
        signed: Batches signed.
    """

    def __init__(
        self,
        key_id: str,
        private_key: bytes,
        *,
        audience: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            key_id: Name of the key, 1 to 128 bytes.
            private_key: The key: PEM, PKCS #8, without a password.
            audience: Whom the batches are for, such as the cluster id, at most 128 bytes; a
                receiver that has another name refuses them.
            clock: The time in seconds since 1970; a test may give its own.

        Raises:
            KeyUnusable: It is no Ed25519 key, or the key id cannot be.
            SigningUnavailable: ``cryptography`` is not installed.
        """
        if len(audience.encode()) > AUDIENCE_BYTES_MAX:
            raise InvalidArgument(f"an audience has at most {AUDIENCE_BYTES_MAX} bytes")
        self._key = keys.private_key(private_key)
        self._clock = clock
        self.key_id = keys.check_key_id(key_id)
        self.audience = audience
        self.public_key = PublicKey(self._key.public_key().public_bytes_raw())
        self.signed = 0

    @classmethod
    def from_file(cls, key_id: str, path: str | Path, *, audience: str = "") -> Self:
        """Read the key from a PEM file that nobody else may read. Errors: as of the class."""
        path = Path(path)
        return cls(key_id, keys.read_private(path), audience=audience)

    @classmethod
    def from_certificate(
        cls, certificate: str | Path, key: str | Path, *, audience: str = ""
    ) -> Self:
        """
        Sign as the identity of a certificate: its SPIFFE id is the key id.

        Args:
            certificate: PEM file with an Ed25519 key, such as a client's of mutual TLS.
            key: PEM file of its private key, that nobody else may read.
            audience: As of the class.

        Raises:
            KeyUnusable: The certificate cannot sign, or the key is not its own.
        """
        read = keys.certificate_of(Path(certificate))
        signer = cls.from_file(keys.identity_of(read), key, audience=audience)
        if read.public_key() != signer._key.public_key():
            raise KeyUnusable(f"{key} is not the key of {certificate}")
        return signer

    def __repr__(self) -> str:
        return f"<Signer {self.key_id!r} for {self.audience!r}>"

    @property
    def overhead_bytes(self) -> int:
        """Bytes a signature adds to a batch, at most."""
        names = len(self.key_id.encode()) + len(self.audience.encode())
        return SIGNATURE_BYTES + NONCE_BYTES + names + _FIELDS_BYTES

    def sign(self, batch: common_pb2.Batch) -> None:
        """Sign a batch that is complete but for its signature; one it has is replaced."""
        batch.signature_key_id = self.key_id
        batch.signature_audience = self.audience
        batch.signature_time_us = int(self._clock() * 1e6)
        # A sequence makes it unique already, and has to stay the same when it is sent again.
        batch.signature_nonce = b"" if batch.producer_sequence else os.urandom(NONCE_BYTES)
        batch.signature = self._key.sign(signed_bytes(batch, origin_digest(batch)))
        self.signed += 1
