"""Runs of delivered messages of a durable consumer, kept apart and in order."""

from bisect import bisect_right
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """Where a delivered run of messages stands."""

    OUT = "delivered, to be settled before its time"
    BACK = "to be delivered again at its time"
    READY = "to be delivered again now"
    GIVEN_UP = "never to be delivered again; to be recorded"
    RECORDING = "never to be delivered again; being recorded"


@dataclass(slots=True, eq=False)
class Segment:
    """
    Messages in a row that share one fate.

    Attributes:
        first: First sequence.
        last: Last sequence.
        attempt: Deliveries made.
        phase: Where they stand.
        time_s: When the phase ends (OUT, BACK); without meaning in the others.
        owner: Who they were delivered to; ``None`` when it is gone.
        reason: Why they were not processed, as far as anybody said.
        attempt_unsaved: The number of deliveries is not stored yet.
        alive: False once the run was settled.
    """

    first: int
    last: int
    attempt: int
    phase: Phase
    time_s: float
    owner: Hashable | None = None
    reason: str = ""
    attempt_unsaved: bool = False
    alive: bool = True

    @property
    def count(self) -> int:
        """Messages in it."""
        return self.last - self.first + 1


class SegmentList:
    """Segments by sequence; they never overlap. Finding one costs a binary search."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._segments: list[Segment] = []
        self.messages = 0

    def __len__(self) -> int:
        return len(self._segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    @property
    def first_sequence(self) -> int | None:
        """First sequence of the first segment; ``None`` when there is none."""
        return self._firsts[0] if self._firsts else None

    def add(self, segment: Segment) -> None:
        """Put in a segment that overlaps no other."""
        index = bisect_right(self._firsts, segment.first)
        self._firsts.insert(index, segment.first)
        self._segments.insert(index, segment)
        self.messages += segment.count

    def find(self, first: int, last: int) -> list[Segment]:
        """Segments that have a message in this range."""
        start, end = self._span(first, last)
        return self._segments[start:end]

    def carve(self, first: int, last: int) -> tuple[list[Segment], list[Segment]]:
        """
        Cut at both ends of a range.

        Returns:
            The segments that lie in the range, now wholly, and all that came into being by the
            cuts.
        """
        made: list[Segment] = []
        start, end = self._span(first, last)
        if start < end and self._segments[start].first < first:
            made.append(self._split(start, first))
            start, end = start + 1, end + 1
        if start < end and self._segments[end - 1].last > last:
            made.append(self._split(end - 1, last + 1))
        return self._segments[start:end], made

    def remove(self, segment: Segment) -> None:
        """Take out a segment."""
        index = bisect_right(self._firsts, segment.first) - 1
        del self._firsts[index]
        del self._segments[index]
        segment.alive = False
        self.messages -= segment.count

    def _span(self, first: int, last: int) -> tuple[int, int]:
        start = bisect_right(self._firsts, first) - 1
        if start < 0 or self._segments[start].last < first:
            start += 1
        return start, max(start, bisect_right(self._firsts, last))

    def _split(self, index: int, at: int) -> Segment:
        """Cut off what begins at a sequence; who knows the segment knows its first part then."""
        whole = self._segments[index]
        rest = Segment(
            at,
            whole.last,
            whole.attempt,
            whole.phase,
            whole.time_s,
            whole.owner,
            whole.reason,
            whole.attempt_unsaved,
        )
        whole.last = at - 1
        self._segments.insert(index + 1, rest)
        self._firsts.insert(index + 1, at)
        return rest
