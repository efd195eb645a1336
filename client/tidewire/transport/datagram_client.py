"""The client's end of wires of datagrams: a link that makes requests, and its shell."""

import asyncio
import errno
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from tidewire.errors import (
    ConnectionLost,
    DeadlineExceeded,
    PeerVanished,
    TidewireError,
    WireUnsuitable,
)
from tidewire.transport.client_call import UnaryUnaryCall
from tidewire.transport.client_link import ClientLink
from tidewire.transport.counters import WireCounters
from tidewire.transport.lossy import LOSSY_METHODS, ONEWAY_MARK, LossyMethod
from tidewire.transport.peer import Peer
from tidewire.transport.stream_call import ReaderCore, WriterCore
from tidewire.transport.timer import OneTimer
from tidewire.wire.bodies import ENDING_OK, STATUS_OK, Ending, Goaway, Hello, decode_head
from tidewire.wire.call import Call
from tidewire.wire.client_side import ClientCall
from tidewire.wire.datagram import HEADER, HEADER_BYTES, LOSSY, REQUEST, Answer
from tidewire.wire.datagram_asking import Asking
from tidewire.wire.datagram_client import ClientSession
from tidewire.wire.frame import END, NONE

if TYPE_CHECKING:
    from tidewire.transport.channel import RawChannel

UNREAD_MAX: Final = 16_384
"""Messages of a lossy stream that wait for the application; later ones are lost, and counted."""
PINGS_MAX: Final = 10
PING_WAIT_S: Final = 0.2
_UNLIMITED: Final = 1 << 62


class Pipe(Protocol):
    """Carries whole datagrams to one server and back; may lose them."""

    def start(
        self,
        receive: Callable[[bytes], None],
        received: Callable[[], None],
        lost: Callable[[TidewireError], None],
    ) -> None:
        """
        Begin to hand over what comes.

        Args:
            receive: Takes each datagram.
            received: Called when no more is there for now.
            lost: Called once when the pipe cannot go on.
        """
        ...

    def send(self, data: bytes) -> None:
        """Send a datagram; raise ``OSError`` with EMSGSIZE when the path does not carry it."""
        ...

    def path_bytes(self) -> int:
        """Return the largest datagram the path is known to carry."""
        ...

    def peer(self) -> Peer:
        """Who is at the other end."""
        ...

    def close(self) -> None:
        """Close at once."""
        ...


class DatagramClientLink(ClientLink):
    """
    A session as a connection of a channel: the channel cannot tell it from a stream.

    Calls go to the sans-IO session as requests; nothing of the frames of streams is used.
    """

    def __init__(self, channel: "RawChannel", shell: "DatagramShell", now_s: float) -> None:
        super().__init__(channel, shell, now_s)
        limits = channel.options.datagrams
        # What HELLO says of frames is the size of datagrams here.
        wire = replace(channel.options.limits, frame_bytes_max=limits.datagram_bytes)
        self.session = ClientSession(self, channel.hello, wire, limits, now_s)
        self._shell = shell
        self._asked: dict[int, Asking] = {}
        self._ponged: asyncio.Future[None] | None = None
        self._missed: Counter[int] = Counter()
        """Messages lost that their lossy streams were not told of yet, by call."""
        # Messages of lossy streams come by ``push_call``, whole and without credit.
        self.single_bytes_max = -1
        self.fragment_bytes = _UNLIMITED
        self.credit = _UNLIMITED

    # Calls ------------------------------------------------------------------------------------

    def open(self, call: ClientCall, message: bytes | None, *, last: bool) -> None:
        """
        Make a request, or begin a lossy stream.

        Raises:
            MessageTooLarge: The request does not fit a datagram; nothing was sent.
            WireUnsuitable: The call is a stream.
            ResourceExhausted: Too many calls wait.
        """
        unary = type(call) is UnaryUnaryCall
        if not unary:
            call.credit = _UNLIMITED
            if message is not None:
                self._lossy(call)
            else:
                # Told in a moment, or by the first write: who opens a stream and writes at once
                # hears the reason then, and not just that the call is over.
                self.channel.loop.call_soon(self._judge_stream, call)
        call.connection = self
        self.last_call_id += 1
        if unary and ONEWAY_MARK in call.head:
            assert message is not None
            self.session.oneway(call.head, message, call.priority)
            self._shell.flush()
            call.over = True
            call.on_last(b"")
            return
        call.call_id = self.last_call_id
        if unary:
            assert message is not None
            self._request(call, message, 0)
            # For a channel that moves the call elsewhere before it was sent.
            call.first, call.open_flags = message, END
        self.calls[call.call_id] = call

    def _judge_stream(self, call: ClientCall) -> None:
        try:
            self._lossy(call)
        except WireUnsuitable as error:
            self.cancel(call, Ending.of(error))

    def _lossy(self, call: ClientCall) -> LossyMethod:
        method = decode_head(call.head).method
        known = LOSSY_METHODS.get(method)
        if known is None or not isinstance(call, ReaderCore) or not isinstance(call, WriterCore):
            raise WireUnsuitable(
                f"{method} is a stream, and {self.channel.url} carries calls with one request and "
                "one response: use tcp://, quic:// or grpc://",
                metadata={"method": method},
            )
        return known

    def _request(self, call: ClientCall, message: bytes, flags: int) -> None:
        asking = Asking(call, call.head, message, call.priority, call.deadline_s)
        asking.flags = flags
        self.session.request(asking, self.channel.loop.time())
        self._asked[call.call_id] = asking
        self._shell.flush()

    def push_call(self, call: Call) -> None:
        """Take what a lossy stream has to say: its first message, or its end."""
        assert isinstance(call, ClientCall)
        pieces: list[bytes | memoryview] = []
        call.emit(pieces)
        flags = bytes(pieces[0])[5]
        try:
            if flags & NONE:
                self.cancel(call, ENDING_OK)
            elif call.call_id in self._asked:
                raise WireUnsuitable("a lossy stream takes one message, and it has been sent")
            else:
                message = bytes(pieces[1])
                self._lossy(call).check(message)
                self._request(call, message, LOSSY)
        except TidewireError as error:
            self.cancel(call, Ending.of(error))

    def cancel(self, call: ClientCall, ending: Ending) -> None:
        """End a call at once, at both sides."""
        if call.over:
            return
        asking = self._asked.get(call.call_id)
        if asking is not None:
            self.session.cancel(asking, self.channel.loop.time())
        self.forget(call)
        self._shell.flush()
        call.on_end(ending)

    def forget(self, call: Call) -> None:
        """Take a call out."""
        self._asked.pop(call.call_id, None)
        if self._missed:
            del self._missed[call.call_id]
        call.over = True
        self.calls.pop(call.call_id, None)
        if self.draining:
            if not self.calls:
                self._shell.finish()
        elif self.watched:
            self.channel.on_rested(self)

    def take_unsent(self) -> list[ClientCall]:
        """Take out the calls whose request has not gone out."""
        calls: list[ClientCall] = []
        for asking in self.session.waiting():
            call: ClientCall = asking.call
            if not call.over and not asking.flags:
                self._asked.pop(call.call_id, None)
                self.calls.pop(call.call_id, None)
                call.call_id = 0
                calls.append(call)
        return calls

    def drain(self, grace_s: float) -> None:
        """Take no more calls; the server hears of it when the session ends."""
        self.draining = True

    def fail(self, error: TidewireError) -> None:
        """End the session and its calls."""
        self.session.close()
        self._shell.flush()
        if not self.closed:
            self._close(error)

    def _close(self, error: TidewireError) -> None:
        self.session.close()
        self._shell.flush()
        super()._close(error)
        self._shell.end()

    # News of the session ----------------------------------------------------------------------

    def welcomed(self, hello: Hello) -> None:
        """Let the channel use the session."""
        self.peer_hello = hello
        self.peer_limits = hello.limits
        self.on_ready()

    def answered(self, asking: Asking, answer: Answer) -> None:
        """End a call with what the server said."""
        call: ClientCall = asking.call
        if call.over:
            return
        self.forget(call)
        ending, headers, message = answer
        if headers is not None:
            call.headers_seen = True
            call.on_headers(headers)
        if message is not None and ending.code == STATUS_OK:
            if ending is ENDING_OK:
                call.on_last(message)
                return
            call.on_message(message, call.consumed, True)
        call.on_end(ending)

    def failed(self, asking: Asking, error: TidewireError) -> None:
        """End a call without an answer."""
        call: ClientCall = asking.call
        if not call.over:
            self.forget(call)
            call.on_end(Ending.of(error))

    def expired(self, asking: Asking) -> None:
        """End a call whose deadline has passed, at both sides."""
        error = DeadlineExceeded("the deadline of the call has passed")
        self.cancel(asking.call, Ending.of(error))

    def delivered(self, asking: Asking, message: bytes, weight: int) -> None:
        """Hand a message to a lossy stream; when too many are unread it is lost."""
        call: ReaderCore = asking.call
        if len(call.inbox) >= UNREAD_MAX:
            self._missed[call.call_id] += weight
            self.channel.counters.gaps += weight
            return
        if self._missed:
            self._tell_missed(call)
        call.on_message(message, call.consumed, False)

    def missed(self, asking: Asking, messages: int) -> None:
        """Tell a lossy stream what it has not got."""
        call: ReaderCore = asking.call
        self.channel.counters.gaps += messages
        self._missed[call.call_id] += messages
        if len(call.inbox) < UNREAD_MAX:
            self._tell_missed(call)

    def _tell_missed(self, call: ReaderCore) -> None:
        messages = self._missed.pop(call.call_id, 0)
        if messages:
            call.on_message(self._lossy(call).lost(messages), call.consumed, False)

    def ponged(self) -> None:
        """Wake who waits for figures."""
        if self._ponged is not None and not self._ponged.done():
            self._ponged.set_result(None)

    async def oneways(self) -> tuple[int, int]:
        """
        Return how many one-way messages were sent, and how many of them the server has taken.

        Raises:
            PeerVanished: It does not answer.
        """
        for _ in range(PINGS_MAX):
            self._ponged = self.channel.loop.create_future()
            self.session.ping()
            self._shell.flush()
            await asyncio.wait([self._ponged], timeout=PING_WAIT_S)
            if self._ponged.done():
                return self.session.oneway_sent, self.session.oneway_taken
        raise PeerVanished(f"{PINGS_MAX} PINGs were not answered")

    def going(self, goaway: Goaway) -> None:
        """Leave the session to its calls."""
        self.draining = True
        self.on_goaway(goaway)

    def ended(self, error: TidewireError) -> None:
        """End with the session; calls of one that was there are told that it is gone."""
        if self.peer_hello is not None and not isinstance(error, (ConnectionLost, PeerVanished)):
            error = ConnectionLost(f"the server ended the session: {error.message}")
        if not self.closed:
            self._close(error)


class DatagramShell(OneTimer):
    """Moves datagrams between a pipe and a session: one reader, one timer."""

    def __init__(self, channel: "RawChannel", pipe: Pipe) -> None:
        self._loop = channel.loop
        self._counters: WireCounters = channel.counters
        self._pipe = pipe
        self._send = pipe.send
        self._over = False
        self._retransmissions = 0
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.connection = DatagramClientLink(channel, self, self._loop.time())
        self._counters.connections_active += 1
        self._counters.connections_opened += 1
        pipe.start(self._receive, self.flush, self._lost)
        self.flush()

    def peer(self) -> Peer:
        """Who is at the other end."""
        return self._pipe.peer()

    def flush(self) -> None:
        """Send what the session has to send, and look at the clock when it says so."""
        session = self.connection.session
        if session.out and not self._over:
            out, session.out = session.out, []
            counters = self._counters
            for data in out:
                try:
                    self._send(data)
                except OSError as error:
                    self._not_sent(data, error)
                    continue
                counters.datagrams_out += 1
                counters.bytes_out += len(data)
        if session.wake_s < self._timer_s and not self._over:
            self._arm(session.wake_s)

    def _not_sent(self, data: bytes, error: OSError) -> None:
        if error.errno == errno.EMSGSIZE:
            self._too_long(data)
        else:
            self._lost(ConnectionLost(f"cannot send: {error.strerror or error}"))

    def _too_long(self, data: bytes) -> None:
        if data[3] == REQUEST:
            number = HEADER.unpack_from(data[:HEADER_BYTES])[7]
            path_bytes = self._pipe.path_bytes()
            self._loop.call_soon(self._refuse, number, len(data), path_bytes)

    def _refuse(self, number: int, size_bytes: int, path_bytes: int) -> None:
        self.connection.session.refuse(number, size_bytes, path_bytes)

    def _receive(self, data: bytes) -> None:
        counters = self._counters
        counters.datagrams_in += 1
        counters.bytes_in += len(data)
        self.connection.session.receive(data, self._loop.time())

    def _lost(self, error: TidewireError) -> None:
        self.connection.connection_lost(error)

    def _on_timer(self, due_s: float) -> None:
        session = self.connection.session
        session.handle_timeout(self._loop.time())
        self._counters.retransmissions += session.retransmissions - self._retransmissions
        self._retransmissions = session.retransmissions
        self.flush()

    def finish(self) -> None:
        """Close; the calls are over."""
        self._loop.call_soon(self.connection.fail, ConnectionLost("the session has drained"))

    def abort(self) -> None:
        """Close at once."""
        self.connection.connection_lost(ConnectionLost("the session was given up"))

    def end(self) -> None:
        """Let go of the socket: the session is over."""
        if self._over:
            return
        self._over = True
        self._disarm()
        self._pipe.close()
        self._counters.connections_active -= 1
        if not self.lost.done():
            self.lost.set_result(None)
