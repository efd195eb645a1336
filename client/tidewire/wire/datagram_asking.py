"""Requests of a client on a wire of datagrams, and what its session tells. Without I/O."""

from typing import Any, Protocol

from google.rpc import status_pb2

from tidewire.errors import ConnectionLost, PeerVanished, TidewireError, WireUnsuitable
from tidewire.errors import from_status as error_of
from tidewire.wire.bodies import Ending, Goaway, Hello
from tidewire.wire.datagram import HEADER_BYTES, REQUEST_PREFIX, Answer
from tidewire.wire.datagram_limits import DATAGRAM_BYTES
from tidewire.wire.deadlines import FOREVER


class Asking:
    """
    One request of a client, until it is answered.

    Attributes are class-level defaults on purpose: a request sets only the few it needs, and making
    one is on the hot path.
    """

    number = 0
    """0 until it is sent."""
    flags = 0
    over = False
    sends = 0
    """Times it was sent since the server last said something about it."""
    first_s = 0.0
    due_s = FOREVER
    working = False
    """The server has it."""
    poll_s = 0.0
    opened = False
    expected = 0
    answered_s = 0.0

    def __init__(
        self, call: Any, head: bytes, message: bytes, priority: int, deadline_s: float | None
    ) -> None:
        self.call = call
        self.head = head
        self.message = message
        self.priority = priority
        self.deadline_s = deadline_s

    @property
    def size_bytes(self) -> int:
        """Size of its datagram."""
        return HEADER_BYTES + REQUEST_PREFIX.size + len(self.head) + len(self.message)

    def unanswered(self, *, large: bool) -> TidewireError:
        """Return what it ends with when it was sent often enough for nothing."""
        if not large:
            return PeerVanished(f"a request was sent {self.sends} times and not answered")
        return WireUnsuitable(
            f"a datagram of {self.size_bytes} bytes was sent {self.sends} times for nothing while "
            "shorter ones are answered: the path carries less; use tcp:// or quic://, or a "
            "smaller datagram_bytes",
            metadata={"size_bytes": self.size_bytes, "safe_bytes": DATAGRAM_BYTES},
        )


class Listener(Protocol):
    """What a session tells. These methods may call the session's again."""

    def welcomed(self, hello: Hello) -> None:
        """The session is there; requests may be made."""

    def answered(self, asking: Asking, answer: Answer) -> None:
        """A request has its answer."""

    def failed(self, asking: Asking, error: TidewireError) -> None:
        """A request ends without an answer."""

    def expired(self, asking: Asking) -> None:
        """The deadline of a request has passed."""

    def delivered(self, asking: Asking, message: bytes, weight: int) -> None:
        """A message of a lossy stream has come."""

    def missed(self, asking: Asking, messages: int) -> None:
        """Messages of a lossy stream are lost."""

    def ponged(self) -> None:
        """The server has answered a PING."""

    def going(self, goaway: Goaway) -> None:
        """The server takes no new requests."""

    def ended(self, error: TidewireError) -> None:
        """The session is over; its requests have not been told."""


def silent(silence_s: float) -> PeerVanished:
    """Return what ends what hangs on a server that says nothing."""
    return PeerVanished(f"the server has been silent for {silence_s:.1f} s")


def error_of_ending(ending: Ending) -> TidewireError:
    """Return the error a server told by GOAWAY."""
    if ending.details:
        return error_of(status_pb2.Status.FromString(ending.details))
    return ConnectionLost(ending.message)
