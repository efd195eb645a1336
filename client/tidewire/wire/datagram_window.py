"""
How many requests of a client may be on their way: more as they are answered, less as they get lost.

Without I/O.
"""

from tidewire.wire.datagram_limits import DatagramLimits
from tidewire.wire.datagram_rtt import RoundTrip
from tidewire.wire.deadlines import FOREVER


class Window:
    """
    A congestion window, in requests.

    Attributes:
        size: It now; whole requests count.
        calls_max: It is never more.
    """

    def __init__(self, limits: DatagramLimits, calls_max: int) -> None:
        self.size = float(limits.window_first)
        self.calls_max = calls_max
        self._least = float(limits.window_least)
        self._shrunk_s = -FOREVER

    def grow(self) -> None:
        """A request was answered: one more for each window."""
        self.size = min(self.size + 1 / self.size, float(self.calls_max))

    def shrink(self, rtt: RoundTrip, now_s: float) -> None:
        """A request was not answered in time: half, at most once in a round trip."""
        if now_s - self._shrunk_s > (rtt.smoothed_s or rtt.timeout_s):
            self._shrunk_s = now_s
            self.size = max(self.size / 2, self._least)
