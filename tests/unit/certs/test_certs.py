"""Certificates for development."""

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tidewire import certs
from tidewire.certs import CertificateError, Leaf
from tidewire.signing import KeyUnusable, Signer, Verifier
from tidewire.wire.batch import encode_payloads

SERVER = Leaf("server", "server", ("localhost", "127.0.0.1", "::1"))
CLIENT = Leaf("laptop", "client")


def load(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())


def spiffe_ids(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def test_each_leaf_has_one_identity(tmp_path: Path) -> None:
    """One SPIFFE id each; servers have their hosts too; the authority has none."""
    made = certs.init(tmp_path, [SERVER, CLIENT], trust_domain="example.org")

    assert ["ca", "server", "laptop"] == [one.name for one in made]
    assert all(one.is_new for one in made)
    assert ["spiffe://example.org/server/server"] == spiffe_ids(load(tmp_path, "server"))
    assert ["spiffe://example.org/client/laptop"] == spiffe_ids(load(tmp_path, "laptop"))
    names = load(tmp_path, "server").extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert ["localhost"] == names.value.get_values_for_type(x509.DNSName)
    assert ["127.0.0.1", "::1"] == [
        str(address) for address in names.value.get_values_for_type(x509.IPAddress)
    ]


def test_lifetimes_are_short(tmp_path: Path) -> None:
    """90 days unless asked otherwise, and no leaf outlives its authority."""
    _, leaf = certs.init(tmp_path, [CLIENT])

    assert timedelta(days=89) < leaf.expires - datetime.now(UTC) <= timedelta(days=90)
    _, later = certs.init(tmp_path, [Leaf("other", "client")], days=3_000)
    assert later.expires == load(tmp_path, "ca").not_valid_after_utc


def test_keys_are_private(tmp_path: Path) -> None:
    """Only the owner reads keys; nothing else is left in the folder."""
    folder = tmp_path / "new" / "certs"
    certs.init(folder, [SERVER])

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}

    assert {"ca.key": 0o600, "server.key": 0o600, "ca.pem": 0o644, "server.pem": 0o644} == modes
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    """Asked twice, nothing changes; a new client is signed by the authority that was there."""
    certs.init(tmp_path, [SERVER])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    made = certs.init(tmp_path, [SERVER, CLIENT])

    assert [False, False, True] == [one.is_new for one in made]
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    load(tmp_path, "laptop").verify_directly_issued_by(load(tmp_path, "ca"))


def test_force_makes_everything_anew(tmp_path: Path) -> None:
    """With force the authority changes, and leaves of the old one are replaced."""
    certs.init(tmp_path, [SERVER])
    old = load(tmp_path, "ca")

    made = certs.init(tmp_path, [SERVER], force=True)

    assert all(one.is_new for one in made)
    assert old != load(tmp_path, "ca")
    load(tmp_path, "server").verify_directly_issued_by(load(tmp_path, "ca"))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Other hosts, a leaf of another authority, a key that is not its own: nothing is replaced."""
    certs.init(tmp_path / "a", [SERVER])
    certs.init(tmp_path / "b", [SERVER, CLIENT])

    with pytest.raises(CertificateError, match="is for other names"):
        certs.init(tmp_path / "a", [Leaf("server", "server", ("example.org",))])
    for name in ("laptop.pem", "laptop.key"):
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(CertificateError, match="is not of the authority"):
        certs.init(tmp_path / "a", [CLIENT])
    (tmp_path / "b" / "laptop.key").write_bytes((tmp_path / "b" / "server.key").read_bytes())
    with pytest.raises(CertificateError, match="is not the key of"):
        certs.init(tmp_path / "b", [CLIENT])
    (tmp_path / "b" / "server.pem").unlink()
    with pytest.raises(CertificateError, match="are not a certificate with its key"):
        certs.init(tmp_path / "b", [SERVER])


def test_what_has_expired_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After their time, leaf and authority must be made anew, and it is said how."""

    class Later(datetime):
        """A clock that is ahead."""

        days = 91

        @classmethod
        def now(cls, tz: Any = None) -> "Later":
            return cls.fromtimestamp((datetime.now(tz) + timedelta(days=cls.days)).timestamp(), tz)

    certs.init(tmp_path, [CLIENT])
    monkeypatch.setattr(certs, "datetime", Later)

    with pytest.raises(CertificateError, match=r"laptop\.pem expired on .* use --force"):
        certs.init(tmp_path, [CLIENT])
    Later.days = 366
    with pytest.raises(CertificateError, match=r"ca\.pem expired"):
        certs.init(tmp_path, [CLIENT])


@pytest.mark.parametrize(
    "leaf",
    [
        Leaf("../x", "client"),
        Leaf("ca", "client"),
        Leaf("", "client"),
        Leaf("s", "server"),
        Leaf("s", "server", ("a b",)),
        Leaf("s", "server", ("-x",)),
    ],
)
def test_names_cannot_leave_the_folder(tmp_path: Path, leaf: Leaf) -> None:
    """Names that are paths, empty or no hosts are refused before anything is written."""
    with pytest.raises(CertificateError):
        certs.init(tmp_path / "x", [leaf])
    assert not (tmp_path / "x").exists()


def handshake(folder: Path, *, host: str, client: bool) -> tuple[str, str]:
    """One TLS 1.3 handshake over sockets with client certificates required."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.minimum_version = ssl.TLSVersion.TLSv1_3
    serving.verify_mode = ssl.CERT_REQUIRED
    serving.verify_flags |= ssl.VERIFY_X509_STRICT
    serving.load_verify_locations(folder / "ca.pem")
    serving.load_cert_chain(folder / "server.pem", folder / "server.key")
    dialing = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    dialing.verify_flags |= ssl.VERIFY_X509_STRICT
    if client:
        dialing.load_cert_chain(folder / "laptop.pem", folder / "laptop.key")
    near, far = socket.socketpair()
    peer: list[str] = []

    def serve() -> None:
        try:
            with serving.wrap_socket(far, server_side=True) as tls:
                found: Any = tls.getpeercert() or {}
                peer.extend(value for _, value in found.get("subjectAltName", ()))
                tls.sendall(b"x")
        except ssl.SSLError as error:
            peer.append(error.reason)
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with dialing.wrap_socket(near, server_hostname=host) as tls:
            tls.recv(1)
            return tls.version() or "", peer[0]
    finally:
        thread.join(10)
        far.close()


def test_they_work_in_tls(tmp_path: Path) -> None:
    """A strict TLS 1.3 handshake in both directions; the server learns who the client is."""
    certs.init(tmp_path, [SERVER, CLIENT])

    for host in ("localhost", "127.0.0.1"):
        version, peer = handshake(tmp_path, host=host, client=True)
        assert ("TLSv1.3", "spiffe://tidewire.local/client/laptop") == (version, peer)


def test_they_are_refused_where_they_should_be(tmp_path: Path) -> None:
    """Control: no client certificate, and another host's name, do not get through."""
    certs.init(tmp_path, [SERVER, CLIENT])

    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        handshake(tmp_path, host="localhost", client=False)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tmp_path, host="example.org", client=True)


def test_a_signing_key_is_never_replaced(tmp_path: Path) -> None:
    """What it signs verifies with its public half; making it again is refused."""
    path = certs.signing_key(tmp_path, "orders")
    signer = Signer.from_file("orders", tmp_path / "orders.key")
    batch = encode_payloads("a", [b"x"])
    signer.sign(batch)

    assert "orders" == Verifier.from_folder(tmp_path).check(batch)
    assert (0o600, 0o644) == (
        stat.S_IMODE((tmp_path / "orders.key").stat().st_mode),
        stat.S_IMODE(path.stat().st_mode),
    )
    with pytest.raises(CertificateError, match="is there"):
        certs.signing_key(tmp_path, "orders")


def test_a_signing_certificate_is_trusted_through_its_authority_only(tmp_path: Path) -> None:
    """Its SPIFFE id is the key id; certificates of another authority are refused, not left out."""
    ours, theirs, published = tmp_path / "ours", tmp_path / "theirs", tmp_path / "published"
    published.mkdir()
    for folder in (ours, theirs):
        certs.init(folder, [CLIENT])
        certs.signing_certificate(folder, "orders")
    (published / "orders.pem").write_bytes((ours / "orders.pem").read_bytes())
    (published / "laptop.pem").write_bytes((ours / "laptop.pem").read_bytes())  # cannot sign
    signer = Signer.from_certificate(ours / "orders.pem", ours / "orders.key")
    batch = encode_payloads("a", [b"x"])
    signer.sign(batch)
    verifier = Verifier.from_certificates(published, authority=ours / "ca.pem")

    assert "spiffe://tidewire.local/client/orders" == verifier.check(batch)
    with pytest.raises(KeyUnusable, match="not of a valid authority"):
        Verifier.from_certificates(published, authority=theirs / "ca.pem")
    with pytest.raises(KeyUnusable, match="not of a valid authority"):
        # A leaf is no authority, though it has signed itself nothing yet.
        Verifier.from_certificates(published, authority=ours / "orders.pem")
    with pytest.raises(KeyUnusable, match="not the key of"):
        Signer.from_certificate(ours / "orders.pem", theirs / "orders.key")
    with pytest.raises(KeyUnusable, match="another certificate is for"):
        (published / "twin.pem").write_bytes((ours / "orders.pem").read_bytes())
        Verifier.from_certificates(published, authority=ours / "ca.pem")


def test_a_certificate_that_must_not_sign_is_refused(tmp_path: Path) -> None:
    """A key of another kind cannot sign, and a folder without any Ed25519 key is a mistake."""
    certs.init(tmp_path, [CLIENT])

    with pytest.raises(KeyUnusable, match="must be Ed25519"):
        Signer.from_certificate(tmp_path / "laptop.pem", tmp_path / "laptop.key")
    with pytest.raises(KeyUnusable, match="no certificate with an Ed25519 key"):
        Verifier.from_certificates(tmp_path, authority=tmp_path / "ca.pem")
    with pytest.raises(CertificateError, match="holds no authority"):
        certs.signing_certificate(tmp_path / "empty", "orders")
