"""
What proves something across connections: addresses by tokens, sessions by tickets, ends by resets.

Keys of tokens and tickets live in the process and are shared with nobody: after a restart clients
prove their address and show their certificate again. The key of resets comes from the server's
private key, so that a server that was restarted can tell clients of its former self that their
connections are gone.
"""

import hmac
import ipaddress
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from typing import Any, Final, Generic, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tidewire.transport.quic.backend import CONNECTION_ID_BYTES, Address

RETRY_LIFETIME_S: Final = 30.0
"""A token of a Retry comes back at once or not at all."""
TOKEN_LIFETIME_S: Final = 24 * 3600.0
"""How long an address is taken as proved for the client's next connection."""
TICKET_LIFETIME_S: Final = 24 * 3600.0
"""How long after a client showed its certificate its sessions may be resumed."""
TICKETS_MAX: Final = 4_096
"""Sessions a listener remembers; the oldest are forgotten."""
MEMORIES_MAX: Final = 256
"""Servers a client process remembers."""
RESET_TOKEN_BYTES: Final = 16
RESET_LEAST_BYTES: Final = 21
"""A shorter datagram could not be told from a reset."""

_NONCE_BYTES: Final = 12
_STAMP: Final = Struct(">BQ")
_RETRY: Final = 0
_LATER: Final = 1

T = TypeVar("T")


class TokenRefused(Exception):
    """A token of this process that does not fit its use."""


def _host(address: Address) -> bytes:
    host = str(address[0]).partition("%")[0]
    return ipaddress.ip_address(host).packed


class AddressTokens:
    """Makes and checks tokens that prove an address, bound to it by authenticated encryption."""

    def __init__(self) -> None:
        self._aead = AESGCM(AESGCM.generate_key(bit_length=128))

    def _seal(self, kind: int, bound: bytes, content: bytes, now_s: float) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        plain = _STAMP.pack(kind, int(now_s * 1000)) + content
        return nonce + self._aead.encrypt(nonce, plain, bound)

    def for_retry(self, address: Address, original: bytes, chosen: bytes, now_s: float) -> bytes:
        """
        Return the token of a Retry.

        Args:
            address: Where it is sent, with its port.
            original: Connection id the client had chosen.
            chosen: Connection id the Retry tells it to use.
            now_s: The time.
        """
        content = bytes([len(original)]) + original + chosen
        return self._seal(_RETRY, b"%s:%d" % (_host(address), address[1]), content, now_s)

    def for_later(self, address: Address, now_s: float) -> bytes:
        """Return a token for the next connection from this host, from any port."""
        return self._seal(_LATER, _host(address), b"", now_s)

    def open(
        self, token: bytes, address: Address, used: bytes, now_s: float
    ) -> tuple[bytes, bytes | None] | None:
        """
        Check a token.

        Returns:
            The original connection id and, after a Retry, the one it chose; ``None`` when the token
            is not of this process or too old, and the address must be proved anew.

        Raises:
            TokenRefused: It is of a Retry, but for another connection id or too old.
        """
        nonce, sealed = token[:_NONCE_BYTES], token[_NONCE_BYTES:]
        for bound in (b"%s:%d" % (_host(address), address[1]), _host(address)):
            try:
                plain = self._aead.decrypt(nonce, sealed, bound)
            except (InvalidTag, ValueError):
                continue
            kind, stamp_ms = _STAMP.unpack_from(plain)
            age_s = now_s - stamp_ms / 1000
            content = plain[_STAMP.size :]
            if kind == _LATER:
                return (used, None) if age_s <= TOKEN_LIFETIME_S else None
            cut = 1 + content[0]
            if content[cut:] != used or age_s > RETRY_LIFETIME_S:
                raise TokenRefused("the token of the Retry does not fit")
            return content[1:cut], used
        return None


class ResetKey:
    """
    Makes the tokens of stateless resets: 16 bytes that only a server with this key can know.

    Args:
        secret: The server's private key, as its file has it.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"tidewire quic stateless reset", "sha256")

    def token(self, identifier: bytes) -> bytes:
        """Return the token of a connection id."""
        return hmac.digest(self._key, identifier, "sha256")[:RESET_TOKEN_BYTES]

    def answer(self, data: bytes) -> bytes | None:
        """Return the reset for a datagram of no known connection, shorter than it; or nothing."""
        size = min(len(data) - 1, 2 * RESET_LEAST_BYTES)
        if size < RESET_LEAST_BYTES:
            return None
        identifier = data[1 : 1 + CONNECTION_ID_BYTES]
        noise = bytearray(os.urandom(size - RESET_TOKEN_BYTES))
        noise[0] = noise[0] & 0x3F | 0x40
        return bytes(noise) + self.token(identifier)


class Bounded(Generic[T]):
    """A mapping that forgets its oldest entries."""

    def __init__(self, entries_max: int) -> None:
        self._entries: OrderedDict[Any, T] = OrderedDict()
        self._entries_max = entries_max

    def __len__(self) -> int:
        """Entries now."""
        return len(self._entries)

    def put(self, key: Any, value: T) -> None:
        """Remember."""
        self._entries.pop(key, None)
        self._entries[key] = value
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)

    def get(self, key: Any) -> T | None:
        """Return what is remembered."""
        return self._entries.get(key)

    def take(self, key: Any) -> T | None:
        """Return what is remembered and forget it."""
        return self._entries.pop(key, None)


@dataclass(frozen=True, slots=True)
class Session:
    """
    A session of a server that may be resumed, once.

    Attributes:
        ticket: Opaque, of the library.
        chain: The client's certificates; verified again when the session is resumed.
        shown_s: When the client proved that it has the key of them.
    """

    ticket: Any
    chain: tuple[x509.Certificate, ...]
    shown_s: float


@dataclass(slots=True)
class Memory:
    """What a client remembers of a server: see ``SessionMemory``."""

    ticket: Any = None
    address_token: bytes = b""


_MEMORIES: Final[Bounded[Memory]] = Bounded(MEMORIES_MAX)


def memory_of(server: Sequence[object], secrets: Sequence[bytes | None]) -> Memory:
    """
    Return what this process remembers of a server.

    Args:
        server: Host, port and name.
        secrets: Certificates and key the client uses: with others it is another client.
    """
    mark = sha256()
    for secret in secrets:
        mark.update(b"%d:" % (-1 if secret is None else len(secret)) + (secret or b""))
    key = (*server, mark.digest())
    memory = _MEMORIES.get(key)
    if memory is None:
        memory = Memory()
        _MEMORIES.put(key, memory)
    return memory
