"""
Certificates for development and small installations: one authority, and leaves that it signs.

Keys are P-256, files PEM, private ones readable by their owner only. Every leaf has exactly one
SPIFFE id, ``spiffe://DOMAIN/server/NAME`` or ``.../client/NAME``, which is the identity that
tidewire authorizes; servers have the names and addresses they are reached by as well. Nothing is
overwritten unless that is asked for. Needs the package ``cryptography`` (``tidewire[certs]``).
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tidewire.errors import InvalidArgument

LEAF_DAYS: Final = 90
AUTHORITY_DAYS: Final = 365
DAYS_MAX: Final = 3_650
TRUST_DOMAIN: Final = "tidewire.local"
CLOCK_SKEW: Final = timedelta(minutes=5)
"""Certificates begin this long ago, so that a clock that is late a little accepts them."""
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
HOST: Final = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
AUTHORITY: Final = "ca"
SERVER: Final = "server"

LeafKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class CertificateError(InvalidArgument):
    """The certificates cannot be made as asked; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """
    A certificate to issue, stored as ``NAME.pem`` and ``NAME.key``.

    Attributes:
        name: Name of the files and last part of the SPIFFE id; a subject token.
        role: "server" or "client": what the certificate may be used for.
        hosts: DNS names and IP addresses a server is reached by; none for a client.

    """

    name: str
    role: str
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """
    What became of one certificate.

    Attributes:
        name: Name of its files, without the suffix.
        path: The certificate's file.
        spiffe_id: Its identity; empty for the authority.
        expires: Its last moment, UTC.
        is_new: False: it was there and was kept.

    """

    name: str
    path: Path
    spiffe_id: str
    expires: datetime
    is_new: bool


def init(
    folder: Path,
    leaves: Iterable[Leaf],
    *,
    days: int = LEAF_DAYS,
    trust_domain: str = TRUST_DOMAIN,
    force: bool = False,
) -> list[Made]:
    """
    Make an authority and leaves in a folder; what is there and still good is kept.

    Args:
        folder: Where ``ca.pem``, ``ca.key`` and the leaves go; made when it is not there.
        leaves: What to issue.
        days: How long leaves last, 1 to 3,650; the authority lasts at least 365 days.
        trust_domain: Domain of the SPIFFE ids.
        force: True: everything is made anew, the authority too.

    Returns:
        The authority, then the leaves in their order.

    Raises:
        CertificateError: A name or host that cannot be in a certificate, or files in the folder
            that do not fit together: expired, of another authority, for other hosts, or a key
            without its certificate.

    """
    wanted = [_checked(leaf) for leaf in leaves]
    if not 1 <= days <= DAYS_MAX:
        raise CertificateError(f"{days} days is no lifetime; choose 1 to {DAYS_MAX}")
    if not DOMAIN.fullmatch(trust_domain):
        raise CertificateError(f"{trust_domain!r} is no trust domain, such as {TRUST_DOMAIN}")
    names = [leaf.name for leaf in wanted]
    if len(set(names)) < len(names) or AUTHORITY in names:
        raise CertificateError(f"each name may be there once and not be {AUTHORITY!r}: {names}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority, key, made = _authority(folder, max(days, AUTHORITY_DAYS), force)
    outcome = [made]
    for leaf in wanted:
        identity = f"spiffe://{trust_domain}/{leaf.role}/{leaf.name}"
        if not force and (kept := _kept(folder, leaf.name)):
            _require_fit(kept, leaf, identity, authority, folder)
            outcome.append(_made(folder, leaf.name, kept, identity, is_new=False))
            continue
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign_leaf(leaf, identity, leaf_key, authority, key, days)
        _store(folder, leaf.name, certificate, leaf_key)
        outcome.append(_made(folder, leaf.name, certificate, identity, is_new=True))
    return outcome


def signing_key(folder: Path, name: str) -> Path:
    """
    Make a key that signs events: ``NAME.key``, and ``NAME.pub`` for who verifies them.

    Returns:
        Path of the public key.

    Raises:
        CertificateError: The name cannot be, or one of the files is there: a key that receivers
            trust is never replaced by accident.

    """
    path = _free(folder, name, "pub")
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(folder / f"{name}.key", _secret(key), 0o600)
    _write(path, public, 0o644)
    return path


def signing_certificate(
    folder: Path, name: str, *, days: int = LEAF_DAYS, trust_domain: str = TRUST_DOMAIN
) -> Made:
    """
    Make a client's certificate with a key that signs events too: ``NAME.pem`` and ``NAME.key``.

    Its SPIFFE id is the key id, and who it is in mutual TLS.

    Args:
        folder: Holds the authority, ``ca.pem`` and ``ca.key``.
        name: Name of the files and last part of the SPIFFE id.
        days: How long it lasts; no longer than the authority.
        trust_domain: Domain of the SPIFFE id.

    Raises:
        CertificateError: There is no authority, or one of the files is there.

    """
    leaf = _checked(Leaf(name, "client"))
    _free(folder, name, "pem")
    if not _kept(folder, AUTHORITY):
        raise CertificateError(f"{folder} holds no authority; `tidewire certs init` makes one")
    authority, authority_key, _ = _authority(folder, AUTHORITY_DAYS, force=False)
    identity = f"spiffe://{trust_domain}/{leaf.role}/{leaf.name}"
    key = ed25519.Ed25519PrivateKey.generate()
    certificate = _sign_leaf(leaf, identity, key, authority, authority_key, days)
    _store(folder, name, certificate, key)
    return _made(folder, name, certificate, identity, is_new=True)


def _free(folder: Path, name: str, suffix: str) -> Path:
    """Return the path of a file to make, when neither it nor its key is there."""
    if not NAME.fullmatch(name) or name == AUTHORITY:
        raise CertificateError(f"{name!r} is no name for a key: 1 to 64 of A-Z a-z 0-9 _ -")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{name}.{suffix}"
    for there in (path, folder / f"{name}.key"):
        if there.exists():
            raise CertificateError(f"{there} is there; choose another name, or move it away")
    return path


def _checked(leaf: Leaf) -> Leaf:
    if not NAME.fullmatch(leaf.name):
        raise CertificateError(
            f"{leaf.name!r} is no name for a certificate: 1 to 64 of A-Z a-z 0-9 _ -"
        )
    if leaf.role == "server" and not leaf.hosts:
        raise CertificateError(f"server {leaf.name!r} needs at least one host it is reached by")
    for host in leaf.hosts:
        if not _address(host) and not HOST.fullmatch(host):
            raise CertificateError(f"{host!r} is neither a DNS name nor an IP address")
    return leaf


def _authority(
    folder: Path, days: int, force: bool
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, Made]:
    if not force and (kept := _kept(folder, AUTHORITY)):
        stored = serialization.load_pem_private_key(
            (folder / f"{AUTHORITY}.key").read_bytes(), password=None
        )
        if not isinstance(stored, ec.EllipticCurvePrivateKey):
            raise CertificateError(f"{folder / AUTHORITY}.key is not of this kind; use --force")
        _require_current(kept, folder / f"{AUTHORITY}.pem")
        return kept, stored, _made(folder, AUTHORITY, kept, "", is_new=False)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tidewire development authority")])
    certificate = (
        _builder(name, name, key, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _store(folder, AUTHORITY, certificate, key)
    return certificate, key, _made(folder, AUTHORITY, certificate, "", is_new=True)


def _sign_leaf(
    leaf: Leaf,
    identity: str,
    key: LeafKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    is_server = leaf.role == "server"
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if is_server else ExtendedKeyUsageOID.CLIENT_AUTH
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, leaf.name)])
    return (
        _builder(subject, authority.subject, key, authority_key, days, authority)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(_alternative_names(leaf, identity), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: LeafKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: int,
    authority: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    expires = now + timedelta(days=days)
    if authority is not None:
        expires = min(expires, authority.not_valid_after_utc)
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(expires)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer_id, critical=False)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    """What the key is for: signing certificates, or handshakes."""
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(leaf: Leaf, identity: str) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity)]
    for host in leaf.hosts:
        address = _address(host)
        names.append(x509.IPAddress(ip_address(host)) if address else x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _address(text: str) -> str:
    """The address in its usual form; empty when it is none."""
    try:
        return str(ip_address(text))
    except ValueError:
        return ""


def _kept(folder: Path, name: str) -> x509.Certificate | None:
    """The certificate that is there; ``None`` when neither it nor its key is."""
    path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    if not path.exists() and not key_path.exists():
        return None
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise CertificateError(
            f"{path} and {key_path} are not a certificate with its key ({type(error).__name__}); "
            "move them away, or use --force to replace everything"
        ) from error
    if key.public_key() != certificate.public_key():
        raise CertificateError(
            f"{key_path} is not the key of {path}; move both away, or use --force"
        )
    return certificate


def _require_current(certificate: x509.Certificate, path: Path) -> None:
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise CertificateError(
            f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; use --force to make "
            "all certificates anew"
        )


def _require_fit(
    kept: x509.Certificate, leaf: Leaf, identity: str, authority: x509.Certificate, folder: Path
) -> None:
    """Keep a leaf only when it is what would be made."""
    path = folder / f"{leaf.name}.pem"
    _require_current(kept, path)
    try:
        kept.verify_directly_issued_by(authority)
        names = kept.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception as error:  # InvalidSignature, ValueError, ExtensionNotFound: all mean no
        raise CertificateError(
            f"{path} is not of the authority in {folder}; move it away, or use --force"
        ) from error
    if set(names) != set(_alternative_names(leaf, identity)):
        raise CertificateError(
            f"{path} is for other names than {', '.join((identity, *leaf.hosts))}; move it and its "
            "key away, or use --force"
        )


def _store(folder: Path, name: str, certificate: x509.Certificate, key: LeafKey) -> None:
    _write(folder / f"{name}.key", _secret(key), 0o600)
    _write(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _secret(key: LeafKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a whole file or none, never readable by others for a moment."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _made(
    folder: Path, name: str, certificate: x509.Certificate, identity: str, *, is_new: bool
) -> Made:
    path = folder / f"{name}.pem"
    return Made(name, path, identity, certificate.not_valid_after_utc, is_new)
