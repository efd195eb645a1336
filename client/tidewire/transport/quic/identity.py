"""Certificates of QUIC peers: verified as OpenSSL verifies those of tls://, and who they say."""

import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from OpenSSL import crypto

from tidewire.errors import TlsFailed
from tidewire.transport.peer import SPIFFE, Peer

CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH

_EXPIRED: Final = frozenset({9, 10})
_UNKNOWN: Final = frozenset({2, 18, 19, 20, 21})
"""X509_V_ERR numbers: no issuer is trusted, or self-signed."""


class CertificateRefused(Exception):
    """
    A certificate does not prove what it should.

    Attributes:
        kind: ``expired``, ``unknown_ca``, ``unsupported`` (purpose) or ``bad``.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Trust:
    """The authorities of one side. Verification takes about 0.2 ms."""

    def __init__(self, ca: bytes | None) -> None:
        self._store = crypto.X509Store()
        try:
            if ca is not None:
                for certificate in x509.load_pem_x509_certificates(ca):
                    self._store.add_cert(crypto.X509.from_cryptography(certificate))
                return
            paths = ssl.get_default_verify_paths()
            self._store.load_locations(paths.cafile, paths.capath)
        except (ValueError, TypeError, crypto.Error) as error:
            raise TlsFailed(f"the authorities cannot be used: {error}") from error

    def verify(self, chain: Sequence[x509.Certificate], purpose: x509.ObjectIdentifier) -> None:
        """
        Verify signatures, dates and purpose of a chain, the peer's own certificate first.

        Raises:
            CertificateRefused: It proves nothing.
        """
        leaf, *between = chain
        context = crypto.X509StoreContext(
            self._store,
            crypto.X509.from_cryptography(leaf),
            [crypto.X509.from_cryptography(each) for each in between],
        )
        try:
            verified = context.get_verified_chain()
        except crypto.X509StoreContextError as error:
            number, _, text = (*error.errors, 0, 0, str(error))[:3]
            kind = "expired" if number in _EXPIRED else "bad"
            kind = "unknown_ca" if number in _UNKNOWN else kind
            raise CertificateRefused(kind, str(text)) from error
        for each in verified[:-1] or verified:
            _judge_purpose(each.to_cryptography(), purpose)
        _judge_usage(leaf)


def _judge_purpose(certificate: x509.Certificate, purpose: x509.ObjectIdentifier) -> None:
    try:
        usage = certificate.extensions.get_extension_for_oid(ExtensionOID.EXTENDED_KEY_USAGE).value
    except x509.ExtensionNotFound:
        return
    except ValueError as error:
        raise CertificateRefused("bad", "its extensions cannot be read") from error
    assert isinstance(usage, x509.ExtendedKeyUsage)
    if purpose not in usage and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in usage:
        raise CertificateRefused("unsupported", "the certificate is for another purpose")


def _judge_usage(leaf: x509.Certificate) -> None:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.digital_signature:
        raise CertificateRefused("unsupported", "the certificate's key must not sign")


def address_name(address: tuple[object, ...]) -> str:
    """Return an address as gRPC writes it: ``ipv4:10.0.0.1:5000``, ``ipv6:%5B::1%5D:5000``."""
    host, port, *more = address
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if more else f"ipv4:{host}:{port}"


class CertificatePeer(Peer):
    """A peer whose certificate was verified by us and not by an ``ssl`` object."""

    def __init__(self, name: str, chain: tuple[x509.Certificate, ...]) -> None:
        self.name = name
        self._chain = chain
        self._auth = None
        self._tls = None

    @property
    def encrypted(self) -> bool:
        """Always: QUIC has no plain form."""
        return True

    @property
    def auth(self) -> Mapping[str, tuple[bytes, ...]]:
        """What the certificate says, under gRPC's keys, as on tls://."""
        if self._auth is None:
            self._auth = _read(self._chain)
        return self._auth


def _read(chain: tuple[x509.Certificate, ...]) -> dict[str, tuple[bytes, ...]]:
    found: dict[str, list[bytes]] = {
        "transport_security_type": [b"ssl"],
        "ssl_tls_version": [b"TLSv1.3"],
    }
    if chain:
        leaf = chain[0]
        for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
            found.setdefault("x509_common_name", []).append(str(name.value).encode())
        for key, value in _alternative_names(leaf):
            raw = value.encode()
            found.setdefault("x509_subject_alternative_name", []).append(raw)
            found.setdefault(key, []).append(raw)
            if key == "peer_uri" and value.startswith(SPIFFE):
                found.setdefault("peer_spiffe_id", []).append(raw)
        found["x509_pem_cert"] = [leaf.public_bytes(Encoding.PEM)]
    return {key: tuple(values) for key, values in found.items()}


def _alternative_names(leaf: x509.Certificate) -> list[tuple[str, str]]:
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    names: list[tuple[str, str]] = []
    for name in extension.value:
        match name:
            case x509.UniformResourceIdentifier():
                names.append(("peer_uri", name.value))
            case x509.DNSName():
                names.append(("peer_dns", name.value))
            case x509.RFC822Name():
                names.append(("peer_email", name.value))
            case x509.IPAddress() if isinstance(
                name.value, ipaddress.IPv4Address | ipaddress.IPv6Address
            ):
                names.append(("peer_ip", str(name.value)))
    return names
