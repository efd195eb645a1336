"""
Options of transports: sockets, waits, reconnection. Each is proved by its effect in the tests.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tidewire.transport.pool import PoolOptions
from tidewire.wire.datagram_limits import DatagramLimits
from tidewire.wire.limits import KIB, WireLimits

BACKLOG: Final = 1_024
"""Connections the kernel holds until we accept them."""
HANDSHAKES_MAX: Final = 256
"""Connections in their TLS handshake at one listener; more wait in the kernel."""
BUFFER_BYTES_LEAST: Final = 128 * KIB
BUFFER_BYTES_MAX: Final = 4 * 1024 * KIB
WRITE_HIGH_BYTES: Final = 64 * KIB
WRITE_LOW_BYTES: Final = 16 * KIB
TURN_BYTES: Final = 128 * KIB
"""What one turn of the writer takes from the scheduler."""
WRITTEN_POLL_S: Final = 0.01
"""How often a connection that ends looks whether its last bytes are with the kernel."""
LINGER_S: Final = 1.0
"""How long a server that has drained waits for the client to close first."""
CLOSE_TIMEOUT_S: Final = 3.0
"""How long a connection that ends may take to hand over its last bytes."""


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """
    How connections are made and kept. Times are seconds, sizes bytes.

    The defaults are those of the design: keepalive 30 s, little unsent in the kernel so that urgent
    frames do not wait behind a long message.
    """

    limits: WireLimits = field(default_factory=WireLimits)
    pool: PoolOptions = field(default_factory=PoolOptions)
    """Connections of a client's channel."""
    connect_timeout_s: float = 10.0
    """Time for name, connection, TLS and HELLO together, at a client."""
    handshake_timeout_s: float = 3.0
    """Time for the TLS handshake at a server."""
    backoff_first_s: float = 0.2
    """Wait after the first failed connection; it doubles."""
    backoff_last_s: float = 5.0
    """Longest wait between connections."""
    backoff_jitter: float = 0.2
    """Each wait is longer or shorter by up to this part of itself."""
    write_timeout_s: float = 30.0
    """TCP_USER_TIMEOUT: time for the peer's system to acknowledge what was written; 0 leaves it to
    the kernel."""
    tcp_keepalive_s: int = 30
    """Idle time before TCP probes the peer; 0 turns it off."""
    unsent_bytes: int = 128 * KIB
    """TCP_NOTSENT_LOWAT: what may lie unsent in the kernel; 0 leaves it to the kernel."""
    send_buffer_bytes: int = 0
    """SO_SNDBUF; 0 leaves it to the kernel, but 512 KiB for ``unix``. See :func:`buffer_bytes`."""
    receive_buffer_bytes: int = 0
    """SO_RCVBUF; 0 leaves it to the kernel."""
    backlog: int = BACKLOG
    """Connections a server's kernel holds until they are accepted."""
    reuse_port: bool = False
    """Share the ports of TCP listeners with other processes of this user: worker processes."""
    pending_calls_max: int = 65_536
    """Calls of a client that wait for a connection."""
    connections_max: int = 10_000
    """Connections of a server; more are closed at once and counted."""
    connections_elsewhere: Callable[[], int] | None = field(default=None, repr=False)
    """How many of them other processes have that share the port: they count as well."""
    sync_workers: int = 8
    """Threads that run handlers which are not coroutines."""
    agent: str = ""
    """Software and version told to the peer; empty means this library's."""
    node_id: str = ""
    """Identifier told to the peer."""
    token: str = field(default="", repr=False)
    """Bearer token of a client; sent on encrypted wires only."""
    datagrams: DatagramLimits = field(default_factory=DatagramLimits)
    """Sizes, waits and memory of ``udp://`` and ``dtls://``."""
    websocket_origins: tuple[str, ...] = ()
    """Origins of pages that may connect to a server; ``*`` is every page, none is no browser."""
    websocket_hosts: tuple[str, ...] = ()
    """Values of ``Host`` a WebSocket server takes; none means any."""


def buffer_bytes(bandwidth_bits_s: float, rtt_s: float) -> int:
    """
    Return the socket buffer that keeps a path full: its bandwidth-delay product.

    Args:
        bandwidth_bits_s: Bandwidth in bits per second.
        rtt_s: Round trip in seconds.

    Returns:
        Bytes for ``send_buffer_bytes`` and ``receive_buffer_bytes``, from 128 KiB to 4 MiB.
    """
    product = int(bandwidth_bits_s / 8 * rtt_s)
    return min(max(product, BUFFER_BYTES_LEAST), BUFFER_BYTES_MAX)
