"""Who is at the other end of a connection, in the words gRPC uses for it."""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from struct import Struct
from typing import Any, Final
from urllib.parse import quote

SPIFFE: Final = "spiffe://"
UNIX: Final = "unix://"
PEER_UNIX: Final = "peer_unix"
"""Key of the identity the kernel vouches for: ``unix://uid=1000``."""
_CREDENTIALS: Final = Struct("=iII")
"""Process, user and group, as SO_PEERCRED has them on Linux."""
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

    __slots__ = ("_auth", "_tls", "name")

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


class UnixPeer(Peer):
    """
    Address and identity of the other end of a Unix socket: the user it ran as when it connected.

    The kernel says who it is, so nothing has to be presented or verified. Where it does not say
    (SO_PEERCRED is Linux's), the peer has no identity.
    """

    __slots__ = ("_credentials",)

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self.name = UNIX.removesuffix("//")
        self._tls = None
        self._auth = None
        self._credentials = unix_credentials(transport.get_extra_info("socket"))

    @property
    def auth(self) -> Mapping[str, tuple[bytes, ...]]:
        """User, group and process of the peer, each alone and the user as an identity."""
        if self._auth is None:
            self._auth = {"transport_security_type": (b"local",)}
            if self._credentials is not None:
                process, user, group = self._credentials
                self._auth |= {
                    PEER_UNIX: (b"%suid=%d" % (UNIX.encode(), user),),
                    "peer_unix_uid": (b"%d" % user,),
                    "peer_unix_gid": (b"%d" % group,),
                    "peer_unix_pid": (b"%d" % process,),
                }
        return self._auth

    @property
    def identity_key(self) -> str | None:
        """``peer_unix``, where the kernel says who it is."""
        return PEER_UNIX if PEER_UNIX in self.auth else None


def unix_credentials(sock: Any) -> tuple[int, int, int] | None:
    """Return process, user and group at the other end; ``None`` where the kernel does not say."""
    option: int | None = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    raw: bytes = sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    process, user, group = _CREDENTIALS.unpack(raw)
    return process, user, group


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """Return who is at the other end of a stream, whatever carries it."""
    given: Any = transport.get_extra_info("peer")
    if isinstance(given, Peer):
        return given
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == getattr(socket, "AF_UNIX", None):
        return UnixPeer(transport)
    return Peer(transport)
