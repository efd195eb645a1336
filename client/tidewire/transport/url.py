"""URLs of wires: ``scheme://host:port?option=value``."""

from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from tidewire.errors import InvalidArgument
from tidewire.transport.tls import TlsConfig

DEFAULT_PORTS: Final = {
    "grpc": 50051,
    "grpcs": 50051,
    "tcp": 7401,
    "tls": 7402,
    "quic": 7403,
    "udp": 7404,
    "dtls": 7405,
    "ws": 7406,
    "wss": 7407,
}
PATH_SCHEMES: Final = frozenset({"unix", "grpc+unix"})
"""Schemes whose address is a path: ``unix:///run/tidewire.sock``."""
_TLS_OPTIONS: Final = {
    "ca": "ca",
    "cert": "certificate",
    "key": "key",
    "server_name": "server_name",
}


@dataclass(frozen=True, slots=True)
class WireUrl:
    """A URL in its parts; ``tls`` when the query names certificates."""

    scheme: str
    host: str
    port: int
    tls: TlsConfig | None = None
    path: str = ""

    @property
    def target(self) -> str:
        """``host:port``, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def text(self) -> str:
        """The URL without its query, which may name files."""
        if self.scheme in PATH_SCHEMES:
            return f"{self.scheme}://{self.path}"
        if self.scheme == "memory":
            return f"memory://{self.host}"
        path = self.path if self.scheme in ("ws", "wss") else ""
        return f"{self.scheme}://{self.target}{path}"

    def at(self, port: int) -> "WireUrl":
        """Return the same with the port that was picked."""
        return replace(self, port=port)


def parse_url(url: str) -> WireUrl:
    """
    Split a URL.

    Raises:
        InvalidArgument: It is not one, names no host, or has an option nobody knows. Options are
            never ignored: one that is misspelt might be the one that names the authority.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if not scheme or "://" not in url:
        raise InvalidArgument(f"{url!r} is not a URL such as tcp://localhost:7401")
    try:
        port = parts.port
    except ValueError as error:
        raise InvalidArgument(f"{url!r} has no valid port: {error}") from error
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise InvalidArgument("a wire's URL carries no user, password or fragment")
    options: dict[str, str] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in _TLS_OPTIONS:
            known = ", ".join(_TLS_OPTIONS)
            raise InvalidArgument(f"a wire's URL has the options {known}, not {key!r}")
        options[_TLS_OPTIONS[key]] = value
    if scheme in PATH_SCHEMES:
        if parts.netloc or not parts.path.startswith("/"):
            raise InvalidArgument(f"{url!r} names no path: three slashes, as in {scheme}:///run/tw")
    elif not parts.hostname:
        raise InvalidArgument(f"{url!r} names no host")
    return WireUrl(
        scheme,
        parts.hostname or "",
        DEFAULT_PORTS.get(scheme, 0) if port is None else port,
        TlsConfig(**options) if options else None,  # type: ignore[arg-type]  # strings only
        parts.path,
    )
