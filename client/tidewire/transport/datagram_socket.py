"""Sockets of wires of datagrams: made, tuned, and what they say about the path."""

import asyncio
import errno
import socket
import sys
from typing import Final

from tidewire.transport.binding import bind_address
from tidewire.transport.options import TransportOptions

READS_PER_TURN: Final = 64
"""Datagrams taken before the event loop gets its turn."""
FULL_TURNS: Final = 8
"""Turns with as many datagrams as were read, after which more are read."""
IP_HEADERS_BYTES: Final = 28
"""IPv4 and UDP."""
LOSABLE: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENETUNREACH, errno.EHOSTUNREACH})
"""Errors of sending that mean no more than a datagram that is lost on the way."""
# Linux's numbers: the socket module of Python 3.11 does not name them.
_IP_MTU_DISCOVER: Final = 10
_IP_PMTUDISC_DO: Final = 2
_IP_MTU: Final = 14

Address = tuple[str, int] | tuple[str, int, int, int]


def _tune(sock: socket.socket, options: TransportOptions, receive_bytes: int) -> None:
    sock.setblocking(False)
    if options.send_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer_bytes)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    if sys.platform == "linux" and sock.family == socket.AF_INET:
        # Never in fragments: the loss of one would be the loss of all, and many paths drop them.
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)


class ReadBudget:
    """
    How many datagrams to read in a turn of the event loop.

    To ask for one more than there is costs a call to the kernel and an exception, 3 us of a small
    call. So as many are read as there were, and more only when there were as many again and again;
    what is left makes the socket readable in the next turn.
    """

    __slots__ = ("_full", "size")

    def __init__(self) -> None:
        self.size = 1
        self._full = 0

    def used(self) -> None:
        """All of it was read: there may be more."""
        self._full += 1
        if self._full >= FULL_TURNS:
            self._full = 0
            self.size = min(2 * self.size, READS_PER_TURN)

    def left(self, count: int) -> None:
        """There were only so many."""
        self._full = 0
        self.size = max(1, count)


async def dial_datagrams(host: str, port: int, options: TransportOptions) -> socket.socket:
    """
    Return a socket that sends to one address and takes from it only.

    Raises:
        OSError: The name or address cannot be used.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        _tune(sock, options, options.receive_buffer_bytes)
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def bind_datagrams(host: str, port: int, options: TransportOptions) -> socket.socket:
    """
    Return a server's socket; port 0 picks one.

    Raises:
        InvalidArgument: The address cannot be resolved or bound.
    """

    def prepare(sock: socket.socket) -> None:
        buffer_bytes = options.receive_buffer_bytes or options.datagrams.receive_buffer_bytes
        _tune(sock, options, buffer_bytes)
        if options.reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    return bind_address(host, port, socket.SOCK_DGRAM, prepare)


def path_bytes(sock: socket.socket) -> int:
    """Return the largest datagram the kernel knows the path of a connected socket to carry."""
    if sys.platform != "linux" or sock.family != socket.AF_INET:
        return 0
    return sock.getsockopt(socket.IPPROTO_IP, _IP_MTU) - IP_HEADERS_BYTES
