"""
Limits of a raw wire: every buffer, wait and count in ``tidewire.wire`` has its maximum here.

The figures that travel in HELLO are those of ``proto/WIRE.md`` section 2; the rest bind only us.
"""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB

FRAME_BYTES_MAX = 256 * KIB + 8
MESSAGE_BYTES_MAX = 10 * MIB + 256 * KIB
CALL_CREDIT_BYTES = MIB
CALL_WINDOW_BYTES_MAX = 4 * MIB
CONNECTION_CREDIT_BYTES = 16 * MIB
CALLS_MAX = 1_024
KEEPALIVE_S = 30.0
FRAGMENT_BYTES = 64 * KIB
# A frame of 256 bytes can still carry every control frame; less makes no sense as a limit.
FRAME_BYTES_LEAST = 256


@dataclass(frozen=True, slots=True)
class WireLimits:
    """
    What one side of a connection is ready to receive, and how long it waits.

    The first six travel in HELLO and bind the peer when it sends. Sizes are bytes, times seconds.
    """

    frame_bytes_max: int = FRAME_BYTES_MAX
    """Largest frame, as the length prefix counts it."""
    message_bytes_max: int = MESSAGE_BYTES_MAX
    """Largest message after reassembly."""
    call_credit_bytes: int = CALL_CREDIT_BYTES
    """Window of each call."""
    connection_credit_bytes: int = CONNECTION_CREDIT_BYTES
    """Window of all calls of the connection together."""
    calls_max: int = CALLS_MAX
    """Calls open at the same time."""
    keepalive_s: float = KEEPALIVE_S
    """Silence after which we send PING."""

    fragment_bytes: int = FRAGMENT_BYTES
    """Largest piece of a message we put in one frame."""
    hello_timeout_s: float = 3.0
    """Time for the peer's HELLO."""
    frame_timeout_s: float = 10.0
    """Time from the first byte of a frame to its last."""
    ping_timeout_s: float = 10.0
    """Time from our PING to any byte of the peer."""
    probe_s: float = 5.0
    """Silence after which a client with calls open sends PING, and its time for the answer; both
    grow with the round trip, up to ten times this."""
    call_window_bytes_max: int = CALL_WINDOW_BYTES_MAX
    """What the window of a call grows to whose messages are long; no less than
    ``call_credit_bytes`` counts."""
    pings_max: int = 10
    """PINGs taken from the peer within ``pings_window_s`` while no call is open."""
    pings_window_s: float = 10.0
    """Window of ``pings_max``."""
    unread_bytes_max: int = 16 * MIB
    """Whole messages the application has not taken, over all calls, before the connection's
    credit stops growing."""
    incomplete_bytes_max: int = 64 * MIB
    """Fragments of incomplete messages, over all calls, before only the oldest of these calls
    gets more credit than its window."""
    unsent_bytes_max: int = 256 * KIB
    """Frames made but not taken by the transport, before writers of messages wait."""
    unsent_control_bytes_max: int = 4 * MIB
    """Frames that ask for no credit and wait because the peer does not read; beyond it the peer
    is cut off."""
    calls_waiting_max: int = 65_536
    """Calls of a client that wait for a free place below the server's ``calls_max``."""
    heads_cached_max: int = 1_024
    """Call heads kept parsed, process-wide in a server."""
    head_cached_bytes_max: int = 512
    """Longest head that is kept parsed."""
    head_bytes_max: int = 64 * KIB
    """Longest call head that is taken at all."""

    def __post_init__(self) -> None:
        """Refuse limits no peer could work with."""
        if self.frame_bytes_max < FRAME_BYTES_LEAST:
            raise ValueError(
                f"frame_bytes_max is {self.frame_bytes_max}; the least is {FRAME_BYTES_LEAST}"
            )
        for name in ("message_bytes_max", "call_credit_bytes", "connection_credit_bytes"):
            if not 1 <= getattr(self, name) < 1 << 32:
                raise ValueError(f"{name} is {getattr(self, name)}; it must fit in 32 bits")
        if self.calls_max < 1:
            raise ValueError(f"calls_max is {self.calls_max}; it must be at least 1")
        if self.probe_s <= 0:
            raise ValueError(f"probe_s is {self.probe_s}; it must be more than 0")


def fragment_sizes(wanted: int, body_bytes_max: int) -> tuple[int, int]:
    """
    Return the largest fragment, and the largest last fragment of a message.

    The last one may be longer by an eighth: or a message just over some fragments, such as 1 MiB in
    a protobuf, would end in a frame, and a write, of a few bytes.
    """
    fragment = min(wanted, body_bytes_max)
    return fragment, min(fragment + (fragment >> 3), body_bytes_max)
