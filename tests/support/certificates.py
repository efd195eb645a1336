"""Certificates for tests: a CA, a server, clients, and those that must be refused."""

from dataclasses import dataclass
from pathlib import Path

import trustme

from tidewire.transport import TlsConfig


@dataclass(frozen=True, slots=True)
class Certificates:
    """A CA with what it signed, as PEM files in one folder."""

    folder: Path
    authority: trustme.CA
    ca: Path
    server_certificate: Path
    server_key: Path

    @classmethod
    def make(cls, folder: Path) -> "Certificates":
        """Make a CA and a certificate for localhost and 127.0.0.1."""
        folder.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(ca))
        certificate, key = _write(authority, folder, "server", "localhost", "127.0.0.1")
        return cls(folder, authority, ca, certificate, key)

    def client(self, name: str = "client") -> TlsConfig:
        """What a client of this name shows and trusts."""
        certificate, key = _write(self.authority, self.folder, name, f"{name}.test")
        return TlsConfig(ca=self.ca, certificate=certificate, key=key)


def _write(authority: trustme.CA, folder: Path, name: str, *identities: str) -> tuple[Path, Path]:
    leaf = authority.issue_cert(*identities)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(key))
    return certificate, key
