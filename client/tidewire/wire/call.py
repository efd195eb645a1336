"""
One call on a connection: what it may send, what it has received, how it ends.

Shells subclass :class:`Call` and override the ``on_`` methods. These run inside the connection's
methods, must not raise, and may call the methods of the call again.
"""

from collections import deque
from typing import TYPE_CHECKING, Final

from tidewire.errors import CreditExceeded, MessageTooLarge, ProtocolViolation
from tidewire.wire.bodies import Ending, Metadata, encode_ending, encode_headers
from tidewire.wire.frame import (
    END,
    HEADER,
    HEADER_BYTES,
    HEADERS,
    LENGTH_LEAST,
    MESSAGE,
    MORE,
    NONE,
    PRIORITY_DEFAULT,
    STATUS,
    encode_frame,
)
from tidewire.wire.spliced import Spliced

if TYPE_CHECKING:
    from tidewire.wire.connection import Connection

WINDOW_MESSAGES: Final = 4
"""How many long messages of a call may be on their way."""


def judge_size(size: int, limit: int) -> None:
    """Raise :class:`MessageTooLarge` for a message, or its part so far, over ``limit`` bytes."""
    if size > limit:
        raise MessageTooLarge(
            f"the message has {size} bytes or more; the limit is {limit}",
            metadata={"size_bytes": size, "limit_bytes": limit},
        )


class Call:
    """
    State of one call at one side.

    Attributes are class-level defaults on purpose: a unary call sets only the few it needs, and
    making one is on the hot path.
    """

    connection: "Connection"
    call_id = 0
    """0 until OPEN is on its way."""
    priority = PRIORITY_DEFAULT
    deadline_s: float | None = None
    over = False
    """Nothing more is sent or taken."""
    peer_done = False
    """The peer sends no more messages."""
    sent = 0
    credit = 0
    received = 0
    granted = 0
    completed = 0
    """``received`` after the last whole message."""
    consumed = 0
    """``received`` after the last message the application took."""
    window = 0
    """Window of this call once it differs from that of the limits."""
    parts: list[bytes] | None = None
    _parts_bytes = 0
    outbox: "deque[tuple[int, int, bytes | Spliced]] | None" = None
    _offset = 0
    _scheduled = False

    # What shells override ---------------------------------------------------------------------

    def on_headers(self, metadata: Metadata) -> None:
        """Initial metadata of the server has come."""

    def on_message(self, body: bytes, mark: int, last: bool) -> None:
        """
        A whole message has come.

        Args:
            body: The message.
            mark: To be handed to :meth:`take` when the application takes the message.
            last: No message follows. At a client the end of the call follows at once.
        """

    def on_half_closed(self) -> None:
        """The client sends no more messages; none came with this news."""

    def on_end(self, ending: Ending) -> None:
        """The call ended, and not by our own ``finish``."""

    def on_drained(self) -> None:
        """All messages handed over are on their way; the writer may go on."""

    # Sending ----------------------------------------------------------------------------------

    @property
    def drained(self) -> bool:
        """Whether nothing handed over still waits for credit or for its turn."""
        return not self.outbox

    def send_message(self, body: bytes | Spliced, flags: int = 0) -> bool:
        """
        Hand over one message.

        Args:
            body: The message; at most the peer's ``message_bytes_max``.
            flags: 0, or ``END`` when it is the last one.

        Returns:
            True when it is on its way; False when it waits, then ``on_drained`` follows.

        Raises:
            MessageTooLarge: The peer would refuse it.
        """
        connection = self.connection
        size = len(body)
        if (
            self.call_id
            and not self.outbox
            and size <= connection.single_bytes_max
            and self.sent < self.credit
            and connection.sent < connection.credit
            and connection.scheduler.waiting_bytes < connection.limits.unsent_bytes_max
        ):
            self.sent += HEADER_BYTES + size
            connection.sent += HEADER_BYTES + size
            connection.push_frame(
                self.priority,
                HEADER.pack(LENGTH_LEAST + size, MESSAGE, flags, 0, self.call_id) + body,
            )
            return True
        judge_size(size, connection.peer_limits.message_bytes_max)
        self._put(MESSAGE, flags, body)
        return False

    def reply(self, body: bytes) -> None:
        """Send the last message of a server and end the call with OK."""
        if self.send_message(body, END):
            self.connection.forget(self)

    def half_close(self) -> None:
        """Say that no message follows."""
        self._put_or_push(MESSAGE, END | NONE, b"")

    def send_headers(self, metadata: Metadata) -> None:
        """Send initial metadata, once, before the first message."""
        self._put_or_push(HEADERS, 0, encode_headers(metadata))

    def finish(self, ending: Ending) -> None:
        """End the call from the server after the messages handed over."""
        self._put_or_push(STATUS, 0, encode_ending(ending))
        if not self.outbox:
            self.connection.forget(self)

    def _put_or_push(self, kind: int, flags: int, body: bytes) -> None:
        """Queue something that needs no credit, in its order."""
        if self.outbox or not self.call_id:
            self._put(kind, flags, body)
        else:
            frame = encode_frame(kind, body, flags=flags, call_id=self.call_id)
            self.connection.push_frame(self.priority, frame)

    def _put(self, kind: int, flags: int, body: bytes | Spliced) -> None:
        if self.outbox is None:
            self.outbox = deque()
        self.outbox.append((kind, flags, body))
        if self.call_id:
            self.schedule()

    def schedule(self) -> None:
        """Ask for a turn to send, unless there is nothing to send or the turn is asked for."""
        if not self._scheduled and (self.outbox or not self.call_id):
            self._scheduled = True
            self.connection.push_call(self)

    def emit(self, out: list[bytes | memoryview]) -> int:
        """
        Append the next frame to ``out``; return its bytes, 0 when credit or the end forbids it.
        """
        self._scheduled = False
        if self.over:
            return 0
        connection = self.connection
        outbox = self.outbox
        assert outbox
        kind, flags, body = outbox[0]
        whole = True
        if kind == MESSAGE and not flags & NONE:
            if self.sent >= self.credit:
                return 0
            if connection.sent >= connection.credit:
                connection.blocked[self] = None
                return 0
            piece, whole = self._next_piece(body)
            cost = HEADER_BYTES + len(piece)
            self.sent += cost
            connection.sent += cost
        else:
            piece = bytes(body)
        size = len(piece)
        flags = flags if whole else MORE
        out.append(HEADER.pack(LENGTH_LEAST + size, kind, flags, 0, self.call_id))
        out.append(piece)
        if whole:
            outbox.popleft()
        if outbox:
            self.schedule()
        else:
            self._emptied(kind, flags)
        return HEADER_BYTES + size

    def _next_piece(self, body: bytes | Spliced) -> tuple[bytes | memoryview, bool]:
        start, connection = self._offset, self.connection
        whole = start + connection.fragment_bytes_last >= len(body)
        stop = len(body) if whole else start + connection.fragment_bytes
        self._offset = 0 if whole else stop
        if isinstance(body, Spliced):
            return body.piece(start, stop), whole
        return memoryview(body)[start:stop], whole

    def _emptied(self, kind: int, flags: int) -> None:
        if kind == STATUS or (flags & END and self.connection.is_server):
            self.connection.forget(self)
        self.on_drained()

    def drop_outbox(self) -> None:
        """Forget what is not sent: the call is over."""
        self.outbox = None
        self._offset = 0

    # Receiving --------------------------------------------------------------------------------

    def receive(self, flags: int, body: bytes) -> bytes | None:
        """
        Account for a MESSAGE frame and return the message it completes, if it does.

        Raises:
            CreditExceeded: The peer sent more than it may.
            MessageTooLarge: The message grows beyond the limit; ends this call only.
            ProtocolViolation: The peer had said that no message follows.
        """
        if self.peer_done:
            raise ProtocolViolation(f"MESSAGE on call {self.call_id} after its sender was done")
        connection = self.connection
        limits = connection.limits
        self.received += HEADER_BYTES + len(body)
        if self.received > self.granted + limits.frame_bytes_max:
            raise CreditExceeded(
                f"call {self.call_id} got {self.received} bytes; its credit is {self.granted}"
            )
        parts = self.parts
        if parts is None and not flags & MORE:
            judge_size(len(body), limits.message_bytes_max)
            return body
        if parts is None:
            parts = self.parts = []
            connection.incomplete[self] = None
        self._parts_bytes += len(body)
        connection.incomplete_bytes += len(body)
        judge_size(self._parts_bytes, limits.message_bytes_max)
        parts.append(body)
        if flags & MORE:
            self.grow()
            return None
        whole = b"".join(parts)
        self._widen(len(whole))
        self.drop_parts()
        return whole

    def _widen(self, size: int) -> None:
        """
        Let the window hold some messages of this size, as far as the limits allow.

        A window of one message makes the sender wait whenever one is taken: where processors were
        scarce, 1 MiB messages went at 950 MB/s through a window of 1 MiB and at 1,500 through one
        of 4 MiB.
        """
        limits = self.connection.limits
        wanted = min(size * WINDOW_MESSAGES, limits.call_window_bytes_max)
        if wanted > (self.window or limits.call_credit_bytes):
            self.window = wanted

    def drop_parts(self) -> None:
        """Forget the fragments of an incomplete message."""
        if self.parts is not None:
            self.parts = None
            self.connection.incomplete_bytes -= self._parts_bytes
            self._parts_bytes = 0
            incomplete = self.connection.incomplete
            incomplete.pop(self, None)
            if incomplete and not self.connection.closed:
                # It may have stopped for want of credit, and nothing else would wake it.
                next(iter(incomplete)).grow()

    def take(self, mark: int) -> None:
        """Say that the application took the message with this mark: the peer may send more."""
        connection = self.connection
        connection.unread_bytes -= mark - self.consumed
        self.consumed = mark
        if not self.over:
            self.grow()
        connection.grow()

    def discard(self) -> None:
        """Say that the application will take none of the unread messages."""
        self.connection.unread_bytes -= self.completed - self.consumed
        self.consumed = self.completed
        self.connection.grow()

    def grow(self) -> None:
        """Give the peer credit for what was taken and for what it needs to complete a message."""
        connection = self.connection
        window = self.window or connection.limits.call_credit_bytes
        target = self.consumed + window
        if self.parts is not None and (
            connection.incomplete_bytes <= connection.limits.incomplete_bytes_max
            or next(iter(connection.incomplete)) is self
        ):
            target += self.received - self.completed
        if not self.peer_done and target - self.granted >= window >> 1:
            self.granted = target
            connection.send_credit(self.call_id, target)
