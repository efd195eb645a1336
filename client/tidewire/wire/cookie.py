"""Cookies of wires of datagrams: proof that a client receives at the address it sends from."""

import hmac
import secrets
from hashlib import blake2b, sha256
from struct import Struct
from typing import Final

from tidewire.wire.datagram import COOKIE_BYTES, PROOF_BYTES

_TIME: Final = Struct(">Q")
_MAC_BYTES: Final = COOKIE_BYTES - _TIME.size


class Cookies:
    """
    Makes and checks cookies; keeps nothing for each address.

    The key lives as long as this object: cookies of a server before are asked for again.
    """

    def __init__(self, life_s: float, key: bytes | None = None) -> None:
        self._life_us = int(life_s * 1e6)
        self._oldest_us = 0
        self._key = key or secrets.token_bytes(32)

    def make(self, address: bytes, now_s: float) -> bytes:
        """Return the cookie of an address, of 24 bytes."""
        time = _TIME.pack(int(now_s * 1e6))
        return time + self._mac(time, address)

    def check(self, cookie: bytes, address: bytes, now_s: float) -> bool:
        """Whether it was made for this address and not long ago."""
        if len(cookie) != COOKIE_BYTES:
            return False
        time, mac = cookie[: _TIME.size], cookie[_TIME.size :]
        if not hmac.compare_digest(mac, self._mac(time, address)):
            return False
        made_us = int.from_bytes(time, "big")
        return made_us > self._oldest_us and 0 <= int(now_s * 1e6) - made_us <= self._life_us

    def void(self, until_s: float) -> None:
        """Take no more what was made up to a time: its owners are asked for a new one."""
        self._oldest_us = max(self._oldest_us, int(until_s * 1e6))

    def _mac(self, time: bytes, address: bytes) -> bytes:
        return blake2b(time + address, key=self._key, digest_size=_MAC_BYTES).digest()


class Commitment:
    """What a client commits to, and proves when its address changes."""

    __slots__ = ("proof", "value")

    def __init__(self) -> None:
        self.proof = secrets.token_bytes(PROOF_BYTES)
        self.value = sha256(self.proof).digest()


def proves(proof: bytes, commitment: bytes) -> bool:
    """Whether this is what was committed to."""
    return hmac.compare_digest(sha256(proof).digest(), commitment)
