"""
The server's side of a connection: it judges OPEN, answers HELLO and ends what the client cancels.
"""

from typing import ClassVar

from tidewire.errors import (
    Cancelled,
    DeadlineExceeded,
    ProtocolViolation,
    ResourceExhausted,
    TidewireError,
    TooManyCalls,
    WireVersionUnsupported,
)
from tidewire.wire.bodies import (
    VERSION,
    Ending,
    Head,
    HeadCache,
    Hello,
    decode_goaway,
    decode_hello,
    encode_ending,
)
from tidewire.wire.call import Call, judge_size
from tidewire.wire.connection import Connection, FrameHandler
from tidewire.wire.frame import (
    CANCEL,
    END,
    HEADER_BYTES,
    OPEN,
    OPEN_PREFIX,
    OPEN_PREFIX_BYTES,
    STATUS,
    WITH_MESSAGE,
    encode_frame,
)
from tidewire.wire.limits import WireLimits


class ServerConnection(Connection):
    """Takes calls. ``heads`` may be shared by all connections of a process."""

    __slots__ = ("_heads",)

    is_server: ClassVar[bool] = True

    def __init__(
        self, hello: Hello, limits: WireLimits, now_s: float, heads: HeadCache | None = None
    ) -> None:
        super().__init__(hello, limits, now_s)
        self._heads = heads or HeadCache(limits.heads_cached_max, limits.head_cached_bytes_max)

    def on_call(self, head: Head) -> Call:
        """Return the object that stands for a new call; its ``on_opened`` runs next."""
        raise NotImplementedError

    def on_call_opened(self, call: Call, message: bytes | None, last: bool) -> None:
        """Begin to serve a call; ``message`` is the one OPEN brought, whole."""
        raise NotImplementedError

    def on_refused(self, error: TidewireError) -> None:
        """A call was refused before it began."""

    # Ends -------------------------------------------------------------------------------------

    def end(self, call: Call, ending: Ending) -> None:
        """End a call at once, dropping what waits to be sent on it, and tell the client."""
        if call.over:
            return
        self.forget(call)
        self._push_status(call.priority, call.call_id, ending)

    def expire(self, call: Call) -> None:
        """End a call whose deadline has passed, and cancel its handler."""
        ending = Ending.of(DeadlineExceeded("the deadline of the call has passed"))
        self.end(call, ending)
        call.on_end(ending)

    def refuse(self, call: Call, error: TidewireError) -> None:
        """End a call whose client broke a limit, and cancel its handler."""
        ending = Ending.of(error)
        self.end(call, ending)
        call.on_end(ending)

    def ending_error(self, error: TidewireError) -> TidewireError:
        """Handlers are told that the caller went away, whatever the reason."""
        return Cancelled(f"the client's connection ended: {error.message}")

    def _push_status(self, priority: int, call_id: int, ending: Ending) -> None:
        self.push_frame(priority, encode_frame(STATUS, encode_ending(ending), call_id=call_id))

    # Frames -----------------------------------------------------------------------------------

    def side_handlers(self) -> dict[int, FrameHandler]:
        """Return the handlers of frames that only a server receives."""
        return {OPEN: self._receive_open, CANCEL: self._receive_cancel}

    def _receive_hello(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        peer = decode_hello(body)
        if not peer.version_min <= VERSION <= peer.version_max:
            raise WireVersionUnsupported(
                f"the client speaks versions {peer.version_min} to {peer.version_max}; "
                f"this server speaks {VERSION}"
            )
        self.greet(peer)
        self.send_hello(self.hello)
        self.on_ready()

    def _receive_open(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        if call_id > self.last_call_id:
            self.last_call_id = call_id
        else:
            self.judge_order(call_id)
        if len(body) < OPEN_PREFIX_BYTES:
            raise ProtocolViolation(f"OPEN has {len(body)} bytes of body; it has at least 12")
        timeout_us, head_bytes = OPEN_PREFIX.unpack_from(body)
        cut = OPEN_PREFIX_BYTES + head_bytes
        message: bytes | None = None
        if flags & WITH_MESSAGE and cut <= len(body):
            message = body[cut:]
            self.received += HEADER_BYTES + len(message)
        elif cut != len(body):
            raise ProtocolViolation(f"OPEN has a head of {head_bytes} bytes in {len(body)} of body")
        if self.draining and self.came_late(call_id):
            return
        limits = self.limits
        if (
            len(self.calls) >= limits.calls_max
            or head_bytes > limits.head_bytes_max
            or len(body) > limits.message_bytes_max
        ):
            try:
                self._judge_open(head_bytes, message)
            except ResourceExhausted as error:
                self._push_status(priority, call_id, Ending.of(error))
                self.on_refused(error)
                return
        call = self.on_call(self._heads.parse(body[OPEN_PREFIX_BYTES:cut]))
        call.connection = self
        call.call_id = call_id
        call.priority = priority
        call.credit = self.peer_limits.call_credit_bytes
        call.granted = limits.call_credit_bytes
        self.calls[call_id] = call
        if timeout_us:
            self.watch_deadline(call, self.now_s + timeout_us / 1e6)
        last = bool(flags & END)
        call.peer_done = last
        self.on_call_opened(call, message, last)

    def judge_order(self, call_id: int) -> None:
        """Refuse an OPEN that came after one of a higher number."""
        raise ProtocolViolation(f"OPEN of call {call_id} after {self.last_call_id}")

    def came_late(self, call_id: int) -> bool:
        """Whether an OPEN that comes after GOAWAY is to be ignored."""
        return True

    def _judge_open(self, head_bytes: int, message: bytes | None) -> None:
        limits = self.limits
        if message is not None:
            judge_size(len(message), limits.message_bytes_max)
        if head_bytes > limits.head_bytes_max or len(self.calls) >= limits.calls_max:
            raise TooManyCalls(
                f"the connection has {len(self.calls)} calls open, the limit is "
                f"{limits.calls_max}; a call head may have {limits.head_bytes_max} bytes, this one "
                f"has {head_bytes}",
                metadata={"calls_max": limits.calls_max},
            )

    def _receive_cancel(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        self._no_body("CANCEL", body)
        call = self.calls.get(call_id)
        if call is None:
            self.judge_unknown(call_id)
            return
        self.forget(call)
        call.on_end(Ending.of(Cancelled("the client cancelled the call")))

    def deliver(self, call: Call, message: bytes, last: bool) -> None:
        """Hand a whole message to the call."""
        self.count_unread(call)
        if last:
            call.peer_done = True
        call.on_message(message, call.received, last)

    def receive_half_close(self, call: Call) -> None:
        """Take the news that the client sends no more messages."""
        if call.peer_done or call.parts is not None:
            raise ProtocolViolation(f"half-close of call {call.call_id} twice or within a message")
        call.peer_done = True
        call.on_half_closed()

    def _receive_goaway(self, flags: int, priority: int, call_id: int, body: bytes) -> None:
        self.on_goaway(decode_goaway(body))
