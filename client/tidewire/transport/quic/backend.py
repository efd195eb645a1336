"""
What this package needs of a QUIC library: the seam.

A library is put behind it in one file; ``aioquic_backend`` is the one there is. A session is
sans-IO: datagrams and the time go in, datagrams and events come out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from cryptography import x509

from tidewire.transport.tls import TlsFiles

Address: TypeAlias = tuple[Any, ...]
"""As a socket gives it."""
Headers: TypeAlias = list[tuple[bytes, bytes]]

CONNECTION_ID_BYTES: Final = 8
"""Length of the connection ids we choose: how a datagram without a length finds its connection."""
DATAGRAM_BYTES_LEAST: Final = 1_200
"""What every path must carry; a first datagram that is shorter is dropped."""
DATAGRAM_BYTES_MAX: Final = 16_332
"""Largest datagram that is ever probed for; a frame's length has 14 bits."""


@dataclass(frozen=True, slots=True)
class QuicSettings:
    """
    How connections are made. Sizes are bytes, times seconds.

    Attributes:
        files: Certificates; ``ca`` is whom to trust.
        alpn: Protocols, the one preferred first.
        idle_timeout_s: Silence after which a connection is over.
        stream_window_bytes: What a peer may send beyond what has come of a stream.
        connection_window_bytes: The same for all streams of a connection.
        streams_max: Streams a peer may have open at the same time.
        datagram_bytes_max: Up to here the path is probed for longer datagrams.
        server_name: At a client: name the server's certificate must be for.
        require_certificate: At a server: refuse clients without one.
    """

    files: TlsFiles
    alpn: tuple[str, ...]
    idle_timeout_s: float
    stream_window_bytes: int
    connection_window_bytes: int
    streams_max: int
    datagram_bytes_max: int = DATAGRAM_BYTES_MAX
    server_name: str = ""
    require_certificate: bool = True


class Handshake(NamedTuple):
    """A handshake that is done, with the peer verified."""

    alpn: str
    resumed: bool
    """By a ticket of a session before, whose identity was verified again."""
    early: bool
    """The server took data that came with the first datagrams (0-RTT)."""


class Ended(NamedTuple):
    """Why a connection is over."""

    code: int
    by_application: bool
    """``code`` is one of ours, not of QUIC."""
    reason: str
    tls: bool
    """The handshake failed in TLS; ``code`` is the alert."""
    by_peer: bool


class SessionEvents(Protocol):
    """Hears what happens on a session; called by ``deliver`` only."""

    def on_handshake(self, done: Handshake) -> None:
        """Streams may be used."""
        ...

    def on_stream_data(self, stream: int, data: bytes, last: bool) -> None:
        """Bytes have come, in order."""
        ...

    def on_stream_abort(self, stream: int) -> None:
        """The peer aborted its way of a stream."""
        ...

    def on_stream_stop(self, stream: int) -> None:
        """The peer wants no more on our way of a stream; what is sent there is dropped now."""
        ...

    def on_connection_id(self, identifier: bytes, *, issued: bool) -> None:
        """Datagrams may come with this id now, or not any more."""
        ...

    def on_ended(self, ended: Ended) -> None:
        """The connection is over. Nothing follows."""
        ...


class HttpHead(NamedTuple):
    """Headers of a request."""

    stream: int
    headers: Headers
    last: bool


class HttpBody(NamedTuple):
    """A piece of a request's body."""

    stream: int
    data: bytes
    last: bool


class Http3(Protocol):
    """The server's side of HTTP/3 on a session."""

    def receive(self, stream: int, data: bytes, last: bool) -> list[HttpHead | HttpBody]:
        """Take bytes of a stream; return what they complete. Violations end the session."""
        ...

    def receive_abort(self, stream: int) -> None:
        """Take the news that the client aborted a request."""
        ...

    def send_head(self, stream: int, headers: Headers) -> None:
        """Send the headers of an answer."""
        ...

    def send_body(self, stream: int, data: bytes, *, last: bool) -> None:
        """Send a piece of an answer's body."""
        ...


class QuicSession(Protocol):
    """One connection. Not for two tasks at once."""

    @property
    def retransmitted(self) -> int:
        """Datagrams that were lost and whose content was sent again."""
        ...

    @property
    def unsent_bytes(self) -> int:
        """Of streams, not in any datagram yet."""
        ...

    @property
    def identifiers(self) -> Sequence[bytes]:
        """Connection ids datagrams to this session carry at the beginning."""
        ...

    @property
    def address(self) -> Address:
        """Where the peer is now; it may move."""
        ...

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The peer's verified certificate, then its intermediates; empty when it has none."""
        ...

    @property
    def alpn(self) -> str:
        """The protocol that was chosen."""
        ...

    @property
    def over(self) -> bool:
        """Whether its end is said by either side; ``deliver`` tells."""
        ...

    @property
    def admitted(self) -> bool:
        """Whether the peer was judged and may be here."""
        ...

    @property
    def datagram_bytes(self) -> int:
        """Size of the datagrams the path takes, as far as it was probed."""
        ...

    def receive(self, data: bytes, address: Address, now_s: float) -> None:
        """Take a datagram; whatever is in it, nothing is raised."""
        ...

    def deliver(self, to: SessionEvents) -> None:
        """Hand over what happened."""
        ...

    def datagrams(self, now_s: float) -> list[tuple[bytes, Address]]:
        """Return what is to be sent now."""
        ...

    def wake_s(self) -> float:
        """When ``handle_timer`` must run, at the latest."""
        ...

    def handle_timer(self, now_s: float) -> None:
        """Do what is due."""
        ...

    def send(self, stream: int, data: bytes, *, last: bool) -> None:
        """Queue bytes on a stream, and its end with ``last``; ignored when it was aborted."""
        ...

    def abort(self, stream: int) -> None:
        """Abort both ways of a stream."""
        ...

    def stop(self, stream: int) -> None:
        """Ask the peer to send no more on a stream."""
        ...

    def waiting_bytes(self, stream: int) -> int:
        """Return what of a stream was handed over and has not arrived."""
        ...

    def http3(self) -> Http3:
        """Return the server's side of HTTP/3; once, before any stream data is handed to it."""
        ...

    def too_long(self, size: int) -> None:
        """Say that the system refused a datagram of this size."""
        ...

    def close(self, code: int, reason: str) -> None:
        """End the connection: the next datagrams tell the peer. ``code`` is one of ours."""
        ...


class QuicServer(Protocol):
    """Judges datagrams that begin a connection, of one listening socket."""

    def reload(self, settings: QuicSettings) -> None:
        """Use other certificates for connections that come."""
        ...

    def begin(self, data: bytes, address: Address, now_s: float) -> "QuicSession | bytes | None":
        """
        Judge a datagram of no known connection.

        Returns:
            A session, which then takes the datagram; or an answer to send, never longer than three
            times the datagram; or nothing.
        """
        ...


class QuicBackend(Protocol):
    """A QUIC library."""

    def server(self, settings: QuicSettings) -> QuicServer:
        """
        Return what judges first datagrams.

        Raises:
            TlsFailed: The certificates cannot be used, or clients without one would get in.
        """
        ...

    def connect(
        self, settings: QuicSettings, address: Address, now_s: float, memory: "SessionMemory"
    ) -> QuicSession:
        """Return a session that begins its handshake; raise :class:`TlsFailed` for its files."""
        ...


class SessionMemory(Protocol):
    """What a client keeps of connections to one server for the next one."""

    ticket: Any
    """Opaque; ``None`` when there is none."""
    address_token: bytes
    """Proves the address; empty when there is none."""
