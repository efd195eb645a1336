"""Figures of wires are true: each is checked against a workload whose figures are known."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from support.authority import Authority
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echoing import echoing, serving_echo
from support.server import running
from support.wires import ENCRYPTED, WIRES
from tidewire.transport import RawServer, WireCounters, channel
from tidewire.v1 import (
    event_pb2,
    event_pb2_grpc,
    server_pb2,
    state_pb2,
    state_pb2_grpc,
)
from tidewire_server.ops import wire_metrics
from tidewire_server.ops.wire_metrics import GrpcCalls, Wires

RAW = [wire for wire in WIRES if not wire.startswith("grpc")]
GRPC = [wire for wire in WIRES if wire.startswith("grpc")]
LIMIT_S = 10.0
OK, FAILED, CLIENTS, BODY_BYTES = 20, 7, 3, 600

Key = tuple[str, frozenset[tuple[str, str]]]


class NoRouter(grpc.GenericRpcHandler):
    """Has no methods."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return None


@dataclass
class OneWire:
    """What a server listens on, when it is one raw wire."""

    raw: dict[str, RawServer]
    bound: Sequence[server_pb2.Listener] = ()
    grpc_calls: GrpcCalls = field(default_factory=lambda: GrpcCalls(NoRouter()))


def scrape(wires: Wires) -> dict[Key, float]:
    """Return the figures as Prometheus reads them."""

    class Collector:
        def collect(self) -> Any:
            return wire_metrics.collect(wires)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    text = generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> Key:
    return (f"tidewire_wire_{name}", frozenset(labels.items()))


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what the other side has still to notice."""
    async with asyncio.timeout(LIMIT_S):
        while not holds():  # noqa: ASYNC110 (counters tell nobody)
            await asyncio.sleep(0.01)


async def work(stub: Any) -> None:
    """Do what is counted: calls that end well, and calls that do not."""
    say = echo_pb2.SayRequest
    for number in range(OK):
        await stub.Say(say(text=str(number), body=bytes(BODY_BYTES)), timeout=LIMIT_S)
    for _ in range(FAILED):
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Say(say(fault="abort"), timeout=LIMIT_S)


@pytest.mark.parametrize("wire", RAW)
async def test_a_known_workload(wire: str, tmp_path: Path) -> None:
    """Connections, calls by code, latency and every byte are what the clients did."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(echoing(wire, tmp_path))
        others = [
            await stack.enter_async_context(channel(first.url, tls=first.tls))
            for _ in range(CLIENTS - 1)
        ]
        channels = [first.channel, *others]
        for each in channels:
            await work(echo_pb2_grpc.EchoServiceStub(each))
        counters = first.server.counters
        await until(lambda: counters.bytes_out == sum(c.counters.bytes_in for c in channels))
        figures = scrape(OneWire({wire: first.server}))

        labels = {"wire": wire}
        assert CLIENTS == figures[key("connections_opened_total", **labels)]
        assert CLIENTS == figures[key("connections_active", **labels)]
        assert CLIENTS == figures[key("connections_idle", **labels)]
        assert CLIENTS * OK == figures[key("calls_total", code="OK", **labels)]
        assert CLIENTS * FAILED == figures[key("calls_total", code="NOT_FOUND", **labels)]
        assert 0 == figures[key("calls_active", **labels)]
        ended = CLIENTS * (OK + FAILED)
        assert ended == figures[key("call_duration_seconds_count", **labels)]
        bucket = figures[key("call_duration_seconds_bucket", le="+Inf", **labels)]
        assert ended == bucket
        sent = sum(each.counters.bytes_out for each in channels)
        assert sent == figures[key("bytes_in_total", **labels)]
        assert sent >= CLIENTS * OK * BODY_BYTES
        received = sum(each.counters.bytes_in for each in channels)
        assert received == figures[key("bytes_out_total", **labels)]
        assert not [name for name, _ in figures if "refused" in name or "errors" in name]
        median = figures[key("call_duration_quantile_seconds", quantile="0.5", **labels)]
        assert (
            0 < median <= figures[key("call_duration_quantile_seconds", quantile="0.99", **labels)]
        )
    await until(lambda: counters.connections_active == 0)
    assert 0 == counters.calls_active


@pytest.mark.parametrize("wire", RAW)
async def test_idle_is_without_a_call(wire: str, tmp_path: Path) -> None:
    """A connection with a call open is active and not idle; when the call ends it is idle."""
    async with echoing(wire, tmp_path) as echo:
        call = echo.stub.Say(echo_pb2.SayRequest(fault="sleep"), timeout=LIMIT_S)
        await asyncio.wait_for(echo.service.started.wait(), LIMIT_S)
        busy = scrape(OneWire({wire: echo.server}))
        echo.service.release.set()
        await call
        await until(lambda: echo.server.counters.calls_active == 0)
        idle = scrape(OneWire({wire: echo.server}))

    assert (1, 0, 1) == shown(busy, wire)
    assert (1, 1, 0) == shown(idle, wire)


def shown(figures: dict[Key, float], wire: str) -> tuple[float, ...]:
    """Return active and idle connections, and active calls."""
    names = ("connections_active", "connections_idle", "calls_active")
    return tuple(figures[key(name, wire=wire)] for name in names)


def enough(counters: WireCounters, reasons: int) -> bool:
    """Whether handshakes have failed for so many reasons."""
    return len(counters.handshake_failures) >= reasons


@pytest.mark.parametrize("wire", [wire for wire in RAW if wire in ENCRYPTED])
async def test_refused_handshakes_have_a_reason(wire: str, tmp_path: Path) -> None:
    """A client without a certificate, and one whose has expired, are told apart."""
    authority = Authority(tmp_path)
    server_tls = authority.config(authority.issue("server"))
    late = authority.config(authority.issue("late", expired=True))
    async with serving_echo(wire, server_tls=server_tls) as (url, server, _):
        for number, tls in enumerate((authority.config(None), late), start=1):
            async with channel(url, tls=tls) as refused:
                with pytest.raises(grpc.aio.AioRpcError):
                    stub: Any = echo_pb2_grpc.EchoServiceStub(refused)
                    await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)
            await until(partial(enough, server.counters, number))
        figures = scrape(OneWire({wire: server}))

    reasons = dict(server.counters.handshake_failures)
    assert 2 <= len(reasons), reasons
    assert any("expired" in reason for reason in reasons), reasons
    for reason, number in reasons.items():
        assert number == figures[key("handshake_failures_total", wire=wire, reason=reason)]
        assert number <= figures[key("connections_refused_total", wire=wire, reason=reason)]


@pytest.mark.parametrize("wire", ["tcp", "tls"])
async def test_refused_strangers_have_a_reason(wire: str, tmp_path: Path) -> None:
    """A peer that speaks another protocol is counted once, under what was wrong."""
    async with echoing(wire, tmp_path) as echo:
        port = int(echo.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 4)
            await until(lambda: echo.server.counters.connections_refused == 1)
        figures = scrape(OneWire({wire: echo.server}))

    by_reason = {
        dict(labels)["reason"]: value
        for (name, labels), value in figures.items()
        if name == "tidewire_wire_handshake_failures_total"
    }
    assert [1.0] == list(by_reason.values())
    assert set(by_reason) <= {"protocol_violation", "http_request", "wrong_version_number"}


async def test_calls_of_grpc_are_counted_by_wire(tmp_path: Path) -> None:
    """GRPC tells no connections: its calls, their latency and their callers are counted."""
    async with running(tmp_path, ("tcp", *GRPC)) as it, AsyncExitStack() as stack:
        for number, wire in enumerate(GRPC, start=1):
            connected = channel(it.url(wire), tls=it.tls(wire))
            await stack.enter_async_context(connected)
            state: Any = state_pb2_grpc.StateServiceStub(connected)
            events: Any = event_pb2_grpc.EventServiceStub(connected)
            for _ in range(number):
                await state.Range(state_pb2.RangeRequest(prefix="k"), timeout=LIMIT_S)
            with pytest.raises(grpc.aio.AioRpcError):
                await events.GetStream(event_pb2.GetStreamRequest(name="none"), timeout=LIMIT_S)
            if wire == GRPC[0]:
                watching = state.Watch(state_pb2.WatchRequest(prefix="k"))
                await watching.read()
        figures = scrape(it.server.listeners)
        watching.cancel()

    for number, wire in enumerate(GRPC, start=1):
        assert number == figures[key("calls_total", wire=wire, code="OK")]
        assert 1 == figures[key("calls_total", wire=wire, code="NOT_FOUND")]
        assert number + 1 == figures[key("call_duration_seconds_count", wire=wire)]
        streams = int(wire == GRPC[0])
        assert streams == figures[key("calls_active", wire=wire)]
        assert streams == figures[key("peers_active", wire=wire)]
        assert key("connections_opened_total", wire=wire) not in figures
        known = figures.get(key("connections_active", wire=wire))
        assert known == (None if wire == "grpc+unix" else 1)
    assert 0 == figures[key("connections_active", wire="tcp")]


async def test_what_is_plain_says_so(tmp_path: Path) -> None:
    """Each listener has a figure of its own, with its URL and whether it is encrypted."""
    async with running(tmp_path) as it:
        figures = scrape(it.server.listeners)
        bound = [(one.url, one.encrypted) for one in it.server.listeners.bound]

    for url, encrypted in bound:
        labels = {"wire": url.split(":")[0], "url": url, "encrypted": str(encrypted).lower()}
        assert 1 == figures[key("listener_info", **labels)]
    assert {wire: wire in ENCRYPTED for wire in WIRES} == {
        url.split("://")[0]: encrypted for url, encrypted in bound
    }
