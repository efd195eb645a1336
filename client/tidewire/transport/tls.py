"""
TLS of raw wires and of gRPC: TLS 1.3 only, names are verified, servers ask for certificates.

A :class:`TlsConfig` names files. A :class:`ServerTls` holds the context made of them and makes it
anew when the files change, for connections that come later; files that cannot be used keep the old
context.
"""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidewire.errors import InvalidArgument, TlsFailed

ALPN: Final = "tidewire/1"

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """
    Which certificates to show and whom to trust.

    A server needs ``certificate`` and ``key``, and ``ca`` unless ``require_client_certificate`` is
    off. A client shows its certificate if it has one; without ``ca`` it trusts the system's
    authorities.
    """

    certificate: str | Path | None = None
    """PEM file: own certificate, then intermediates."""
    key: str | Path | None = None
    """PEM file: private key of it."""
    ca: str | Path | None = None
    """PEM file: authorities trusted to sign the peer's certificate."""
    server_name: str | None = None
    """Name the server's certificate must be for, when it is not the host of the URL."""
    require_client_certificate: bool = True
    """For servers: refuse clients without a certificate of ``ca``."""

    def files(self) -> tuple[Path, ...]:
        """Return the files this is made of."""
        named = (self.certificate, self.key, self.ca)
        return tuple(Path(name) for name in named if name is not None)

    def read(self) -> "TlsFiles":
        """
        Read the files.

        Raises:
            InvalidArgument: A file that is needed is not named.
            TlsFailed: A file cannot be read.
        """
        if (self.certificate is None) != (self.key is None):
            raise InvalidArgument("TLS needs the certificate and its key, or neither of them")
        try:
            parts = [
                None if name is None else Path(name).read_bytes()
                for name in (self.certificate, self.key, self.ca)
            ]
        except OSError as error:
            raise TlsFailed(f"a TLS file cannot be read: {error}") from error
        return TlsFiles(*parts)

    def check_server(self) -> None:
        """Raise :class:`InvalidArgument` when this cannot be a server's configuration."""
        if self.certificate is None or self.key is None:
            raise InvalidArgument("a TLS server needs a certificate and a key")
        if self.require_client_certificate and self.ca is None:
            raise InvalidArgument(
                "a TLS server that requires client certificates needs the ca that signs them"
            )


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Contents of the files of a :class:`TlsConfig`."""

    certificate: bytes | None
    key: bytes | None
    ca: bytes | None


def client_context(config: TlsConfig, alpn: str = ALPN) -> ssl.SSLContext:
    """
    Return a context that verifies the server's chain and name.

    Args:
        config: The files.
        alpn: The protocol within TLS, as it is offered to the server.

    Raises:
        InvalidArgument: The configuration is incomplete.
        TlsFailed: A file cannot be used.
    """
    files = config.read()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context, alpn)
    _load(context, config, files)
    if files.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def server_context(config: TlsConfig) -> ssl.SSLContext:
    """Return a context for a listener; see :func:`client_context` for what is raised."""
    config.check_server()
    files = config.read()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    _load(context, config, files)
    # No tickets: a resumed session is not asked for a certificate that may have been withdrawn
    # since.
    context.num_tickets = 0
    if config.require_client_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
    elif files.ca is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _harden(context: ssl.SSLContext, alpn: str = ALPN) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([alpn])


def _load(context: ssl.SSLContext, config: TlsConfig, files: TlsFiles) -> None:
    try:
        if config.certificate is not None and config.key is not None:
            context.load_cert_chain(config.certificate, config.key, password=_no_password)
        if files.ca is not None:
            context.load_verify_locations(cadata=files.ca.decode("ascii"))
    except (ssl.SSLError, OSError, ValueError) as error:
        named = ", ".join(str(path) for path in config.files())
        raise TlsFailed(f"the TLS files {named} cannot be used: {error}") from error


def _no_password() -> str:
    raise ValueError("the private key is encrypted; tidewire takes keys without a password")


def refuse_certificates(url: str, tls: object | None, instead: str = "") -> None:
    """
    Raise :class:`InvalidArgument` when certificates are given for a wire that has none.

    Args:
        url: Of the wire.
        tls: What was given.
        instead: Scheme that does the same with certificates.
    """
    if tls is not None:
        advice = f": use {instead}://" if instead else ""
        raise InvalidArgument(f"{url} is not encrypted, but certificates are given{advice}")


class Watched:
    """Notices by modification time, size and inode that files have changed."""

    def __init__(self, config: TlsConfig) -> None:
        self._paths = config.files()
        self._seen = self._look()

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        seen = []
        for path in self._paths:
            try:
                stat = path.stat()
            except OSError:
                seen.append((0, 0, 0))
            else:
                seen.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(seen)

    def changed(self) -> bool:
        """Whether the files differ from the last time this said so."""
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        return True


class ServerTls:
    """
    The current context of a listener. Reading ``context`` is cheap; ``refresh`` looks at the
    files.
    """

    def __init__(self, config: TlsConfig) -> None:
        self.config = config
        self.context = server_context(config)
        self.reloads = 0
        self.reload_failures = 0
        self.failure: TlsFailed | None = None
        """Why the last reload failed; ``None`` after one that worked."""
        self._watched = Watched(config)

    def refresh(self) -> bool:
        """Reload if a file has changed; return whether new connections get a new context."""
        return self._watched.changed() and self.reload()

    def reload(self) -> bool:
        """Make the context anew; when that fails keep the old one, report, and return False."""
        try:
            self.context = server_context(self.config)
        except TlsFailed as error:
            self.failure = error
            self.reload_failures += 1
            _LOGGER.error("TLS files not reloaded, the old ones stay in use: %s", error)
            return False
        self.failure = None
        self.reloads += 1
        return True
