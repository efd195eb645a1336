"""Which chains prove who a QUIC peer is: signatures, dates, purposes, usages, intermediates."""

import datetime
import ipaddress
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tidewire.errors import TlsFailed
from tidewire.transport.quic.identity import (
    CLIENT,
    SERVER,
    CertificatePeer,
    CertificateRefused,
    Trust,
    address_name,
)

HOUR = datetime.timedelta(hours=1)


@dataclass
class Made:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make(
    issuer: Made | None = None,
    *,
    ca: bool = False,
    age: datetime.timedelta = HOUR,
    extensions: tuple[x509.ExtensionType, ...] = (),
) -> Made:
    """Sign a certificate, by itself without an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"n{x509.random_serial_number()}")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - age)
        .not_valid_after(now - age + 2 * HOUR)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return Made(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def purposes(*oids: x509.ObjectIdentifier) -> x509.ExtendedKeyUsage:
    """Return what a certificate is for."""
    return x509.ExtendedKeyUsage(oids)


def usage(*, sign: bool) -> x509.KeyUsage:
    """Return what a key may do."""
    wrong: dict[str, Any] = dict.fromkeys(
        (
            "content_commitment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=sign, key_encipherment=True, **wrong)


ROOT = make(ca=True)
TRUST = Trust(ROOT.certificate.public_bytes(Encoding.PEM))


def refused(*chain: Made, purpose: x509.ObjectIdentifier = CLIENT) -> str:
    """Return why a chain is refused."""
    with pytest.raises(CertificateRefused) as caught:
        TRUST.verify([each.certificate for each in chain], purpose)
    return caught.value.kind


def test_chains_that_prove_something() -> None:
    """Of the authority, by an intermediate, for the purpose or for any."""
    between = make(ROOT, ca=True)
    for chain in (
        [make(ROOT)],
        [make(ROOT, extensions=(purposes(CLIENT, SERVER), usage(sign=True)))],
        [make(ROOT, extensions=(purposes(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE),))],
        [make(between), between],
        [make(between, extensions=(purposes(CLIENT),)), between, make()],
    ):
        TRUST.verify([each.certificate for each in chain], CLIENT)


def test_chains_that_prove_nothing() -> None:
    """Each for its own reason."""
    between, server_only = make(ROOT, ca=True), make(ROOT, ca=True, extensions=(purposes(SERVER),))
    plain = make(ROOT)

    assert "unknown_ca" == refused(make())
    assert "unknown_ca" == refused(make(between))
    assert "expired" == refused(make(ROOT, age=3 * HOUR))
    assert "expired" == refused(make(ROOT, age=-HOUR))
    assert "bad" == refused(make(plain), plain)
    assert "unsupported" == refused(make(ROOT, extensions=(purposes(SERVER),)))
    assert "unsupported" == refused(make(ROOT, extensions=(purposes(CLIENT),)), purpose=SERVER)
    assert "unsupported" == refused(make(server_only), server_only)
    assert "unsupported" == refused(make(ROOT, extensions=(usage(sign=False),)))
    forged = Made(make(ROOT, ca=True).certificate, make().key)
    assert "bad" == refused(make(forged), forged)


def test_authorities_that_are_none() -> None:
    """A file that holds no certificates cannot be trusted."""
    with pytest.raises(TlsFailed):
        Trust(b"not a certificate")


def test_who_a_certificate_says() -> None:
    """Names come under gRPC's keys; addresses are written as gRPC writes them."""
    leaf = make(
        ROOT,
        extensions=(
            x509.SubjectAlternativeName(
                [
                    x509.UniformResourceIdentifier("spiffe://test/a"),
                    x509.DNSName("a.test"),
                    x509.RFC822Name("a@test"),
                    x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
                ]
            ),
        ),
    )
    peer = CertificatePeer(address_name(("10.0.0.1", 5)), (leaf.certificate,))
    nobody = CertificatePeer(address_name(("::1", 5, 0, 0)), ())

    assert "ipv4:10.0.0.1:5" == peer.name
    assert "ipv6:%5B::1%5D:5" == nobody.name
    assert (b"spiffe://test/a", b"a.test", b"a@test", b"10.0.0.1") == peer.identities
    assert [b"spiffe://test/a"] == list(peer.auth["peer_spiffe_id"])
    assert [(b"a.test",), (b"a@test",), (b"10.0.0.1",)] == [
        peer.auth[key] for key in ("peer_dns", "peer_email", "peer_ip")
    ]
    assert nobody.identities is None
    assert nobody.encrypted
