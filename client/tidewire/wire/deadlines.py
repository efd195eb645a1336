"""Deadlines of calls: a heap that forgets calls which ended, without searching for them."""

from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final, Generic, Protocol, TypeVar
from weakref import ref

SPARE_ENTRIES: Final = 64
FOREVER: Final = float("inf")


class Expiring(Protocol):
    """Something with a deadline that may be over before."""

    over: bool


ExpiringT = TypeVar("ExpiringT", bound=Expiring)


class Deadlines(Generic[ExpiringT]):
    """
    Earliest deadline first.

    Entries of ended calls stay in the heap until they come up or are half of it: 60,000 calls/s
    with a timeout of 30 s would otherwise keep 1.8 million. The calls themselves, which may hold
    10 MiB of response, are not kept. Adding costs amortised O(log n).
    """

    __slots__ = ("_compact_at", "_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, ref[ExpiringT]]] = []
        self._order = count()
        self._compact_at = SPARE_ENTRIES

    def __len__(self) -> int:
        """Entries, those of ended calls included."""
        return len(self._heap)

    def add(self, deadline_s: float, call: ExpiringT) -> None:
        """Remember a deadline, in seconds of the clock that :meth:`expired` is asked with."""
        heappush(self._heap, (deadline_s, next(self._order), ref(call)))
        if len(self._heap) >= self._compact_at:
            self._heap = [entry for entry in self._heap if _awaited(entry[2])]
            heapify(self._heap)
            self._compact_at = SPARE_ENTRIES + 2 * len(self._heap)

    def next_s(self) -> float:
        """Return the earliest deadline of a call that is not over; infinity when there is none."""
        heap = self._heap
        while heap and _awaited(heap[0][2]) is None:
            heappop(heap)
        return heap[0][0] if heap else FOREVER

    def expired(self, now_s: float) -> list[ExpiringT]:
        """Remove and return the calls whose deadline has passed."""
        due: list[ExpiringT] = []
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            call = _awaited(heappop(heap)[2])
            if call is not None:
                due.append(call)
        return due


def _awaited(entry: ref[ExpiringT]) -> ExpiringT | None:
    call = entry()
    return None if call is None or call.over else call
