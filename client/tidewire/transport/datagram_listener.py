"""A listening socket of datagrams: it verifies addresses, and hands datagrams to sessions."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tidewire.errors import (
    ConnectionLost,
    Draining,
    ProtocolViolation,
    TidewireError,
    TooManyConnections,
    WireVersionUnsupported,
)
from tidewire.transport.counters import handshake_reason
from tidewire.transport.datagram_server import DatagramLink
from tidewire.transport.datagram_session import SessionShell, goaway
from tidewire.transport.datagram_socket import LOSABLE, Address, ReadBudget
from tidewire.transport.peer import Peer
from tidewire.transport.tls import ServerTls
from tidewire.transport.url import WireUrl
from tidewire.wire.bodies import VERSION, Ending
from tidewire.wire.call import Call
from tidewire.wire.cookie import Cookies, proves
from tidewire.wire.datagram import (
    HELLO,
    MOVE,
    RETRY,
    RETRY_BYTES,
    Datagram,
    Greeting,
    decode_greeting,
    encode_datagram,
    parse_datagram,
)
from tidewire.wire.datagram_limits import DatagramLimits
from tidewire.wire.datagram_requests import EndedSessions, KeptBytes
from tidewire.wire.deadlines import FOREVER, Deadlines

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer

_LOGGER = logging.getLogger(__name__)

TICK_S = 1.0
"""How often sessions are looked at for leases and idleness."""


class DatagramPeer(Peer):
    """The other end of plain datagrams: an address that was verified, and no identity."""

    __slots__ = ()

    def __init__(self, address: Address) -> None:
        self.name = address_name(address)
        self._tls = None
        self._auth = None


def address_name(address: Address) -> str:
    """Return an address as gRPC writes it."""
    host, port, *more = address
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if more else f"ipv4:{host}:{port}"


class DatagramListener:
    """
    Sessions of one socket.

    Attributes:
        kept_bytes: What answers kept by all sessions take.
        ended: Sessions that may not begin again.
        deadlines: Deadlines of the calls of all sessions.
    """

    def __init__(
        self,
        server: "RawServer",
        url: WireUrl,
        sock: socket.socket,
        tls: ServerTls | None = None,
        limits: DatagramLimits | None = None,
    ) -> None:
        self.url = url
        self.tls = tls
        self.limits = limits = limits or server.options.datagrams
        self.read_bytes = limits.datagram_bytes + 1
        self.wire = replace(server.options.limits, frame_bytes_max=limits.datagram_bytes)
        self.kept_bytes = KeptBytes(limits.kept_bytes_all_max)
        self.deadlines: Deadlines[Call] = Deadlines()
        self.loop: asyncio.AbstractEventLoop
        self.sessions: dict[int, SessionShell] = {}
        self.server = server
        self.counters = server.counters
        self._sock = sock
        self.cookies = Cookies(limits.cookie_life_s)
        self.ended = EndedSessions(limits, self.cookies)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = FOREVER
        self._ticker: asyncio.TimerHandle | None = None
        self.is_closing = False
        self.is_open = True
        self._budget = ReadBudget()
        self._received: Callable[[bytes, Any, float], None] = self.take

    # Life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to take datagrams."""
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(self._sock, self._readable)
        self._ticker = self.loop.call_later(TICK_S, self._tick)

    def close(self) -> None:
        """Take no new sessions; the socket stays until those that are there have gone."""
        self.is_closing = True
        if not self.sessions:
            self.release()

    def release(self) -> None:
        """Close the socket."""
        if not self.is_open:
            return
        self.is_open = False
        for timer in (self._timer, self._ticker):
            if timer is not None:
                timer.cancel()
        if hasattr(self, "loop"):
            self.loop.remove_reader(self._sock)
        self._sock.close()

    def left(self, shell: SessionShell) -> None:
        """A session is over."""
        if self.sessions.pop(shell.session, None) is not None:
            self.counters.connections_active -= 1
            self.ended.add(shell.session, self.loop.time())
        if self.is_closing and not self.sessions:
            self.release()

    # Time -------------------------------------------------------------------------------------

    def wake_at(self, due_s: float) -> None:
        """Look at the deadlines at this time, at the latest."""
        if due_s < self._timer_s and self.is_open:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_s = due_s
            self._timer = self.loop.call_at(due_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._timer_s = FOREVER
        for call in self.deadlines.expired(self.loop.time()):
            call.connection.expire(call)
        due_s = self.deadlines.next_s()
        if due_s < FOREVER:
            self.wake_at(due_s)

    def _tick(self) -> None:
        now_s = self.loop.time()
        self.tick(now_s)
        if self.is_open:
            self._ticker = self.loop.call_later(TICK_S, self._tick)

    def tick(self, now_s: float) -> None:
        """Do what is due from time to time."""
        for shell in list(self.sessions.values()):
            shell.connection.expire_late(now_s)

    # In ---------------------------------------------------------------------------------------

    def _readable(self) -> None:
        budget, size, receive = self._budget, self.read_bytes, self._sock.recvfrom
        received, now_s = self._received, self.loop.time()
        for count in range(budget.size):
            try:
                data, address = receive(size)
            except (BlockingIOError, InterruptedError):
                budget.left(count)
                return
            except OSError as error:
                self.counters.errors[type(error).__name__] += 1
                return
            received(data, address, now_s)
            if not self.is_open:
                return
        budget.used()

    def take(self, data: bytes, origin: Any, now_s: float, *, verified: bool = False) -> None:
        """
        Hand a datagram to its session.

        Args:
            data: All of it.
            origin: Where it comes from; equal for what comes from the same place.
            now_s: When it came.
            verified: Whether the origin has been proved by other means.
        """
        counters = self.counters
        counters.datagrams_in += 1
        counters.bytes_in += len(data)
        refused = counters.datagrams_refused
        if len(data) > self.limits.datagram_bytes:
            refused["too_long"] += 1
            return
        try:
            datagram = parse_datagram(data, from_client=True)
            if datagram[0] == HELLO:
                self._hello(datagram, len(data), origin, now_s, verified=verified)
                return
            shell = self.sessions.get(datagram[3])
            if shell is not None and shell.origin == origin:
                shell.connection.receive(datagram, now_s)
                return
        except ProtocolViolation:
            refused["malformed"] += 1
            return
        refused["address_not_verified" if shell is None else "address_not_of_session"] += 1
        if verified:
            self._turn_away(datagram, origin, ConnectionLost("the session is not known here"))
        else:
            self._retry(datagram, len(data), origin, now_s)

    def _retry(self, datagram: Datagram, size: int, origin: Any, now_s: float) -> None:
        """Ask for a proof of the address; never with more bytes than came."""
        if size < RETRY_BYTES:
            return
        cookie = self.cookies.make(repr(origin).encode(), now_s)
        self.counters.cookies_sent += 1
        self.send(origin, encode_datagram(RETRY, datagram[3], datagram[4], cookie))

    def _turn_away(self, datagram: Datagram, origin: Any, error: TidewireError) -> None:
        self.send(origin, goaway(datagram[3], 0, Ending.of(error)))

    def _hello(
        self, datagram: Datagram, size: int, origin: Any, now_s: float, *, verified: bool
    ) -> None:
        greeting = decode_greeting(datagram[5])
        address = repr(origin).encode()
        if not verified and not self.cookies.check(greeting.cookie, address, now_s):
            if greeting.cookie:
                self.counters.datagrams_refused["cookie"] += 1
            self._retry(datagram, size, origin, now_s)
            return
        shell = self.sessions.get(datagram[3])
        if shell is not None:
            self._hello_again(shell, datagram, greeting, origin)
            return
        error = self._refusal(datagram, greeting)
        if error is not None:
            self.counters.refuse(handshake_reason(error), handshake=True)
            self._turn_away(datagram, origin, error)
            return
        self._admit(datagram, greeting, origin, now_s)

    def _hello_again(
        self, shell: SessionShell, datagram: Datagram, greeting: Greeting, origin: Any
    ) -> None:
        """Answer a HELLO that was not answered, or let a session move."""
        moves = bool(datagram[1] & MOVE)
        if shell.origin != origin:
            if not moves or self.tls is not None or not proves(greeting.proof, shell.commitment):
                self.counters.datagrams_refused["proof"] += 1
                error = ConnectionLost("the session is at another address, and this is no proof")
                self._turn_away(datagram, origin, error)
                return
            shell.move(origin, greeting.commitment)
        shell.connection.welcome(datagram[4], moved=moves)

    def _refusal(self, datagram: Datagram, greeting: Greeting) -> TidewireError | None:
        """Return why a new session cannot be, when it cannot."""
        hello, counters = greeting.hello, self.counters
        if datagram[1] & MOVE:
            return ConnectionLost("the session is not known here")
        if datagram[3] in self.ended:
            return ConnectionLost("the session has ended; a new one needs another number")
        if self.is_closing:
            return Draining("the server goes away")
        if not hello.version_min <= VERSION <= hello.version_max:
            return WireVersionUnsupported(
                f"the client speaks versions {hello.version_min} to {hello.version_max}; this "
                f"server speaks {VERSION}"
            )
        connections_max = self.server.options.connections_max
        if counters.connections_active >= connections_max:
            return TooManyConnections(
                f"the server has {counters.connections_active} connections, the limit is "
                f"{connections_max}",
                metadata={"connections_max": connections_max},
            )
        return None

    def _admit(self, datagram: Datagram, greeting: Greeting, origin: Any, now_s: float) -> None:
        shell = SessionShell(
            self, datagram[3], origin, greeting.hello, greeting.commitment, self.peer_of
        )
        link = self.server.admit(shell, self.url.text, now_s, DatagramLink)
        assert isinstance(link, DatagramLink)
        shell.connection = link
        self.sessions[datagram[3]] = shell
        self.counters.connections_active += 1
        self.counters.connections_opened += 1
        link.welcome(datagram[4], moved=False)

    # Out --------------------------------------------------------------------------------------

    def peer_of(self, origin: Any) -> Peer:
        """Return who is at an origin."""
        return DatagramPeer(origin)

    def send(self, origin: Any, data: bytes) -> bool:
        """
        Send; return False when the socket does not take it now, and it is lost.

        Raises:
            OSError: With EMSGSIZE, when the path is known not to carry it.
        """
        if not self.send_to(origin, data):
            return False
        counters = self.counters
        counters.datagrams_out += 1
        counters.bytes_out += len(data)
        return True

    def count_out(self, data: bytes) -> None:
        """Count a datagram of ours, without what DTLS adds."""
        self.counters.datagrams_out += 1
        self.counters.bytes_out += len(data)

    def send_to(self, address: Address, data: bytes) -> bool:
        """Put a datagram on the socket."""
        if not self.is_open:
            return False
        try:
            self._sock.sendto(data, address)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise
            if error.errno not in LOSABLE:
                self.counters.errors[type(error).__name__] += 1
            return False
        return True
