"""An HTTP/3 client that is not ours: aioquic's, as it comes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent

from tidewire.transport import TlsConfig


@dataclass
class Answer:
    """What a server says to one request."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> int:
        """HTTP status."""
        return int(self.headers[":status"])

    async def more(self, size: int) -> bytes:
        """Wait until the body has so many bytes; take them."""
        while len(self.body) < size:
            self.changed.clear()
            await self.changed.wait()
        taken, self.body = self.body[:size], self.body[size:]
        return taken

    async def envelope(self) -> tuple[int, bytes]:
        """Take one message of a stream: its flags and bytes."""
        head = await self.more(5)
        return head[0], await self.more(int.from_bytes(head[1:], "big"))


class Http3Client(QuicConnectionProtocol):
    """Posts requests."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.http = H3Connection(self._quic)
        self._answers: dict[int, Answer] = {}

    def quic_event_received(self, event: QuicEvent) -> None:
        """Sort answers by their streams."""
        for news in self.http.handle_event(event):
            if not isinstance(news, (HeadersReceived, DataReceived)):
                continue
            answer = self._answers[news.stream_id]
            if isinstance(news, HeadersReceived):
                for key, value in news.headers:
                    answer.headers[key.decode()] = value.decode()
            else:
                answer.body += news.data
            if news.stream_ended:
                answer.done.set()
            answer.changed.set()

    def begin(
        self, path: str, kind: str, *, method: str = "POST", **headers: str
    ) -> tuple[int, Answer]:
        """Send the head of a request; return its stream and its answer."""
        stream = self._quic.get_next_available_stream_id()
        answer = self._answers[stream] = Answer()
        said = {":method": method, ":scheme": "https", ":authority": "localhost", ":path": path}
        said |= {"content-type": kind}
        said |= {key.replace("_", "-"): value for key, value in headers.items()}
        self.http.send_headers(
            stream, [(key.encode(), value.encode()) for key, value in said.items()]
        )
        self.transmit()
        return stream, answer

    def send(self, stream: int, data: bytes, *, last: bool) -> None:
        """Send a piece of a request's body."""
        self.http.send_data(stream, data, last)
        self.transmit()

    async def post(self, path: str, kind: str, body: bytes, **headers: str) -> Answer:
        """Post a request and wait for the whole answer."""
        stream, answer = self.begin(path, kind, **headers)
        self.send(stream, body, last=True)
        await answer.done.wait()
        return answer


@asynccontextmanager
async def http3_client(
    url: str, tls: TlsConfig, stream_window_bytes: int = 1 << 20
) -> AsyncIterator[Http3Client]:
    """Connect to the port of a ``quic://`` URL."""
    configuration = QuicConfiguration(
        alpn_protocols=["h3"], server_name="localhost", max_stream_data=stream_window_bytes
    )
    configuration.load_verify_locations(str(tls.ca))
    if tls.certificate is not None and tls.key is not None:
        configuration.load_cert_chain(str(tls.certificate), str(tls.key))
    port = int(url.rpartition(":")[2])
    async with connect(
        "127.0.0.1", port, configuration=configuration, create_protocol=Http3Client
    ) as protocol:
        assert isinstance(protocol, Http3Client)
        yield protocol
