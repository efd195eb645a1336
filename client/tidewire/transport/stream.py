"""
The shell of a connection on a stream: one reader, one writer, one timer.

It moves bytes between an asyncio transport and a sans-IO connection. The first frame of a turn of
the event loop leaves at once, the next in writes of 2, 4, 8, 16 and 32, and the rest when the turn
is over: the peer works on the first while the others are made. With 64 calls in flight both sides
waited for each other half of the time (71,000 calls/s, now 118,000), and one call alone waited for
the end of two turns (110 us, now 97). Fragments are made while the transport takes them, so what
waits in buffers stays small.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar, cast

from tidewire.errors import Cancelled, ConnectionLost
from tidewire.transport.counters import WireCounters, handshake_reason
from tidewire.transport.options import (
    CLOSE_TIMEOUT_S,
    LINGER_S,
    TURN_BYTES,
    WRITE_HIGH_BYTES,
    WRITE_LOW_BYTES,
    WRITTEN_POLL_S,
)
from tidewire.transport.peer import Peer, peer_of
from tidewire.transport.timer import OneTimer
from tidewire.wire.connection import Connection
from tidewire.wire.deadlines import FOREVER

JOIN_BYTES_MAX: Final = 64 * 1024
"""Up to here one joined write is cheaper than a vectored one."""

BACKLOG_BYTES: Final = 1024 * 1024
"""Answers that wait for the transport before a server stops reading."""

COPIED_BYTES_MAX: Final = 8 * 1024
"""Reads up to here are copied out of the buffer at once, larger ones frame by frame."""

RECEIVE_BYTES: Final = 256 * 1024
"""What one read takes from the kernel at most."""

HURRY_FRAMES_MAX: Final = 32
"""Frames of one turn that wait for each other at most; a write costs as much as making one."""

ConnectionT = TypeVar("ConnectionT", bound=Connection)


class _Scratch(threading.local):
    """
    Where reads land: one buffer for each loop, emptied before the next read of any connection.

    A buffer of its own for every read, which is what a plain protocol gets, costs four calls to the
    kernel and fresh pages for 20 bytes as for 256 KiB: 20 of 117 microseconds of a unary call.
    """

    def __init__(self) -> None:
        self.view = memoryview(bytearray(RECEIVE_BYTES))


_SCRATCH: Final = _Scratch()


class WireProtocol(OneTimer, asyncio.BufferedProtocol, Generic[ConnectionT]):
    """An asyncio protocol around a connection that ``make`` makes when the stream is there."""

    counted = False
    """Whether it is one of the active connections of the counters, or was."""

    def __init__(
        self,
        make: Callable[["WireProtocol[ConnectionT]", float], ConnectionT],
        counters: WireCounters,
    ) -> None:
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._counters = counters
        self._scratch = _SCRATCH.view
        self._paused = False
        self._flush_due = False
        self._ending = False
        self._finishing = False
        self._lingered = False
        self._linger: asyncio.TimerHandle | None = None
        self._close_by_s = FOREVER
        self._deaf = False
        self.connection: ConnectionT
        self.transport: asyncio.Transport
        self.lost: asyncio.Future[None] = self._loop.create_future()
        """Done when the stream is closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to speak."""
        # Not asserted: the transports of aiofastnet are asyncio's by shape, not by class.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        self.connection = self._make(self, self._loop.time())
        self.connection.wake = self._wake
        self.connection.hurry = self._hurry
        self.counted = True
        self._counters.connections_active += 1
        self._counters.connections_opened += 1
        self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the peer sent, out of the buffer."""
        data = self._scratch[:nbytes]
        # What is small is copied as a whole: cutting bytes costs less than cutting a view.
        self.take(data.tobytes() if nbytes <= COPIED_BYTES_MAX else data)

    def take(self, data: bytes | memoryview) -> None:
        """Take what the peer sent; nothing of it is needed afterwards."""
        self._counters.bytes_in += len(data)
        connection = self.connection
        connection.receive_data(data, self._loop.time())
        if connection.is_server and connection.backlog_bytes > BACKLOG_BYTES:
            # What answers wait for is taken first. Only a server stops: two that wait for each
            # other would wait for ever.
            self._deaf = True
            self.transport.pause_reading()
        if connection.wake_s < self._timer_s and not self._ending:
            self._arm(connection.wake_s)

    def eof_received(self) -> bool:
        """End with the peer: a half-closed stream carries no calls."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the calls of a stream that has ended."""
        self._counters.connections_active -= 1
        self._disarm()
        if self._linger is not None:
            self._linger.cancel()
        why = f"the connection was lost: {exc}" if exc else "the peer closed the connection"
        self.connection.connection_lost(ConnectionLost(why))
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        """Stop: the transport holds enough."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self.flush()

    def _wake(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._end_turn)

    def _hurry(self) -> None:
        """Let the peer begin with what a turn has queued so far."""
        connection = self.connection
        if self._paused or self.transport.is_closing():
            return
        pieces = connection.data_to_send(TURN_BYTES, self._loop.time())
        if pieces:
            self._write(pieces)
        if connection.hurry_at < HURRY_FRAMES_MAX:
            connection.hurry_at *= 2

    def _end_turn(self) -> None:
        self._flush_due = False
        self.connection.hurry_at = 1
        self.flush()

    def flush(self) -> None:
        """Write what the connection has for the wire, as far as the transport takes it."""
        connection, transport = self.connection, self.transport
        while not self._paused and connection.has_output and not transport.is_closing():
            pieces = connection.data_to_send(TURN_BYTES, self._loop.time())
            if not pieces:
                break
            self._write(pieces)
        if connection.wake_s < self._timer_s and not self._ending:
            self._arm(connection.wake_s)
        if self._deaf and connection.backlog_bytes <= BACKLOG_BYTES and not connection.closed:
            self._deaf = False
            self.transport.resume_reading()
        if self._finishing and not connection.has_output and not connection.calls:
            self._drained()
        if connection.closed and not self._ending:
            self._end()

    def _drained(self) -> None:
        """
        End in order. A server lets the client close first.

        A socket that is closed with bytes unread is reset, and the reset takes the last answers
        with it: 84 of 5,300 calls were lost so when servers were replaced under load.
        """
        if self.connection.is_server and not self._lingered:
            if self._linger is None:
                self._linger = self._loop.call_later(LINGER_S, self._end_linger)
            return
        self.connection.connection_lost(Cancelled("the connection has drained"))

    def _end_linger(self) -> None:
        self._lingered = True
        self.flush()

    def finish(self) -> None:
        """Close when what the connection has queued is written."""
        if not self._finishing:
            self._finishing = True
            self._wake()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        self.transport.abort()

    def peer(self) -> Peer:
        """Who is at the other end of the stream."""
        return peer_of(self.transport)

    def _write(self, pieces: list[bytes | memoryview]) -> None:
        size = sum(map(len, pieces))
        self._counters.bytes_out += size
        if size <= JOIN_BYTES_MAX:
            self.transport.write(b"".join(pieces) if len(pieces) > 1 else pieces[0])
        else:
            self.transport.writelines(pieces)

    def _end(self) -> None:
        """Close after the last bytes; a peer that does not take them is cut off."""
        self._ending = True
        self._disarm()
        error = self.connection.error
        if error is not None and not isinstance(error, Cancelled):
            self._counters.errors[type(error).__name__] += 1
            if self.connection.is_server and self.connection.peer_hello is None:
                self._counters.refuse(handshake_reason(error), handshake=True)
        self._close_by_s = self._loop.time() + CLOSE_TIMEOUT_S
        self._close_when_written()

    def _close_when_written(self) -> None:
        """Close once the transport holds nothing; not every transport writes on after ``close``."""
        self._timer = None
        if self.transport.is_closing():
            return
        if self._loop.time() >= self._close_by_s:
            self.transport.abort()
        elif self.transport.get_write_buffer_size():
            self._timer = self._loop.call_later(WRITTEN_POLL_S, self._close_when_written)
        else:
            self.transport.close()
            self._timer = self._loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    def _on_timer(self, due_s: float) -> None:
        self.connection.handle_timeout(self._loop.time())
        self.flush()
