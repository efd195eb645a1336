"""
Plain counters of raw wires, for a metrics collector to read. They only grow, but for the gauges.
"""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class WireCounters:
    """What happened on the connections of one listener, server or channel."""

    connections_active: int = 0
    """Gauge."""
    connections_opened: int = 0
    connections_refused: int = 0
    """Closed before HELLO: too many, TLS failed, not our protocol."""
    bytes_in: int = 0
    bytes_out: int = 0
    calls_active: int = 0
    """Gauge."""
    calls_ended: Counter[int] = field(default_factory=Counter)
    """Calls by the number of their status code."""
    errors: Counter[str] = field(default_factory=Counter)
    """Ends of connections that were not orderly, by class name of the error."""
