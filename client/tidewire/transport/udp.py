"""``udp://``: calls in datagrams, both ends of it."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import grpc.aio

from tidewire.errors import ConnectionLost, TidewireError
from tidewire.transport.channel import RawChannel
from tidewire.transport.datagram_client import DatagramClientLink, DatagramShell
from tidewire.transport.datagram_listener import DatagramListener, DatagramPeer
from tidewire.transport.datagram_socket import (
    LOSABLE,
    ReadBudget,
    bind_datagrams,
    dial_datagrams,
    path_bytes,
)
from tidewire.transport.options import TransportOptions
from tidewire.transport.peer import Peer
from tidewire.transport.shell import Shell
from tidewire.transport.tls import ServerTls, TlsConfig, refuse_certificates
from tidewire.transport.url import WireUrl

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer


class DatagramChannel(RawChannel):
    """
    A channel over datagrams: it carries calls with one request and one response.

    Attributes:
        carries_streams: False. What needs a stream ends with WireUnsuitable, but for lossy streams.
    """

    carries_streams = False

    @property
    def datagram_bytes(self) -> int:
        """Largest datagram it sends."""
        return self.options.datagrams.datagram_bytes

    async def oneways(self) -> tuple[int, int]:
        """
        Return how many lossy messages this channel has sent, and how many of them have arrived.

        What is still on its way counts as not arrived. Sessions that are over do not count.

        Raises:
            PeerVanished: The server does not answer.
        """
        sent = taken = 0
        for link in list(self._links):
            assert isinstance(link, DatagramClientLink)
            of_link = await link.oneways()
            sent += of_link[0]
            taken += of_link[1]
        return sent, taken


class UdpPipe:
    """A connected socket."""

    def __init__(self, sock: socket.socket, url: str, bytes_max: int) -> None:
        self._sock = sock
        self._url = url
        self._read_bytes = bytes_max + 1
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._budget = ReadBudget()
        self._receive: Callable[[bytes], None]
        self._received: Callable[[], None]
        self._lost: Callable[[TidewireError], None]

    def start(
        self,
        receive: Callable[[bytes], None],
        received: Callable[[], None],
        lost: Callable[[TidewireError], None],
    ) -> None:
        """Begin to hand over what comes."""
        self._receive, self._received, self._lost = receive, received, lost
        self._loop.add_reader(self._sock, self._readable)

    def _readable(self) -> None:
        budget, recv, size, receive = self._budget, self._sock.recv, self._read_bytes, self._receive
        for count in range(budget.size):
            try:
                data = recv(size)
            except (BlockingIOError, InterruptedError):
                budget.left(count)
                break
            except OSError as error:
                self._lost(ConnectionLost(f"cannot reach {self._url}: {error.strerror or error}"))
                return
            receive(data)
            if not self._open:
                return
        else:
            budget.used()
        self._received()

    def send(self, data: bytes) -> None:
        """Send; what the kernel does not take now is lost."""
        try:
            self._sock.send(data)
        except OSError as error:
            if error.errno not in LOSABLE:
                raise

    def path_bytes(self) -> int:
        """Return the largest datagram the kernel knows the path to carry."""
        return path_bytes(self._sock)

    def peer(self) -> Peer:
        """Who is at the other end: an address."""
        return DatagramPeer(self._sock.getpeername())

    def close(self) -> None:
        """Close the socket."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._sock.close()


def udp_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],
) -> DatagramChannel:
    """Return a channel without encryption; raise when certificates are given for it."""
    refuse_certificates(url.text, tls, "dtls")

    async def connect(raw: RawChannel) -> Shell:
        sock = await dial_datagrams(url.host, url.port, options)
        return DatagramShell(raw, UdpPipe(sock, url.text, options.datagrams.datagram_bytes))

    return DatagramChannel(
        url.text,
        connect,
        options=options,
        encrypted=False,
        interceptors=interceptors,
        codecs=codecs,
    )


def udp_listener(server: "RawServer", url: WireUrl, tls: ServerTls | None) -> DatagramListener:
    """
    Listen on UDP; port 0 picks one.

    Raises:
        InvalidArgument: The address cannot be resolved or bound.
    """
    sock = bind_datagrams(url.host, url.port, server.options)
    return DatagramListener(server, url.at(sock.getsockname()[1]), sock, tls)
