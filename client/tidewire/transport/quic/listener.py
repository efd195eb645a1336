"""The server's end of QUIC: one socket, whose datagrams find their connections by id."""

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from tidewire.errors import TlsFailed
from tidewire.transport.link import ServerLink
from tidewire.transport.options import HANDSHAKES_MAX
from tidewire.transport.quic import http3
from tidewire.transport.quic.backend import (
    CONNECTION_ID_BYTES,
    DATAGRAM_BYTES_LEAST,
    DATAGRAM_BYTES_MAX,
    Address,
    QuicServer,
    QuicSession,
    QuicSettings,
)
from tidewire.transport.quic.http3 import Http3Carrier
from tidewire.transport.quic.over_aioquic import BACKEND
from tidewire.transport.quic.shell import Carrier, FrameCarrier, QuicShell
from tidewire.transport.quic.sockets import (
    DATAGRAMS_PER_TURN,
    RECEIVE_BYTES,
    Control,
    DatagramSender,
    bind,
    note_addresses,
    receive_noted,
)
from tidewire.transport.tls import ALPN, ServerTls
from tidewire.transport.url import WireUrl
from tidewire.wire.limits import WireLimits
from tidewire.wire.streamed import StreamedServer

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer

LONG_HEADER: Final = 0x80
"""Bit of a datagram that belongs to a handshake."""
STREAMS_SPARE: Final = 64
"""Streams beyond ``calls_max``: those whose call is over but whose last datagram is on its way."""
IDLE_SPARE_S: Final = 5.0
"""QUIC ends a silent connection this much later than our PINGs do, which say why."""
_NO_CONTROL: Final[Control] = []
_LOGGER = logging.getLogger(__name__)


class QuicServerLink(StreamedServer, ServerLink):
    """One connection of a raw server over QUIC."""


class _ServerShell(QuicShell):
    """A shell that the listener knows by its connection ids."""

    listener: "QuicListener"
    control: Control
    """For its answers, so that they leave from the address its datagrams come to."""

    def on_connection_id(self, identifier: bytes, *, issued: bool) -> None:
        """Let datagrams with this id find the connection, or not any more."""
        self.listener.route(self, identifier, issued=issued)


def quic_settings(
    limits: WireLimits, *, alpn: tuple[str, ...], whole: bool, **more: object
) -> QuicSettings:
    """
    Return the settings of connections with these limits.

    Args:
        limits: Of the wire.
        alpn: Protocols.
        whole: Whether the socket never fragments, so that the path may be probed.
        more: The rest of ``QuicSettings``.
    """
    return QuicSettings(
        alpn=alpn,
        idle_timeout_s=limits.keepalive_s + limits.ping_timeout_s + IDLE_SPARE_S,
        stream_window_bytes=max(limits.call_credit_bytes, limits.call_window_bytes_max)
        + limits.frame_bytes_max,
        connection_window_bytes=limits.connection_credit_bytes + limits.frame_bytes_max,
        streams_max=limits.calls_max + STREAMS_SPARE,
        datagram_bytes_max=DATAGRAM_BYTES_MAX if whole else DATAGRAM_BYTES_LEAST,
        **more,  # type: ignore[arg-type]  # names of its fields
    )


class QuicListener:
    """
    Accepts the connections of one socket.

    A client proves its address (Retry, or a token of a connection before) and, where certificates
    are required, who it is, before anything is kept for it but the state of its handshake; of those
    there are at most ``HANDSHAKES_MAX``.

    Raises:
        InvalidArgument: The address cannot be bound.
        TlsFailed: The certificates cannot be used, or strangers would get in.
    """

    def __init__(self, server: "RawServer", url: WireUrl, tls: ServerTls) -> None:
        self.tls: ServerTls | None = tls
        self._tls = tls
        self._server = server
        self._sock, self._whole = bind(url.host, url.port, server.options)
        self.url = url.at(self._sock.getsockname()[1])
        self._context = tls.context
        try:
            self._judge: QuicServer = BACKEND.server(self._settings())
        except TlsFailed:
            self._sock.close()
            raise
        self._sender = DatagramSender(self._sock, connected=False)
        self._noted = note_addresses(self._sock)
        self._scratch = memoryview(bytearray(RECEIVE_BYTES))
        self._routes: dict[bytes, _ServerShell] = {}
        self._identifiers: dict[_ServerShell, set[bytes]] = {}
        self._young: set[_ServerShell] = set()
        """Connections whose handshake is not done."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def _settings(self) -> QuicSettings:
        config = self._tls.config
        return quic_settings(
            self._server.options.limits,
            alpn=(ALPN, http3.ALPN),
            whole=self._whole,
            files=config.read(),
            require_certificate=config.require_client_certificate,
        )

    def start(self) -> None:
        """Begin to accept."""
        if not self._closed:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._sock, self._readable)

    def close(self) -> None:
        """Accept no more; the socket serves the connections that are there until they end."""
        self._closed = True
        for shell in list(self._young):
            shell.abort()
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._closed and not self._identifiers and self._sock.fileno() >= 0:
            if self._loop is not None:
                self._loop.remove_reader(self._sock)
            self._sock.close()

    def _refresh(self) -> None:
        """Use new certificates for connections that come; unusable ones change nothing."""
        self._tls.refresh()
        if self._tls.context is not self._context:
            self._context = self._tls.context
            try:
                self._judge.reload(self._settings())
            except TlsFailed as error:
                _LOGGER.error("TLS files not reloaded, the old ones stay in use: %s", error)

    # Datagrams --------------------------------------------------------------------------------

    def _readable(self) -> None:
        sock, scratch, routes = self._sock, self._scratch, self._routes
        touched: dict[_ServerShell, None] = {}
        noted, control = self._noted, _NO_CONTROL
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                if noted:
                    size, address, control = receive_noted(sock, scratch)
                else:
                    size, address = sock.recvfrom_into(scratch)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                _LOGGER.debug("a datagram could not be read: %s", error)
                break
            data = scratch[:size].tobytes()
            shell = routes.get(destination(data))
            if shell is None:
                shell = self._begin(data, address, control)
                if shell is None:
                    continue
            shell.control = control
            shell.receive(data, address)
            touched[shell] = None
        for shell in touched:
            shell.settle()

    def _begin(self, data: bytes, address: Address, control: Control) -> _ServerShell | None:
        """Judge a datagram of no known connection."""
        assert self._loop is not None
        counters, options = self._server.counters, self._server.options
        counters.datagrams_in += 1
        counters.bytes_in += len(data)
        if self._closed or len(self._young) >= HANDSHAKES_MAX:
            counters.datagrams_refused["too_many_handshakes"] += 1
            return None
        if data and data[0] & LONG_HEADER:
            self._refresh()
        session = self._judge.begin(data, address, self._loop.time())
        if session is None:
            counters.datagrams_refused["malformed"] += 1
            return None
        if isinstance(session, bytes):
            counters.cookies_sent += 1
            counters.bytes_out += len(session)
            counters.datagrams_out += 1
            self._sender([(session, address)], control)
            return None
        if counters.connections_active + len(self._young) >= options.connections_max:
            counters.refuse("too_many_connections")
            return None
        counters.datagrams_in -= 1  # the shell counts it
        counters.bytes_in -= len(data)
        return self._adopt(session)

    def _adopt(self, session: QuicSession) -> _ServerShell:
        assert self._loop is not None
        shell: _ServerShell = _ServerShell(
            session, lambda made: self._send(shell, made), self._server.counters, self._greet
        )
        shell.listener = self
        shell.give_up_s = self._loop.time() + self._server.options.handshake_timeout_s
        self._young.add(shell)
        self._identifiers[shell] = set()
        for identifier in session.identifiers:
            self.route(shell, identifier, issued=True)
        shell.lost.add_done_callback(lambda _: self._forget(shell))
        return shell

    def _send(self, shell: _ServerShell, datagrams: list[tuple[bytes, Address]]) -> None:
        too_long = self._sender(datagrams, shell.control)
        if too_long:
            shell.session.too_long(too_long)

    def route(self, shell: _ServerShell, identifier: bytes, *, issued: bool) -> None:
        """Let datagrams with an id find a connection, or not any more."""
        if issued:
            self._routes[identifier] = shell
            self._identifiers[shell].add(identifier)
        else:
            self._routes.pop(identifier, None)
            self._identifiers[shell].discard(identifier)

    def _forget(self, shell: _ServerShell) -> None:
        self._young.discard(shell)
        for identifier in self._identifiers.pop(shell, ()):
            self._routes.pop(identifier, None)
        self._close_if_idle()

    def _greet(self, shell: QuicShell, alpn: str) -> Carrier:
        """A client has proved who it is: serve it."""
        assert self._loop is not None
        assert isinstance(shell, _ServerShell)
        self._young.discard(shell)
        link = self._server.admit(shell, self.url.text, self._loop.time(), QuicServerLink)
        assert isinstance(link, QuicServerLink)
        link.begin_streams()
        if alpn == http3.ALPN:
            carrier: Carrier = Http3Carrier(link, shell.session)
        else:
            carrier = FrameCarrier(link)
        shell.begin(link, carrier)
        return carrier


def destination(data: bytes) -> bytes:
    """Return the connection id a datagram is for, as every version of QUIC has it; or nothing."""
    if not data:
        return b""
    if not data[0] & LONG_HEADER:
        return data[1 : 1 + CONNECTION_ID_BYTES]
    if len(data) < 6:
        return b""
    return data[6 : 6 + data[5]]


def listen(server: "RawServer", url: WireUrl, tls: ServerTls | None) -> QuicListener:
    """Return a listener that is bound and does not accept yet; see :class:`QuicListener`."""
    assert tls is not None
    return QuicListener(server, url, tls)
