"""The server's end of a session of datagrams: its requests run as calls of every other wire do."""

import asyncio
import errno
from typing import TYPE_CHECKING, Any, Final

from tidewire.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    OutcomeUnknown,
    ProtocolViolation,
    TidewireError,
    TooManyCalls,
    WireUnsuitable,
)
from tidewire.transport.context import ServerCall
from tidewire.transport.datagram_session import SessionShell, goaway, too_large
from tidewire.transport.link import ServerLink
from tidewire.transport.lossy import LOSSY_METHODS
from tidewire.transport.shell import Shell
from tidewire.wire.bodies import (
    ENDING_OK,
    STATUS_OK,
    Ending,
    Head,
    Metadata,
    encode_hello,
)
from tidewire.wire.call import Call
from tidewire.wire.datagram import (
    CANCEL,
    DELIVER,
    DELIVER_PREFIX,
    GOAWAY,
    HEADER_BYTES,
    LOSSY,
    MOVE,
    ONEWAY,
    OPENED,
    PING,
    PLAIN,
    POLL,
    PONG,
    PONG_BODY,
    POSITION,
    REQUEST,
    RESPONSE,
    WELCOME,
    WORKING,
    Answer,
    Asked,
    Datagram,
    decode_oneway,
    decode_request,
    encode_answer,
    encode_datagram,
)
from tidewire.wire.datagram_limits import DATAGRAM_BYTES
from tidewire.wire.datagram_requests import Requests, Sequences, Verdict
from tidewire.wire.spliced import Spliced

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer

SHORT_MESSAGE: Final = 200
"""What is left of a status message that does not fit a datagram with its details."""


class DatagramCall(ServerCall):
    """A call whose answer is one datagram, or a lossy stream of them."""

    link: "DatagramLink"
    lossy = False
    oneway = False
    opened: bytes | None = None
    """First message of a lossy stream."""
    position = 0
    """Messages sent so far on a lossy stream."""
    renewed_s = 0.0
    _headers: Metadata | None = None
    _message: bytes | None = None

    def send_message(self, body: bytes | Spliced, flags: int = 0) -> bool:
        """Keep the message until the call ends."""
        self._message = bytes(body)
        return True

    def reply(self, body: bytes) -> None:
        """End the call with OK and a message."""
        if self._headers is None and not self.oneway:
            self.link.settle_plain(self, body)
        else:
            self.link.settle(self, Answer(ENDING_OK, self._headers, body))

    def finish(self, ending: Ending) -> None:
        """End the call with a status, and what message there is."""
        message = self._message if ending.code == STATUS_OK else None
        self.link.settle(self, Answer(ending, self._headers, message))

    def send_headers(self, metadata: Metadata) -> None:
        """Keep initial metadata until the call ends."""
        self._headers = metadata

    async def write(self, message: Any) -> None:
        """Send a message of a lossy stream."""
        if self.over or self.aborted:
            raise asyncio.InvalidStateError("the call has ended")
        serialize = self.handler.response_serializer
        body = message if serialize is None else serialize(message)
        self._headers_sent = True
        if not self.link.push_lossy(self, body, LOSSY_METHODS[self.head.method].weigh(message)):
            await asyncio.sleep(0)

    def take(self, mark: int) -> None:
        """Nothing: there is no credit on this wire."""

    def discard(self) -> None:
        """Nothing: see :meth:`take`."""


class DatagramLink(ServerLink):
    """
    One session, as a connection of the server.

    Attributes:
        origin: Where its datagrams come from: an address, or a DTLS association.
        commitment: What proves that a new address is the same client.
        heard_s: When the last datagram came.
    """

    protocol: "SessionShell"

    def __init__(
        self, server: "RawServer", protocol: Shell, now_s: float, *, identifier: int, url: str
    ) -> None:
        super().__init__(server, protocol, now_s, identifier=identifier, url=url)
        shell = self.protocol
        self._shell = shell
        listener = shell.listener
        limits = listener.limits
        self.session = shell.session
        self.heard_s = now_s
        self.bytes_max = min(limits.datagram_bytes, shell.greeting.limits.frame_bytes_max)
        self.requests = Requests(limits, listener.kept_bytes)
        self.oneways = Sequences(limits.oneway_window)
        self._listener = listener
        self._limits = limits
        # One heap and one timer for all sessions of the listener.
        self._deadlines = listener.deadlines
        self._wire = listener.wire
        self.peer_hello = shell.greeting
        self.peer_limits = shell.greeting.limits
        self.on_ready()

    # Out --------------------------------------------------------------------------------------

    def welcome(self, number: int, *, moved: bool) -> None:
        """Answer a HELLO."""
        body = encode_hello(self.hello, self._wire)
        self._send(encode_datagram(WELCOME, self.session, number, body, flags=MOVE if moved else 0))

    def _send(self, data: bytes) -> bool:
        """Send; return False when the socket did not take it."""
        return self._listener.send(self._shell.origin, data)

    def _send_error(self, error: TidewireError) -> None:
        self._send(goaway(self.session, self.requests.highest, Ending.of(error)))

    def settle(self, call: DatagramCall, answer: Answer) -> None:
        """End a call with its answer, send it and keep it."""
        if call.over:
            return
        self.forget(call)
        if not call.oneway:
            self._answer_with(call.call_id, answer)

    def settle_plain(self, call: DatagramCall, body: bytes) -> None:
        """End a call with OK and a message, the usual way."""
        if call.over:
            return
        number = call.call_id
        if len(body) + HEADER_BYTES > self.bytes_max:
            self.forget(call)
            self._answer_with(number, Answer(ENDING_OK, None, body))
            return
        # Sent first: the client goes on while this side takes its notes.
        sent = self._send_response(number, PLAIN, body)
        self.forget(call)
        self.requests.answer(number, *sent, self.loop.time())

    def _answer_with(self, number: int, answer: Answer) -> None:
        flags, body = encode_answer(answer)
        if len(body) + HEADER_BYTES > self.bytes_max:
            flags, body = self._shortened(answer, len(body) + HEADER_BYTES, self.bytes_max)
        sent = self._send_response(number, flags, body)
        self.requests.answer(number, *sent, self.loop.time())

    def _send_response(self, number: int, flags: int, body: bytes) -> tuple[int, bytes]:
        """Send a response; return what was sent, which is another when the path carries less."""
        try:
            self._send(encode_datagram(RESPONSE, self.session, number, body, flags=flags))
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            flags, body = too_large(len(body) + HEADER_BYTES, DATAGRAM_BYTES)
            self._send(encode_datagram(RESPONSE, self.session, number, body, flags=flags))
        return flags, body

    def _shortened(self, answer: Answer, size: int, limit: int) -> tuple[int, bytes]:
        """Return what is told when an answer does not fit a datagram."""
        ending = answer.ending
        if ending.code == STATUS_OK:
            return too_large(size, limit)
        return encode_answer(Answer(Ending(ending.code, ending.message[:SHORT_MESSAGE])))

    def push_lossy(self, call: DatagramCall, body: bytes, weight: int) -> bool:
        """Send a message of a lossy stream; return False when it could not go."""
        position = call.position
        if call.opened is None:
            call.opened = body
            self._send_opened(call)
            return True
        call.position = position + weight
        data = encode_datagram(
            DELIVER, self.session, call.call_id, DELIVER_PREFIX.pack(position, weight) + body
        )
        if len(data) > self.bytes_max:
            self.server.counters.errors["too_long_for_a_datagram"] += 1
            return True
        try:
            return self._send(data)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            return True

    def _send_opened(self, call: DatagramCall) -> None:
        assert call.opened is not None
        body = POSITION.pack(call.position) + call.opened
        self._send(encode_datagram(RESPONSE, self.session, call.call_id, body, flags=OPENED))

    # In ---------------------------------------------------------------------------------------

    def receive(self, datagram: Datagram, now_s: float) -> None:
        """
        Take a datagram of the client.

        Raises:
            ProtocolViolation: Its body is none; it had no effect.
        """
        kind, flags, priority, _, number, body = datagram
        self.now_s = self.heard_s = now_s
        if kind == REQUEST:
            self._request(number, flags, priority, decode_request(body))
        elif kind == POLL:
            self._repeated(number, self.requests.judge(number), poll=True)
        elif kind == CANCEL:
            self._cancel(number)
        elif kind == ONEWAY:
            self._oneway(number, priority, decode_oneway(body))
        elif kind == PING:
            figures = PONG_BODY.pack(self.oneways.highest, self.oneways.taken)
            self._send(encode_datagram(PONG, self.session, number, figures))
        elif kind == GOAWAY:
            self._close(Cancelled("the client is done"))

    def _request(self, number: int, flags: int, priority: int, asked: Asked) -> None:
        requests = self.requests
        if not number or asked.floor > number:
            raise ProtocolViolation(f"the floor of request {number} is {asked.floor}")
        if asked.floor > requests.floor:
            for gone in requests.raise_floor(asked.floor):
                self._give_up(gone)
        # What is above all that came is new; only the rest is looked up.
        verdict = Verdict.NEW if number > requests.highest else requests.judge(number)
        if verdict is not Verdict.NEW:
            self._repeated(number, verdict, poll=False)
            return
        head = self._heads.parse(asked.head)
        requests.begin(number)
        call = self._call(number, head, priority, asked.timeout_us)
        if call is None:
            return
        if flags & LOSSY:
            call.lossy = True
            call.renewed_s = self.now_s
        self.on_call_opened(call, asked.message, not flags & LOSSY)

    def _call(
        self, number: int, head: Head, priority: int, timeout_us: int
    ) -> "DatagramCall | None":
        """Make a call, or answer that there can be none."""
        if self.draining or len(self.calls) >= self.limits.calls_max:
            error = self._refusal()
            if number > 0:
                self._answer_with(number, Answer(Ending.of(error)))
            self.on_refused(error)
            return None
        call = DatagramCall(self, head)
        call.connection = self
        call.call_id = number
        call.priority = priority
        call.peer_done = True
        self.calls[number] = call
        if timeout_us:
            self.watch_deadline(call, self.now_s + timeout_us / 1e6)
        return call

    def _refusal(self) -> TidewireError:
        if self.draining:
            return Draining("the server goes away and did not look at this call: safe to retry")
        calls_max = self.limits.calls_max
        return TooManyCalls(
            f"the session has {len(self.calls)} calls open, the limit is {calls_max}",
            metadata={"calls_max": calls_max},
        )

    def _repeated(self, number: int, verdict: Verdict, *, poll: bool) -> None:
        """Say what became of a request that has come before."""
        self.server.counters.duplicates += 1
        if verdict is Verdict.RUNNING:
            call = self.calls.get(number)
            position = 0
            if isinstance(call, DatagramCall) and call.lossy:
                call.renewed_s = self.now_s
                position = call.position
                if call.opened is not None and not poll:
                    self._send_opened(call)
                    return
            body = POSITION.pack(position)
            self._send(encode_datagram(WORKING, self.session, number, body))
        elif verdict is Verdict.ANSWERED:
            self._answer_again(number)
        elif verdict is Verdict.FORGOTTEN:
            error = OutcomeUnknown(
                f"request {number} is too old: its answer is kept no longer, it was not done again"
            )
            flags, body = encode_answer(Answer(Ending.of(error)))
            self._send(encode_datagram(RESPONSE, self.session, number, body, flags=flags))

    def _answer_again(self, number: int) -> None:
        kept = self.requests.kept(number)
        size = len(kept.response) + HEADER_BYTES
        kept.resends += 1
        if size > DATAGRAM_BYTES and kept.resends >= self._limits.resends_large_max:
            error = WireUnsuitable(
                f"the answer is a datagram of {size} bytes that was sent {kept.resends} times for "
                "nothing: the path carries less; what was asked for is done",
                metadata={"size_bytes": size, "safe_bytes": DATAGRAM_BYTES},
            )
            flags, body = encode_answer(Answer(Ending.of(error)))
            self.requests.answer(number, flags, body, self.now_s)
            kept = self.requests.kept(number)
        self._send_response(number, kept.flags, kept.response)

    def _cancel(self, number: int) -> None:
        verdict = self.requests.judge(number)
        if verdict is Verdict.RUNNING:
            self._give_up(number)
        elif verdict is Verdict.NEW and number:
            # It has overtaken its request, which must not be done when it comes.
            self._answer_with(number, Answer(Ending.of(Cancelled("the client cancelled the call"))))
        else:
            self._repeated(number, verdict, poll=True)

    def _give_up(self, number: int) -> None:
        call = self.calls.get(number)
        if isinstance(call, DatagramCall):
            ending = Ending.of(Cancelled("the client cancelled the call"))
            self.settle(call, Answer(ending))
            call.on_end(ending)

    def _oneway(self, sequence: int, priority: int, asked: Asked) -> None:
        head = self._heads.parse(asked.head)
        if not sequence or not self.oneways.take(sequence):
            self.server.counters.duplicates += 1
            return
        call = self._call(-sequence, head, priority, 0)
        if call is not None:
            call.oneway = True
            self.on_call_opened(call, asked.message, True)

    def _begin(self, call: ServerCall, handler: Any, message: bytes | None, last: bool) -> None:
        """Start a handler of one request and one response, or a stream that may be lossy."""
        assert isinstance(call, DatagramCall)
        streams = handler.unary_unary is None
        if not streams and not call.lossy:
            super()._begin(call, handler, message, last)
            return
        method = LOSSY_METHODS.get(call.head.method)
        if not call.lossy or method is None or not streams:
            self.fail_call(
                call,
                WireUnsuitable(
                    f"{call.head.method} is a stream, and datagrams carry calls with one request "
                    "and one response: use tcp://, quic:// or grpc://"
                ),
            )
            return
        try:
            method.check(message or b"")
        except TidewireError as error:
            self.fail_call(call, error)
            return
        call.peer_done = False
        super()._begin(call, handler, message, last)

    def forget(self, call: Call) -> None:
        """Take a call out; it has no frames that wait."""
        call.over = True
        self.calls.pop(call.call_id, None)
        if self.draining and not self.calls:
            self._shell.finish()

    # Ends -------------------------------------------------------------------------------------

    def end(self, call: Any, ending: Ending) -> None:
        """End a call with a status."""
        self.settle(call, Answer(ending))

    def expire_late(self, now_s: float) -> None:
        """End lossy streams nobody renews, and the session when nobody uses it."""
        limits = self._limits
        for call in list(self.calls.values()):
            assert isinstance(call, DatagramCall)
            if call.lossy and now_s - call.renewed_s > limits.lease_s:
                error = DeadlineExceeded(f"nobody renewed the stream for {limits.lease_s:g} s")
                self.refuse(call, error)
        # Who waits for an answer polls every 2 s, and who waits for nothing sends PINGs.
        if now_s - self.heard_s > limits.session_idle_s:
            self._close(Cancelled("the client has been silent"))

    def wake_at(self, due_s: float) -> None:
        """Let the listener's timer come nearer."""
        self._listener.wake_at(due_s)

    def drain(self, grace_s: float) -> None:
        """Announce the end; go when the last call is done and the client knows."""
        if self.closed or self.draining:
            return
        self.draining = True
        self._send(goaway(self.session, self.requests.highest, ENDING_OK, grace_s))
        if not self.calls:
            self._shell.finish()

    def fail(self, error: TidewireError) -> None:
        """Announce the reason and end the session and its calls."""
        if not self.closed:
            self._send_error(error)
            self._close(error)

    def _close(self, error: TidewireError) -> None:
        super()._close(error)
        self.requests.clear()
        self._shell.end()
