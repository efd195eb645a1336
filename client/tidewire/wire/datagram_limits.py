"""Limits and times of wires of datagrams; those that both sides must know are in WIRE.md 9."""

from dataclasses import dataclass
from typing import Final

from tidewire.wire.limits import KIB, MIB

DATAGRAM_BYTES_MAX: Final = 65_507
"""What UDP over IPv4 can carry."""
DATAGRAM_BYTES: Final = 1_200
"""What every path carries."""
DTLS_BYTES_MAX: Final = 16_384
"""What one record of DTLS can carry."""
DATAGRAM_BYTES_LEAST: Final = 512
"""Less cannot carry HELLO with a token, or a status with details."""


@dataclass(frozen=True, slots=True)
class DatagramLimits:
    """What one side takes, keeps and waits. Sizes are bytes, times seconds."""

    datagram_bytes: int = DATAGRAM_BYTES
    """Largest datagram sent and taken, 512 to 65,507."""

    retry_first_s: float = 0.2
    """Retransmission timeout before the first sample of the round trip."""
    retry_least_s: float = 0.05
    retry_most_s: float = 1.0
    retry_jitter: float = 0.25
    """Each wait is longer or shorter by up to this part of itself."""
    sends_max: int = 16
    """Times a request is sent without any answer."""
    sends_large_max: int = 10
    """The same for one longer than every path carries, while shorter ones are answered."""
    silent_sends_max: int = 5
    """Times before silence of the server is taken for its end."""
    silence_s: float = 10.0
    """Silence that is its end then."""
    poll_first_s: float = 0.5
    """First wait for an answer that the server works on."""
    poll_most_s: float = 2.0
    cancels_max: int = 4
    """Times CANCEL is sent."""
    window_first: int = 64
    """Requests on their way at first."""
    window_least: int = 4
    oneway_window: int = 1_024
    """How late a ONEWAY may come."""

    cookie_life_s: float = 30.0
    session_idle_s: float = 75.0
    """A session without a datagram for so long is forgotten, and its calls are cancelled."""
    ended_max: int = 65_536
    """Sessions of a listener that have ended and may not begin again, for ``cookie_life_s``."""
    kept_max: int = 4_096
    """Answers kept for each session."""
    kept_bytes_max: int = MIB
    """Bytes of them."""
    kept_bytes_all_max: int = 64 * MIB
    """The same for all sessions of a listener."""
    kept_s: float = 60.0
    """How long an answer is kept."""
    resends_large_max: int = 8
    """Times a response longer than every path carries is sent before it is given up."""
    renew_s: float = 3.0
    """How often a client renews its lossy streams."""
    lease_s: float = 10.0
    """How long they live without."""
    dtls_handshake_s: float = 10.0
    """Time for a DTLS handshake: it may have to send again what was lost, after a second."""
    half_open_max: int = 1_000
    """DTLS handshakes at the same time, after the cookie."""
    receive_buffer_bytes: int = 4 * MIB
    """SO_RCVBUF of a server's socket, which holds the datagrams of all clients."""
    read_bytes: int = 64 * KIB
    """Room for the largest datagram."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be."""
        if not DATAGRAM_BYTES_LEAST <= self.datagram_bytes <= DATAGRAM_BYTES_MAX:
            raise ValueError(
                f"datagram_bytes is {self.datagram_bytes}; it must be {DATAGRAM_BYTES_LEAST} to "
                f"{DATAGRAM_BYTES_MAX}"
            )
