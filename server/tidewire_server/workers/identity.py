"""Who called, as a worker tells the engine's process with each call it hands on."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from tidewire.transport.peer import Peer

KEY: Final = "tidewire-peer-bin"
"""Metadata of a call that was handed on; workers take it out of what clients send."""
PEERS_CACHED_MAX: Final = 4_096
CERTIFICATE: Final = "x509_pem_cert"
"""Not told: kilobytes that no service asks for; what it says is told under its own keys."""


def encode_peer(peer: Peer) -> bytes:
    """Return address and identity as they travel."""
    auth = {
        key: [value.decode("latin-1") for value in values]
        for key, values in peer.auth.items()
        if key != CERTIFICATE
    }
    told = {"name": peer.name, "key": peer.identity_key, "encrypted": peer.encrypted, "auth": auth}
    return json.dumps(told, separators=(",", ":")).encode()


class ForwardedPeer(Peer):
    """Somebody at the other end of a worker's connection."""

    __slots__ = ("_encrypted", "_key")

    def __init__(self, told: bytes) -> None:
        plain = json.loads(told)
        self.name = plain["name"]
        self._tls = None
        self._key: str | None = plain["key"]
        self._encrypted: bool = plain["encrypted"]
        self._auth = {
            key: tuple(value.encode("latin-1") for value in values)
            for key, values in plain["auth"].items()
        }

    @property
    def encrypted(self) -> bool:
        """Whether the connection to the worker is encrypted."""
        return self._encrypted

    @property
    def auth(self) -> Mapping[str, tuple[bytes, ...]]:
        """What its certificate says, but for the certificate itself."""
        return self._auth or {}

    @property
    def identity_key(self) -> str | None:
        """Key of :attr:`auth` that identifies it."""
        return self._key


@lru_cache(maxsize=PEERS_CACHED_MAX)
def decode_peer(told: bytes) -> ForwardedPeer:
    """Return what `encode_peer` told; one object for all calls of a connection."""
    return ForwardedPeer(told)
