"""``dtls://``: the datagrams of ``udp://`` inside DTLS 1.2, both ends. Needs pyOpenSSL."""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc.aio
import service_identity
from cryptography import x509
from OpenSSL import SSL
from service_identity.pyopenssl import verify_hostname, verify_ip_address

from tidewire.errors import ConnectionLost, TidewireError, TlsFailed
from tidewire.transport.channel import RawChannel
from tidewire.transport.datagram_client import DatagramShell
from tidewire.transport.datagram_socket import dial_datagrams
from tidewire.transport.dtls_association import Association, make_context, reason_of
from tidewire.transport.options import TransportOptions
from tidewire.transport.peer import Peer
from tidewire.transport.quic.identity import CertificatePeer
from tidewire.transport.shell import Shell
from tidewire.transport.tls import TlsConfig
from tidewire.transport.udp import DatagramChannel, UdpPipe
from tidewire.transport.url import WireUrl
from tidewire.wire.datagram_limits import DTLS_BYTES_MAX, DatagramLimits

if TYPE_CHECKING:
    from tidewire.transport.datagram_listener import DatagramListener
    from tidewire.transport.server import RawServer
    from tidewire.transport.tls import ServerTls

RECORD_BYTES = 128
"""What DTLS adds to a datagram, at most."""


class DtlsPeer(CertificatePeer):
    """The other end of a DTLS association."""

    @property
    def auth(self) -> Mapping[str, tuple[bytes, ...]]:
        """What the certificate says, under gRPC's keys, as on tls://."""
        return {**super().auth, "ssl_tls_version": (b"DTLSv1.2",)}


def clamped(limits: DatagramLimits) -> DatagramLimits:
    """Return limits whose datagrams fit a record."""
    return replace(limits, datagram_bytes=min(limits.datagram_bytes, DTLS_BYTES_MAX))


class DtlsPipe:
    """A client's association, which is a pipe when its handshake is done."""

    def __init__(self, pipe: UdpPipe, context: SSL.Context, server_name: str) -> None:
        self._pipe = pipe
        self._name = server_name
        self._association = Association(context, server_name=server_name)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._done.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._receive: Callable[[bytes], None] | None = None
        self._received: Callable[[], None] = lambda: None
        self._lost: Callable[[TidewireError], None] = self._fail
        self._early: list[bytes] = []

    async def handshake(self) -> None:
        """
        Do the handshake and verify the server's name.

        Raises:
            TlsFailed: The server refused us, or is not who it should be.
            ConnectionLost: Nobody is there.
        """
        self._pipe.start(self._datagram, self._turned, self._pipe_lost)
        self._go_on(self._association.handshake)
        await self._done

    def _go_on(self, step: Callable[[], object]) -> None:
        try:
            step()
        except SSL.Error as error:
            self._flush()
            judged = self._association.failure
            text = f"the DTLS handshake failed: {judged or reason_of(error)}"
            # Ours is final; the server's may be another tomorrow, and is told as on tls://.
            self._fail(TlsFailed(text) if judged else ConnectionLost(text))
            return
        self._flush()
        if self._association.established and not self._done.done():
            self._judge_name()
        self._arm()

    def _judge_name(self) -> None:
        connection = self._association.ssl
        try:
            ipaddress.ip_address(self._name)
        except ValueError:
            verify: Callable[[Any, str], None] = verify_hostname
        else:
            verify = verify_ip_address
        try:
            verify(connection, self._name)
        except (
            service_identity.VerificationError,
            service_identity.CertificateError,
        ) as error:
            self._association.shutdown()
            self._flush()
            self._fail(TlsFailed(f"the server's certificate is not for {self._name}: {error!r}"))
            return
        self._done.set_result(None)

    def _fail(self, error: TidewireError) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def _pipe_lost(self, error: TidewireError) -> None:
        self._lost(error)

    def _flush(self) -> None:
        for data in self._association.output():
            try:
                self._pipe.send(data)
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    raise
                self._lost(ConnectionLost(f"cannot send: {error.strerror or error}"))
                return

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait_s = self._association.timeout_s()
        if wait_s is not None and not self._association.established:
            self._timer = self._loop.call_later(wait_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._go_on(self._association.handle_timeout)

    def _datagram(self, data: bytes) -> None:
        if not self._association.established:
            self._go_on(lambda: self._early.extend(self._association.receive(data)))
            return
        try:
            messages = self._association.receive(data)
        except SSL.Error as error:
            self._lost(ConnectionLost(f"DTLS ended: {reason_of(error)}"))
            return
        self._flush()
        for message in messages:
            if self._receive is None:
                self._early.append(message)
            else:
                self._receive(message)
        if self._association.closed:
            self._lost(ConnectionLost("the server closed the DTLS association"))

    def _turned(self) -> None:
        self._received()

    # As a pipe --------------------------------------------------------------------------------

    def start(
        self,
        receive: Callable[[bytes], None],
        received: Callable[[], None],
        lost: Callable[[TidewireError], None],
    ) -> None:
        """Begin to hand over what comes."""
        self._receive, self._received, self._lost = receive, received, lost
        early, self._early = self._early, []
        for message in early:
            receive(message)

    def send(self, data: bytes) -> None:
        """Encrypt and send."""
        self._association.send(data)
        for record in self._association.output():
            self._pipe.send(record)

    def path_bytes(self) -> int:
        """Return the largest plaintext the kernel knows the path to carry."""
        return self._pipe.path_bytes() - RECORD_BYTES

    def peer(self) -> Peer:
        """Who is at the other end, by its certificate."""
        chain: tuple[x509.Certificate, ...] = self._association.chain()
        return DtlsPeer(self._pipe.peer().name, chain)

    def close(self) -> None:
        """Tell the server, and close the socket."""
        if self._timer is not None:
            self._timer.cancel()
        self._association.shutdown()
        self._lost = self._fail
        self._flush()
        self._pipe.close()


def dtls_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],
) -> DatagramChannel:
    """
    Return a channel over DTLS that verifies the server's chain and name.

    The files are read for each association, so that new certificates need no new channel.
    """
    config = tls or TlsConfig()
    make_context(config, server=False)  # what is wrong with the files shows now
    limits = clamped(options.datagrams)
    options = replace(options, datagrams=limits)

    async def connect(raw: RawChannel) -> Shell:
        sock = await dial_datagrams(url.host, url.port, options)
        inner = UdpPipe(sock, url.text, limits.datagram_bytes + RECORD_BYTES)
        context = make_context(config, server=False)
        pipe = DtlsPipe(inner, context, config.server_name or url.host)
        try:
            await pipe.handshake()
        except BaseException:
            pipe.close()
            raise
        return DatagramShell(raw, pipe)

    return DatagramChannel(
        url.text,
        connect,
        options=options,
        encrypted=True,
        interceptors=interceptors,
        codecs=codecs,
    )


def dtls_listener(server: "RawServer", url: WireUrl, tls: "ServerTls | None") -> "DatagramListener":
    """
    Listen on DTLS; port 0 picks one.

    Raises:
        InvalidArgument: The address cannot be resolved or bound.
        TlsFailed: The certificates cannot be used.
    """
    from tidewire.transport.datagram_socket import bind_datagrams
    from tidewire.transport.dtls_listener import DtlsListener

    assert tls is not None
    sock: socket.socket = bind_datagrams(url.host, url.port, server.options)
    try:
        return DtlsListener(server, url.at(sock.getsockname()[1]), sock, tls)
    except TidewireError:
        sock.close()
        raise
