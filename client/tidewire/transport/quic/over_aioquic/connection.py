"""A connection of aioquic with our handshake, windows, tokens and path probing."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.buffer import size_uint_var
from aioquic.quic import events
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    QuicConnection,
    QuicConnectionId,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicPacketBuilderStop,
    QuicSentPacket,
)
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketSpace
from aioquic.quic.stream import QuicStream
from cryptography import x509

from tidewire.transport.quic.backend import DATAGRAM_BYTES_LEAST, Address, QuicSettings
from tidewire.transport.quic.over_aioquic.handshake import Credentials, Handshaking
from tidewire.transport.quic.probing import PathProbe
from tidewire.transport.quic.tokens import ResetKey

KEY_PACKETS_MAX: Final = 1 << 22
"""Packets sent under one key; RFC 9001 allows twice as many for AES-GCM, and aioquic any number."""
AWAKE_MAX: Final = 16
"""From so many streams on those that rest are set aside."""
UNIDIRECTIONAL_MAX: Final = 8
"""Streams of one way a peer may open: HTTP/3 needs three."""


class _Silent:
    """Takes what aioquic logs: it warns of whatever strangers send, and tells of every stream."""

    def debug(self, *_: object) -> None:
        """Drop it."""

    info = warning = error = debug


class _Pacer(QuicPacketPacer):
    """
    A pacer that also ends a flush when nothing is left to send.

    Else aioquic begins a packet more after the last one, finds nothing for it and drops it: a tenth
    of the time of a unary call.
    """

    def __init__(self, idle: Callable[[], bool], *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._idle = idle

    def update_after_send(self, now: float) -> None:
        """Called after each packet."""
        super().update_after_send(now)
        if self._idle():
            raise QuicPacketBuilderStop


class AioquicConnection(QuicConnection):
    """A connection with our handshake, windows, tokens and path probing."""

    tls: Handshaking

    def __init__(self, settings: QuicSettings, credentials: Credentials, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._settings = settings
        self._credentials = credentials
        self.delivered = 0
        """Bytes of streams that were handed over or will never come."""
        self.reset_key: ResetKey | None = None
        self.new_token = b""
        self._key_since = 0
        self.remembered: tuple[x509.Certificate, ...] = ()
        """At a client: whose ticket is used; only that server can resume the session."""
        self.probe = PathProbe(settings.datagram_bytes_max)
        quiet: Any = _Silent()
        self._logger = quiet
        self._loss._pacer = _Pacer(self._is_idle, max_datagram_size=DATAGRAM_BYTES_LEAST)
        self.retransmitted = 0
        self._watch_losses()
        self._resting: dict[int, QuicStream] = {}
        """Open streams with nothing to send, nothing unacknowledged and nothing to tell."""
        for limit, most in (
            (self._local_max_streams_bidi, settings.streams_max),
            (self._local_max_streams_uni, UNIDIRECTIONAL_MAX),
        ):
            limit.value = limit.sent = most

    def _watch_losses(self) -> None:
        """Hear of each packet that arrived or was lost: by their sizes the path is judged."""
        recovery, controller = self._loss, self._loss._cc
        lose, acknowledge = recovery._on_packets_lost, controller.on_packet_acked
        probe = self.probe

        def on_lost(*, now: float, packets: Iterable[QuicSentPacket], **more: Any) -> None:
            lost = tuple(packets)
            self.retransmitted += len(lost)
            lose(now=now, packets=lost, **more)
            if lost and self._max_datagram_size > DATAGRAM_BYTES_LEAST:
                long = sum(packet.sent_bytes > DATAGRAM_BYTES_LEAST for packet in lost)
                if probe.lost(long, now, recovery.get_probe_timeout()):
                    self.use_datagrams(DATAGRAM_BYTES_LEAST)

        def on_acknowledged(*, now: float, packet: QuicSentPacket) -> None:
            acknowledge(now=now, packet=packet)
            if packet.sent_bytes > DATAGRAM_BYTES_LEAST:
                probe.passed(now)

        recovery._on_packets_lost = on_lost  # type: ignore[method-assign]
        controller.on_packet_acked = on_acknowledged  # type: ignore[method-assign]

    # Streams that rest -------------------------------------------------------------------------

    def _write_application(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float
    ) -> None:
        """
        Let aioquic look only at streams that may have something to send.

        It looks at every open stream for every packet, twice: with 900 calls that wait, a call
        beside them took 1.1 ms instead of 0.26.
        """
        if len(self._streams_queue) > AWAKE_MAX:
            awake: list[QuicStream] = []
            for stream in self._streams_queue:
                if stream.stream_id is not None and _rests(stream):
                    self._resting[stream.stream_id] = stream
                else:
                    awake.append(stream)
            self._streams_queue = awake
        everything = self._streams
        if not self._resting:
            super()._write_application(builder, network_path, now)
            return
        shown = {each.stream_id: each for each in self._streams_queue if each.stream_id is not None}
        names = list(shown)
        self._streams = shown
        try:
            super()._write_application(builder, network_path, now)
        finally:
            self._streams = everything
            for name in names:
                if name not in shown:
                    del everything[name]

    def rouse(self, identifier: int) -> None:
        """Let a stream be looked at again: something happened to it."""
        stream = self._resting.pop(identifier, None)
        if stream is not None:
            self._streams_queue.append(stream)

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> QuicStream:
        self.rouse(stream_id)
        return super()._get_or_create_stream(frame_type, stream_id)

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        super()._on_max_stream_data_delivery(delivery, stream)
        assert stream.stream_id is not None
        self.rouse(stream.stream_id)

    def _is_idle(self) -> bool:
        """Whether one more packet would have nothing to carry."""
        if not self._handshake_confirmed:
            return False
        for stream in self._streams_queue:
            sender = stream.sender
            if len(sender._pending) or sender._pending_eof or sender.reset_pending:
                return False
            if stream.receiver.stop_pending:
                return False
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            if limit.sent - limit.used < limit.value - limit.sent:
                return False
        return len(self._crypto_streams[tls.Epoch.ONE_RTT].sender._pending) == 0

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        made: tls.Context = self.tls
        made.__class__ = Handshaking
        context = self.tls
        context.trust = self._credentials.trust
        context.verified = ()
        context.shown_s = 0.0
        if self._is_client:
            context.judged = context.trust is None
        else:
            context.required = self._settings.require_certificate
            context.judged = not context.required and context.trust is None
            context._request_client_certificate = context.trust is not None

    def _connect(self, now: float) -> None:
        super()._connect(now=now)
        for stream in self._streams.values():
            # After a Retry what had gone out with the first datagrams goes out again.
            sender = stream.sender
            if sender.highest_offset:
                sender.on_data_delivery(QuicDeliveryState.LOST, 0, sender.highest_offset, False)
        self._loss._cc.bytes_in_flight = 0

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        if self.reset_key is not None:
            for connection_id in self._host_cids:
                if not connection_id.was_sent:
                    connection_id.stateless_reset_token = self.reset_key.token(connection_id.cid)

    def is_reset(self, data: bytes) -> bool:
        """Whether a datagram says that the server does not know the connection."""
        token = data[-16:]
        known: list[QuicConnectionId] = [self._peer_cid, *self._peer_cid_available]
        return any(token == each.stateless_reset_token for each in known)

    def end_silently(self, reason: str) -> None:
        """End without telling the peer, which does not know the connection."""
        if self._state is QuicConnectionState.TERMINATED:
            return
        self._close_event = events.ConnectionTerminated(
            error_code=QuicErrorCode.NO_ERROR,
            frame_type=QuicFrameType.PADDING,
            reason_phrase=reason,
        )
        self._close_end()

    # Frames -----------------------------------------------------------------------------------

    def _write_handshake_done_frame(self, builder: QuicPacketBuilder) -> None:
        super()._write_handshake_done_frame(builder)
        token = self.new_token
        if token:
            size = 1 + size_uint_var(len(token)) + len(token)
            buf = builder.start_frame(QuicFrameType.NEW_TOKEN, capacity=size)
            buf.push_uint_var(len(token))
            buf.push_bytes(token)

    def _handle_padding_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        padded = buf.data_slice(start, buf.capacity)
        buf.seek(start + len(padded) - len(padded.lstrip(b"\0")))

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        """Let the windows slide: a peer has so much in flight, however much it has sent."""
        window = self._settings.connection_window_bytes
        data: Limit = self._local_max_data
        if data.value - self.delivered < window >> 1:
            data.value = self.delivered + window
        for limit in (data, self._local_max_streams_bidi, self._local_max_streams_uni):
            if limit.value == limit.sent or (
                limit is not data and limit.sent - limit.used >= limit.value - limit.sent
            ):
                continue
            buf = builder.start_frame(
                limit.frame_type,
                capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
                handler=self._on_connection_limit_delivery,
                handler_args=(limit,),
            )
            buf.push_uint_var(limit.value)
            limit.sent = limit.value

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        limit = stream.max_stream_data_local
        receiver = stream.receiver
        if not limit or receiver.is_finished:
            return
        window = self._settings.stream_window_bytes
        taken = receiver._buffer_start
        if limit - taken < window >> 1:
            limit = stream.max_stream_data_local = taken + window
        if stream.max_stream_data_local_sent != limit:
            buf = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            assert stream.stream_id is not None
            buf.push_uint_var(stream.stream_id)
            buf.push_uint_var(limit)
            stream.max_stream_data_local_sent = limit

    def spend_key(self) -> None:
        """Take a new key before the one in use has protected too many packets."""
        if self._packet_number - self._key_since > KEY_PACKETS_MAX and self._handshake_confirmed:
            self._key_since = self._packet_number
            self.request_key_update()

    # Path -------------------------------------------------------------------------------------

    @property
    def may_probe(self) -> bool:
        """Whether there are sizes to try, and a path that is known to be the peer's."""
        return (
            self.probe.waiting
            and self._handshake_confirmed
            and self._network_paths[0].is_validated
            and self._state is QuicConnectionState.CONNECTED
        )

    def write_probe(self, now: float) -> list[tuple[bytes, Address]]:
        """Return the datagram that finds out whether the path takes longer ones, when it is due."""
        size = self.probe.due(now)
        path = self._network_paths[0]
        if not size or self._version is None:
            return []
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            spin_bit=self._spin_bit,
            version=self._version,
        )
        try:
            builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[tls.Epoch.ONE_RTT])
            buf = builder.start_frame(
                QuicFrameType.PING, handler=self._on_probe, handler_args=(size,)
            )
        except QuicPacketBuilderStop:
            return []
        buf.push_bytes(bytes(builder.remaining_buffer_space))
        # The loss of a probe says that it was too long, not that the path is congested.
        packet = builder._packet
        assert packet is not None
        packet.in_flight = False
        self.probe.sent(size, now)
        made: list[tuple[bytes, Address]] = self._flush_builder(
            builder=builder, network_path=path, peer_cid=self._peer_cid.cid, now=now
        )
        return made

    def _on_probe(self, delivery: QuicDeliveryState, size: int) -> None:
        if self.probe.answered(size, arrived=delivery == QuicDeliveryState.ACKED):
            self.use_datagrams(size)

    def use_datagrams(self, size: int) -> None:
        """Send datagrams of up to this size from now on."""
        self._max_datagram_size = size
        loss = self._loss
        loss._pacer._max_datagram_size = size
        controller: Any = loss._cc
        controller._max_datagram_size = size
        least = min(10 * size, max(14_720, 2 * size))
        loss._cc.congestion_window = max(loss._cc.congestion_window, least)


def _rests(stream: QuicStream) -> bool:
    """Whether nothing will happen to a stream by itself: no frame, no acknowledgement, no loss."""
    sender, receiver = stream.sender, stream.receiver
    return (
        (sender.is_finished or (sender._buffer_fin is None and sender._reset_error_code is None))
        and sender._buffer_start == sender._buffer_stop
        and receiver._stop_error_code is None
        and stream.max_stream_data_local_sent == stream.max_stream_data_local
        and not (sender.is_finished and receiver.is_finished)
    )
