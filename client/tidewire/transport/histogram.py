"""
Times counted in log-linear buckets: plain integers, four buckets for each doubling.
"""

from typing import Final

OCTAVES: Final = 27
"""
Doublings from 4 microseconds to 2^28 (over four minutes); longer ones fall in the last bucket.
"""
BUCKETS: Final = 4 * (OCTAVES + 1)


class Histogram:
    """
    Durations from a microsecond to minutes, to within 25 %, in bounded memory.

    Attributes:
        count: Durations recorded.
        sum_us: Their sum in microseconds.
        buckets: How many fell in each bucket.

    """

    __slots__ = ("buckets", "count", "sum_us")

    def __init__(self) -> None:
        self.count = 0
        self.sum_us = 0
        self.buckets = [0] * BUCKETS

    def record(self, seconds: float) -> None:
        """Count one duration."""
        us = int(seconds * 1e6)
        self.count += 1
        self.sum_us += us
        if us < 4:
            index = max(0, us)
        else:
            octave = us.bit_length() - 3
            index = 4 * (octave + 1) + ((us >> octave) & 3) if octave < OCTAVES else BUCKETS - 1
        self.buckets[index] += 1

    def merge(self, other: "Histogram") -> None:
        """Add what another one has counted."""
        self.count += other.count
        self.sum_us += other.sum_us
        for index, number in enumerate(other.buckets):
            self.buckets[index] += number

    def quantile(self, fraction: float) -> float:
        """Seconds that this fraction of the durations did not pass; 0.0 when there are none."""
        wanted = fraction * self.count
        seen = 0
        for index, number in enumerate(self.buckets):
            seen += number
            if number and seen >= wanted:
                return upper_us(index) / 1e6
        return 0.0

    def cumulative(self, bounds_us: tuple[int, ...]) -> list[int]:
        """How many durations lie below each bound; the bounds are powers of two from 4."""
        counts, seen, index = [], 0, 0
        for bound in bounds_us:
            while index < BUCKETS and upper_us(index) <= bound:
                seen += self.buckets[index]
                index += 1
            counts.append(seen)
        return counts


def upper_us(index: int) -> int:
    """First microsecond above a bucket."""
    if index < 4:
        return index + 1
    octave = index // 4 - 1
    return (4 + index % 4 + 1) << octave
