"""The engine's side: a server on a private socket that takes calls which workers hand on."""

from typing import Any

from tidewire.errors import PermissionDenied
from tidewire.transport import RawServer
from tidewire.transport.context import ServerCall
from tidewire.transport.link import ServerLink
from tidewire.transport.peer import Peer
from tidewire.transport.shell import Shell
from tidewire.wire.bodies import Head, Metadata
from tidewire_server.workers.identity import KEY, decode_peer


class ForwardedCall(ServerCall):
    """A call that a worker handed on: its peer is the worker's peer."""

    def __init__(self, link: ServerLink, head: Head) -> None:
        super().__init__(link, head)
        self._caller, self._metadata = _split(head.metadata)

    def invocation_metadata(self) -> Any:
        """Return what the client sent."""
        return self._metadata

    def peer(self) -> str:
        """Return the client's address."""
        return self._caller.name

    def peer_identities(self) -> Any:
        """Return what the client's certificate says it is."""
        return self._caller.identities

    def peer_identity_key(self) -> str | None:
        """Return which property of the certificate that is."""
        return self._caller.identity_key

    def auth_context(self) -> Any:
        """Return what the client's TLS and certificate say."""
        return self._caller.auth


class WorkerLink(ServerLink):
    """A worker's connection."""

    def on_ready(self) -> None:
        """Add nothing to calls: what the client's HELLO says comes with each of them."""
        self.prefix = ()

    def on_call(self, head: Head) -> ForwardedCall:
        """Make the context of a call."""
        return ForwardedCall(self, head)


class WorkerServer(RawServer):
    """Takes workers' connections."""

    def admit(
        self, shell: Shell, url: str, now_s: float, link_class: type[ServerLink] = ServerLink
    ) -> ServerLink:
        """Return a worker's link."""
        return super().admit(shell, url, now_s, WorkerLink)


def _split(metadata: Metadata) -> tuple[Peer, Metadata]:
    """Part who called, which workers tell last, from what they sent."""
    key, told = metadata[-1] if metadata else ("", "")
    if key != KEY or not isinstance(told, bytes):
        raise PermissionDenied("a call came without who made it: the socket is for workers only")
    return decode_peer(told), metadata[:-1]
