"""What tidewire is to reach: ratios within one run, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Results = Mapping[tuple[str, str], Mapping[str, Any]]
"""Figures by scenario and system."""


@dataclass(frozen=True, slots=True)
class Goal:
    """``ours`` of a scenario against ``theirs`` of it, by one figure."""

    scenario: str
    figure: str
    ours: str
    theirs: str
    bound: float

    @property
    def at_most(self) -> bool:
        """Whether less is better: times are."""
        return self.figure.endswith("_us")

    def ratio(self, results: Results) -> float | None:
        """Ours over theirs; ``None`` when one was not measured."""
        figures = [results.get((self.scenario, name), {}) for name in (self.ours, self.theirs)]
        ours, theirs = (each.get(self.figure) for each in figures)
        return ours / theirs if ours and theirs else None

    def met(self, ratio: float) -> bool:
        """Whether the ratio is good enough."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound


def _goal(scenario: str, figure: str, ours: str, *theirs: tuple[str, float]) -> list[Goal]:
    return [Goal(scenario, figure, f"tidewire {ours}", name, bound) for name, bound in theirs]


SMALL: Final = "publish to subscriber, 128 B"
LARGE: Final = "publish to subscriber, 1 MiB"
DEFAULT: Final = "jetstream default"
ALWAYS: Final = "jetstream sync always"

GOALS: Final[tuple[Goal, ...]] = (
    *_goal("unary echo, 1 in flight", "p50_us", "tcp", ("bare grpc.aio", 0.2)),
    *_goal("unary echo, 64 in flight", "per_s", "tcp", ("bare grpc.aio", 15)),
    *_goal(SMALL, "per_s", "tcp", ("zenoh", 2.5), ("nats", 8)),
    *_goal(SMALL, "per_s", "grpc", ("zenoh", 1.5), ("nats", 5)),
    *_goal(LARGE, "per_s", "tcp", ("zenoh", 0.6)),
    *_goal(LARGE, "per_s", "unix", ("zenoh", 1.0)),
    *_goal("durable publish, 64 in flight", "per_s", "tcp", (ALWAYS, 3), (DEFAULT, 1)),
    *_goal(
        "durable publish, pipelined",
        "per_s",
        "tcp",
        (DEFAULT, 10),
        (ALWAYS, 50),
        ("redis always", 10),
    ),
    *_goal("durable consume with acks", "per_s", "tcp", (DEFAULT, 8)),
    *_goal("query, 1 in flight", "p50_us", "tcp", ("nats", 0.45), ("zenoh", 0.35)),
    *_goal("query, 64 in flight", "per_s", "tcp", ("nats", 4)),
    *_goal("state put, 64 in flight", "per_s", "tcp", (ALWAYS, 1.5)),
    *_goal("state get, 64 in flight", "per_s", "tcp", (ALWAYS, 3)),
    *_goal("fan-out 1 to 100, 128 B", "per_s", "tcp", ("nats", 3)),
)
