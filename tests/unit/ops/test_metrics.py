"""Figures as they are exported."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from support.ops_fake_engine import make_core
from tidewire.v1 import event_pb2
from tidewire_server.core import Core
from tidewire_server.engine.embedded import open_engine
from tidewire_server.ops import metrics
from tidewire_server.ops.metrics import CallMetrics, ServerCollector, Source, make_registry

METHOD = "/tidewire.v1.StateService/Get"


def scrape(collector: ServerCollector) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = generate_latest(make_registry(collector)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return (name, frozenset(labels.items()))


def make(core: Core | None = None) -> tuple[ServerCollector, CallMetrics]:
    calls = CallMetrics()
    return ServerCollector(core or make_core(), calls), calls


def test_calls_are_counted_by_method_and_code() -> None:
    """Ended calls by code, calls in flight, and a histogram whose count is theirs."""
    collector, calls = make()
    for code in (0, 0, 5):
        calls.started(METHOD)
        calls.finished(METHOD, code, 0.001)
    calls.started(METHOD)

    figures = scrape(collector)

    assert 2 == figures[key("tidewire_calls_total", method=METHOD, code="OK")]
    assert 1 == figures[key("tidewire_calls_total", method=METHOD, code="NOT_FOUND")]
    assert 1 == figures[key("tidewire_calls_in_flight", method=METHOD)]
    assert 1 == calls.in_flight()
    name = "tidewire_call_duration_seconds"
    assert 3 == figures[key(f"{name}_count", method=METHOD)]
    assert 0.003 == pytest.approx(figures[key(f"{name}_sum", method=METHOD)])
    assert 0 == figures[key(f"{name}_bucket", method=METHOD, le="0.000512")]
    assert 3 == figures[key(f"{name}_bucket", method=METHOD, le="0.001024")]
    assert 3 == figures[key(f"{name}_bucket", method=METHOD, le="+Inf")]
    assert calls.latency(METHOD).quantile(0.5) == pytest.approx(0.001, rel=0.25)


def test_codes_that_do_not_exist_are_unknown() -> None:
    """A wrong number is not lost and breaks nothing."""
    collector, calls = make()
    calls.started(METHOD)
    calls.finished(METHOD, 99, 0.0)

    assert 1 == scrape(collector)[key("tidewire_calls_total", method=METHOD, code="UNKNOWN")]


def test_methods_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods beyond the limit are counted together."""
    monkeypatch.setattr(metrics, "METHODS_MAX", 2)
    collector, calls = make()
    for method in ("/a/A", "/b/B", "/c/C", "/d/D"):
        calls.started(method)
        calls.finished(method, 0, 0.0)

    assert 2 == scrape(collector)[key("tidewire_calls_total", method="other", code="OK")]


def test_counters_of_services_are_shown() -> None:
    """What services count appears under its name."""
    core = make_core()
    collector, _ = make(core)
    core.counters.add("events_published", 5)

    assert 5 == scrape(collector)[key("tidewire_events_published_total")]


def test_sources_of_one_name_are_one_family() -> None:
    """Two wires have the same figures with other labels; gauges do not end in _total."""

    class Figures:
        """Counters of a wire."""

        def __init__(self, opened: int) -> None:
            self.opened = opened
            self.active = 1
            self.name = "no figure"
            self.is_closed = False
            self._hidden = 1

    collector, _ = make()
    for wire, opened in {"tcp": 4, "tls": 6}.items():
        read = metrics.attributes_of(Figures(opened))
        gauges = frozenset({"active"})
        collector.add(Source(read, {"wire": wire}, gauges, prefix="connections_"))

    figures = scrape(collector)

    assert 4 == figures[key("tidewire_connections_opened_total", wire="tcp")]
    assert 6 == figures[key("tidewire_connections_opened_total", wire="tls")]
    assert 1 == figures[key("tidewire_connections_active", wire="tls")]
    assert not [name for name, _ in figures if "hidden" in name or "closed" in name]


def test_the_server_and_its_process_are_shown() -> None:
    """Version, store, drain, and what the operating system says of the process."""
    core = make_core()
    collector, _ = make(core)

    figures = scrape(collector)

    info = next(dict(labels) for name, labels in figures if name == "tidewire_build_info")
    assert ("1.2.3", "node", "fake") == (info["version"], info["node_id"], info["engine"])
    assert 3 == figures[key("tidewire_store_epoch")]
    assert 0 == figures[key("tidewire_draining")]
    assert 0 == figures[key("tidewire_engine_failed")]
    assert 0 < figures[key("process_resident_memory_bytes")]
    core.drain.started.set()
    assert 1 == scrape(collector)[key("tidewire_draining")]


def test_figures_by_kind_have_a_label() -> None:
    """Errors by name and calls by code are one family each."""

    class Wire:
        """What a wire counts."""

        errors: ClassVar = Counter({"TlsFailed": 2})

    collector, _ = make()
    read = metrics.attributes_of(Wire())
    collector.add(Source(read, {"wire": "tls"}, prefix="wire_"))

    figures = scrape(collector)

    assert 2 == figures[key("tidewire_wire_errors_total", wire="tls", kind="TlsFailed")]


async def test_the_store_is_shown(tmp_path: Path) -> None:
    """
    Group commit says how many transactions each group had, and what the flushes cost; reading how
    much came from memory.
    """
    engine = await open_engine(tmp_path / "store")
    try:
        collector, _ = make()
        for source in metrics.store_sources(engine):
            collector.add(source)
        await engine.create_stream(event_pb2.StreamConfig(name="s", subjects=["a"]))
        for _ in range(2):
            await engine.get_state("a")

        figures = scrape(collector)

        assert 1 <= figures[key("tidewire_store_writer_groups_total")]
        assert 0 < figures[key("tidewire_store_writer_commit_s_total")]
        assert 1 <= figures[key("tidewire_store_writer_group_transactions_last")]
        assert 0 == figures[key("tidewire_store_pending_transactions")]
        assert 1 == figures[key("tidewire_store_state_cache_hits_total")]
        assert 1 == figures[key("tidewire_store_state_cache_misses_total")]
        assert 0 < figures[key("tidewire_store_state_cache_bytes")]
    finally:
        await engine.close()
    assert [] == metrics.store_sources(make_core().engine)


async def test_a_late_event_loop_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that blocks the loop shows as lag; control: before it there was none."""
    monkeypatch.setattr(metrics, "LAG_INTERVAL_S", 0.005)
    lag = metrics.LoopLag()
    ticked = asyncio.Event()
    tick = lag._tick

    def noticed(began: float) -> None:
        tick(began)
        ticked.set()

    monkeypatch.setattr(lag, "_tick", noticed)
    lag.start()
    try:
        assert 0.0 == lag.max_s
        block_until = asyncio.get_running_loop().time() + 0.1
        while asyncio.get_running_loop().time() < block_until:
            pass
        await asyncio.wait_for(ticked.wait(), 5)
    finally:
        lag.close()

    assert lag.max_s >= 0.09
