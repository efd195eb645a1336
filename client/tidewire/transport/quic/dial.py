"""The client's end of QUIC: a connected socket for each connection."""

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Final

from tidewire.errors import ConnectionLost, TidewireError
from tidewire.transport.client_link import NEVER_SENT, ClientLink
from tidewire.transport.quic.backend import Address, Handshake, QuicSettings
from tidewire.transport.quic.listener import quic_settings
from tidewire.transport.quic.over_aioquic import BACKEND
from tidewire.transport.quic.shell import Carrier, FrameCarrier, QuicShell
from tidewire.transport.quic.sockets import (
    DATAGRAMS_PER_TURN,
    RECEIVE_BYTES,
    DatagramSender,
    tune,
)
from tidewire.transport.quic.tokens import memory_of
from tidewire.transport.tls import ALPN, TlsConfig
from tidewire.transport.url import WireUrl
from tidewire.wire.streamed import StreamedClient

if TYPE_CHECKING:
    from tidewire.transport.channel import RawChannel

ADDRESS_WAIT_S: Final = 2.0
"""Time for one address of a host that has several."""
REFUSED_WAIT_S: Final = 1.0
"""After the system said that nobody listens: time for the server to show that this is not so."""


class QuicClientLink(StreamedClient, ClientLink):
    """One connection of a channel over QUIC."""


class ClientShell(QuicShell):
    """The shell of a client's connection, with its socket."""

    def __init__(self, raw: "RawChannel", sock: socket.socket, settings: QuicSettings) -> None:
        loop = asyncio.get_running_loop()
        self._sock = sock
        self._address: Address = sock.getpeername()
        self._sender = DatagramSender(sock, connected=True)
        self._scratch = memoryview(bytearray(RECEIVE_BYTES))
        self._heard_s = 0.0
        self._refused: asyncio.TimerHandle | None = None
        server = (*self._address[:2], settings.server_name)
        files = settings.files
        memory = memory_of(server, (files.certificate, files.key, files.ca))
        session = BACKEND.connect(settings, self._address, loop.time(), memory)
        super().__init__(session, self._send_all, raw.counters, _no_second_greeting)
        link = QuicClientLink(raw, self, loop.time())
        link.begin_streams()
        link.await_handshake()
        self._began_s = loop.time()
        self.begin(link, FrameCarrier(link))
        self.lost.add_done_callback(lambda _: self._close_socket())
        loop.add_reader(sock, self._readable)
        self.flush()

    def on_handshake(self, done: Handshake) -> None:
        """Give the server's HELLO its time; ours went out now, or with the first datagrams."""
        super().on_handshake(done)
        link = self.connection
        if link.peer_hello is None:
            link.begin_hello(self._began_s if done.early else self._loop.time())

    def _send_all(self, datagrams: list[tuple[bytes, Address]]) -> None:
        too_long = self._sender(datagrams, [])
        if too_long:
            self.session.too_long(too_long)

    def _readable(self) -> None:
        sock, scratch, address = self._sock, self._scratch, self._address
        some = False
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                size = sock.recv_into(scratch)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._judge(error)
                break
            if size:
                self.receive(scratch[:size].tobytes(), address)
                some = True
        if some:
            self._heard_s = self._loop.time()
            self.settle()

    def _judge(self, error: OSError) -> None:
        """
        Take the news that nobody listens at the server's port.

        Anybody on the way can send it, so a connection that is there gets time to prove it wrong.
        """
        if error.errno != errno.ECONNREFUSED:
            return
        if self.handshake is None:
            self._end(_unreached(f"nobody listens at {self._address[0]}"), None)
        elif self._refused is None:
            self._refused = self._loop.call_later(
                REFUSED_WAIT_S, self._end_refused, self._loop.time()
            )

    def _end_refused(self, refused_s: float) -> None:
        self._refused = None
        if self._heard_s < refused_s:
            self._end(ConnectionLost("nobody listens at the server's port any more"), None)

    def _close_socket(self) -> None:
        if self._refused is not None:
            self._refused.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()


def _no_second_greeting(shell: QuicShell, _alpn: str) -> Carrier:
    assert shell.carrier is not None
    return shell.carrier


async def dial(raw: "RawChannel", url: WireUrl, config: TlsConfig) -> ClientShell:
    """
    Connect to the first address of the host that answers; all but the last get ``ADDRESS_WAIT_S``.

    Raises:
        OSError: The host has no address.
        TidewireError: The files cannot be used; the connection or the handshake failed.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_DGRAM)
    problem: TidewireError | None = None
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            whole = tune(sock, raw.options)
            sock.connect(address)
        except OSError as error:
            sock.close()
            problem = _unreached(f"cannot reach {address[0]}: {error.strerror or error}")
            continue
        shell = _begin(raw, sock, config, url, whole=whole)
        last = address == found[-1][4]
        try:
            async with asyncio.timeout(None if last else ADDRESS_WAIT_S):
                await asyncio.shield(shell.connection.ready)
        except TimeoutError:
            shell.abort()
            problem = _unreached(f"{address[0]} did not answer within {ADDRESS_WAIT_S:g} s")
        except TidewireError as error:
            problem = error
            if shell.handshake is not None or last:
                raise
        except asyncio.CancelledError:
            shell.abort()
            raise
        else:
            return shell
    assert problem is not None
    raise problem


def _unreached(message: str) -> ConnectionLost:
    return ConnectionLost(message, metadata=NEVER_SENT)


def _begin(
    raw: "RawChannel", sock: socket.socket, config: TlsConfig, url: WireUrl, *, whole: bool
) -> ClientShell:
    try:
        settings = quic_settings(
            raw.options.limits,
            alpn=(ALPN,),
            whole=whole,
            files=config.read(),
            server_name=config.server_name or url.host,
        )
        return ClientShell(raw, sock, settings)
    except TidewireError:
        sock.close()
        raise
