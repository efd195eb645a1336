"""
When the beats of one member are late. No I/O; time enters as an argument.

The detector learns how far apart the beats of this member come and how much that varies. From it
follows when the next beat is so late that something is wrong. The bounds hold whatever was learned:

- never SUSPECT before two intervals (the interval is a third of the lease),
- SUSPECT at 0.9 of the lease at the latest, so that it comes before DEAD,
- DEAD at the end of the lease, and not before.
"""

import math
from collections import deque
from typing import Final

INTERVALS_PER_LEASE: Final = 3
WINDOW: Final = 32
"""Gaps between beats that are remembered."""
DEVIATIONS: Final = 4.0
"""A gap of the mean and this many standard deviations is suspicious."""
SUSPECT_INTERVALS_MIN: Final = 2.0
SUSPECT_LEASE_SHARE_MAX: Final = 0.9
EXCUSES_MAX: Final = 3


class Detector:
    """
    Judges one incarnation of one member.

    Attributes:
        lease_s: Without a beat for this long the member is dead.
        beat_s: When the last beat came, on the caller's clock.
    """

    __slots__ = (
        "_excused_s",
        "_excuses",
        "_gaps",
        "_square_sum",
        "_sum",
        "beat_s",
        "lease_s",
        "suspect_after_s",
    )

    def __init__(self, lease_s: float, now_s: float) -> None:
        self.lease_s = lease_s
        self.beat_s = now_s
        self._gaps: deque[float] = deque()
        self._sum = 0.0
        self._square_sum = 0.0
        self._excused_s = 0.0
        self._excuses = 0
        self.suspect_after_s = SUSPECT_INTERVALS_MIN * self.interval_s
        """Silence after which it is SUSPECT."""

    @property
    def interval_s(self) -> float:
        """How often the member should beat."""
        return self.lease_s / INTERVALS_PER_LEASE

    @property
    def suspect_s(self) -> float:
        """When it becomes SUSPECT unless a beat comes."""
        return self.beat_s + self.suspect_after_s

    @property
    def dead_s(self) -> float:
        """When it is DEAD unless a beat comes."""
        return self.beat_s + self.lease_s

    def beat(self, now_s: float) -> None:
        """Take a beat."""
        self._learn(max(0.0, now_s - self.beat_s + self._excused_s))
        self.beat_s = now_s
        self._excused_s = 0.0
        self._excuses = 0

    def excuse(self, pause_s: float) -> None:
        """
        Leave a pause of our own, in which no beat could be heard, out of the account.

        Between two beats `EXCUSES_MAX` pauses are excused, so that a server that is always late
        still finds the dead.
        """
        if self._excuses < EXCUSES_MAX:
            self._excuses += 1
            self._excused_s += pause_s
            self.beat_s += pause_s

    def suspicion(self, now_s: float) -> float:
        """Lateness of the next beat in what is usual for this member; SUSPECT from 1.0."""
        return max(0.0, now_s - self.beat_s) / self.suspect_after_s

    def _learn(self, gap_s: float) -> None:
        gaps = self._gaps
        if len(gaps) == WINDOW:
            old = gaps.popleft()
            self._sum -= old
            self._square_sum -= old * old
        gaps.append(gap_s)
        self._sum += gap_s
        self._square_sum += gap_s * gap_s
        mean = self._sum / len(gaps)
        variance = max(0.0, self._square_sum / len(gaps) - mean * mean)
        usual = mean + DEVIATIONS * math.sqrt(variance)
        least = SUSPECT_INTERVALS_MIN * self.interval_s
        most = SUSPECT_LEASE_SHARE_MAX * self.lease_s
        self.suspect_after_s = min(max(usual, least), most)
