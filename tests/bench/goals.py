"""What tidewire is to reach, as data: ratios within one run, growth, and memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

Results = Mapping[tuple[str, str], Mapping[str, Any]]
"""Figures by scenario and system."""
Grown = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows of growth by what grows; each has its ``size``."""


class Goal(Protocol):
    """One row of the table of goals."""

    @property
    def scenario(self) -> str:
        """What is measured."""
        ...

    @property
    def text(self) -> str:
        """What is to be reached."""
        ...

    def got(self, results: Results, grown: Grown) -> float | None:
        """What came out; ``None`` when it was not measured."""
        ...

    def shown(self, got: float) -> str:
        """What came out, in words."""
        ...

    def met(self, got: float) -> bool:
        """Whether that is good enough."""
        ...


@dataclass(frozen=True, slots=True)
class Against:
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

    @property
    def text(self) -> str:
        """What is to be reached."""
        return f"{self.ours} {'<=' if self.at_most else '>='} {self.bound:g}x {self.theirs}"

    def got(self, results: Results, grown: Grown) -> float | None:
        """Ours over theirs."""
        figures = [results.get((self.scenario, name), {}) for name in (self.ours, self.theirs)]
        ours, theirs = (each.get(self.figure) for each in figures)
        return ours / theirs if ours and theirs else None

    def shown(self, got: float) -> str:
        """A ratio."""
        return f"{got:.2f}x"

    def met(self, got: float) -> bool:
        """Whether the ratio is good enough."""
        return got <= self.bound if self.at_most else got >= self.bound


@dataclass(frozen=True, slots=True)
class Growth:
    """A figure at one size of what grows, at most ``bound`` times that at a smaller size."""

    kind: str
    what: str
    figure: str
    size: int
    base: int
    bound: float

    @property
    def scenario(self) -> str:
        """What grows."""
        return f"growth of {self.kind}"

    @property
    def text(self) -> str:
        """What is to be reached."""
        return f"{self.what} at {self.size:,} <= {self.bound:g}x of that at {self.base:,}"

    def got(self, results: Results, grown: Grown) -> float | None:
        """The figure over that at the smaller size."""
        rows = {row["size"]: row for row in grown.get(self.kind, ())}
        large, small = (rows.get(size, {}).get(self.figure) for size in (self.size, self.base))
        return large / small if large and small else None

    def shown(self, got: float) -> str:
        """A ratio."""
        return f"{got:.2f}x"

    def met(self, got: float) -> bool:
        """Whether it grew little enough."""
        return got <= self.bound


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of each idle connection at most, all of them held."""

    scenario: str
    system: str
    connections: int
    bytes_each_max: float | None = None

    @property
    def text(self) -> str:
        """What is to be reached."""
        if self.bytes_each_max is None:
            return f"{self.system}: {self.connections:,} held, none lost"
        return f"{self.system} <= {self.bytes_each_max / 1000:g} kB each"

    def got(self, results: Results, grown: Grown) -> float | None:
        """Bytes of each, or how many were held."""
        figures = results.get((self.scenario, self.system), {})
        if self.bytes_each_max is not None:
            return figures.get("bytes_each")
        held = figures.get("connections")
        return None if held is None else held - figures.get("lost", 0)

    def shown(self, got: float) -> str:
        """With its unit."""
        return f"{got:,.0f}" if self.bytes_each_max is None else f"{got / 1000:.1f} kB"

    def met(self, got: float) -> bool:
        """Whether it is little enough, or all."""
        if self.bytes_each_max is None:
            return got >= self.connections
        return got <= self.bytes_each_max


def _goal(scenario: str, figure: str, ours: str, *theirs: tuple[str, float]) -> list[Against]:
    return [Against(scenario, figure, f"tidewire {ours}", name, bound) for name, bound in theirs]


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
    Growth("subscribers", "CPU of a delivery", "cpu_s_per_million", 1_000, 10, 1.3),
    Growth("records", "CPU of a publish", "cpu_s_per_million", 10_000_000, 10_000, 1.2),
    Growth("records", "time of a publish", "publish_us", 10_000_000, 10_000, 1.2),
    Growth("records", "CPU of a fetch", "fetch_cpu_s_per_million", 10_000_000, 10_000, 1.2),
    Growth("records", "time of a fetch", "fetch_us", 10_000_000, 10_000, 1.2),
    Memory("10,000 idle connections", "tidewire tcp", 10_000, 12_000),
    Memory("100,000 idle connections", "tidewire tcp 6 workers", 100_000),
)
