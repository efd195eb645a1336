"""A listening socket of DTLS: stateless until an address shows its cookie, bounded after."""

import asyncio
import re
import socket
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL

from tidewire.errors import TlsFailed
from tidewire.transport.datagram_listener import DatagramListener, address_name
from tidewire.transport.datagram_socket import Address
from tidewire.transport.dtls import RECORD_BYTES, DtlsPeer, clamped
from tidewire.transport.dtls_association import (
    APPLICATION_DATA,
    Association,
    CookieCallbacks,
    is_client_hello,
    make_context,
    reason_of,
)
from tidewire.transport.peer import Peer
from tidewire.transport.tls import ServerTls
from tidewire.transport.url import WireUrl
from tidewire.wire.datagram import RETRY_BYTES

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer


class Remote:
    """One client: its address and its association. Sessions are bound to this object."""

    __slots__ = ("address", "association", "began_s", "heard_s", "peer", "sessions", "timer")

    def __init__(self, address: Address, association: Association, now_s: float) -> None:
        self.address = address
        self.association = association
        self.began_s = self.heard_s = now_s
        self.peer: Peer | None = None
        self.sessions = 0
        self.timer: asyncio.TimerHandle | None = None


class DtlsListener(DatagramListener):
    """Associations of one socket, and the sessions within them."""

    def __init__(
        self, server: "RawServer", url: WireUrl, sock: socket.socket, tls: ServerTls
    ) -> None:
        super().__init__(server, url, sock, tls, clamped(server.options.datagrams))
        self._server_tls = tls
        self._remotes: dict[Address, Remote] = {}
        self._opening: dict[Address, Remote] = {}
        self._callbacks = CookieCallbacks(self._make_cookie, self._check_cookie)
        self._context = make_context(tls.config, server=True, cookies=self._callbacks)
        self._reloads = tls.reloads
        self.read_bytes += RECORD_BYTES
        self._received = self.datagram_received

    # Handshakes -------------------------------------------------------------------------------

    def _make_cookie(self, address: bytes) -> bytes:
        return self.cookies.make(address, self.loop.time())

    def _check_cookie(self, cookie: bytes, address: bytes) -> bool:
        return self.cookies.check(cookie, address, self.loop.time())

    def _current_context(self) -> SSL.Context:
        """Return the context of the certificates of now."""
        tls = self._server_tls
        tls.refresh()
        if tls.reloads != self._reloads:
            self._reloads = tls.reloads
            try:
                self._context = make_context(tls.config, server=True, cookies=self._callbacks)
            except TlsFailed:
                # Replaced again within the same moment: the files that worked stay in use.
                self.counters.errors["TlsFailed"] += 1
        return self._context

    def datagram_received(self, data: bytes, address: Address, now_s: float) -> None:
        """Take a datagram off the socket."""
        remote = self._remotes.get(address)
        opening = self._opening.get(address)
        if opening is not None and (remote is None or data[:1] != bytes((APPLICATION_DATA,))):
            self._go_on(opening, data, now_s)
        elif is_client_hello(data):
            self._greet(data, address, now_s)
        elif remote is not None:
            self._receive(remote, data, now_s)
        else:
            self.counters.datagrams_refused["address_not_verified"] += 1

    def _greet(self, data: bytes, address: Address, now_s: float) -> None:
        """Ask for the cookie, or begin a handshake with who shows it."""
        counters = self.counters
        if len(data) < RETRY_BYTES:
            counters.datagrams_refused["malformed"] += 1
            return
        association = Association(self._current_context())
        if not association.listen(data, repr(address).encode()):
            counters.cookies_sent += 1
            answer = b"".join(association.output())
            if len(answer) <= len(data):
                self.send_to(address, answer)
            return
        known = len(self._remotes) + len(self._opening)
        if len(self._opening) >= self.limits.half_open_max or known >= (
            self.server.options.connections_max
        ):
            counters.refuse("too_many_connections", handshake=True)
            return
        remote = Remote(address, association, now_s)
        self._opening[address] = remote
        self._go_on(remote, b"", now_s)

    def _go_on(self, remote: Remote, data: bytes, now_s: float) -> None:
        association = remote.association
        try:
            messages = association.receive(data) if data else self._begun(association)
        except SSL.Error as error:
            self._refuse(remote, association.failure or reason_of(error))
            return
        self._flush(remote)
        if association.established:
            self._established(remote)
            self._take_all(remote, messages, now_s)
        else:
            self._arm(remote)

    def _begun(self, association: Association) -> list[bytes]:
        association.handshake()
        return []

    def _established(self, remote: Remote) -> None:
        del self._opening[remote.address]
        self._disarm(remote)
        before = self._remotes.get(remote.address)
        if before is not None:
            self._drop(before)
        remote.peer = DtlsPeer(address_name(remote.address), remote.association.chain())
        self._remotes[remote.address] = remote

    def _refuse(self, remote: Remote, reason: str) -> None:
        self._flush(remote)  # the alert that says why
        self._disarm(remote)
        self._opening.pop(remote.address, None)
        word = re.sub(r"[^a-z0-9]+", "_", reason.lower()).strip("_")
        self.counters.refuse(word, handshake=True)
        self.counters.errors["TlsFailed"] += 1

    def _arm(self, remote: Remote) -> None:
        self._disarm(remote)
        wait_s = remote.association.timeout_s()
        late_s = remote.began_s + self.limits.dtls_handshake_s - self.loop.time()
        remote.timer = self.loop.call_later(
            max(0.0, late_s if wait_s is None else min(wait_s, late_s)), self._on_timer, remote
        )

    def _disarm(self, remote: Remote) -> None:
        if remote.timer is not None:
            remote.timer.cancel()
            remote.timer = None

    def _on_timer(self, remote: Remote) -> None:
        remote.timer = None
        if self.loop.time() - remote.began_s >= self.limits.dtls_handshake_s:
            self._refuse(remote, "timeout")
            return
        try:
            remote.association.handle_timeout()
        except SSL.Error as error:
            self._refuse(remote, reason_of(error))
            return
        self._flush(remote)
        self._arm(remote)

    # Associations -----------------------------------------------------------------------------

    def _receive(self, remote: Remote, data: bytes, now_s: float) -> None:
        try:
            messages = remote.association.receive(data)
        except SSL.Error:
            self.counters.datagrams_refused["record"] += 1
            return
        self._flush(remote)
        if messages:
            remote.heard_s = now_s
        self._take_all(remote, messages, now_s)
        if remote.association.closed:
            self._drop(remote)

    def _take_all(self, remote: Remote, messages: list[bytes], now_s: float) -> None:
        for message in messages:
            self.take(message, remote, now_s, verified=True)

    def _drop(self, remote: Remote) -> None:
        """Forget an association, and its sessions with it."""
        if self._remotes.get(remote.address) is remote:
            del self._remotes[remote.address]
        for shell in [each for each in self.sessions.values() if each.origin is remote]:
            shell.abort()

    def tick(self, now_s: float) -> None:
        """Do what is due from time to time; forget associations without a session."""
        super().tick(now_s)
        used = {id(shell.origin) for shell in self.sessions.values()}
        for remote in list(self._remotes.values()):
            if id(remote) not in used and now_s - remote.heard_s > self.limits.session_idle_s:
                remote.association.shutdown()
                self._flush(remote)
                self._drop(remote)

    def release(self) -> None:
        """Close the socket and give up what is half open."""
        for remote in [*self._opening.values(), *self._remotes.values()]:
            self._disarm(remote)
            remote.association.shutdown()
            self._flush(remote)
        self._opening.clear()
        self._remotes.clear()
        super().release()

    # Out --------------------------------------------------------------------------------------

    def peer_of(self, origin: Any) -> Peer:
        """Return who is at the other end of an association."""
        assert isinstance(origin, Remote)
        assert origin.peer is not None
        return origin.peer

    def send(self, origin: Any, data: bytes) -> bool:
        """Encrypt and send."""
        assert isinstance(origin, Remote)
        if origin.association.closed:
            return False
        origin.association.send(data)
        taken = self._flush(origin)
        if taken:
            self.count_out(data)
        return taken

    def _flush(self, remote: Remote) -> bool:
        taken = True
        for data in remote.association.output():
            taken = self.send_to(remote.address, data) and taken
        return taken
