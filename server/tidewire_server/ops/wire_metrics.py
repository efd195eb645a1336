"""
Figures of each wire: connections, bytes, errors by reason, latency.

gRPC's library tells nothing of its connections. Its wires have calls, their latency, the addresses
that have a call open and, on TCP, the connections the kernel knows; what they do not have is not
shown as zero.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import grpc
import grpc.aio
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from tidewire.transport import WireCounters
from tidewire.transport.histogram import Histogram
from tidewire.v1 import server_pb2

PREFIX: Final = "tidewire_wire_"
BOUNDS_US: Final = tuple(1 << n for n in range(4, 25))
"""Bounds of latencies as they are exported: 16 microseconds to 17 seconds, doubling."""
QUANTILES: Final = (0.5, 0.99, 0.999)
METHODS_MAX: Final = 1_024
"""Methods whose counted handlers are kept."""
PEERS_MAX: Final = 65_536
"""Addresses that are told apart at the same time."""

_CODE_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
_GAUGES: Final = {"connections_active": "Connections that are open."}
_COUNTERS: Final = {
    "connections_opened": "Connections that were taken.",
    "bytes_in": "Bytes received, of frames: without TLS, TCP and IP around them.",
    "bytes_out": "Bytes handed to the transport, counted alike.",
}
_BY_REASON: Final = {
    "refusals": ("connections_refused", "Connections that were not taken."),
    "handshake_failures": ("handshake_failures", "Refused connections whose handshake failed."),
    "errors": ("errors", "Connections that did not end in order, by class of the error."),
}
_DATAGRAMS: Final = {
    "datagrams_in": "Datagrams received.",
    "datagrams_out": "Datagrams sent.",
    "retransmissions": "Datagrams sent again because no answer came in time.",
    "duplicates": "Requests that came again and were not done again.",
    "gaps": "Messages of lossy subscriptions that were sent and did not arrive.",
    "cookies_sent": "Proofs of address asked for.",
}


class Connected(Protocol):
    """The connections of one raw wire."""

    @property
    def counters(self) -> WireCounters:
        """What happened on them."""
        ...

    @property
    def connections_idle(self) -> int:
        """Those without a call."""
        ...


class Wires(Protocol):
    """What the server listens on."""

    @property
    def bound(self) -> Sequence[server_pb2.Listener]:
        """The listeners, with the ports that were picked."""
        ...

    @property
    def raw(self) -> Mapping[str, "Connected"]:
        """Connections of raw wires, by scheme."""
        ...

    @property
    def grpc_calls(self) -> "GrpcCalls":
        """What counts gRPC's calls."""
        ...


@dataclass(slots=True)
class GrpcFigures:
    """What is known of one wire of gRPC."""

    calls_active: int = 0
    calls_ended: dict[int, int] = field(default_factory=dict)
    latency: Histogram = field(default_factory=Histogram)
    peers: dict[str, int] = field(default_factory=dict)
    """Calls in flight by address."""


class GrpcCalls(grpc.GenericRpcHandler):
    """Stands before a router on gRPC's server and counts what passes, by scheme."""

    def __init__(self, router: grpc.GenericRpcHandler) -> None:
        self.wires: dict[str, GrpcFigures] = {}
        self._router = router
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    @property
    def active(self) -> int:
        """Calls whose handlers run."""
        return sum(figures.calls_active for figures in self.wires.values())

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the router's handler, counted."""
        handler: Any = self._router.service(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        known, counted = self._wrapped.get(method, (None, None))
        if known is not handler:
            if len(self._wrapped) >= METHODS_MAX:
                self._wrapped.clear()
            counted = self._wrap(handler)
            self._wrapped[method] = (handler, counted)
        return counted

    def _wrap(self, handler: Any) -> Any:
        for name in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behaviour = getattr(handler, name)
            if behaviour is not None:
                make = getattr(grpc, f"{name}_rpc_method_handler")
                counted = self._around(behaviour, timed=name == "unary_unary")
                return make(counted, handler.request_deserializer, handler.response_serializer)
        return handler

    def _around(self, behaviour: Callable[..., Any], *, timed: bool) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> Any:
            began_s = perf_counter()
            peer = context.peer()
            figures = self._figures(peer, context)
            figures.calls_active += 1
            peers = figures.peers
            known = peer in peers or len(peers) < PEERS_MAX
            if known:
                peers[peer] = peers.get(peer, 0) + 1
            code = grpc.StatusCode.CANCELLED.value[0]
            try:
                answer = await behaviour(request, context)
                code = 0
                return answer
            except grpc.aio.AbortError:
                code = _code_of(context)
                raise
            except Exception:
                code = grpc.StatusCode.UNKNOWN.value[0]
                raise
            finally:
                figures.calls_active -= 1
                figures.calls_ended[code] = figures.calls_ended.get(code, 0) + 1
                if known and (left := peers.pop(peer) - 1):
                    peers[peer] = left
                if timed:
                    figures.latency.record(perf_counter() - began_s)

        return call

    def _figures(self, peer: str, context: Any) -> GrpcFigures:
        if peer.startswith("unix:"):
            scheme = "grpc+unix"
        else:
            scheme = "grpcs" if b"ssl" in _security(context) else "grpc"
        figures = self.wires.get(scheme)
        if figures is None:
            figures = self.wires[scheme] = GrpcFigures()
        return figures


def _security(context: Any) -> Sequence[bytes]:
    found: Sequence[bytes] = context.auth_context().get("transport_security_type", ())
    return found


def _code_of(context: Any) -> int:
    code: Any = context.code()  # a StatusCode on some versions, its number on others
    return int(code.value[0] if isinstance(code, grpc.StatusCode) else code or 0)


def collect(wires: Wires) -> Iterator[Metric]:
    """The figures of all wires as Prometheus has them; one family for each name."""
    counters = {scheme: server.counters for scheme, server in wires.raw.items()}
    yield _listener_info(wires.bound)
    yield from _numbers(counters, _grpc_connections(wires.bound))
    idle = GaugeMetricFamily(
        PREFIX + "connections_idle", "Connections without a call.", labels=["wire"]
    )
    for scheme, server in wires.raw.items():
        idle.add_metric([scheme], server.connections_idle)
    yield idle
    yield from _calls(counters, wires.grpc_calls.wires)
    yield from _latency(counters, wires.grpc_calls.wires)


def _listener_info(bound: Sequence[server_pb2.Listener]) -> Metric:
    family = GaugeMetricFamily(
        PREFIX + "listener_info",
        "What is listened on, and whether it is encrypted.",
        labels=["wire", "url", "encrypted"],
    )
    for one in bound:
        scheme = one.url.partition("://")[0]
        family.add_metric([scheme, one.url, "true" if one.encrypted else "false"], 1)
    return family


def _grpc_connections(bound: Sequence[server_pb2.Listener]) -> dict[str, int]:
    """Connections of gRPC's ports as the kernel has them; nothing on systems without its tables."""
    from tidewire_server.ops.connections import count_tcp, tcp_tables

    found: dict[str, int] = {}
    lines = tcp_tables()
    for one in bound:
        url = urlsplit(one.url)
        if url.scheme in ("grpc", "grpcs") and url.port and lines:
            found[url.scheme] = found.get(url.scheme, 0) + count_tcp(lines, {url.port})
    return found


def _numbers(counters: Mapping[str, WireCounters], of_grpc: Mapping[str, int]) -> Iterator[Metric]:
    of_datagrams = {
        scheme: each
        for scheme, each in counters.items()
        if each.datagrams_in or each.datagrams_out or scheme in ("udp", "dtls")
    }
    for makes, names, chosen in (
        (GaugeMetricFamily, _GAUGES, counters),
        (CounterMetricFamily, _COUNTERS, counters),
        (CounterMetricFamily, _DATAGRAMS, of_datagrams),
    ):
        for name, text in names.items():
            family: Any = makes(PREFIX + name, text, labels=["wire"])
            for scheme, each in chosen.items():
                family.add_metric([scheme], getattr(each, name))
            if name == "connections_active":
                for scheme, number in of_grpc.items():
                    family.add_metric([scheme], number)
            yield family
    for name, (exported, text) in _BY_REASON.items():
        family = CounterMetricFamily(PREFIX + exported, text, labels=["wire", "reason"])
        for scheme, each in counters.items():
            for reason, number in getattr(each, name).items():
                family.add_metric([scheme, reason], number)
        yield family
    refused = CounterMetricFamily(
        PREFIX + "datagrams_refused", "Datagrams that were dropped.", labels=["wire", "reason"]
    )
    for scheme, each in of_datagrams.items():
        for reason, number in each.datagrams_refused.items():
            refused.add_metric([scheme, reason], number)
    yield refused


def _calls(
    counters: Mapping[str, WireCounters], of_grpc: Mapping[str, GrpcFigures]
) -> Iterator[Metric]:
    active = GaugeMetricFamily(PREFIX + "calls_active", "Calls being served.", labels=["wire"])
    ended = CounterMetricFamily(
        PREFIX + "calls", "Calls that ended, by status code.", labels=["wire", "code"]
    )
    peers = GaugeMetricFamily(
        PREFIX + "peers_active",
        "Addresses with a call open, where connections are not told.",
        labels=["wire"],
    )
    both: Mapping[str, WireCounters | GrpcFigures] = {**counters, **of_grpc}
    for scheme, each in both.items():
        active.add_metric([scheme], each.calls_active)
        for code, number in each.calls_ended.items():
            ended.add_metric([scheme, _CODE_NAMES.get(code, "UNKNOWN")], number)
    for scheme, figures in of_grpc.items():
        peers.add_metric([scheme], len(figures.peers))
    yield from (active, ended, peers)


def _latency(
    counters: Mapping[str, WireCounters], of_grpc: Mapping[str, GrpcFigures]
) -> Iterator[Metric]:
    histogram = HistogramMetricFamily(
        PREFIX + "call_duration_seconds",
        "Unary calls, from the request to the answer being handed to the wire.",
        labels=["wire"],
    )
    quantiles = GaugeMetricFamily(
        PREFIX + "call_duration_quantile_seconds",
        "The same since the start, to within 25 %.",
        labels=["wire", "quantile"],
    )
    both: Mapping[str, WireCounters | GrpcFigures] = {**counters, **of_grpc}
    for scheme, each in both.items():
        latency = each.latency
        counts = latency.cumulative(BOUNDS_US)
        bounds = [f"{bound / 1e6:g}" for bound in BOUNDS_US]
        buckets = [*zip(bounds, counts, strict=True), ("+Inf", latency.count)]
        histogram.add_metric([scheme], buckets, latency.sum_us / 1e6)
        if latency.count:
            for quantile in QUANTILES:
                quantiles.add_metric([scheme, f"{quantile:g}"], latency.quantile(quantile))
    yield from (histogram, quantiles)
