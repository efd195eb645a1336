"""A connection of aioquic as the seam has it."""

import logging
from collections.abc import Sequence
from typing import Final

from aioquic import tls
from aioquic.quic import events
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.stream import QuicStream
from cryptography import x509

from tidewire.transport.quic.backend import (
    DATAGRAM_BYTES_LEAST,
    Address,
    Ended,
    Handshake,
    SessionEvents,
)
from tidewire.transport.quic.over_aioquic.connection import AioquicConnection
from tidewire.transport.quic.over_aioquic.http3 import AioquicHttp3

_LOGGER = logging.getLogger(__name__)

FOREVER: Final = float("inf")
CRYPTO_ERROR: Final = int(QuicErrorCode.CRYPTO_ERROR)
ALERTS: Final = 0x100
RESET_REASON: Final = "the server does not know this connection any more"

_OVER: Final = frozenset({QuicConnectionState.CLOSING, QuicConnectionState.DRAINING})


class AioquicSession:
    """A ``QuicSession``."""

    def __init__(self, quic: AioquicConnection) -> None:
        self._quic = quic
        self._written = 0
        self._ended = False

    @property
    def retransmitted(self) -> int:
        """See ``QuicSession``."""
        return self._quic.retransmitted

    @property
    def identifiers(self) -> Sequence[bytes]:
        """See ``QuicSession``."""
        quic = self._quic
        names: list[bytes | None] = [each.cid for each in quic._host_cids]
        if not quic._is_client:
            names += [quic._original_destination_connection_id, quic._retry_source_connection_id]
        return [name for name in names if name]

    @property
    def address(self) -> Address:
        """See ``QuicSession``."""
        address: Address | None = self._quic.get_peer_address()
        return address or ()

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """See ``QuicSession``."""
        chain: tuple[x509.Certificate, ...] = self._quic.tls.verified
        return chain

    @property
    def alpn(self) -> str:
        """See ``QuicSession``."""
        return self._quic.tls.alpn_negotiated or ""

    @property
    def over(self) -> bool:
        """See ``QuicSession``."""
        return self._quic._state in _OVER

    @property
    def admitted(self) -> bool:
        """See ``QuicSession``."""
        admitted: bool = self._quic.tls.judged
        return admitted

    @property
    def datagram_bytes(self) -> int:
        """See ``QuicSession``."""
        size: int = self._quic._max_datagram_size
        return size

    @property
    def unsent_bytes(self) -> int:
        """See ``QuicSession``."""
        sent: int = self._quic._remote_max_data_used
        return self._written - sent

    def receive(self, data: bytes, address: Address, now_s: float) -> None:
        """See ``QuicSession``."""
        quic = self._quic
        if quic._is_client and not data[0] & 0x80 and quic.is_reset(data):
            quic.end_silently(RESET_REASON)
            return
        try:
            quic.receive_datagram(data, address, now=now_s)
        except Exception:  # a parser of somebody else: what strangers send must end nobody else
            _LOGGER.exception("a datagram of %d bytes was not understood", len(data))
            quic.close(error_code=QuicErrorCode.INTERNAL_ERROR)

    def deliver(self, to: SessionEvents) -> None:
        """See ``QuicSession``."""
        queue = self._quic._events
        while queue:
            event = queue.popleft()
            if isinstance(event, events.StreamDataReceived):
                self._quic.delivered += len(event.data)
                to.on_stream_data(event.stream_id, event.data, event.end_stream)
            elif isinstance(event, events.StreamReset):
                self._settle_reset(event.stream_id)
                to.on_stream_abort(event.stream_id)
            elif isinstance(event, events.StopSendingReceived):
                self._settle_stop(event.stream_id)
                to.on_stream_stop(event.stream_id)
            elif isinstance(event, events.ConnectionIdIssued):
                to.on_connection_id(event.connection_id, issued=True)
            elif isinstance(event, events.ConnectionIdRetired):
                to.on_connection_id(event.connection_id, issued=False)
            elif isinstance(event, events.HandshakeCompleted):
                self._complete(event, to)
            elif isinstance(event, events.ConnectionTerminated):
                self._end(event, to)
        if self.over and self._quic._close_event is not None:
            self._end(self._quic._close_event, to)  # aioquic would tell when it has drained

    def _end(self, event: events.ConnectionTerminated, to: SessionEvents) -> None:
        if not self._ended:
            self._ended = True
            by_peer = self._quic._state is QuicConnectionState.DRAINING
            to.on_ended(_ended(event, by_peer=by_peer))

    def _complete(self, event: events.HandshakeCompleted, to: SessionEvents) -> None:
        context = self._quic.tls
        if event.session_resumed and self._quic.remembered:
            context.verified = self._quic.remembered
            context.judged = True
        if not context.judged:
            _LOGGER.critical("aioquic completed a handshake in which nobody judged the peer")
            self._quic.close(
                error_code=CRYPTO_ERROR + tls.AlertDescription.internal_error,
                frame_type=QuicFrameType.CRYPTO,
                reason_phrase="the certificate was not judged",
            )
            return
        to.on_handshake(
            Handshake(event.alpn_protocol or "", event.session_resumed, event.early_data_accepted)
        )

    def _settle_stop(self, identifier: int) -> None:
        """Count what will not go any more."""
        stream = self._quic._streams.get(identifier)
        if stream is not None:
            self._drop_unsent(stream)

    def _settle_reset(self, identifier: int) -> None:
        """Count what will not come any more as taken."""
        stream = self._quic._streams.get(identifier)
        if stream is not None:
            receiver = stream.receiver
            self._quic.delivered += receiver.highest_offset - receiver._buffer_start
            receiver._buffer_start = receiver.highest_offset

    def _drop_unsent(self, stream: QuicStream) -> None:
        sender = stream.sender
        self._written -= sender._buffer_stop - sender.highest_offset
        sender._buffer_stop = sender.highest_offset

    def datagrams(self, now_s: float) -> list[tuple[bytes, Address]]:
        """See ``QuicSession``."""
        quic = self._quic
        if not quic._spaces:
            return []  # nothing that can be read has come
        space = quic._spaces.get(tls.Epoch.ONE_RTT)
        if space is not None and space.ack_at is not None and self.unsent_bytes:
            # What is sent anyhow carries the acknowledgement, which else is a datagram of its own.
            space.ack_at = now_s
        quic.spend_key()
        made: list[tuple[bytes, Address]] = quic.datagrams_to_send(now=now_s)
        if quic.may_probe:
            made += quic.write_probe(now_s)
        return made

    def wake_s(self) -> float:
        """See ``QuicSession``."""
        if not self._quic._spaces:
            return FOREVER
        due: float | None = self._quic.get_timer()
        due_s = FOREVER if due is None else due
        return min(due_s, self._quic.probe.next_s) if self._quic.may_probe else due_s

    def handle_timer(self, now_s: float) -> None:
        """See ``QuicSession``."""
        if self._quic._close_at is not None:
            self._quic.handle_timer(now=now_s)

    def send(self, stream: int, data: bytes, *, last: bool) -> None:
        """See ``QuicSession``."""
        quic = self._quic
        found = quic._streams.get(stream)
        if found is None:
            if quic._stream_is_discarded(stream):
                return
            found = quic._get_or_create_stream_for_send(stream)
        sender = found.sender
        if sender._reset_error_code is None and sender._buffer_fin is None:
            quic.rouse(stream)
            sender.write(data, end_stream=last)
            self._written += len(data)

    def abort(self, stream: int) -> None:
        """See ``QuicSession``."""
        found = self._quic._streams.get(stream)
        if found is not None:
            self._quic.rouse(stream)
            found.sender.reset(QuicErrorCode.NO_ERROR)
            self._drop_unsent(found)
            self._stop(found)

    def stop(self, stream: int) -> None:
        """See ``QuicSession``."""
        found = self._quic._streams.get(stream)
        if found is not None:
            self._quic.rouse(stream)
            self._stop(found)

    def _stop(self, stream: QuicStream) -> None:
        receiver = stream.receiver
        if not receiver.is_finished and receiver._stop_error_code is None:
            receiver.stop(QuicErrorCode.NO_ERROR)

    def waiting_bytes(self, stream: int) -> int:
        """See ``QuicSession``."""
        found = self._quic._streams.get(stream)
        return 0 if found is None else found.sender._buffer_stop - found.sender._buffer_start

    def http3(self) -> AioquicHttp3:
        """See ``QuicSession``."""
        return AioquicHttp3(self._quic, self)

    def too_long(self, size: int) -> None:
        """See ``QuicSession``."""
        quic = self._quic
        if not quic.probe.refused(size) and quic._max_datagram_size >= size:
            quic.use_datagrams(DATAGRAM_BYTES_LEAST)

    def close(self, code: int, reason: str) -> None:
        """See ``QuicSession``."""
        self._quic.close(error_code=code, reason_phrase=reason)


def _ended(event: events.ConnectionTerminated, *, by_peer: bool) -> Ended:
    code = int(event.error_code)
    application = event.frame_type is None
    failed = not application and CRYPTO_ERROR <= code < CRYPTO_ERROR + ALERTS
    reason = event.reason_phrase
    if failed:
        code -= CRYPTO_ERROR
        known = code in tls.AlertDescription._value2member_map_
        alert = tls.AlertDescription(code).name if known else f"alert {code}"
        reason = f"{alert}: {reason}" if reason else alert
    return Ended(code, application, reason, failed, by_peer)
