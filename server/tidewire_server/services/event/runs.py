"""Runs of messages, what rules a consumer of them, and what of its progress is to be stored."""

from collections.abc import Iterable
from dataclasses import dataclass

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LedgerPolicy:
    """
    Rules of a consumer.

    Attributes:
        ack_wait_s: Time in which a delivery must be settled.
        backoff_s: Wait before the second, third, ... delivery; the last one repeats.
        deliveries_max: Deliveries before a message is given up; 0: no limit.
        ack_pending_max: Most unsettled messages.
    """

    ack_wait_s: float = 30.0
    backoff_s: tuple[float, ...] = ()
    deliveries_max: int = 0
    ack_pending_max: int = 1000

    def wait_s(self, attempt: int) -> float:
        """Wait after this many deliveries."""
        if not self.backoff_s:
            return 0.0
        return self.backoff_s[min(max(attempt, 1), len(self.backoff_s)) - 1]


@dataclass(frozen=True, slots=True)
class Run:
    """Messages in a row that were delivered together, or given up together."""

    first: int
    last: int
    attempt: int
    reason: str = ""

    @property
    def count(self) -> int:
        """Messages in it."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Unsaved:
    """Progress that is not stored yet; see `tidewire_server.engine.base.Settle`."""

    settled: list[Range]
    attempts: list[tuple[int, int]]
    delivered_through: int
    given_up: int


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Ranges in order, with touching and overlapping ones made one."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def by_attempt(first: int, last: int, attempts: dict[int, int]) -> Iterable[tuple[int, int, int]]:
    """
    Cut a range where the number of deliveries changes; a message that is not listed was delivered
    once.
    """
    start = first
    for sequence in sorted(entry for entry in attempts if first <= entry <= last):
        if start < sequence:
            yield start, sequence - 1, 1
        yield sequence, sequence, attempts[sequence]
        start = sequence + 1
    if start <= last:
        yield start, last, 1
