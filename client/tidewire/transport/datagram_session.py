"""The shell of a server's session of datagrams: the way back to its client."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tidewire.errors import ConnectionLost, MessageTooLarge
from tidewire.transport.options import LINGER_S
from tidewire.transport.peer import Peer
from tidewire.wire.bodies import Ending, Goaway, Hello, encode_goaway
from tidewire.wire.datagram import GOAWAY, Answer, encode_answer, encode_datagram

if TYPE_CHECKING:
    from tidewire.transport.datagram_listener import DatagramListener
    from tidewire.transport.datagram_server import DatagramLink


class SessionShell:
    """The shell of a session: a way back to the client, on the listener's socket."""

    def __init__(
        self,
        listener: "DatagramListener",
        session: int,
        origin: Any,
        greeting: Hello,
        commitment: bytes,
        peer: Callable[[Any], Peer],
    ) -> None:
        self.listener = listener
        self.session = session
        self.origin = origin
        self.greeting = greeting
        self.commitment = commitment
        self.connection: DatagramLink
        self.lost: asyncio.Future[None] = listener.loop.create_future()
        self._peer = peer
        self._linger: asyncio.TimerHandle | None = None

    def peer(self) -> Peer:
        """Who is at the other end."""
        return self._peer(self.origin)

    def move(self, origin: Any, commitment: bytes) -> None:
        """Go on from another address."""
        self.origin = origin
        self.commitment = commitment
        self.connection.peer = self.peer()

    def flush(self) -> None:
        """Nothing waits here."""

    def finish(self) -> None:
        """Go when the client says so, or soon: it may still ask for answers that were lost."""
        if self._linger is None:
            self._linger = self.listener.loop.call_later(LINGER_S, self.abort)

    def abort(self) -> None:
        """Go at once."""
        self.connection.connection_lost(ConnectionLost("the session has ended"))

    def end(self) -> None:
        """The session is over."""
        if self._linger is not None:
            self._linger.cancel()
        if not self.lost.done():
            self.lost.set_result(None)
            self.listener.left(self)


def goaway(session: int, number: int, reason: Ending, grace_s: float = 0.0) -> bytes:
    """Return a GOAWAY."""
    body = encode_goaway(Goaway(number & 0xFFFFFFFF, reason, grace_s))
    return encode_datagram(GOAWAY, session, number, body)


def too_large(size: int, limit: int) -> tuple[int, bytes]:
    """Return flags and body of RESPONSE for an answer that does not fit a datagram."""
    error = MessageTooLarge(
        f"the response is a datagram of {size} bytes; at most {limit} are sent: use tcp:// or "
        "quic://, or a larger datagram_bytes at both ends",
        metadata={"size_bytes": size, "limit_bytes": limit},
    )
    return encode_answer(Answer(Ending.of(error)))
