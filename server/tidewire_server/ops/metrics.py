"""
Metrics: plain counters where things happen, one collector that reads them when somebody asks.

Nothing on a hot path touches the Prometheus client; it is only the format.
"""

import asyncio
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Final

import grpc
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tidewire.transport.histogram import Histogram
from tidewire_server.core import Core
from tidewire_server.engine.base import Engine
from tidewire_server.engine.embedded import EmbeddedEngine
from tidewire_server.ops import wire_metrics

PREFIX: Final = "tidewire_"
BOUNDS_US: Final = tuple(1 << n for n in range(6, 27))
"""Bounds of latencies as they are exported: 64 microseconds to 67 seconds, doubling."""
METHODS_MAX: Final = 1_024
"""Methods counted by name; further ones are counted together as "other"."""
OTHER: Final = "other"
LAG_INTERVAL_S: Final = 0.5

_CODE_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


class _Method:
    __slots__ = ("codes", "in_flight", "latency")

    def __init__(self) -> None:
        self.in_flight = 0
        self.codes = [0] * len(_CODE_NAMES)
        self.latency = Histogram()


class CallMetrics:
    """Counts calls by method and status code, and how long they took; the router feeds it."""

    def __init__(self) -> None:
        self._methods: dict[str, _Method] = {}

    def started(self, method: str) -> None:
        """Count a call that begins."""
        self._of(method).in_flight += 1

    def finished(self, method: str, code: int, seconds: float) -> None:
        """Count a call that ended with this status code, after this long."""
        figures = self._of(method)
        figures.in_flight -= 1
        figures.codes[code if 0 <= code < len(figures.codes) else 2] += 1
        figures.latency.record(seconds)

    def in_flight(self) -> int:
        """Calls that have begun and not ended."""
        return sum(figures.in_flight for figures in self._methods.values())

    def latency(self, method: str) -> Histogram:
        """How long calls of a method took."""
        return self._of(method).latency

    def collect(self) -> Iterator[Metric]:
        """The figures as Prometheus has them."""
        calls = CounterMetricFamily(
            PREFIX + "calls", "Calls that ended, by status code.", labels=["method", "code"]
        )
        in_flight = GaugeMetricFamily(
            PREFIX + "calls_in_flight", "Calls being served.", labels=["method"]
        )
        latency = HistogramMetricFamily(
            PREFIX + "call_duration_seconds",
            "Time from the request to the end of the call, streams included.",
            labels=["method"],
        )
        for method, figures in sorted(self._methods.items()):
            in_flight.add_metric([method], figures.in_flight)
            for number, count in enumerate(figures.codes):
                if count:
                    calls.add_metric([method, _CODE_NAMES[number]], count)
            latency.add_metric([method], _buckets(figures.latency), figures.latency.sum_us / 1e6)
        yield from (calls, in_flight, latency)

    def _of(self, method: str) -> _Method:
        figures = self._methods.get(method)
        if figures is None:
            if len(self._methods) >= METHODS_MAX:
                method = OTHER
            figures = self._methods.setdefault(method, _Method())
        return figures


Figures = Mapping[str, int | float | Mapping[Any, int]]
"""Figures by name; one that is a mapping itself has a figure for each of its kinds."""


@dataclass(frozen=True, slots=True)
class Source:
    """
    Somebody's counters.

    Attributes:
        read: Gives the figures by name, without the prefix.
        labels: Labels of all its figures, such as ``{"wire": "tcp"}``.
        gauges: Names, with or without the prefix, of figures that also fall.
        prefix: Put before each name.

    """

    read: Callable[[], Figures]
    labels: Mapping[str, str] = field(default_factory=dict)
    gauges: frozenset[str] = frozenset()
    prefix: str = ""

    def is_gauge(self, name: str) -> bool:
        """Say whether a figure may fall."""
        return name in self.gauges or self.prefix + name in self.gauges


def attributes_of(thing: object) -> Callable[[], Figures]:
    """A reader of the public attributes of an object that are numbers, or numbers by kind."""

    def read() -> Figures:
        names = (name for name in dir(thing) if not name.startswith("_"))
        figures = ((name, getattr(thing, name)) for name in names)
        return {
            name: value
            for name, value in figures
            if isinstance(value, int | float | Counter) and not isinstance(value, bool)
        }

    return read


def store_sources(engine: Engine) -> list[Source]:
    """What the embedded engine counts of its writing and reading; nothing of other engines."""
    if not isinstance(engine, EmbeddedEngine):
        return []
    writer = frozenset({"commit_s_max", "group_transactions_last"})
    pending = frozenset({"transactions", "bytes"})
    cache = frozenset({"bytes", "bytes_max"})
    return [
        Source(attributes_of(engine.writer.counters), gauges=writer, prefix="store_writer_"),
        Source(attributes_of(engine.writer.pending), gauges=pending, prefix="store_pending_"),
        Source(attributes_of(engine.readers), prefix="store_readers_"),
        Source(attributes_of(engine.state_cache), gauges=cache, prefix="store_state_cache_"),
    ]


class ServerCollector(Collector):
    """Reads all counters of a server when it is scraped."""

    def __init__(self, core: Core, calls: CallMetrics) -> None:
        self._core = core
        self._calls = calls
        self._sources = [Source(lambda: core.counters.values)]
        self.lag = LoopLag()
        self.wires: wire_metrics.Wires | None = None
        """What is listened on, once it is."""

    def add(self, source: Source) -> None:
        """Read these counters too; several sources may use the same names with other labels."""
        self._sources.append(source)

    def describe(self) -> Iterable[Metric]:
        """Say nothing: names are known when they are read."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        yield self._info()
        yield from self._calls.collect()
        yield from self._gauges()
        yield from _families(self._sources)
        if self.wires is not None:
            yield from wire_metrics.collect(self.wires)

    def _info(self) -> Metric:
        labels = {
            "version": self._core.version,
            "node_id": self._core.node_id,
            "engine": self._core.engine.name,
            "python": platform.python_version(),
            "grpcio": metadata.version("grpcio"),
        }
        family = GaugeMetricFamily(PREFIX + "build_info", "What runs here.", labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        return family

    def _gauges(self) -> Iterator[Metric]:
        core = self._core
        figures = {
            "draining": ("1 while the server is going.", int(core.drain.started.is_set())),
            "engine_failed": (
                "1 when the store can no longer be written.",
                int(core.engine.failure is not None),
            ),
            "store_epoch": ("Starts of a server on this store.", core.engine.epoch),
            "loop_lag_seconds": ("Lateness of the event loop, last measured.", self.lag.last_s),
            "loop_lag_max_seconds": ("Greatest lateness of the event loop.", self.lag.max_s),
        }
        for name, (text, value) in figures.items():
            yield GaugeMetricFamily(PREFIX + name, text, value=value)


class LoopLag:
    """
    How late the event loop is: a timer that notes when it was called.

    Attributes:
        last_s: Lateness of the last call, seconds.
        max_s: Greatest lateness since the start, seconds.

    """

    def __init__(self) -> None:
        self.last_s = 0.0
        self.max_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Measure from now on, twice a second."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(loop.time() + LAG_INTERVAL_S, self._tick, loop.time())

    def close(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self, began: float) -> None:
        now = asyncio.get_running_loop().time()
        self.last_s = max(0.0, now - began - LAG_INTERVAL_S)
        self.max_s = max(self.max_s, self.last_s)
        self.start()


def make_registry(collector: ServerCollector) -> CollectorRegistry:
    """What /metrics shows: the server's figures and those of its process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    return registry


def _families(sources: Iterable[Source]) -> Iterator[Metric]:
    """One family for each name, over all sources: Prometheus wants them together."""
    families: dict[str, Any] = {}
    for source in sources:
        labels = sorted(source.labels)
        values = [source.labels[label] for label in labels]
        for name, figure in source.read().items():
            by_kind = isinstance(figure, Mapping)
            family = families.get(source.prefix + name)
            if family is None:
                make = GaugeMetricFamily if source.is_gauge(name) else CounterMetricFamily
                text = f"{source.prefix}{name}".replace("_", " ").capitalize() + "."
                full = PREFIX + source.prefix + name
                family = make(full, text, labels=[*labels, "kind"] if by_kind else labels)
                families[source.prefix + name] = family
            if isinstance(figure, Mapping):
                for kind, number in figure.items():
                    family.add_metric([*values, str(kind)], number)
            else:
                family.add_metric(values, figure)
    return iter(families.values())


def _buckets(latency: Histogram) -> list[tuple[str, int]]:
    counts = latency.cumulative(BOUNDS_US)
    bounds = [f"{bound / 1e6:g}" for bound in BOUNDS_US]
    return [*zip(bounds, counts, strict=True), ("+Inf", latency.count)]
