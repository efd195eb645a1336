"""Tells how far a run is and how long it will take yet."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

GUESS_S: Final = 3.5
"""What a measurement of one second takes with its servers and workers, when nothing is known."""

Key = tuple[str, str]


@dataclass(slots=True)
class Job:
    """One measurement; its figures get ``took_s``."""

    figures: dict[str, Any] = field(default_factory=dict)


class Progress:
    """
    Counts measurements, and writes a line to standard error after each.

    Args:
        jobs: All that will be done: scenario and system.
        known_s: How long each took the last time, as far as it is known.
    """

    def __init__(self, jobs: Sequence[Key], known_s: Mapping[Key, float]) -> None:
        self._left = list(jobs)
        self._total = len(jobs)
        self._known_s = known_s
        self._unknown = (0, 0.0)

    def left_s(self) -> float:
        """Seconds that what is left will take: as the last time, else as those without a last."""
        count, took_s = self._unknown
        mean_s = took_s / count if count else GUESS_S
        return sum(self._known_s.get(key, mean_s) for key in self._left)

    @contextlib.contextmanager
    def doing(self, scenario: str, system: str) -> Iterator[Job]:
        """Do one; the block sets its figures."""
        job, began = Job(), time.perf_counter()
        yield job
        took_s = job.figures["took_s"] = round(time.perf_counter() - began, 2)
        self._left.remove((scenario, system))
        if (scenario, system) not in self._known_s:
            self._unknown = (self._unknown[0] + 1, self._unknown[1] + took_s)
        said = job.figures.get("reason", "")
        print(
            f"[{self._total - len(self._left)}/{self._total}, {self.left_s() / 60:.1f} min left] "
            f"{took_s:5.1f} s  {scenario}: {system}{said and ': ' + said}",
            file=sys.stderr,
            flush=True,
        )
