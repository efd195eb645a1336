"""
``memory://name``: both ends in one process, without sockets.

What a socket does is done here too: bytes arrive in a later turn of the event loop, a writer is
paused while the other side does not take them, closing hands over what was written. The ends may
run in event loops of different threads.
"""

import asyncio
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc.aio

from tidewire.errors import ConnectionLost, InvalidArgument
from tidewire.transport.channel import RawChannel
from tidewire.transport.options import WRITE_HIGH_BYTES, WRITE_LOW_BYTES, TransportOptions
from tidewire.transport.peer import Peer
from tidewire.transport.shell import Shell
from tidewire.transport.stream import RECEIVE_BYTES, WireProtocol
from tidewire.transport.tls import ServerTls, TlsConfig, refuse_certificates
from tidewire.transport.url import WireUrl

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer

NAME: Final = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,62}", re.ASCII)
PEER_MEMORY: Final = "peer_memory"
"""Key of the identity of a client in this process: ``memory://process``."""
_PROCESS: Final = b"memory://process"
_AUTH: Final = {"transport_security_type": (b"local",), PEER_MEMORY: (_PROCESS,)}

_Protocol: TypeAlias = WireProtocol[Any]


class MemoryPeer(Peer):
    """The other end is this process itself."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        self.name = f"memory:{name}"
        self._tls = None
        self._auth = None

    @property
    def auth(self) -> Mapping[str, tuple[bytes, ...]]:
        """That it is this process."""
        return _AUTH

    @property
    def identity_key(self) -> str:
        """``peer_memory``."""
        return PEER_MEMORY


class MemoryTransport(asyncio.Transport):
    """
    One end of a connection within the process.

    What is written and not yet taken by the other end counts as this end's write buffer. Each end
    touches its own state only, in its own event loop; the rest travels as callbacks.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        super().__init__()
        self.loop = loop
        self.other: MemoryTransport
        self._peer = MemoryPeer(name)
        self._protocol: _Protocol | None = None
        self._near = False
        """Both ends are in one event loop."""
        self._unsent_bytes = 0
        self._high_bytes = WRITE_HIGH_BYTES
        self._low_bytes = WRITE_LOW_BYTES
        self._held_up = False
        self._inbox: deque[bytes] = deque()
        self._delivering = False
        self._reading = True
        self._ended = False
        """The other end has closed, after what is in the inbox."""
        self._closing = False
        self._lost = False

    def join(self, other: "MemoryTransport") -> None:
        """Make two ends one connection."""
        self.other, other.other = other, self
        self._near = other._near = self.loop is other.loop

    def begin(self, protocol: _Protocol) -> None:
        """Speak; what has come already follows."""
        self._protocol = protocol
        protocol.connection_made(self)
        if self._inbox or self._ended:
            self._deliver_soon()

    # Writing ----------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; the other end gets it in a later turn of its loop."""
        if self._lost or self._closing or not data:
            return
        self._unsent_bytes += len(data)
        self._post(self.other._arrive, data if type(data) is bytes else bytes(data))
        if self._unsent_bytes > self._high_bytes and not self._held_up:
            self._held_up = True
            assert self._protocol is not None
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send several pieces as one."""
        self.write(b"".join(list_of_data))

    def _tell_taken(self, size: int) -> None:
        if self._near:
            self.other._taken(size)
        else:
            self._post(self.other._taken, size)

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        """Run something at the other end, later."""
        if self._near:
            self.loop.call_soon(callback, *arguments)
            return
        try:
            self.other.loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # that loop is closed: nobody is there any more
            self._close_soon(ConnectionLost("the event loop of the other end is closed"))

    def _taken(self, size: int) -> None:
        """The other end took some of what was written. It may run in that end's methods."""
        self._unsent_bytes -= size
        if self._held_up and self._unsent_bytes <= self._low_bytes:
            self._held_up = False
            self.loop.call_soon(self._resume)
        if self._closing and not self._unsent_bytes:
            self._close_soon(None)

    def _resume(self) -> None:
        if self._protocol is not None and not self._held_up and not self._lost:
            self._protocol.resume_writing()

    # Reading ----------------------------------------------------------------------------------

    def _arrive(self, data: bytes) -> None:
        """Take what the other end wrote, and hand it on when nothing is before it."""
        if self._lost or self._closing:
            self._tell_taken(len(data))
            return
        self._inbox.append(data)
        if self._protocol is not None and self._reading and not self._delivering:
            self._deliver()

    def _deliver_soon(self) -> None:
        if not self._delivering:
            self._delivering = True
            self.loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        """Hand over one piece; the next one waits for the loop's next turn."""
        self._delivering = False
        if self._lost or self._closing or not self._reading or self._protocol is None:
            return
        if self._inbox:
            data = self._inbox.popleft()
            if len(data) > RECEIVE_BYTES:
                self._inbox.appendleft(data[RECEIVE_BYTES:])
                data = data[:RECEIVE_BYTES]
            self._protocol.take(data)
            self._tell_taken(len(data))
        if self._inbox:
            self._deliver_soon()
        elif self._ended and self._reading:
            self._end()

    def _finish(self) -> None:
        """The other end has closed."""
        self._ended = True
        if self._protocol is not None and self._reading and not self._inbox:
            self._end()

    def _end(self) -> None:
        if not self._closing and not self._lost:
            assert self._protocol is not None
            if not self._protocol.eof_received():
                self.close()

    def pause_reading(self) -> None:
        """Hand over nothing until reading is resumed; the other end will have to wait."""
        self._reading = False

    def resume_reading(self) -> None:
        """Go on."""
        if not self._reading:
            self._reading = True
            self._deliver_soon()

    def is_reading(self) -> bool:
        """Whether what comes is handed over."""
        return self._reading and not self._closing

    # Ends -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Read no more; end once the other side has taken what was written."""
        if self._closing or self._lost:
            return
        self._closing = True
        self._drop_inbox()
        self._post(self.other._finish)
        if not self._unsent_bytes or self._ended:
            self._close_soon(None)

    def abort(self) -> None:
        """End at once."""
        if not self._closing:
            self._drop_inbox()
            self._post(self.other._finish)
        self._close_soon(None)

    def _drop_inbox(self) -> None:
        unread = sum(map(len, self._inbox))
        self._inbox.clear()
        if unread:
            self._tell_taken(unread)

    def _close_soon(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = self._closing = True
            self.loop.call_soon(self._tell, error)

    def _tell(self, error: Exception | None) -> None:
        if self._protocol is not None:
            protocol, self._protocol = self._protocol, None
            protocol.connection_lost(error)

    def is_closing(self) -> bool:
        """Whether it is closing or closed."""
        return self._closing

    # What asyncio asks for --------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the peer; there is no socket."""
        return self._peer if name == "peer" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Say when the writer is paused and resumed, in bytes the other end has not taken."""
        self._high_bytes = WRITE_HIGH_BYTES if high is None else high
        self._low_bytes = self._high_bytes // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        """Bytes written that the other end has not taken."""
        return self._unsent_bytes


class MemoryListener:
    """A name in this process that clients connect to, from any thread."""

    tls: ServerTls | None = None

    def __init__(self, server: "RawServer", url: WireUrl) -> None:
        self.url = url
        self._server = server
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def dead(self) -> bool:
        """Whether its event loop is closed, so that nobody will ever answer."""
        return self._loop is not None and self._loop.is_closed()

    def start(self) -> None:
        """Accept what comes, in the running event loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Free the name."""
        with _LOCK:
            if _LISTENERS.get(self.url.host) is self:
                del _LISTENERS[self.url.host]

    def connect(self, client: MemoryTransport) -> None:
        """Give a client's end its other end, in the server's loop. Error: ConnectionLost."""
        if self._loop is None:
            raise ConnectionLost(f"{self.url.text} does not accept connections yet")
        server = MemoryTransport(self._loop, self.url.host)
        server.join(client)
        client._post(self._accept, server)

    def _accept(self, transport: MemoryTransport) -> None:
        counters, options = self._server.counters, self._server.options
        if counters.connections_active >= options.connections_max:
            counters.refuse("too_many_connections")
            transport.abort()
            return
        transport.begin(self._server.stream_protocol(self.url.text))


_LISTENERS: dict[str, MemoryListener] = {}
_LOCK: Final = threading.Lock()


def memory_listener(server: "RawServer", url: WireUrl, tls: ServerTls | None) -> MemoryListener:
    """
    Listen on a name of this process. Certificates never come here: nothing is encrypted.

    Raises:
        InvalidArgument: The name is taken, or is none.
    """
    assert tls is None
    _check_name(url)
    listener = MemoryListener(server, url)
    with _LOCK:
        taken = _LISTENERS.get(url.host)
        if taken is not None and not taken.dead:
            raise InvalidArgument(f"{url.text} is in use: a server of this process listens on it")
        _LISTENERS[url.host] = listener
    return listener


def memory_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],
) -> RawChannel:
    """Return a channel within the process; raise when certificates or a token are given for it."""
    refuse_certificates(url.text, tls)
    _check_name(url)

    async def connect(raw: RawChannel) -> Shell:
        return _dial(raw.stream_protocol(), url)

    return RawChannel(
        url.text,
        connect,
        options=options,
        encrypted=False,
        interceptors=interceptors,
        codecs=codecs,
    )


def _dial(protocol: _Protocol, url: WireUrl) -> _Protocol:
    with _LOCK:
        listener = _LISTENERS.get(url.host)
    if listener is None or listener.dead:
        raise ConnectionLost(f"cannot connect to {url.text}: nothing in this process listens on it")
    client = MemoryTransport(asyncio.get_running_loop(), url.host)
    listener.connect(client)
    client.begin(protocol)
    return protocol


def _check_name(url: WireUrl) -> None:
    if url.port or url.path or not NAME.fullmatch(url.host):
        raise InvalidArgument(
            "a memory URL is memory://name, the name of lower-case letters, digits, '.', '_' and "
            f"'-', at most 63; not {url.text}"
        )
