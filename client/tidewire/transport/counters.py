"""
Plain counters of raw wires, for a metrics collector to read. They only grow, but for the gauges.
"""

import re
import ssl
from collections import Counter
from dataclasses import dataclass, field

from tidewire.transport.histogram import Histogram


@dataclass(slots=True)
class WireCounters:
    """What happened on the connections of one listener, server or channel."""

    connections_active: int = 0
    """Gauge."""
    connections_opened: int = 0
    connections_refused: int = 0
    """Closed before the peers' HELLOs: too many, TLS failed, not our protocol."""
    refusals: Counter[str] = field(default_factory=Counter)
    """The same by reason."""
    handshake_failures: Counter[str] = field(default_factory=Counter)
    """Those of them that failed in TLS, QUIC, DTLS, the WebSocket upgrade or HELLO, by reason."""
    bytes_in: int = 0
    bytes_out: int = 0
    calls_active: int = 0
    """Gauge."""
    calls_ended: Counter[int] = field(default_factory=Counter)
    """Calls by the number of their status code."""
    errors: Counter[str] = field(default_factory=Counter)
    """Ends of connections that were not orderly, by class name of the error."""
    latency: Histogram = field(default_factory=Histogram)
    """Unary calls at a server: from the request to the answer being handed to the wire."""

    # Wires of datagrams only.
    datagrams_in: int = 0
    datagrams_out: int = 0
    datagrams_refused: Counter[str] = field(default_factory=Counter)
    """Datagrams that were dropped, by reason: malformed, address not verified, replayed."""
    retransmissions: int = 0
    """Datagrams sent again because no answer came in time."""
    duplicates: int = 0
    """Requests that came again and were answered from memory, or ignored, not done twice."""
    gaps: int = 0
    """Messages of lossy subscriptions that were sent and did not arrive."""
    cookies_sent: int = 0
    """Proofs of address asked for."""

    def refuse(self, reason: str, *, handshake: bool = False) -> None:
        """
        Count a connection that is not taken.

        Args:
            reason: A word of a bounded set, such as ``too_many_connections``.
            handshake: It failed in its handshake.
        """
        self.connections_refused += 1
        self.refusals[reason] += 1
        if handshake:
            self.handshake_failures[reason] += 1

    def refuse_handshake(self, error: BaseException) -> None:
        """Count a connection whose handshake failed with ``error``."""
        self.refuse(handshake_reason(error), handshake=True)
        self.errors[type(error).__name__] += 1


def handshake_reason(error: BaseException) -> str:
    """
    Return why a handshake failed, in one word: OpenSSL's own where it has one.

    Such as ``certificate_has_expired``, ``peer_did_not_return_a_certificate``,
    ``wrong_version_number``, ``timeout``, ``connection_reset``, ``protocol_violation``.
    """
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_message:
        return _word(error.verify_message)
    if isinstance(error, ssl.SSLError) and error.reason:
        return _word(error.reason)
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _word(text: str) -> str:
    """Lower case and underscores; a name or address that OpenSSL adds after a colon is left out."""
    plain = re.split(r"[:,'\"]", text.lower(), maxsplit=1)[0]
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
