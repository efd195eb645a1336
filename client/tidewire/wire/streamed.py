"""
A connection whose calls have streams of their own (QUIC), without I/O.

The frames are those of every raw wire. What differs is where they travel: those of a call on the
stream of its number, those of the connection and CREDIT on stream 0; the end of a stream goes with
the last frame of its sender, and CANCEL is the abort of a stream. ``proto/WIRE.md`` has the rules.
"""

from typing import Final, NamedTuple

from tidewire.errors import CreditExceeded, ProtocolViolation, TidewireError
from tidewire.wire.call import Call
from tidewire.wire.client_side import ClientCall, ClientConnection
from tidewire.wire.connection import Connection
from tidewire.wire.deadlines import FOREVER
from tidewire.wire.frame import (
    CANCEL,
    CREDIT,
    END,
    HEADER,
    MESSAGE,
    OPEN,
    PREFIX_BYTES,
    STATUS,
    Frame,
    FrameDecoder,
)
from tidewire.wire.server_side import ServerConnection

CONTROL: Final = 0
"""Number of the stream for what is about the connection."""

# What an entry of streams_to_send asks for.
DATA: Final = 0
"""Send the bytes."""
LAST: Final = 1
"""Send the bytes, then end the stream's way out."""
ABORT: Final = 2
"""Abort both ways of the stream: the call is cancelled."""
STOP: Final = 3
"""Ask the peer to send no more on the stream: the call is over."""


class Outgoing(NamedTuple):
    """Something to do on a stream, in this order."""

    number: int
    data: bytes
    action: int


class _Partial:
    """A stream whose peer has not ended it."""

    __slots__ = ("begun_s", "decoder", "opened", "stopped")

    def __init__(self, decoder: FrameDecoder | None) -> None:
        self.decoder = decoder
        """Holds part of a frame; ``None`` between frames."""
        self.begun_s = 0.0
        """When that frame began."""
        self.opened = False
        """Its first frame has come."""
        self.stopped = False
        """We asked the peer to send no more: what still comes is dropped."""


class StreamedConnection(Connection):
    """
    What both sides share.

    Shells call :meth:`receive_stream`, :meth:`receive_abort` and :meth:`streams_to_send` in the
    place of ``receive_data`` and ``data_to_send``.
    """

    _partials: dict[int, _Partial]
    _cut: dict[int, _Partial]
    _spare: FrameDecoder | None = None
    _aborts: "list[Outgoing]"
    _partial_bytes = 0

    def begin_streams(self) -> None:
        """Set up; once, before anything is received."""
        self._partials = {}
        self._cut = {}
        self._aborts = []

    def await_handshake(self) -> None:
        """Count no time for HELLO yet: the handshake is not done."""
        self._liveness.start(FOREVER)
        self.wake_s = FOREVER

    def begin_hello(self, sent_s: float) -> None:
        """The handshake is done: HELLO, which went out at ``sent_s``, has its time."""
        self._liveness.start(sent_s)
        self.wake_at(sent_s + self.limits.hello_timeout_s)

    # In ---------------------------------------------------------------------------------------

    def receive_stream(self, number: int, data: bytes, last: bool, now_s: float) -> None:
        """
        Take bytes of one stream, in order. Violations end the connection.

        Args:
            number: 0, or the number of the call.
            data: Any number of bytes.
            last: The peer sends no more on this stream.
            now_s: The time.
        """
        if self.closed:
            return
        self.now_s = self._liveness.heard_s = now_s
        try:
            self._receive_stream(number, data, last, now_s)
            if self.error is None:
                self._judge_credit()
        except TidewireError as error:
            self.fail(error)

    def _receive_stream(self, number: int, data: bytes, last: bool, now_s: float) -> None:
        if number and self.peer_hello is None:
            raise ProtocolViolation(f"stream {number} was used before HELLO")
        partial = self._partials.get(number)
        if partial is not None and partial.stopped:
            if last:
                self._forget_stream(number)
            return
        decoder = self._take_decoder(partial)
        frames = decoder.feed(data)
        opened = not self.is_server or (partial is not None and partial.opened)
        if number:
            self._handle(number, frames, opened=opened)
        else:
            self._handle_control(frames)
        if self.error is not None:
            return
        if decoder.violation is not None:
            raise decoder.violation
        if last:
            self._receive_end(number, decoder)
            return
        if partial is None:
            partial = self._partials[number] = _Partial(None)
        partial.opened = opened or bool(frames)
        if decoder.incomplete:
            self._hold_rest(number, partial, decoder, now_s, anew=bool(frames))
        else:
            self._spare = decoder
            partial.decoder = None
            self._cut.pop(number, None)

    def _take_decoder(self, partial: _Partial | None) -> FrameDecoder:
        """Return the decoder that holds the stream's rest, or one that is empty."""
        decoder = partial.decoder if partial is not None else None
        if decoder is not None:
            self._partial_bytes -= decoder.kept_bytes
            return decoder
        decoder, self._spare = self._spare, None
        return decoder or FrameDecoder(self.limits.frame_bytes_max)

    def _receive_end(self, number: int, decoder: FrameDecoder) -> None:
        if decoder.incomplete:
            raise ProtocolViolation(f"stream {number} ended within a frame")
        if not number:
            raise ProtocolViolation("the peer ended the control stream")
        self._spare = decoder
        self._forget_stream(number)
        self.judge_end(number)

    def _handle(self, number: int, frames: list[Frame], *, opened: bool) -> None:
        handlers = self._handlers
        for kind, flags, priority, call_id, body in frames:
            if call_id != number or (kind == OPEN) is opened or kind in _NOT_ON_STREAMS:
                self._judge_stream_frame(kind, number, call_id, opened=opened)
            opened = True
            handlers[kind](flags, priority, call_id, body)
            if self.error is not None:
                return

    def _handle_control(self, frames: list[Frame]) -> None:
        for kind, flags, priority, call_id, body in frames:
            if call_id and kind != CREDIT:
                raise ProtocolViolation(f"a frame of call {call_id} came on the control stream")
            self._handlers[kind](flags, priority, call_id, body)
            if self.error is not None:
                return

    def _judge_stream_frame(self, kind: int, number: int, call_id: int, *, opened: bool) -> None:
        """Refuse a frame that cannot stand where it stands."""
        if call_id != number:
            raise ProtocolViolation(f"a frame of call {call_id} came on stream {number}")
        if kind in _NOT_ON_STREAMS:
            raise ProtocolViolation(f"a frame of type {kind} came on stream {number}, not on 0")
        if self.is_server:
            why = "a second OPEN" if opened else "no OPEN first"
            raise ProtocolViolation(f"stream {number} has {why}")

    def _hold_rest(
        self, number: int, partial: _Partial, decoder: FrameDecoder, now_s: float, *, anew: bool
    ) -> None:
        """Hold part of a frame; bounded in bytes and, by the liveness check, in time."""
        self._partial_bytes += decoder.kept_bytes
        limit = self.limits.connection_credit_bytes
        if self._partial_bytes > limit:
            raise CreditExceeded(
                f"unfinished frames of all calls have {self._partial_bytes} bytes; the limit is "
                f"{limit}"
            )
        if anew or partial.decoder is None:
            partial.begun_s = now_s
            self._cut.pop(number, None)
            self._cut[number] = partial  # the oldest stays first
            self.wake_at(now_s + self.limits.frame_timeout_s)
        partial.decoder = decoder

    def _forget_stream(self, number: int) -> None:
        partial = self._partials.pop(number, None)
        if partial is not None:
            self._cut.pop(number, None)
            partial.decoder = None

    def handle_timeout(self, now_s: float) -> None:
        """Do what is due; a frame that is late on any stream counts."""
        cut = self._cut
        self._liveness.frame_begun_s = next(iter(cut.values())).begun_s if cut else None
        super().handle_timeout(now_s)

    def receive_abort(self, number: int, now_s: float) -> None:
        """The peer aborted its way of a stream: the call is cancelled."""
        if self.closed:
            return
        self.now_s = self._liveness.heard_s = now_s
        if number == CONTROL:
            self.fail(ProtocolViolation("the peer aborted the control stream"))
            return
        partial = self._partials.get(number)
        if partial is not None and partial.decoder is not None:
            self._partial_bytes -= partial.decoder.kept_bytes
        self._forget_stream(number)
        self.aborted(number)

    def receive_stop(self, number: int, now_s: float) -> None:
        """The peer wants no more on our way of a stream."""
        if self.closed:
            return
        self.now_s = self._liveness.heard_s = now_s
        if number == CONTROL:
            self.fail(ProtocolViolation("the peer stopped the control stream"))
        else:
            self.stopped(number)

    def judge_end(self, number: int) -> None:
        """Refuse a stream that ended before the frame that must be its last."""
        raise NotImplementedError

    def stopped(self, number: int) -> None:
        """Take the news that what we send on a stream is not read."""
        raise NotImplementedError

    def aborted(self, number: int) -> None:
        """End a call whose stream the peer aborted."""
        raise NotImplementedError

    def judge_unknown(self, call_id: int) -> None:
        """Ignore frames of calls that are over; every stream was judged on its first frame."""

    # Out --------------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """Whether ``streams_to_send`` would return something."""
        return bool(self._control or self.scheduler.ready or self._aborts)

    def abort_stream(self, number: int, action: int) -> None:
        """Queue ``ABORT`` or ``STOP`` of a stream."""
        self._aborts.append(Outgoing(number, b"", action))
        self.wake_once()

    def streams_to_send(self, bytes_max: int, now_s: float) -> list[Outgoing]:
        """
        Return what is to be done on streams next, in order; see ``data_to_send``.

        The caller keeps little unsent below, so that urgent calls do not wait there.
        """
        pieces = self.data_to_send(bytes_max, now_s)
        out, self._aborts = self._aborts, []
        place, count = 0, len(pieces)
        while place < count:
            piece = pieces[place]
            length, kind, flags, _, call_id = HEADER.unpack_from(piece)
            place += 1
            missing = length + PREFIX_BYTES - len(piece)
            if missing:
                parts = [piece]
                while missing:
                    parts.append(pieces[place])
                    missing -= len(pieces[place])
                    place += 1
                data = b"".join(parts)
            else:
                data = bytes(piece)
            if kind == CREDIT:
                out.append(Outgoing(CONTROL, data, DATA))
            elif kind == CANCEL:
                out.append(Outgoing(call_id, b"", ABORT))
            elif (flags & END and kind in (MESSAGE, OPEN)) or kind == STATUS:
                out.append(Outgoing(call_id, data, LAST))
                self.sent_last(call_id, out)
            else:
                out.append(Outgoing(call_id, data, DATA))
        return out

    def sent_last(self, number: int, out: list[Outgoing]) -> None:
        """Our last frame of a stream is on its way."""
        raise NotImplementedError


class StreamedServer(StreamedConnection, ServerConnection):
    """The server's side: OPENs may overtake each other, each is the first frame of its stream."""

    def judge_order(self, call_id: int) -> None:
        """Let it pass: a stream that was lost on the way comes later."""

    def came_late(self, call_id: int) -> bool:
        """Only what GOAWAY left out; the others were on their way when it was said."""
        return self._goaway_call_id is None or call_id > self._goaway_call_id

    def judge_end(self, number: int) -> None:
        """Refuse a stream that ended without END."""
        call = self.calls.get(number)
        if call is not None and not call.peer_done:
            raise ProtocolViolation(f"stream {number} ended without END")

    def aborted(self, number: int) -> None:
        """Cancel the call, and end our way of its stream."""
        call = self.calls.get(number)
        if call is not None:
            self._receive_cancel(0, 0, number, b"")
            self.abort_stream(number, ABORT)

    def cancel(self, number: int) -> None:
        """End a call whose client is told by somebody else."""
        if number in self.calls:
            self._receive_cancel(0, 0, number, b"")

    def stopped(self, number: int) -> None:
        """A client that reads no answer has cancelled."""
        self.aborted(number)

    def sent_last(self, number: int, out: list[Outgoing]) -> None:
        """Want no more from a client whose call is over."""
        partial = self._partials.get(number)
        if partial is not None and not partial.stopped:
            if partial.decoder is not None:
                self._partial_bytes -= partial.decoder.kept_bytes
                partial.decoder = None
                self._cut.pop(number, None)
            partial.stopped = True
            out.append(Outgoing(number, b"", STOP))


class StreamedClient(StreamedConnection, ClientConnection):
    """The client's side: it numbers calls in the order in which their streams begin."""

    _unended: set[int]
    """Calls whose END has not gone out."""

    def begin_streams(self) -> None:
        """Set up."""
        super().begin_streams()
        self._unended = set()

    def number(self, call: ClientCall) -> int:
        """Give a call its id, which is the number of its stream."""
        number = super().number(call)
        self._unended.add(number)
        return number

    def sent_last(self, number: int, out: list[Outgoing]) -> None:
        """Note that the stream has ended."""
        self._unended.discard(number)

    def forget(self, call: Call) -> None:
        """Take a call out; a stream it did not end is aborted."""
        super().forget(call)
        if call.call_id in self._unended:
            self._unended.discard(call.call_id)
            self.abort_stream(call.call_id, ABORT)

    def judge_end(self, number: int) -> None:
        """Refuse a stream that ended while its call goes on."""
        if number in self.calls:
            raise ProtocolViolation(f"stream {number} ended without STATUS")

    def aborted(self, number: int) -> None:
        """A server ends calls by STATUS; one that aborts a stream breaks the rules."""
        if number in self.calls:
            self.fail(ProtocolViolation(f"the server aborted stream {number} without STATUS"))

    def stopped(self, number: int) -> None:
        """The call is over at the server: STATUS comes, or is here, and what we send is dropped."""
        self._unended.discard(number)


_NOT_ON_STREAMS: Final = frozenset({CREDIT, CANCEL})
