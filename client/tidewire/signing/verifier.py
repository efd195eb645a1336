"""Verifying batches."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from tidewire.errors import (
    InvalidArgument,
    SignatureInvalid,
    SignatureMissing,
    TidewireError,
    UnknownKey,
    WrongRecipient,
    reason_name,
)
from tidewire.signing import keys as keys_
from tidewire.signing.keys import PublicKey
from tidewire.signing.replay import Location, ReplayMemory
from tidewire.v1 import common_pb2
from tidewire.wire.signed import (
    DIGEST_BYTES,
    NONCE_BYTES,
    NONCE_BYTES_MAX,
    SIGNATURE_BYTES,
    origin_digest,
    signed_bytes,
)

log = logging.getLogger("tidewire.signing")

REPLAY_WINDOW_S: Final = 30.0
REMEMBERED_MAX: Final = 65_536
"""Batches one reader remembers."""
LOG_PAUSE_S: Final = 1.0
"""Refusals are logged once in this time: who may publish must not fill the log of who reads."""
READERS_MAX: Final = 1_024
"""Readers whose memory is kept for who comes after them."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    A batch that was refused.

    Attributes:
        error: Why: SignatureMissing, SignatureInvalid, UnknownKey, Replayed or WrongRecipient.
        subject: Subject it came on.
        key_id: Key it says it is signed with.
        stream: Stream it is from; empty for live events.
        sequence: Its first sequence there; 0 for live events.
        messages: How many messages it held for this reader.
    """

    error: TidewireError
    subject: str
    key_id: str
    stream: str
    sequence: int
    messages: int


class Verifier:
    """
    Checks signatures of batches against keys that were given; a key in a message is never trusted.

    One may serve any number of clients of one cluster, in one event loop.

    Attributes:
        verified: Batches whose signature was good.
        refused: Messages that were refused, by reason, such as ``{"REPLAYED": 3}``.
        forgotten: Batches that had to be forgotten before their window was over.
    """

    def __init__(
        self,
        keys: Mapping[str, bytes | PublicKey],
        *,
        audience: str | Collection[str] = "",
        replay_window_s: float = REPLAY_WINDOW_S,
        require: bool = True,
        remembered_max: int = REMEMBERED_MAX,
        on_refused: Callable[[Refusal], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            keys: Public keys by key id: PEM, or `PublicKey`.
            audience: Name or names by which signers know this receiver; a batch for any other name,
                or for none when there is one here, is refused.
            replay_window_s: Most seconds between signing and publishing, either way; clocks may
                differ by so much.
            require: False: batches without any signature pass, and have no ``signed_by``.
            remembered_max: Batches each reader remembers; about 280 bytes each.
            on_refused: Called with each refusal, in the event loop; must not raise or block.
            clock: The time in seconds since 1970; a test may give its own.

        Raises:
            KeyUnusable: A key is no Ed25519 key.
            SigningUnavailable: ``cryptography`` is not installed.
        """
        if not replay_window_s > 0.0 or remembered_max < 1:
            raise InvalidArgument(
                f"replay_window_s {replay_window_s} and remembered_max {remembered_max} must be "
                "positive"
            )
        self.audiences = frozenset((audience,) if isinstance(audience, str) else audience)
        self.verified = 0
        self.refused: dict[str, int] = {}
        self._window_s = replay_window_s
        self._require = require
        self._remembered_max = remembered_max
        self._on_refused = on_refused
        self._clock = clock
        self._invalid, self._load = keys_.verification()
        self._keys: dict[str, tuple[PublicKey, Any]] = {}
        self._memories: OrderedDict[Hashable, ReplayMemory] = OrderedDict()
        self._forgotten = 0
        self._quiet_until_s = 0.0
        self._untold = 0
        self.replace_keys(keys)

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> Self:
        """Trust the keys ``KEY_ID.pub`` (PEM) of a folder; for options see the class."""
        return cls(keys_.public_keys(Path(folder)), **options)

    @classmethod
    def from_certificates(
        cls, folder: str | Path, *, authority: str | Path, **options: Any
    ) -> Self:
        """
        Trust the Ed25519 keys of certificates, under their SPIFFE ids.

        Args:
            folder: Holds the certificates, ``*.pem``, that were published out of band.
            authority: PEM file of the authorities that may have issued them.
            options: See the class.

        Raises:
            KeyUnusable: A certificate is of another authority, or none to sign with.
        """
        return cls(keys_.certified_keys(Path(folder), Path(authority)), **options)

    def __repr__(self) -> str:
        return f"<Verifier of {len(self._keys)} keys>"

    def replace_keys(self, keys: Mapping[str, bytes | PublicKey]) -> None:
        """Trust these keys from now on, and no others; all of them, or none when one is bad."""
        made: dict[str, tuple[PublicKey, Any]] = {}
        for key_id, given in keys.items():
            key = PublicKey.from_pem(given) if isinstance(given, bytes) else given
            made[keys_.check_key_id(key_id)] = (key, self._load(key.raw))
        self._keys = made

    @property
    def forgotten(self) -> int:
        """Batches forgotten early: see `ReplayMemory`."""
        return self._forgotten + sum(memory.forgotten for memory in self._memories.values())

    def memory(self, reader: Hashable | None = None) -> ReplayMemory:
        """The memory of a reader, shared by all of this name; a new one without a name."""
        memory = None if reader is None else self._memories.get(reader)
        if memory is None:
            memory = ReplayMemory(self._window_s, self._remembered_max, self._clock())
            if reader is None:
                return memory
            self._memories[reader] = memory
            if len(self._memories) > READERS_MAX:
                self._forgotten += self._memories.popitem(last=False)[1].forgotten
        self._memories.move_to_end(reader)
        return memory

    def check(
        self,
        batch: common_pb2.Batch,
        memory: ReplayMemory | None = None,
        *,
        location: Location | None = None,
        taken_s: float | None = None,
        origin: bytes | None = None,
    ) -> str:
        """
        Verify a batch, before anything of its body is read.

        Args:
            batch: The batch as it was received.
            memory: Of its reader; ``None``: neither time nor replay is looked at.
            location: Where it is stored; ``None`` for live events.
            taken_s: When the server took it, in seconds since 1970; by default now.
            origin: Origin digest that came with a dead letter.

        Returns:
            The key id; empty for a batch without a signature where none is required.

        Raises:
            SignatureMissing, SignatureInvalid, UnknownKey, WrongRecipient, Replayed: It is not to
                be used.
        """
        if not batch.signature and not batch.signature_key_id and not batch.signature_time_us:
            if self._require:
                raise SignatureMissing("it has no signature, and this client requires one")
            return ""
        key_id, signed_s = batch.signature_key_id, batch.signature_time_us / 1e6
        origin = self._check_signature(batch, origin)
        key = self._keys[key_id][0]
        if not key.begins_s <= signed_s <= key.ends_s:
            raise SignatureInvalid(f"the certificate of {key_id!r} was not valid when it signed")
        if batch.signature_audience not in self.audiences:
            names = ", ".join(map(repr, sorted(self.audiences)))
            raise WrongRecipient(f"it is for {batch.signature_audience!r}, this is {names}")
        if memory is not None:
            memory.admit(
                key_id.encode() + origin,
                location,
                signed_s=signed_s,
                taken_s=self._taken_s(taken_s),
            )
        self.verified += 1
        return key_id

    def tell(self, refusal: Refusal) -> None:
        """Count a refusal and tell of it."""
        reason = reason_name(refusal.error.reason)
        self.refused[reason] = self.refused.get(reason, 0) + refusal.messages
        self._log(refusal, reason)
        if self._on_refused is None:
            return
        try:
            self._on_refused(refusal)
        except Exception:
            log.exception("a listener failed on %r", refusal)

    def _log(self, refusal: Refusal, reason: str) -> None:
        now_s = time.monotonic()
        if now_s < self._quiet_until_s:
            self._untold += 1
            return
        log.warning(
            "%d messages on %r refused (%s, key %r): %s; %d refusals before it not logged",
            refusal.messages,
            refusal.subject,
            reason,
            refusal.key_id[:80],
            refusal.error.message,
            self._untold,
        )
        self._quiet_until_s, self._untold = now_s + LOG_PAUSE_S, 0

    def _check_signature(self, batch: common_pb2.Batch, origin: bytes | None) -> bytes:
        """Return the origin digest of a batch whose signature is good."""
        entry = self._keys.get(batch.signature_key_id)
        if entry is None:
            raise UnknownKey(f"it is signed with {batch.signature_key_id[:80]!r}, not known here")
        if len(batch.signature) != SIGNATURE_BYTES:
            raise SignatureInvalid(f"a signature has {SIGNATURE_BYTES} bytes")
        if origin is None:
            if not batch.producer_sequence and not (
                NONCE_BYTES <= len(batch.signature_nonce) <= NONCE_BYTES_MAX
            ):
                raise SignatureInvalid("neither a sequence nor a nonce makes it unique")
            origin = origin_digest(batch)
        elif len(origin) != DIGEST_BYTES:
            raise SignatureInvalid("its dead letter does not say its origin")
        try:
            entry[1].verify(batch.signature, signed_bytes(batch, origin))
        except self._invalid:
            raise SignatureInvalid(
                f"the signature of {batch.signature_key_id!r} does not fit: the batch was changed "
                "after it was signed, or signed by somebody else"
            ) from None
        return origin

    def _taken_s(self, said_s: float | None) -> float:
        """When the server took a batch; not later than now, whatever it says."""
        now_s = self._clock()
        return now_s if said_s is None else min(said_s, now_s)
