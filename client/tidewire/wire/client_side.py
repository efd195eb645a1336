"""The client's side of a connection: it opens calls, numbers them and can take them back."""

from typing import ClassVar

from tidewire.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    ProtocolViolation,
    ResourceExhausted,
    TidewireError,
    WireVersionUnsupported,
)
from tidewire.wire.bodies import (
    ENDING_OK,
    STATUS_OK,
    VERSION,
    Ending,
    Goaway,
    Hello,
    decode_ending,
    decode_goaway,
    decode_headers,
    decode_hello,
)
from tidewire.wire.call import Call, judge_size
from tidewire.wire.connection import Connection, FrameHandler
from tidewire.wire.frame import (
    CALL_ID_MAX,
    CANCEL,
    END,
    HEADER_BYTES,
    HEADERS,
    LENGTH_LEAST,
    OPEN,
    OPEN_HEADER,
    OPEN_PREFIX_BYTES,
    STATUS,
    WITH_MESSAGE,
    encode_frame,
)
from tidewire.wire.limits import WireLimits


class ClientCall(Call):
    """A call as its caller sees it."""

    head = b""
    """Serialized ``CallHead``."""
    first: bytes | None = None
    """Message that travels in OPEN."""
    open_flags = 0
    headers_seen = False
    connection: "ClientConnection"

    def on_last(self, body: bytes) -> None:
        """The last message has come, whole, and with it the end: OK."""
        # Its mark is that of the message before it: a call that is over has no unread bytes.
        self.on_message(body, self.completed, True)
        self.on_end(ENDING_OK)

    def emit(self, out: list[bytes | memoryview]) -> int:
        """Append OPEN, or the next frame after it; return its bytes, 0 when it has to wait."""
        if self.call_id or self.over:
            return super().emit(out)
        self._scheduled = False
        connection = self.connection
        if len(connection.calls) >= connection.peer_limits.calls_max:
            connection.waiting[self] = None
            return 0
        head, first = self.head, self.first
        length = LENGTH_LEAST + OPEN_PREFIX_BYTES + len(head)
        if first is not None:
            if connection.sent >= connection.credit:
                connection.blocked[self] = None
                return 0
            connection.sent += HEADER_BYTES + len(first)
            length += len(first)
        self.call_id = call_id = connection.number(self)
        deadline_s = self.deadline_s
        timeout_us = 0
        if deadline_s is not None:
            timeout_us = max(1, int((deadline_s - connection.now_s) * 1e6))
        out.append(
            OPEN_HEADER.pack(
                length, OPEN, self.open_flags, self.priority, call_id, timeout_us, len(head)
            )
        )
        out.append(head)
        if first:
            out.append(first)
            self.first = None
        if self.outbox:
            self.schedule()
        return length


class ClientConnection(Connection):
    """
    Opens calls.

    A call gets its number when its OPEN goes out, not before: priorities may reorder calls that
    wait, and numbers must increase on the wire.
    """

    __slots__ = ("unsent", "waiting")

    is_server: ClassVar[bool] = False

    def __init__(self, hello: Hello, limits: WireLimits, now_s: float) -> None:
        super().__init__(hello, limits, now_s)
        self.unsent: dict[ClientCall, None] = {}
        """Calls whose OPEN has not gone out."""
        self.waiting: dict[ClientCall, None] = {}
        """Those of them that wait for a place below the server's ``calls_max``."""
        self.send_hello(hello)

    # Calls ------------------------------------------------------------------------------------

    def open(self, call: ClientCall, message: bytes | None, *, last: bool) -> None:
        """
        Open a call.

        Args:
            call: With ``head``, ``priority`` and, where there is one, ``deadline_s`` set.
            message: First message, if there is one already.
            last: No message follows.

        Raises:
            ResourceExhausted: Too many calls wait for their turn.
            MessageTooLarge: The server would refuse the message.
        """
        if len(self.unsent) >= self.limits.calls_waiting_max:
            raise ResourceExhausted(f"{len(self.unsent)} calls wait for their turn on a connection")
        call.connection = self
        if message is not None:
            judge_size(len(message), self.peer_limits.message_bytes_max)
        if message is None:
            call.open_flags = END if last else 0
        elif len(message) + len(call.head) + OPEN_PREFIX_BYTES <= self.fragment_bytes:
            call.first = message
            call.open_flags = WITH_MESSAGE | END if last else WITH_MESSAGE
        else:
            call.send_message(message, END if last else 0)
        if OPEN_PREFIX_BYTES + len(call.head) > self.peer_limits.frame_bytes_max - LENGTH_LEAST:
            raise ResourceExhausted(f"the metadata makes a call head of {len(call.head)} bytes")
        if call.deadline_s is not None:
            self.watch_deadline(call, call.deadline_s)
        self.unsent[call] = None
        call.schedule()

    def number(self, call: ClientCall) -> int:
        """Give a call its id: its OPEN goes out now."""
        call_id = self.last_call_id = self.last_call_id + 1
        call.credit = self.peer_limits.call_credit_bytes
        call.granted = self.limits.call_credit_bytes
        self.calls[call_id] = call
        self.unsent.pop(call, None)
        liveness = self._liveness
        liveness.asked_s = now_s = self.now_s
        if now_s + liveness.probe_after_s < self.wake_s:
            self.wake_s = now_s + liveness.probe_after_s
        return call_id

    @property
    def exhausted(self) -> bool:
        """Whether the connection has no call ids left and another one must take over."""
        return self.last_call_id + len(self.unsent) >= CALL_ID_MAX

    def cancel(self, call: ClientCall, ending: Ending) -> None:
        """End a call at once, at both sides; ``on_end`` runs with ``ending``."""
        if call.over:
            return
        self.unsent.pop(call, None)
        self.waiting.pop(call, None)
        if call.call_id:
            self.push_control(encode_frame(CANCEL, call_id=call.call_id))
        self.forget(call)
        call.on_end(ending)

    def forget(self, call: Call) -> None:
        """Take a call out and let one that waits take its place."""
        Connection.forget(self, call)
        if self.waiting:
            waiting = next(iter(self.waiting))
            del self.waiting[waiting]
            waiting.schedule()

    def expire(self, call: Call) -> None:
        """End a call whose deadline has passed, unless it has moved to another connection."""
        assert isinstance(call, ClientCall)
        if self.calls.get(call.call_id) is not call and call not in self.unsent:
            return
        self.cancel(call, Ending.of(DeadlineExceeded("the deadline of the call has passed")))

    def refuse(self, call: Call, error: TidewireError) -> None:
        """End a call whose server broke a limit."""
        assert isinstance(call, ClientCall)
        self.cancel(call, Ending.of(error))

    def close(self) -> None:
        """End the connection in order: calls in flight are cancelled, the server is told."""
        if self.closed:
            return
        error = Cancelled("the channel was closed")
        for call in [*self.unsent, *self.calls.values()]:
            assert isinstance(call, ClientCall)
            self.cancel(call, Ending.of(error))
        self.drain(0.0)
        self._close(error)

    def take_unsent(self) -> list[ClientCall]:
        """
        Remove and return the calls whose OPEN has not gone out: another connection may take them.
        """
        unsent = list(self.unsent)
        # Or this connection would send their OPEN after another one has.
        self.scheduler.drop(self.unsent)
        self.unsent.clear()
        self.waiting.clear()
        for call in unsent:
            self.blocked.pop(call, None)
        return unsent

    def _close(self, error: TidewireError) -> None:
        ending = Ending.of(self.ending_error(error))
        for call in self.take_unsent():
            if not call.over:
                self.forget(call)
                call.on_end(ending)
        super()._close(error)

    # Frames -----------------------------------------------------------------------------------

    def side_handlers(self) -> dict[int, FrameHandler]:
        """Return the handlers of frames that only a client receives."""
        return {HEADERS: self._receive_headers, STATUS: self._receive_status}

    def _receive_hello(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        peer = decode_hello(body)
        if peer.version_min != VERSION or peer.version_max != VERSION:
            raise WireVersionUnsupported(
                f"the server chose version {peer.version_max}; this client speaks {VERSION}"
            )
        self._liveness.greeted_after(self.now_s)
        self.greet(peer)
        self.on_ready()

    def _receive_message(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        """
        Take a message; one that is whole and the last, the usual answer, takes a short way.

        Its call is over, so neither its credit nor what it leaves unread matters any more.
        """
        call = self.calls.get(call_id)
        if (
            flags != END
            or call is None
            or call.parts is not None
            or len(body) > self.limits.message_bytes_max
        ):
            super()._receive_message(flags, priority, call_id, body)
            return
        self.received += HEADER_BYTES + len(body)
        self.forget(call)
        assert isinstance(call, ClientCall)
        call.on_last(body)

    def deliver(self, call: Call, message: bytes, last: bool) -> None:
        """Hand a whole message to the call; with ``last`` the call ends with OK."""
        if last:
            self.forget(call)
            assert isinstance(call, ClientCall)
            call.on_last(message)
        else:
            self.count_unread(call)
            call.on_message(message, call.received, last)

    def receive_half_close(self, call: Call) -> None:
        """Refuse it: a server sends STATUS instead."""
        raise ProtocolViolation("the server sent NONE; it must send STATUS")

    def _receive_headers(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        call = self.calls.get(call_id)
        if call is None:
            self.judge_unknown(call_id)
            return
        assert isinstance(call, ClientCall)
        if call.headers_seen or call.received:
            raise ProtocolViolation(f"HEADERS of call {call_id} came twice or after a message")
        call.headers_seen = True
        call.on_headers(decode_headers(body))

    def _receive_status(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        call = self.calls.get(call_id)
        if call is None:
            self.judge_unknown(call_id)
            return
        ending = decode_ending(body)
        if call.parts is not None and ending.code == STATUS_OK:
            raise ProtocolViolation(f"STATUS OK of call {call_id} came within a message")
        self.forget(call)
        call.on_end(ending)

    def _receive_goaway(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        goaway: Goaway = decode_goaway(body)
        self.draining = True
        late = Ending.of(
            Draining("the server goes away and did not look at this call: safe to retry")
        )
        for call in [call for call in self.calls.values() if call.call_id > goaway.last_call_id]:
            self.forget(call)
            call.on_end(late)
        self.on_goaway(goaway)
