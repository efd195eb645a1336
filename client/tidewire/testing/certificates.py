"""Certificates of a site: good ones, and those that must be refused. Needs ``cryptography``."""

from pathlib import Path

from tidewire.testing.authority import Authority, Issued
from tidewire.testing.site import IDENTITY
from tidewire.transport import TlsConfig


class Trust:
    """Certificates of a site: two authorities that do not know each other, and what they sign."""

    def __init__(self, folder: Path) -> None:
        self.ours = Authority(folder, "ca")
        self.others = Authority(folder, "other-ca")
        self._server = self.ours.issue("server")
        self._client = self.ours.issue("alice", names=(), addresses=(), uris=(IDENTITY,))

    def server(self) -> TlsConfig:
        """What the server shows and trusts."""
        return self.ours.config(self._server)

    def client(self, shown: Issued | None = None, **more: str) -> TlsConfig:
        """What a client shows, by default the good certificate, and trusts."""
        return self.ours.config(shown or self._client, **more)

    def stranger(self) -> TlsConfig:
        """A client that trusts the server and shows nothing."""
        return self.ours.config(None)

    def renew(self) -> TlsConfig:
        """Replace the server's files by those of the other authority; return a client's side."""
        self.others.issue("server")
        return TlsConfig(
            certificate=self._client.certificate, key=self._client.key, ca=self.others.file
        )
