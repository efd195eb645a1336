"""HTTP/3 of aioquic as the seam has it."""

import logging
from typing import TYPE_CHECKING, Any, Final

from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.events import StreamDataReceived, StreamReset

from tidewire.transport.quic.backend import HttpBody, HttpHead

if TYPE_CHECKING:
    from tidewire.transport.quic.over_aioquic.connection import AioquicConnection
    from tidewire.transport.quic.over_aioquic.session import AioquicSession

NO_ERROR: Final = 0x100
INTERNAL_ERROR: Final = 0x102
_LOGGER = logging.getLogger(__name__)


class _Counted:
    """What HTTP/3 needs of a connection; what it sends is counted by the session."""

    _quic_logger = None
    _remote_max_datagram_frame_size = None

    def __init__(self, quic: "AioquicConnection", session: "AioquicSession") -> None:
        self.configuration = quic.configuration
        self.get_next_available_stream_id = quic.get_next_available_stream_id
        self._session = session

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        """Send, if the stream is there."""
        if data or end_stream:
            self._session.send(stream_id, data, last=end_stream)
        elif stream_id == self.get_next_available_stream_id(is_unidirectional=True):
            raise RuntimeError("a stream begins with its type")

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        """Give up a request that is not whole."""
        del error_code
        self._session.abort(stream_id)

    def close(self, error_code: int = NO_ERROR, reason_phrase: str = "") -> None:
        """End the connection: the peer does not speak HTTP/3."""
        self._session.close(error_code, reason_phrase)


class AioquicHttp3:
    """An ``Http3`` of a server."""

    def __init__(self, quic: "AioquicConnection", session: "AioquicSession") -> None:
        counted: Any = _Counted(quic, session)
        self._http = H3Connection(counted)
        self._session = session

    def receive(self, stream: int, data: bytes, last: bool) -> list[HttpHead | HttpBody]:
        """See ``Http3``."""
        heard: list[HttpHead | HttpBody] = []
        event = StreamDataReceived(data=data, end_stream=last, stream_id=stream)
        try:
            found = self._http.handle_event(event)
        except Exception:  # a parser of somebody else: what strangers send must end nobody else
            _LOGGER.exception("HTTP/3 of %d bytes was not understood", len(data))
            self._session.close(INTERNAL_ERROR, "HTTP/3 was not understood")
            return heard
        for news in found:
            if isinstance(news, HeadersReceived):
                heard.append(HttpHead(news.stream_id, news.headers, news.stream_ended))
            elif isinstance(news, DataReceived):
                heard.append(HttpBody(news.stream_id, news.data, news.stream_ended))
        return heard

    def receive_abort(self, stream: int) -> None:
        """See ``Http3``."""
        self._http.handle_event(StreamReset(error_code=NO_ERROR, stream_id=stream))

    def send_head(self, stream: int, headers: list[tuple[bytes, bytes]]) -> None:
        """See ``Http3``."""
        self._http.send_headers(stream, headers)

    def send_body(self, stream: int, data: bytes, *, last: bool) -> None:
        """See ``Http3``."""
        self._http.send_data(stream, data, last)
