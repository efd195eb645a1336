"""How long a peer takes to answer, and how long it makes sense to wait for it."""

from typing import Final

AVERAGE_SHARE: Final = 1 / 8
JITTER_SHARE: Final = 1 / 4
FACTOR: Final = 3
JITTERY_FROM: Final = 0.2
JITTERY_FACTOR: Final = 4
WILD_FROM: Final = 0.5
WILD_FACTOR: Final = 5
RANGE: Final = 10
"""A timeout grows to at most this many times its base."""


class RttEstimator:
    """
    Moving average and jitter of round trips, in seconds.

    Attributes:
        average_s: Average round trip; 0 without samples.
        jitter_s: Average distance of a sample from the average.
        samples: Round trips measured.
    """

    def __init__(self) -> None:
        self.average_s = 0.0
        self.jitter_s = 0.0
        self.samples = 0

    def sample(self, rtt_s: float) -> None:
        """Take a round trip that was measured."""
        rtt_s = max(0.0, rtt_s)
        self.samples += 1
        if self.samples == 1:
            self.average_s = rtt_s
            return
        self.jitter_s += JITTER_SHARE * (abs(rtt_s - self.average_s) - self.jitter_s)
        self.average_s += AVERAGE_SHARE * (rtt_s - self.average_s)

    def timeout_s(self, base_s: float) -> float:
        """
        Return how long to wait for an answer.

        It is 3 average round trips, 4 where the jitter is above a fifth of them, 5 above a half; at
        least ``base_s`` and at most ten times that.
        """
        average_s = self.average_s
        if not average_s:
            return base_s
        ratio = self.jitter_s / average_s
        factor = FACTOR
        if ratio > WILD_FROM:
            factor = WILD_FACTOR
        elif ratio > JITTERY_FROM:
            factor = JITTERY_FACTOR
        return min(max(average_s * factor, base_s), RANGE * base_s)
