"""
A connection of a raw wire, without I/O: what both sides share.

Bytes and the time go in by :meth:`Connection.receive_data` and :meth:`Connection.handle_timeout`;
bytes to send come out of :meth:`Connection.data_to_send`; news go to methods that shells override
(here and in :class:`~tidewire.wire.call.Call`). The rules are those of ``proto/WIRE.md``.
"""

from collections.abc import Callable
from typing import ClassVar

from tidewire.errors import (
    Cancelled,
    ConnectionLost,
    CreditExceeded,
    MessageTooLarge,
    PeerTooSlow,
    PeerVanished,
    ProtocolViolation,
    TidewireError,
)
from tidewire.wire.bodies import (
    ENDING_OK,
    Ending,
    Goaway,
    Hello,
    PeerLimits,
    decode_goaway,
    encode_goaway,
    encode_hello,
)
from tidewire.wire.call import Call
from tidewire.wire.deadlines import FOREVER, Deadlines
from tidewire.wire.frame import (
    CREDIT,
    CREDIT_BODY,
    END,
    GOAWAY,
    HEADER_BYTES,
    HELLO,
    LENGTH_LEAST,
    MESSAGE,
    NONE,
    PING,
    PING_BYTES,
    PONG,
    FrameDecoder,
    encode_frame,
)
from tidewire.wire.limits import WireLimits, fragment_sizes
from tidewire.wire.liveness import Liveness
from tidewire.wire.scheduler import Scheduler

FrameHandler = Callable[[int, int, int, bytes], None]
"""Takes flags, priority, call id and body."""

PING_BODY = b"tidewire"
_LIMITS_BEFORE_HELLO = PeerLimits()


class Connection:
    """
    One side of a connection.

    Not for two tasks at once. After :attr:`closed` is set, what :meth:`data_to_send` returns is
    the last to send; then the shell closes the stream.
    """

    # With a dictionary an idle connection would take 1,300 bytes more.
    # fmt: off
    __slots__ = (
        "_control", "_control_bytes", "_deadlines", "_decoder", "_goaway_call_id", "_handlers",
        "_liveness", "blocked", "calls", "closed", "credit", "draining", "error", "fragment_bytes",
        "fragment_bytes_last", "granted", "hello", "hurry", "hurry_at", "incomplete",
        "incomplete_bytes", "last_call_id", "limits", "now_s", "peer_hello", "peer_limits",
        "received", "scheduler", "sent", "single_bytes_max", "unread_bytes", "wake", "wake_due",
        "wake_s",
    )
    # fmt: on

    is_server: ClassVar[bool]

    def __init__(self, hello: Hello, limits: WireLimits, now_s: float) -> None:
        self.hello = hello
        self.limits = limits
        self.peer_hello: Hello | None = None
        self.peer_limits = _LIMITS_BEFORE_HELLO
        self.fragment_bytes = limits.fragment_bytes
        self.fragment_bytes_last = limits.fragment_bytes
        """Largest last fragment of a message."""
        self.single_bytes_max = 0
        """Largest message that goes out whole, in one frame."""
        self.calls: dict[int, Call] = {}
        self.last_call_id = 0
        """Highest call id seen (server) or used (client)."""
        self.closed = False
        self.error: TidewireError | None = None
        """Why the connection ended, once :attr:`closed` is set."""
        self.draining = False
        """GOAWAY was sent or received."""
        self._goaway_call_id: int | None = None

        self.scheduler = Scheduler()
        self.blocked: dict[Call, None] = {}
        """Calls that wait for credit of the connection."""
        self.sent = 0
        self.credit = 0
        self.received = 0
        self.granted = limits.connection_credit_bytes
        self.unread_bytes = 0
        self.incomplete: dict[Call, None] = {}
        self.incomplete_bytes = 0

        self.wake: Callable[[], None] = _nothing
        """Called once when there is something to send again: ``data_to_send`` is due, soon."""
        self.wake_due = False
        self.hurry: Callable[[], None] = _nothing
        """Called when ``hurry_at`` frames of calls wait: a shell may send them at once."""
        self.hurry_at = 1
        self.wake_s = now_s + limits.hello_timeout_s
        """When ``handle_timeout`` must run, at the latest. It only ever comes nearer by itself."""
        self.now_s = now_s
        self._liveness = Liveness(limits, now_s)
        self._control: list[bytes | memoryview] = []
        self._control_bytes = 0
        self._deadlines: Deadlines[Call] | None = None
        self._decoder = FrameDecoder(limits.frame_bytes_max)
        self._handlers = self._table(greeted=False)

    # What shells override ---------------------------------------------------------------------

    def on_ready(self) -> None:
        """HELLOs are exchanged; calls may be opened."""

    def on_goaway(self, goaway: Goaway) -> None:
        """The peer takes no new calls."""

    def on_closed(self, error: TidewireError) -> None:
        """The connection is over; the calls have been told."""

    # In ---------------------------------------------------------------------------------------

    def receive_data(self, data: bytes | memoryview, now_s: float) -> None:
        """Take bytes of the peer. Violations end the connection; nothing is raised for them."""
        if self.closed:
            return
        self.now_s = self._liveness.heard_s = now_s
        decoder = self._decoder
        frames = decoder.feed(data)
        try:
            for kind, flags, priority, call_id, body in frames:
                self._handlers[kind](flags, priority, call_id, body)
                if self.error is not None:
                    return
            if decoder.violation is not None:
                raise decoder.violation
            self._judge_credit()
        except TidewireError as error:
            self.fail(error)
            return
        if not decoder.incomplete:
            self._liveness.frame_begun_s = None
        elif frames or self._liveness.frame_begun_s is None:
            self._liveness.frame_begun_s = now_s
            self.wake_at(now_s + self.limits.frame_timeout_s)

    def handle_timeout(self, now_s: float) -> None:
        """Do what is due at ``now_s`` and set :attr:`wake_s` anew."""
        self.wake_s = FOREVER
        if self.closed:
            return
        self.now_s = now_s
        busy = bool(self.calls) and not self.is_server
        error, ping, due_s = self._liveness.judge(now_s, busy=busy)
        if error is not None:
            self.fail(error)
            return
        deadlines = self._deadlines
        if deadlines is not None:
            for call in deadlines.expired(now_s):
                self.expire(call)
        if ping:
            self.push_control(encode_frame(PING, PING_BODY))
        self.wake_at(due_s)
        if deadlines is not None:
            self.wake_at(deadlines.next_s())

    def suspect(self, now_s: float) -> None:
        """Doubt the peer: it must answer a PING in short time, or the connection ends."""
        if not self.closed and self._liveness.suspect(now_s):
            self.push_control(encode_frame(PING, PING_BODY))
            self.wake_s = min(self.wake_s, now_s)  # the next look finds out when to look again

    @property
    def rtt_s(self) -> float:
        """Average round trip, as PINGs and HELLO measured it; 0 when none did."""
        return self._liveness.rtt.average_s

    def wake_at(self, due_s: float) -> None:
        """Bring :attr:`wake_s` nearer."""
        if due_s < self.wake_s:
            self.wake_s = due_s

    # Out --------------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """Whether ``data_to_send`` would return something (or find that credit forbids it)."""
        return bool(self._control or self.scheduler.ready)

    @property
    def backlog_bytes(self) -> int:
        """Frames that wait for the transport; a shell stops reading when they are many."""
        return self._control_bytes + self.scheduler.waiting_bytes

    def data_to_send(self, bytes_max: int, now_s: float) -> list[bytes | memoryview]:
        """
        Return the next bytes to send, in order; make fragments only now.

        Args:
            bytes_max: Stop when this is reached; it may be passed by less than one frame.
            now_s: The time, from which remaining deadlines are counted.
        """
        self.now_s = now_s
        out = self._control
        self._control = []
        bytes_max -= self._control_bytes
        self._control_bytes = 0
        if self.scheduler.ready and not self.closed:
            self.scheduler.take(out, bytes_max)
        self.wake_due = False
        return out

    def push_frame(self, priority: int, frame: bytes) -> None:
        """Queue a frame of a call; what it costs was accounted for."""
        scheduler = self.scheduler
        scheduler.push_frame(priority, frame)
        if not self.wake_due:
            self.wake_due = True
            self.wake()
        if scheduler.queued == self.hurry_at:
            self.hurry()
        if scheduler.waiting_bytes > self.limits.unsent_control_bytes_max:
            self._judge_backlog(scheduler.waiting_bytes)

    def push_call(self, call: Call) -> None:
        """Queue a call for its next frame."""
        self.scheduler.push_call(call.priority, call)
        if not self.wake_due:
            self.wake_due = True
            self.wake()
        if self.scheduler.queued == self.hurry_at:
            self.hurry()

    def push_control(self, frame: bytes) -> None:
        """Queue a frame that goes before all messages."""
        self._control.append(frame)
        self._control_bytes += len(frame)
        self.wake_once()
        if self._control_bytes > self.limits.unsent_control_bytes_max:
            self._judge_backlog(self._control_bytes)

    def wake_once(self) -> None:
        """See to it that ``data_to_send`` is called."""
        if not self.wake_due:
            self.wake_due = True
            self.wake()

    def _judge_backlog(self, waiting_bytes: int) -> None:
        if not self.closed:
            self._control.clear()
            self._control_bytes = 0
            self.scheduler.clear()
            self.fail(PeerTooSlow(f"the peer lets {waiting_bytes} bytes of answers wait unread"))

    # Credit -----------------------------------------------------------------------------------

    def send_credit(self, call_id: int, total: int) -> None:
        """Announce a total."""
        self.push_control(encode_frame(CREDIT, CREDIT_BODY.pack(total), call_id=call_id))

    def grow(self) -> None:
        """Give the peer credit of the connection for what came, unless too much is unread."""
        limits = self.limits
        window = limits.connection_credit_bytes
        if (
            self.received + window - self.granted >= window >> 1
            and self.unread_bytes <= limits.unread_bytes_max
            and not self.closed
        ):
            self.granted = self.received + window
            self.send_credit(0, self.granted)

    def _judge_credit(self) -> None:
        if self.received > self.granted + self.limits.frame_bytes_max:
            raise CreditExceeded(
                f"the connection got {self.received} bytes; its credit is {self.granted}"
            )
        self.grow()

    # Ends -------------------------------------------------------------------------------------

    def forget(self, call: Call) -> None:
        """Take a call out of the connection: it is over at this side."""
        call.over = True
        # Asked first, not called: most calls have neither, and this runs for every call.
        if call.outbox is not None:
            call.drop_outbox()
        if call.parts is not None:
            call.drop_parts()
        self.calls.pop(call.call_id, None)

    def expire(self, call: Call) -> None:
        """End a call whose deadline has passed."""
        raise NotImplementedError

    def refuse(self, call: Call, error: TidewireError) -> None:
        """End a call for something its peer did; the connection goes on."""
        raise NotImplementedError

    def watch_deadline(self, call: Call, deadline_s: float) -> None:
        """Let :meth:`handle_timeout` end the call when its deadline has passed."""
        call.deadline_s = deadline_s
        if self._deadlines is None:
            self._deadlines = Deadlines()
        self._deadlines.add(deadline_s, call)
        self.wake_at(deadline_s)

    def drain(self, grace_s: float) -> None:
        """Announce an orderly end: calls in flight go on, no new ones."""
        if self.closed or self.draining:
            return
        self.draining = True
        self._send_goaway(ENDING_OK, grace_s)

    def fail(self, error: TidewireError) -> None:
        """Announce the reason and end the connection and its calls."""
        if not self.closed:
            self._send_goaway(Ending.of(error), 0.0)
            self._close(error)

    def connection_lost(self, error: TidewireError) -> None:
        """Say that the stream under the connection has ended."""
        if not self.closed:
            self._control.clear()
            self._close(error)

    def _close(self, error: TidewireError) -> None:
        self.closed = True
        self.error = error
        self.wake_s = FOREVER
        self.scheduler.clear()
        self.blocked.clear()
        ending = Ending.of(self.ending_error(error))
        for call in list(self.calls.values()):
            self.forget(call)
            call.on_end(ending)
        self.on_closed(error)

    def ending_error(self, error: TidewireError) -> TidewireError:
        """Return what calls in flight are told about the end of the connection."""
        if isinstance(error, (ConnectionLost, PeerVanished, Cancelled)):
            return error
        return ConnectionLost(f"the connection ended: {error.message}")

    def _send_goaway(self, reason: Ending, grace_s: float) -> None:
        if self._goaway_call_id is None:
            self._goaway_call_id = self.last_call_id
        body = encode_goaway(Goaway(self._goaway_call_id, reason, grace_s))
        self._control.append(encode_frame(GOAWAY, body))
        self.wake_once()

    # Frames -----------------------------------------------------------------------------------

    def _table(self, *, greeted: bool) -> tuple[FrameHandler, ...]:
        """Return the handlers by frame type."""
        if not greeted:
            early = self._receive_early
            return (early, self._receive_hello, *(early,) * (GOAWAY - 2), self._receive_goaway)
        table: list[FrameHandler] = [self._receive_wrong] * (GOAWAY + 1)
        table[MESSAGE] = self._receive_message
        table[CREDIT] = self._receive_credit
        table[PING] = self._receive_ping
        table[PONG] = self._receive_pong
        table[GOAWAY] = self._receive_goaway
        for kind, handler in self.side_handlers().items():
            table[kind] = handler
        return tuple(table)

    def side_handlers(self) -> dict[int, FrameHandler]:
        """Return the handlers of frames that only this side receives."""
        raise NotImplementedError

    def _receive_early(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        raise ProtocolViolation("the first frame was not HELLO")

    def _receive_wrong(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        raise ProtocolViolation("a frame came that only the other side sends, or a second HELLO")

    def _receive_hello(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        raise NotImplementedError

    def greet(self, peer: Hello) -> None:
        """Take the peer's HELLO as valid and go on to calls."""
        self.peer_hello = peer
        self._liveness.greeted = True
        self.peer_limits = peer.limits
        self.fragment_bytes, self.fragment_bytes_last = fragment_sizes(
            self.limits.fragment_bytes, peer.limits.frame_bytes_max - LENGTH_LEAST
        )
        self.single_bytes_max = min(self.fragment_bytes, peer.limits.message_bytes_max)
        self.credit = peer.limits.connection_credit_bytes
        self._handlers = self._table(greeted=True)
        self.wake_at(self.now_s + self.limits.keepalive_s)

    def send_hello(self, hello: Hello) -> None:
        """Send our HELLO."""
        self.push_control(encode_frame(HELLO, encode_hello(hello, self.limits)))

    def _receive_message(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        call = self.calls.get(call_id)
        if not flags & NONE:
            self.received += HEADER_BYTES + len(body)
        if call is None:
            self.judge_unknown(call_id)
            return
        if flags & NONE:
            self.receive_half_close(call)
            return
        try:
            message = call.receive(flags, body)
        except MessageTooLarge as error:
            self.refuse(call, error)
            return
        if message is None:
            return
        self.deliver(call, message, bool(flags & END))

    def count_unread(self, call: Call) -> None:
        """Note that the application has a whole message to take."""
        self.unread_bytes += call.received - call.completed
        call.completed = call.received

    def deliver(self, call: Call, message: bytes, last: bool) -> None:
        """Hand a whole message to the call."""
        raise NotImplementedError

    def receive_half_close(self, call: Call) -> None:
        """Take the news that the client sends no more messages."""
        raise NotImplementedError

    def judge_unknown(self, call_id: int) -> None:
        """Ignore frames of calls that are over; end the connection for one that never was."""
        if call_id > self.last_call_id:
            raise ProtocolViolation(f"call {call_id} was never opened")

    def _receive_credit(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        if len(body) != CREDIT_BODY.size:
            raise ProtocolViolation(f"CREDIT has {len(body)} bytes of body; it must have 8")
        (total,) = CREDIT_BODY.unpack(body)
        if not call_id:
            if total < self.credit:
                raise ProtocolViolation(f"credit shrinks from {self.credit} to {total}")
            self.credit = total
            blocked, self.blocked = self.blocked, {}
            for waiting in blocked:
                waiting.schedule()
            return
        call = self.calls.get(call_id)
        if call is None:
            self.judge_unknown(call_id)
            return
        if total < call.credit:
            raise ProtocolViolation(f"credit of call {call_id} shrinks to {total}")
        call.credit = total
        call.schedule()

    def _receive_ping(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        if len(body) != PING_BYTES:
            raise ProtocolViolation(f"PING has {len(body)} bytes of body; it must have 8")
        self._liveness.count_ping(self.now_s, busy=bool(self.calls))
        self.push_control(encode_frame(PONG, body))

    def _receive_pong(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        if len(body) != PING_BYTES:
            raise ProtocolViolation(f"PONG has {len(body)} bytes of body; it must have 8")
        self._liveness.answered(self.now_s)

    def _receive_goaway(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        goaway = decode_goaway(body)
        self.draining = True
        self.on_goaway(goaway)

    def _no_body(self, kind: str, body: bytes) -> None:
        if body:
            raise ProtocolViolation(f"{kind} has {len(body)} bytes of body; it must have none")


def _nothing() -> None:
    """Wake nobody: the owner polls."""
