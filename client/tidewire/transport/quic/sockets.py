"""UDP sockets of QUIC: many datagrams a turn, in and out, and no fragments on the way."""

import errno
import logging
import socket
import sys
from struct import Struct
from typing import Final, TypeAlias

from tidewire.transport.binding import bind_address
from tidewire.transport.options import TransportOptions
from tidewire.transport.quic.backend import Address

DATAGRAMS_PER_TURN: Final = 64
"""Datagrams read before what they bring is acted on."""
RECEIVE_BYTES: Final = 65_536
BUFFER_BYTES: Final = 4 * 1024 * 1024
"""SO_RCVBUF and SO_SNDBUF unless the options say otherwise; the kernel may allow less."""
SEGMENTS_MAX: Final = 60
"""Datagrams of one size that go to the kernel in one call; it takes 64."""
SEGMENT_TOTAL_MAX: Final = 65_000
"""Bytes of them: they travel through the kernel as one."""

_LINUX: Final = sys.platform == "linux"
# Linux's numbers, which the socket module does not have.
_MTU_DISCOVER: Final = {socket.AF_INET: (0, 10), socket.AF_INET6: (41, 23)}
_PROBE: Final = 3
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_SEGMENT: Final = Struct("=H")
_NOTE: Final = {socket.AF_INET: (0, 8), socket.AF_INET6: (41, 49)}
_NOTED_4: Final = (0, 8)
_NOTED_6: Final = (41, 50)
_CONTROL_BYTES: Final = 128

Control: TypeAlias = list[tuple[int, int, bytes]]
"""Control messages of a datagram, as ``sendmsg`` takes them."""
_LOGGER = logging.getLogger(__name__)


def tune(sock: socket.socket, options: TransportOptions) -> bool:
    """
    Set buffers, and forbid fragments.

    Returns:
        Whether datagrams of this socket are never fragmented: only then the path may be probed.
    """
    sock.setblocking(False)
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVBUF, options.receive_buffer_bytes or BUFFER_BYTES
    )
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer_bytes or BUFFER_BYTES)
    if not _LINUX:
        return False
    try:
        sock.setsockopt(*_MTU_DISCOVER[sock.family], _PROBE)
    except (OSError, KeyError):
        return False
    return True


def bind(host: str, port: int, options: TransportOptions) -> tuple[socket.socket, bool]:
    """
    Return a socket bound to one address, and whether it never fragments; port 0 picks one.

    Raises:
        InvalidArgument: The address cannot be resolved or bound.
    """
    whole = False

    def prepare(sock: socket.socket) -> None:
        nonlocal whole
        whole = tune(sock, options)

    sock = bind_address(host, port, socket.SOCK_DGRAM, prepare)
    return sock, whole


def note_addresses(sock: socket.socket) -> bool:
    """
    Let a socket that is bound to every address tell which one each datagram came to.

    Answers have to leave from that address: a client drops what comes from another.

    Returns:
        Whether :func:`receive_noted` is to be used.
    """
    if not _LINUX or sock.getsockname()[0] not in ("0.0.0.0", "::"):  # noqa: S104 (asked, not bound)
        return False
    sock.setsockopt(*_NOTE[sock.family], 1)
    return True


def receive_noted(sock: socket.socket, into: memoryview) -> tuple[int, Address, Control]:
    """Return the size of a datagram, whence it came, and the control message for its answers."""
    size, control, _, address = sock.recvmsg_into([into], _CONTROL_BYTES)
    for level, kind, data in control:
        if (level, kind) == _NOTED_4:
            # Without the number of the interface: the way back is for the routes to find.
            return size, address, [(level, kind, bytes(4) + data[4:])]
        if (level, kind) == _NOTED_6:
            return size, address, [(level, kind, data)]
    return size, address, []


class DatagramSender:
    """
    Sends datagrams; a run of one size to one address in one call where the kernel can cut it.

    Args:
        sock: Bound, or connected: then addresses are left out.
    """

    def __init__(self, sock: socket.socket, *, connected: bool) -> None:
        self._sock = sock
        self._connected = connected
        self._segments = _LINUX

    def __call__(self, datagrams: list[tuple[bytes, Address]], control: Control) -> int:
        """
        Send; what the kernel does not take is lost, as on the way.

        Args:
            datagrams: With their addresses.
            control: What :func:`receive_noted` gave; else nothing.

        Returns:
            The size of a datagram that is too long for the interface; 0 when there was none.
        """
        if len(datagrams) == 1:
            return self._send(datagrams[0], control)
        place, count, too_long = 0, len(datagrams), 0
        while place < count:
            run = self._run(datagrams, place) if self._segments else 1
            if run > 1:
                too_long = self._send_run(datagrams[place : place + run], control) or too_long
            else:
                too_long = self._send(datagrams[place], control) or too_long
            place += run
        return too_long

    def _run(self, datagrams: list[tuple[bytes, Address]], start: int) -> int:
        """Return how many datagrams from ``start`` go in one call: equal sizes, the last less."""
        first, address = datagrams[start]
        size = len(first)
        most = min(SEGMENTS_MAX, SEGMENT_TOTAL_MAX // size, len(datagrams) - start)
        run = 1
        while run < most:
            data, to = datagrams[start + run]
            if len(data) > size or to != address:
                break
            run += 1
            if len(data) < size:
                break
        return run

    def _send(self, datagram: tuple[bytes, Address], control: Control) -> int:
        data, address = datagram
        try:
            if self._connected:
                self._sock.send(data)
            elif control:
                self._sock.sendmsg([data], control, 0, address)
            else:
                self._sock.sendto(data, address)
        except OSError as error:
            return self._judge(error, len(data))
        return 0

    def _send_run(self, run: list[tuple[bytes, Address]], noted: Control) -> int:
        size = len(run[0][0])
        control = [*noted, (_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(size))]
        pieces = [data for data, _ in run]
        try:
            if self._connected:
                self._sock.sendmsg(pieces, control)
            else:
                self._sock.sendmsg(pieces, control, 0, run[0][1])
        except OSError as error:
            if error.errno in (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP):
                self._segments = False  # this kernel or interface does not cut
                return max(self._send(each, noted) for each in run)
            return self._judge(error, size)
        return 0

    def _judge(self, error: OSError, size: int) -> int:
        if error.errno == errno.EMSGSIZE:
            return size
        if not isinstance(error, (BlockingIOError, InterruptedError)):
            _LOGGER.debug("a datagram of %d bytes was not sent: %s", size, error)
        return 0
