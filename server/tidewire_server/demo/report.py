"""What the demo tells: one cell for each kind on each wire."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Final

from tidewire.errors import TidewireError
from tidewire.v1 import common_pb2

KINDS: Final = ("Event", "Query", "State", "Control", "Heartbeat", "Checkpoint")
NOT_REACHED: Final = "not reached"


class Unverified(TidewireError):
    """What came out is not what an independent computation says."""


def require(holds: bool, problem: str) -> None:
    """Raise Unverified when a comparison does not hold."""
    if not holds:
        raise Unverified(problem)


@dataclass(slots=True)
class Cell:
    """
    One kind over one wire.

    Attributes:
        kind: Kind of messages.
        wire: Scheme of the URL.
        count: How many were done.
        p50_us: Median latency of one, in microseconds.
        durability: Level the acknowledgements stated; ``None`` where nothing is stored.
        ok: Everything was compared and is right.
        detail: What was done, or what is wrong.
    """

    kind: str
    wire: str
    count: int = 0
    p50_us: float | None = None
    durability: str | None = None
    ok: bool = False
    detail: str = NOT_REACHED

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Run checks: the cell is verified when none of them raises."""
        try:
            yield
        except (TidewireError, TimeoutError, ValueError, OSError) as error:
            self.ok = False
            self.detail = f"{type(error).__name__}: {error}"
        else:
            self.ok = True

    def durable(self, level: common_pb2.Durability.ValueType) -> None:
        """Note the level that an acknowledgement stated."""
        self.durability = common_pb2.Durability.Name(level).removeprefix("DURABILITY_")


@dataclass(slots=True)
class Stopwatch:
    """Durations of the same act."""

    durations_s: list[float] = field(default_factory=list)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure what happens inside."""
        began = time.perf_counter()
        yield
        self.durations_s.append(time.perf_counter() - began)

    @property
    def p50_us(self) -> float | None:
        """Median, in microseconds; ``None`` when nothing was measured."""
        return round(median(self.durations_s) * 1e6, 1) if self.durations_s else None


def table(cells: Iterable[Cell]) -> str:
    """The cells as a table of plain text."""
    head = ("KIND", "WIRE", "COUNT", "P50", "DURABILITY", "VERIFIED", "WHAT WAS DONE")
    rows = [head, *map(_row, cells)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(head) - 1)]
    return "\n".join(_line(row, widths) for row in rows)


def _row(cell: Cell) -> tuple[str, ...]:
    return (
        cell.kind,
        cell.wire,
        f"{cell.count:,}",
        "-" if cell.p50_us is None else f"{cell.p50_us:,.0f} us",
        cell.durability or "-",
        "yes" if cell.ok else "NO",
        cell.detail,
    )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    parts = [
        text.rjust(width) if index in (2, 3) else text.ljust(width)
        for index, (text, width) in enumerate(zip(row, widths, strict=False))
    ]
    return "  ".join([*parts, row[-1]])


def json_line(cell: Cell) -> str:
    """A cell as one line of JSON."""
    return json.dumps(asdict(cell))


class Progress:
    """Lines on standard error that say what is going on."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Write a line with the seconds since the start."""
        sys.stderr.write(f"[{time.monotonic() - self._began:5.1f} s] {text}\n")
        sys.stderr.flush()
