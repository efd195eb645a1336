"""What a reader remembers of signed batches, so that none counts twice. No I/O, no clock."""

from collections.abc import Hashable
from typing import Final

from tidewire.errors import Replayed

RESTART_SKEW_S: Final = 5.0
"""Difference of clocks allowed when a batch is compared with the moment the memory began."""

Location = tuple[str, int]
"""Stream and sequence of a stored batch; the server gives each once."""


class ReplayMemory:
    """
    Batches one reader has seen, each with the place it was seen at.

    The server may deliver a stored batch again from the same place: a redelivery. The same signed
    batch in another place, or twice where nothing is stored, is a replay. What was signed more
    than the window before it was taken is refused too, so no more than the window is remembered.

    Attributes:
        forgotten: Batches forgotten early, because there were more than `entries_max` in a window.
            For events that no stream keeps the window shrinks accordingly.
    """

    def __init__(self, window_s: float, entries_max: int, began_s: float) -> None:
        self.forgotten = 0
        self._window_s = window_s
        self._entries_max = entries_max
        self._known_from_s = began_s - min(RESTART_SKEW_S, window_s)
        self._began_s = began_s
        self._floor_s = float("-inf")
        self._seen: dict[Hashable, tuple[Location | None, float]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def admit(
        self, identity: Hashable, location: Location | None, *, signed_s: float, taken_s: float
    ) -> None:
        """
        Let a verified batch pass once.

        Args:
            identity: Key id and origin of the batch.
            location: Where it is stored; ``None`` for live events.
            signed_s: When it was signed, in seconds since 1970.
            taken_s: When the server took it.

        Raises:
            Replayed: It was seen before, or may have been.
        """
        if abs(taken_s - signed_s) > self._window_s:
            raise Replayed(
                f"it was signed {taken_s - signed_s:.1f} s before it was published; the window is "
                f"{self._window_s:g} s: an old batch published again, or a clock that is wrong"
            )
        seen = self._seen.get(identity)
        if seen is not None:
            if location is not None and seen[0] == location:
                return
            raise Replayed("the same signed batch was there before" + _at(seen[0]))
        if taken_s >= self._began_s and signed_s < self._known_from_s:
            raise Replayed(
                f"it was signed {self._began_s - signed_s:.1f} s before this reader began, which "
                "cannot know whether it was there before"
            )
        if location is None and signed_s <= self._floor_s:
            raise Replayed(
                f"it is older than the {self._entries_max} batches this reader remembers"
            )
        self._forget(taken_s)
        self._seen[identity] = (location, signed_s)

    def _forget(self, taken_s: float) -> None:
        """Drop what would be too old to come again, and one more when there is no room."""
        seen = self._seen
        while seen:
            oldest = next(iter(seen))
            signed_s = seen[oldest][1]
            if signed_s + self._window_s >= taken_s:
                if len(seen) < self._entries_max:
                    return
                self.forgotten += 1
                self._floor_s = max(self._floor_s, signed_s)
            del seen[oldest]


def _at(location: Location | None) -> str:
    return "" if location is None else f", as {location[1]} of {location[0]}"
