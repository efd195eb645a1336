"""Signing keys: read from PEM, from folders and from certificates of one's own authority."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

from tidewire.errors import FailedPrecondition, InvalidArgument
from tidewire.wire.signed import KEY_ID_BYTES_MAX

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.x509 import Certificate

KEY_FILE_BYTES_MAX: Final = 64 * 1024
KEYS_MAX: Final = 10_000
"""Keys, or certificates, of one folder."""
PUBLIC_SUFFIX: Final = ".pub"
CERTIFICATE_SUFFIX: Final = ".pem"
SPIFFE: Final = "spiffe://"

KeyT = TypeVar("KeyT")


class KeyUnusable(InvalidArgument):
    """A key or certificate cannot be used for signatures; the message says which and why."""


class SigningUnavailable(FailedPrecondition):
    """The package ``cryptography`` is not installed: ``pip install 'tidewire[certs]'``."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """
    A key that signatures are checked with.

    Attributes:
        raw: The Ed25519 public key, 32 bytes.
        begins_s: Signatures before this time are not valid; seconds since 1970.
        ends_s: Nor are those after this one.
    """

    raw: bytes
    begins_s: float = float("-inf")
    ends_s: float = float("inf")

    @classmethod
    def from_pem(cls, pem: bytes) -> "PublicKey":
        """Read a PEM ``PUBLIC KEY``. Error: KeyUnusable when it is no Ed25519 key."""
        serialization, ed25519 = _serialization(), _ed25519()
        key = _parsed(lambda: serialization.load_pem_public_key(pem), "a PEM public key")
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise KeyUnusable("a signing key must be Ed25519, this one is of another kind")
        return cls(key.public_bytes_raw())


def private_key(pem: bytes) -> "Ed25519PrivateKey":
    """Read a PEM ``PRIVATE KEY`` without a password. Error: KeyUnusable."""
    serialization, ed25519 = _serialization(), _ed25519()
    key = _parsed(
        lambda: serialization.load_pem_private_key(pem, password=None),
        "a PEM private key without a password",
    )
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise KeyUnusable(
            "a signing key must be Ed25519, this one is of another kind; `tidewire certs key` "
            "makes one"
        )
    made: Ed25519PrivateKey = key
    return made


def read_private(path: Path) -> bytes:
    """Read a private key's file. Error: KeyUnusable when it is not ours alone."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise KeyUnusable(
                f"{path} may be read by others (mode {stat.S_IMODE(found.st_mode):o}); chmod 600 "
                "it, and make a new key when somebody might have"
            )
        if found.st_uid not in (os.geteuid(), 0):
            raise KeyUnusable(f"{path} belongs to user {found.st_uid}, who can read and change it")
        return _contents(file, path)


def public_keys(folder: Path) -> dict[str, PublicKey]:
    """Read all ``KEY_ID.pub`` of a folder. Error: KeyUnusable."""
    found: dict[str, PublicKey] = {}
    for path in _files(folder, PUBLIC_SUFFIX):
        with _named(path):
            found[check_key_id(path.stem)] = PublicKey.from_pem(_read(path))
    return found


def certified_keys(folder: Path, authority: Path) -> dict[str, PublicKey]:
    """
    Read the keys of all Ed25519 certificates, ``*.pem``, of a folder, under their SPIFFE ids.

    Certificates with keys of other kinds are left out: nothing can be signed with them here.

    Raises:
        KeyUnusable: A certificate is not of this authority, is none to sign with, or two have one
            identity.
    """
    x509, ed25519 = _x509(), _ed25519()
    authorities = _parsed(
        lambda: x509.load_pem_x509_certificates(_read(authority)), f"certificates in {authority}"
    )
    found: dict[str, PublicKey] = {}
    for path in _files(folder, CERTIFICATE_SUFFIX):
        with _named(path):
            certificate = _parsed(
                lambda path=path: x509.load_pem_x509_certificate(_read(path)),  # type: ignore[misc]
                "a PEM certificate",
            )
            key = certificate.public_key()
            if not isinstance(key, ed25519.Ed25519PublicKey):
                continue
            _check_issued(certificate, authorities)
            key_id = identity_of(certificate)
            if key_id in found:
                raise KeyUnusable(f"another certificate is for {key_id} too; keep one of them")
            found[key_id] = PublicKey(
                key.public_bytes_raw(),
                certificate.not_valid_before_utc.timestamp(),
                certificate.not_valid_after_utc.timestamp(),
            )
    if not found:
        raise KeyUnusable(f"{folder} holds no certificate with an Ed25519 key")
    return found


def identity_of(certificate: "Certificate") -> str:
    """Return the SPIFFE id of a certificate that may sign. Error: KeyUnusable."""
    x509 = _x509()
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is not None and not usage.digital_signature:
        raise KeyUnusable("its key usage does not allow signatures")
    if _is_authority(certificate):
        raise KeyUnusable("it is an authority's, which signs certificates and no events")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise KeyUnusable("it has no SPIFFE id") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith(SPIFFE):
        raise KeyUnusable(f"it must have exactly one SPIFFE id, it has {uris}")
    return check_key_id(uris[0])


def check_key_id(key_id: str) -> str:
    """Return it. Error: KeyUnusable when it is empty or over 128 bytes."""
    if not 1 <= len(key_id.encode()) <= KEY_ID_BYTES_MAX:
        raise KeyUnusable(f"key id {key_id[:80]!r} must have 1 to {KEY_ID_BYTES_MAX} bytes")
    return key_id


def certificate_of(path: Path) -> "Certificate":
    """Read a certificate. Error: KeyUnusable."""
    x509 = _x509()
    certificate: Certificate = _parsed(
        lambda: x509.load_pem_x509_certificate(_read(path)), f"a certificate in {path}"
    )
    return certificate


def _check_issued(certificate: "Certificate", authorities: Iterable["Certificate"]) -> None:
    from cryptography.exceptions import InvalidSignature

    now = datetime.now(UTC)
    for authority in authorities:
        if not _is_authority(authority) or authority.not_valid_after_utc <= now:
            continue
        try:
            certificate.verify_directly_issued_by(authority)
        except (InvalidSignature, ValueError, TypeError):
            continue
        return
    raise KeyUnusable("it is not of a valid authority among those given")


def _is_authority(certificate: "Certificate") -> bool:
    x509 = _x509()
    try:
        value = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    return bool(value.ca)


def _files(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder, by name."""
    paths = sorted(path for path in folder.iterdir() if path.suffix == suffix)
    if not paths:
        raise KeyUnusable(f"{folder} holds no *{suffix}")
    if len(paths) > KEYS_MAX:
        raise KeyUnusable(f"{folder} holds {len(paths)} *{suffix}, at most {KEYS_MAX} go")
    return paths


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return _contents(file, path)


def _contents(file: BinaryIO, path: Path) -> bytes:
    data = file.read(KEY_FILE_BYTES_MAX + 1)
    if len(data) > KEY_FILE_BYTES_MAX:
        raise KeyUnusable(f"{path} is over {KEY_FILE_BYTES_MAX} bytes, which no key is")
    return data


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the path before what is wrong with it."""
    try:
        yield
    except KeyUnusable as error:
        raise KeyUnusable(f"{path}: {error.message}") from error


def _parsed(read: Callable[[], KeyT], what: str) -> KeyT:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return read()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # Never with the content, which may be a secret.
        raise KeyUnusable(f"this is not {what} ({type(error).__name__})") from None


# Imported when they are needed: the package is an extra.


def _missing(error: ModuleNotFoundError) -> SigningUnavailable:
    return SigningUnavailable(
        f"signatures need a package that is not installed ({error.name}): "
        "pip install 'tidewire[certs]'"
    )


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return ed25519


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return serialization


def _x509() -> Any:
    try:
        from cryptography import x509
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return x509


def verification() -> tuple[type[Exception], Callable[[bytes], Any]]:
    """What a bad signature raises, and what makes a verifying key of its 32 bytes."""
    ed25519 = _ed25519()
    from cryptography.exceptions import InvalidSignature

    return InvalidSignature, ed25519.Ed25519PublicKey.from_public_bytes
