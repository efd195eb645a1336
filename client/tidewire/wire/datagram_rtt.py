"""The time a round trip of datagrams takes, and how long to wait before sending again: RFC 6298."""

from typing import Final

_ALPHA: Final = 1 / 8
_BETA: Final = 1 / 4
_SPREADS: Final = 4


class RoundTrip:
    """Smoothed time and its variation. Seconds."""

    __slots__ = ("_least_s", "_most_s", "smoothed_s", "timeout_s", "variation_s")

    def __init__(self, first_s: float, least_s: float, most_s: float) -> None:
        self._least_s = least_s
        self._most_s = most_s
        self.smoothed_s: float | None = None
        """``None`` before the first sample."""
        self.variation_s = 0.0
        self.timeout_s = first_s
        """How long to wait before sending again."""

    def sample(self, time_s: float) -> None:
        """Take a measurement. Of what was sent once only: Karn's rule is the caller's to keep."""
        smoothed_s = self.smoothed_s
        if smoothed_s is None:
            smoothed_s = self.smoothed_s = time_s
            self.variation_s = time_s / 2
        else:
            self.variation_s += _BETA * (abs(smoothed_s - time_s) - self.variation_s)
            smoothed_s = self.smoothed_s = smoothed_s + _ALPHA * (time_s - smoothed_s)
        timeout_s = smoothed_s + _SPREADS * self.variation_s
        self.timeout_s = min(max(timeout_s, self._least_s), self._most_s)

    def backed_off_s(self, sends: int) -> float:
        """Return the wait after sending for the ``sends``-th time: doubled each time, bounded."""
        doubled_s = self.timeout_s * float(1 << min(sends - 1, 16))
        return min(self._most_s, doubled_s)
