"""
The shell of a QUIC connection: datagrams in and out, one timer, and what the streams carry.

What a turn of the event loop receives is answered in one go: handlers run between the datagrams
that came and those that leave, and the acknowledgement travels with the answer.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from tidewire.errors import Cancelled, ConnectionLost, ProtocolViolation, TidewireError, TlsFailed
from tidewire.transport.counters import WireCounters, handshake_reason
from tidewire.transport.options import LINGER_S, WRITE_HIGH_BYTES
from tidewire.transport.peer import Peer
from tidewire.transport.quic.backend import Address, Ended, Handshake, QuicSession
from tidewire.transport.quic.identity import CertificatePeer, address_name
from tidewire.transport.timer import OneTimer
from tidewire.wire.connection import Connection
from tidewire.wire.deadlines import FOREVER
from tidewire.wire.frame import CALL_ID_MAX
from tidewire.wire.streamed import ABORT, LAST, STOP, StreamedConnection

OTHER_STREAM: Final = 3
"""Bits of a stream's number that are 0 on the only streams calls use: of clients, both ways."""
UNSENT_BYTES_MAX: Final = 2 * WRITE_HIGH_BYTES
"""What may wait below for its datagram, so that urgent frames do not wait behind a long message."""
REASON_BYTES_MAX: Final = 256
"""A reason in the end of a connection is cut to this."""
LATENESS_S: Final = 0.0005
"""A timer that is earlier than needed by less than this is left alone."""

_LOGGER = logging.getLogger(__name__)

SendDatagrams = Callable[[list[tuple[bytes, Address]]], None]


class Carrier(Protocol):
    """What the streams of a connection carry."""

    @property
    def connection(self) -> Any:
        """The link under it."""
        ...

    def on_stream_data(self, stream: int, data: bytes, last: bool, now_s: float) -> None:
        """Bytes have come."""
        ...

    def on_stream_abort(self, stream: int, now_s: float) -> None:
        """The peer aborted its way of a stream."""
        ...

    def on_stream_stop(self, stream: int, now_s: float) -> None:
        """The peer wants no more on our way of a stream."""
        ...

    always: bool
    """Whether ``send`` wants to be called however much is unsent."""

    def send(self, session: QuicSession, bytes_max: int, now_s: float) -> None:
        """Hand what is to be sent to the session, up to about ``bytes_max``."""
        ...


class FrameCarrier:
    """Carries frames: the call of number n on stream 4 n, the connection's own on stream 0."""

    always = False

    def __init__(self, link: StreamedConnection) -> None:
        self.connection = link

    def on_stream_data(self, stream: int, data: bytes, last: bool, now_s: float) -> None:
        """See ``Carrier``."""
        if stream & OTHER_STREAM or stream >> 2 > CALL_ID_MAX:
            self.connection.fail(_no_such_stream(stream))
            return
        self.connection.receive_stream(stream >> 2, data, last, now_s)

    def on_stream_abort(self, stream: int, now_s: float) -> None:
        """See ``Carrier``."""
        self.connection.receive_abort(stream >> 2, now_s)

    def on_stream_stop(self, stream: int, now_s: float) -> None:
        """See ``Carrier``."""
        self.connection.receive_stop(stream >> 2, now_s)

    def send(self, session: QuicSession, bytes_max: int, now_s: float) -> None:
        """See ``Carrier``."""
        for number, data, action in self.connection.streams_to_send(bytes_max, now_s):
            if action <= LAST:
                session.send(number << 2, data, last=action == LAST)
            elif action == ABORT:
                session.abort(number << 2)
            elif action == STOP:
                session.stop(number << 2)


def _no_such_stream(stream: int) -> TidewireError:
    return ProtocolViolation(f"stream {stream} is of a kind that carries no calls")


class QuicShell(OneTimer):
    """
    Drives one connection; the shell of links over QUIC.

    Args:
        session: The connection as the library has it.
        send: Sends datagrams; those the system refuses are lost.
        counters: Of the channel or server.
        greet: Makes the carrier when the handshake is done.
    """

    def __init__(
        self,
        session: QuicSession,
        send: SendDatagrams,
        counters: WireCounters,
        greet: "Callable[[QuicShell, str], Carrier]",
    ) -> None:
        self.session = session
        self.handshake: Handshake | None = None
        """Set when it is done."""
        self.early_allowed = False
        """Whether HELLO is taken from data that came with the first datagrams."""
        self._send = send
        self._counters = counters
        self._greet = greet
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.carrier: Carrier | None = None
        self._link: Connection | None = None
        self._ended = False
        self._flush_due = False
        self._finishing = False
        self._linger: asyncio.TimerHandle | None = None
        self._lingered = False
        self._retransmitted = 0
        self.give_up_s = FOREVER
        """When a handshake that is not done is given up."""

    @property
    def connection(self) -> Any:
        """The link it drives; only there once streams may be used."""
        return self._link

    def peer(self) -> Peer:
        """Who is at the other end: the address of now, and the verified certificate."""
        return CertificatePeer(address_name(self.session.address), self.session.chain)

    def begin(self, link: Connection, carrier: Carrier) -> None:
        """Let the streams carry something."""
        self._link = link
        self.carrier = carrier
        link.wake = self.flush_soon
        self._counters.connections_active += 1
        self._counters.connections_opened += 1

    # In ---------------------------------------------------------------------------------------

    def receive(self, data: bytes, address: Address) -> None:
        """Take a datagram; call :meth:`settle` after the last one of a turn."""
        self._counters.bytes_in += len(data)
        self._counters.datagrams_in += 1
        self.session.receive(data, address, self._loop.time())

    def settle(self) -> None:
        """Act on the datagrams that came."""
        self.session.deliver(self)
        self.flush_soon()

    def on_handshake(self, done: Handshake) -> None:
        """Let calls begin."""
        self.handshake = done
        self.give_up_s = FOREVER
        if self.carrier is None:
            self._greet(self, done.alpn)

    def on_stream_data(self, stream: int, data: bytes, last: bool) -> None:
        """Hand bytes to what the streams carry."""
        if self.handshake is None and not self._take_early(stream):
            return
        assert self.carrier is not None
        self.carrier.on_stream_data(stream, data, last, self._loop.time())

    def _take_early(self, stream: int) -> bool:
        """
        Judge data that came before the handshake was done (0-RTT).

        It may be sent again by others, so it may be HELLO and nothing else. The library hands it
        over only for a ticket whose certificate was verified again.
        """
        if not self.session.admitted or stream:
            self._fail_early("0-RTT may carry HELLO and nothing else")
            return False
        if self.carrier is None:
            self._greet(self, "")
        return True

    def _fail_early(self, why: str) -> None:
        self._counters.refuse("early_data", handshake=True)
        self.session.close(1, why)

    def on_stream_abort(self, stream: int) -> None:
        """Hand the abort to what the streams carry."""
        if self.carrier is not None:
            self.carrier.on_stream_abort(stream, self._loop.time())

    def on_stream_stop(self, stream: int) -> None:
        """Hand the news to what the streams carry."""
        if self.carrier is not None:
            self.carrier.on_stream_stop(stream, self._loop.time())

    def on_connection_id(self, identifier: bytes, *, issued: bool) -> None:
        """Nothing at a client: its socket has one connection."""

    def on_ended(self, ended: Ended) -> None:
        """End with the connection."""
        self._end(_why(ended), ended)

    # Out --------------------------------------------------------------------------------------

    def flush_soon(self) -> None:
        """Flush once in this turn of the event loop, after the handlers that are about to run."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what there is, as far as congestion and flow control allow it."""
        self._flush_due = False
        if self._ended:
            return
        try:
            self._flush()
        except Exception:  # a library of somebody else: it must end this connection only
            _LOGGER.exception("a QUIC connection could not go on")
            self._end(ConnectionLost("the QUIC connection could not go on"), None)

    def _flush(self) -> None:
        now_s = self._loop.time()
        session, link, carrier = self.session, self._link, self.carrier
        while True:
            room = UNSENT_BYTES_MAX - session.unsent_bytes
            if (
                link is not None
                and carrier is not None
                and (carrier.always or (room > 0 and link.has_output))
            ):
                carrier.send(session, room, now_s)
            datagrams = session.datagrams(now_s)
            if not datagrams:
                break
            self._transmit(datagrams)
            if link is None or not link.has_output:
                break
        if link is not None:
            if self._finishing and not link.has_output and not link.calls:
                self._drained(link)
            if link.closed:
                self._close(link)
                return
        if session.over:
            session.deliver(self)
        else:
            self._arm_next()

    def _transmit(self, datagrams: list[tuple[bytes, Address]]) -> None:
        counters = self._counters
        counters.datagrams_out += len(datagrams)
        for data, _ in datagrams:
            counters.bytes_out += len(data)
        retransmitted = self.session.retransmitted
        counters.retransmissions += retransmitted - self._retransmitted
        self._retransmitted = retransmitted
        self._send(datagrams)

    # Timer ------------------------------------------------------------------------------------

    def _arm_next(self) -> None:
        """Set the timer, unless it is early enough; one that fires too early is set again."""
        link = self._link
        due_s = min(self.session.wake_s(), self.give_up_s)
        if link is not None and link.wake_s < due_s:
            due_s = link.wake_s
        if due_s < self._timer_s - LATENESS_S:
            self._arm(due_s)

    def _on_timer(self, due_s: float) -> None:
        now_s = max(self._loop.time(), due_s)
        if now_s >= self.give_up_s:
            self.refuse_handshake("timeout")
            return
        if now_s >= self.session.wake_s():
            self.session.handle_timer(now_s)
            self.session.deliver(self)
        if self._ended:
            return
        link = self._link
        if link is not None and now_s >= link.wake_s:
            link.handle_timeout(now_s)
        self.flush()

    # End --------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Close when what the connection has queued is sent and its calls are over."""
        self._finishing = True
        self.flush_soon()

    def _drained(self, link: Connection) -> None:
        """End in order. A server lets the client close first, which then has every answer."""
        if link.is_server and not self._lingered:
            if self._linger is None:
                self._linger = self._loop.call_later(LINGER_S, self._end_linger)
            return
        link.connection_lost(Cancelled("the connection has drained"))

    def _end_linger(self) -> None:
        self._lingered = True
        self.flush_soon()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        self._close_with(0, "")
        self._end(ConnectionLost("the connection was given up"), None)

    def refuse_handshake(self, reason: str) -> None:
        """Give up a connection whose handshake does not come to its end."""
        self._counters.refuse(reason, handshake=True)
        self._close_with(1, reason)
        self._end(ConnectionLost(f"the handshake was given up: {reason}"), None)

    def _close(self, link: Connection) -> None:
        """Tell the peer why, after the last frames: these may be lost, this is judged by QUIC."""
        error = link.error
        orderly = error is None or isinstance(error, Cancelled)
        code = 0 if orderly or error is None else error.code
        self._close_with(code, "" if error is None else error.message)
        if error is not None and not orderly:
            self._counters.errors[type(error).__name__] += 1
            if link.is_server and link.peer_hello is None:
                self._counters.refuse(handshake_reason(error), handshake=True)
        self._end(None, None)

    def _close_with(self, code: int, reason: str) -> None:
        if not self._ended:
            text = reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")
            self.session.close(code, text)
            self._transmit(self.session.datagrams(self._loop.time()))

    def _end(self, error: TidewireError | None, ended: Ended | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._disarm()
        if self._linger is not None:
            self._linger.cancel()
        link = self._link
        if link is not None:
            self._counters.connections_active -= 1
            if error is not None:
                link.connection_lost(error)
        elif ended is not None:
            reason = ended.reason.partition(":")[0] if ended.tls else "connection_reset"
            self._counters.refuse(reason, handshake=True)
        if not self.lost.done():
            self.lost.set_result(None)


def _why(ended: Ended) -> TidewireError:
    if ended.tls:
        if ended.by_peer:  # which may judge otherwise tomorrow, and is told as on tls://
            return ConnectionLost(f"the QUIC handshake failed, the peer says: {ended.reason}")
        return TlsFailed(f"the QUIC handshake failed, this side says: {ended.reason}")
    if ended.by_application:
        if not ended.code:
            return ConnectionLost("the peer closed the connection")
        return ConnectionLost(f"the peer ended the connection: {ended.reason}")
    return ConnectionLost(f"the QUIC connection ended: {ended.reason or ended.code}")
