"""
Accepts connections of one address: bounded handshakes, and the TLS context of the moment for
each.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from tidewire.transport.binding import bind_address, cannot_listen
from tidewire.transport.counters import WireCounters
from tidewire.transport.options import BACKLOG, HANDSHAKES_MAX, TransportOptions
from tidewire.transport.sockets import adopt
from tidewire.transport.stream import WireProtocol
from tidewire.transport.tls import ServerTls
from tidewire.transport.url import WireUrl

ACCEPTS_PER_TURN: Final = 64
ACCEPT_PAUSE_S: Final = 0.1
"""Wait after running out of descriptors: the kernel keeps the connections meanwhile."""
_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_LOGGER = logging.getLogger(__name__)


class Listener:
    """
    A listening socket and its accept loop.

    Handshakes in flight are counted: beyond ``HANDSHAKES_MAX`` it stops accepting, so that more
    connections wait in the kernel and cost nothing.
    """

    def __init__(
        self,
        sock: socket.socket,
        factory: Callable[[], WireProtocol[Any]],
        *,
        url: WireUrl,
        options: TransportOptions,
        counters: WireCounters,
        tls: ServerTls | None = None,
    ) -> None:
        self.url = url
        self.sock = sock
        self.tls = tls
        self._factory = factory
        self._options = options
        self._counters = counters
        self._loop: asyncio.AbstractEventLoop | None = None
        self._adopting: set[asyncio.Task[None]] = set()
        self._uncounted: dict[socket.socket, WireProtocol[Any] | None] = {}
        """Sockets that are taken, and the shells of those that have one."""
        self._accepting = False
        self._closed = False
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept."""
        self._loop = asyncio.get_running_loop()
        self._resume()

    def close(self) -> None:
        """Stop accepting and give up handshakes in flight."""
        self._closed = True
        self._suspend()
        if self._pause is not None:
            self._pause.cancel()
        self.sock.close()
        for task in self._adopting:
            task.cancel()

    def _resume(self) -> None:
        if not self._accepting and not self._closed and self._loop is not None:
            self._accepting = True
            self._loop.add_reader(self.sock, self._accept)

    def _suspend(self) -> None:
        if self._accepting and self._loop is not None:
            self._accepting = False
            self._loop.remove_reader(self.sock)

    def _accept(self) -> None:
        assert self._loop is not None
        for _ in range(ACCEPTS_PER_TURN):
            if len(self._adopting) >= HANDSHAKES_MAX:
                self._suspend()
                return
            try:
                accepted, _ = self.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _SCARCE:
                    raise
                _LOGGER.error("cannot accept for the moment: %s", error)
                self._suspend()
                self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._resume)
                return
            if self._is_full():
                self._counters.refuse("too_many_connections")
                accepted.close()
                continue
            accepted.setblocking(False)
            self._uncounted[accepted] = None
            task = self._loop.create_task(self._adopt(accepted))
            self._adopting.add(task)
            task.add_done_callback(self._adopted)

    def _is_full(self) -> bool:
        active, most = self._counters.connections_active, self._options.connections_max
        if self._options.connections_elsewhere is not None:
            most -= self._options.connections_elsewhere()
        if active + len(self._uncounted) < most:
            return False
        # A connection that has begun is active before its task has ended: it counts once.
        shells = self._uncounted.values()
        return active + sum(1 for shell in shells if shell is None or not shell.counted) >= most

    def _adopted(self, task: "asyncio.Task[None]") -> None:
        self._adopting.discard(task)
        self._resume()

    async def _adopt(self, accepted: socket.socket) -> None:
        context = None
        if self.tls is not None:
            self.tls.refresh()
            context = self.tls.context
        shell: WireProtocol[Any] | None = None

        def make() -> WireProtocol[Any]:
            made = self._uncounted[accepted] = self._factory()
            return made

        try:
            async with asyncio.timeout(self._options.handshake_timeout_s):
                shell = await adopt(make, accepted, options=self._options, context=context)
                await self._open(shell)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            self._counters.refuse_handshake(error)
            _LOGGER.debug("connection not taken: %r", error)
            _drop(accepted, shell)
        except asyncio.CancelledError:
            _drop(accepted, shell)
            raise
        finally:
            del self._uncounted[accepted]

    async def _open(self, shell: WireProtocol[Any]) -> None:
        """Wait for what a wire does after TLS and before its first frame, if it does anything."""


def _drop(accepted: socket.socket, shell: WireProtocol[Any] | None) -> None:
    """Close a connection that is not taken; its transport has the socket once there is a shell."""
    if shell is None:
        accepted.close()
    else:
        shell.abort()


def bind(
    host: str,
    port: int,
    *,
    backlog: int = BACKLOG,
    reuse_port: bool = False,
    listening: bool = True,
) -> socket.socket:
    """
    Return a listening socket on one address; port 0 picks one.

    Args:
        host: Name or address.
        port: Port.
        backlog: Connections the kernel holds until they are accepted.
        reuse_port: Share the port with other processes of this user that say so too.
        listening: False: only hold the address.

    Raises:
        InvalidArgument: The address cannot be resolved or bound.
    """

    def prepare(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    sock = bind_address(host, port, socket.SOCK_STREAM, prepare)
    if listening:
        try:
            sock.listen(backlog)
        except OSError as error:
            sock.close()
            raise cannot_listen(host, port, error) from error
    return sock
