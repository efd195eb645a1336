"""
Calls of HTTP/3 clients, by the Connect protocol, on the connection of a link.

Each request becomes the frames a client of ours would send, and the frames of the answer become
HTTP: one set of rules, limits and metrics for both. A client has to prove who it is as any other.
"""

import json
from collections.abc import Iterator
from typing import Final

from tidewire.errors import InvalidArgument, MessageTooLarge, Overloaded, TidewireError, Unavailable
from tidewire.transport.quic import connect_protocol as connect
from tidewire.transport.quic.backend import Headers, Http3, HttpBody, HttpHead, QuicSession
from tidewire.transport.quic.connect_protocol import NotACall, Request
from tidewire.wire.bodies import (
    ENDING_OK,
    STATUS_OK,
    Ending,
    Hello,
    Metadata,
    decode_ending,
    decode_headers,
    encode_head,
    encode_hello,
)
from tidewire.wire.frame import (
    CREDIT,
    CREDIT_BODY,
    END,
    HEADER,
    HEADER_BYTES,
    HEADERS,
    HELLO,
    MESSAGE,
    MORE,
    OPEN,
    OPEN_PREFIX,
    PING,
    PONG,
    PREFIX_BYTES,
    PRIORITY_DEFAULT,
    STATUS,
    encode_frame,
)
from tidewire.wire.limits import KIB, MIB, WireLimits
from tidewire.wire.streamed import ABORT, CONTROL, LAST, StreamedServer

ALPN: Final = "h3"
HEAD_BYTES_MAX: Final = 64 * KIB
"""What may come of a request before its head is complete."""
SPARE_BYTES: Final = 128 * KIB
"""What a request may have besides its message: head, frames, trailers."""
OWN_STREAMS_BYTES_MAX: Final = 16 * MIB
"""What a client may send on the streams of the protocol itself, all together."""
WINDOW_BYTES: Final = 64 * KIB
"""What an answer may be ahead of what its stream has taken."""


class _Exchange:
    """One request and its answer."""

    __slots__ = (
        "answer",
        "body",
        "complete",
        "headed",
        "initial",
        "over",
        "received",
        "request",
        "sent",
        "stream",
    )

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.request: Request | None = None
        self.body = bytearray()
        self.received = 0
        self.answer: list[bytes] = []
        """Fragments of a message, or the answer of a unary call until its end is known."""
        self.initial: Metadata = ()
        self.headed = False
        self.complete = False
        """The request is whole."""
        self.over = False
        """The answer is given; what still comes of the request is dropped."""
        self.sent = 0


class Http3Carrier:
    """Carries requests: the one on stream 4 n is call n + 1 of the link."""

    always = True

    def __init__(self, link: StreamedServer, session: QuicSession) -> None:
        self.connection = link
        self._session = session
        self._http: Http3 = session.http3()
        self._exchanges: dict[int, _Exchange] = {}
        self._body_bytes = 0
        self._own_bytes = 0
        limits = WireLimits(call_credit_bytes=WINDOW_BYTES)
        hello = encode_frame(HELLO, encode_hello(Hello(), limits))
        link.receive_stream(CONTROL, hello, False, link.now_s)

    # In ---------------------------------------------------------------------------------------

    def on_stream_data(self, stream: int, data: bytes, last: bool, now_s: float) -> None:
        """See ``Carrier``."""
        if stream & 3:
            self._own_bytes += len(data)
            if self._own_bytes > OWN_STREAMS_BYTES_MAX:
                self.connection.fail(Overloaded("too much on HTTP/3's own streams"))
                return
        elif not self._bounded(stream, len(data)):
            return
        for news in self._http.receive(stream, data, last):
            exchange = self._exchanges.get(news.stream)
            if exchange is not None:
                self._take(exchange, news, now_s)

    def _bounded(self, stream: int, size: int) -> bool:
        """Whether a request has not come to too much, whatever it is made of."""
        exchange = self._exchanges.get(stream)
        if exchange is None:
            exchange = self._exchanges[stream] = _Exchange(stream)
        exchange.received += size
        most = HEAD_BYTES_MAX
        if exchange.request is not None:
            most = self.connection.limits.message_bytes_max + SPARE_BYTES
        if exchange.received <= most:
            return True
        self._forget(stream)
        self._session.abort(stream)
        self.connection.cancel((stream >> 2) + 1)
        return False

    def _take(self, exchange: _Exchange, news: HttpHead | HttpBody, now_s: float) -> None:
        exchange.complete = news.last
        if exchange.over:
            if news.last:
                self._forget(exchange.stream)
            return
        try:
            if isinstance(news, HttpHead):
                self._head(exchange, news)
            else:
                self._body(exchange, news.data)
            if news.last:
                self._open(exchange, now_s)
        except NotACall as refusal:
            self._refuse(exchange, refusal.status)
        except TidewireError as error:
            self._end(exchange, Ending.of(error))

    def _head(self, exchange: _Exchange, news: HttpHead) -> None:
        if exchange.request is None:
            exchange.request = connect.read_head(news.headers)

    def _body(self, exchange: _Exchange, data: bytes) -> None:
        limits = self.connection.limits
        exchange.body += data
        self._body_bytes += len(data)
        if len(exchange.body) > limits.message_bytes_max + connect.ENVELOPE.size:
            raise MessageTooLarge(f"the message has more than {limits.message_bytes_max} bytes")
        if self._body_bytes > limits.incomplete_bytes_max:
            raise Overloaded(f"requests of {self._body_bytes} bytes are not complete")

    def _open(self, exchange: _Exchange, now_s: float) -> None:
        """The request is whole: make a call of it."""
        link, request = self.connection, exchange.request
        if request is None:
            raise NotACall(400)
        message = bytes(exchange.body)
        self._body_bytes -= len(message)
        exchange.body = bytearray()
        if request.streaming:
            message = connect.read_envelope(message)
        if link.draining:
            raise Unavailable("the server goes away and did not look at this call: safe to retry")
        if link.unread_bytes and link.unread_bytes + len(message) > link.limits.unread_bytes_max:
            raise Overloaded("messages of this connection wait to be read")
        try:
            head = encode_head(request.method, request.metadata)
        except ValueError as error:
            raise InvalidArgument(f"metadata cannot be: {error}") from error
        number = (exchange.stream >> 2) + 1
        frames = b"".join(self._frames(number, head, message, request.timeout_us))
        link.receive_stream(number, frames, True, now_s)

    def _frames(self, number: int, head: bytes, message: bytes, timeout_us: int) -> Iterator[bytes]:
        opening = OPEN_PREFIX.pack(timeout_us, len(head)) + head
        yield encode_frame(OPEN, opening, priority=PRIORITY_DEFAULT, call_id=number)
        size = self.connection.limits.fragment_bytes
        for start in range(0, max(len(message), 1), size):
            flags = MORE if start + size < len(message) else END
            yield encode_frame(MESSAGE, message[start : start + size], flags=flags, call_id=number)

    def on_stream_abort(self, stream: int, now_s: float) -> None:
        """See ``Carrier``."""
        if stream & 3:
            return
        self._http.receive_abort(stream)
        self._forget(stream)
        self.connection.receive_abort((stream >> 2) + 1, now_s)

    def on_stream_stop(self, stream: int, now_s: float) -> None:
        """See ``Carrier``."""
        if not stream & 3:
            self._forget(stream)
            self.connection.receive_stop((stream >> 2) + 1, now_s)

    def _forget(self, stream: int) -> None:
        exchange = self._exchanges.pop(stream, None)
        if exchange is not None:
            self._body_bytes -= len(exchange.body)

    def _finish(self, exchange: _Exchange) -> None:
        """The answer is given: want no more of the request."""
        exchange.over = True
        self._body_bytes -= len(exchange.body)
        exchange.body = bytearray()
        if exchange.complete:
            self._forget(exchange.stream)
        else:
            self._session.stop(exchange.stream)

    # Out --------------------------------------------------------------------------------------

    def send(self, session: QuicSession, bytes_max: int, now_s: float) -> None:
        """See ``Carrier``."""
        # A slow reader is held by its own window; others do not wait for it.
        for number, data, action in self.connection.streams_to_send(
            max(bytes_max, WINDOW_BYTES), now_s
        ):
            stream = (number - 1) << 2
            if number == CONTROL:
                self._control(data, now_s)
            elif action == ABORT:
                self._forget(stream)
                session.abort(stream)
            elif action <= LAST:
                exchange = self._exchanges.get(stream)
                if exchange is not None and not exchange.over:
                    self._answer(exchange, data)
        self._give_credit(now_s)

    def _control(self, data: bytes, now_s: float) -> None:
        """HTTP/3 has no PING: QUIC finds out who is gone."""
        if data[PREFIX_BYTES] == PING:
            pong = encode_frame(PONG, data[HEADER_BYTES:])
            self.connection.receive_stream(CONTROL, pong, False, now_s)

    def _give_credit(self, now_s: float) -> None:
        """Let handlers write on as far as the streams of their answers have taken what there is."""
        link = self.connection
        for exchange in self._exchanges.values():
            call = link.calls.get((exchange.stream >> 2) + 1)
            if call is None or call.credit - call.sent > WINDOW_BYTES >> 1:
                continue
            if self._session.waiting_bytes(exchange.stream) <= WINDOW_BYTES >> 1:
                total = CREDIT_BODY.pack(call.sent + WINDOW_BYTES)
                frame = encode_frame(CREDIT, total, call_id=call.call_id)
                link.receive_stream(CONTROL, frame, False, now_s)

    def _answer(self, exchange: _Exchange, data: bytes) -> None:
        _, kind, flags, _, _ = HEADER.unpack_from(data)
        body = data[HEADER_BYTES:]
        if kind == HEADERS:
            exchange.initial = decode_headers(body)
        elif kind == STATUS:
            self._end(exchange, decode_ending(body))
        elif kind == MESSAGE:
            exchange.answer.append(body)
            if not flags & MORE:
                self._message(exchange, last=bool(flags & END))

    def _message(self, exchange: _Exchange, *, last: bool) -> None:
        """A message of the answer is whole."""
        assert exchange.request is not None
        exchange.sent += 1
        if exchange.request.streaming:
            message, exchange.answer = b"".join(exchange.answer), []
            self._head_once(exchange, 200, connect.STREAM)
            self._http.send_body(exchange.stream, connect.envelope(message), last=False)
        elif exchange.sent > 1:
            # Told only now: until its second message a stream looks like a unary call.
            self._refuse(exchange, 415)
            self.connection.cancel((exchange.stream >> 2) + 1)
            return
        if last:
            self._end(exchange, ENDING_OK)

    def _head_once(
        self, exchange: _Exchange, status: int, kind: str, more: Headers | None = None
    ) -> None:
        if not exchange.headed:
            exchange.headed = True
            headers = [
                (b":status", b"%d" % status),
                (b"content-type", kind.encode()),
                *connect.metadata_headers(exchange.initial),
                *(more or []),
            ]
            self._http.send_head(exchange.stream, headers)

    def _end(self, exchange: _Exchange, ending: Ending) -> None:
        streaming = exchange.request is not None and exchange.request.streaming
        if streaming:
            self._head_once(exchange, 200, connect.STREAM)
            body = connect.end_of_stream(ending)
        elif ending.code == STATUS_OK and exchange.sent == 1:
            trailers = connect.metadata_headers(ending.trailers, "trailer-")
            self._head_once(exchange, 200, connect.UNARY, trailers)
            body = b"".join(exchange.answer)
        elif ending.code == STATUS_OK:
            self._refuse(exchange, 415)
            return
        else:
            trailers = connect.metadata_headers(ending.trailers, "trailer-")
            status = connect.http_status(ending.code)
            self._head_once(exchange, status, "application/json", trailers)
            body = json.dumps(connect.error_json(ending)).encode()
        self._http.send_body(exchange.stream, body, last=True)
        self._finish(exchange)

    def _refuse(self, exchange: _Exchange, status: int) -> None:
        """Answer what is no call."""
        self._head_once(exchange, status, "text/plain")
        self._http.send_body(exchange.stream, b"", last=True)
        self._finish(exchange)
