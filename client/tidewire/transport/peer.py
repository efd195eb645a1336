"""Who is at the other end of a connection, in the words gRPC uses for it."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

SPIFFE: Final = "spiffe://"
_COMMON_NAME: Final = "x509_common_name"
_SUBJECT_ALTERNATIVE_NAME: Final = "x509_subject_alternative_name"
_BY_KIND: Final = {
    "URI": "peer_uri",
    "DNS": "peer_dns",
    "email": "peer_email",
    "IP Address": "peer_ip",
}


def peer_name(transport: asyncio.BaseTransport) -> str:
    """
    Return the address as gRPC writes it: ``ipv4:10.0.0.1:5000``, ``ipv6:%5B::1%5D:5000``,
    ``unix:``.
    """
    address: Any = transport.get_extra_info("peername")
    if not isinstance(address, tuple):
        return "unix:"
    host, port, *more = address
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if more else f"ipv4:{host}:{port}"


class Peer:
    """
    Address and verified identity of the other end. The certificate is read when first asked for.
    """

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self.name = peer_name(transport)
        self._tls: Any = transport.get_extra_info("ssl_object")
        self._auth: dict[str, tuple[bytes, ...]] | None = None

    @property
    def encrypted(self) -> bool:
        """Whether the connection is TLS."""
        return self._tls is not None

    @property
    def auth(self) -> Mapping[str, tuple[bytes, ...]]:
        """What the certificate says, under gRPC's keys; empty on a plain connection."""
        if self._auth is None:
            self._auth = {} if self._tls is None else self._read()
        return self._auth

    @property
    def identity_key(self) -> str | None:
        """Key of :attr:`auth` that identifies the peer; ``None`` without a certificate."""
        for key in (_SUBJECT_ALTERNATIVE_NAME, _COMMON_NAME):
            if key in self.auth:
                return key
        return None

    @property
    def identities(self) -> tuple[bytes, ...] | None:
        """Values under :attr:`identity_key`."""
        key = self.identity_key
        return None if key is None else self.auth[key]

    def _read(self) -> dict[str, tuple[bytes, ...]]:
        found: dict[str, list[bytes]] = {
            "transport_security_type": [b"ssl"],
            "ssl_tls_version": [str(self._tls.version()).encode("ascii")],
        }
        certificate = self._tls.getpeercert()
        if certificate:
            for part in certificate.get("subject", ()):
                for key, value in part:
                    if key == "commonName":
                        found.setdefault(_COMMON_NAME, []).append(value.encode())
            for kind, value in certificate.get("subjectAltName", ()):
                raw = value.encode()
                found.setdefault(_SUBJECT_ALTERNATIVE_NAME, []).append(raw)
                if kind in _BY_KIND:
                    found.setdefault(_BY_KIND[kind], []).append(raw)
                if kind == "URI" and value.startswith(SPIFFE):
                    found.setdefault("peer_spiffe_id", []).append(raw)
            der = self._tls.getpeercert(binary_form=True)
            found["x509_pem_cert"] = [ssl.DER_cert_to_PEM_cert(der).encode("ascii")]
        return {key: tuple(values) for key, values in found.items()}
