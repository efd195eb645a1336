"""The limits of the machine, among the systems: what it takes if nothing but bytes moves."""

from collections.abc import Callable
from typing import Any

from bench.limits import hops, iperf, iperf_missing, memory_copy
from bench.systems.base import System

Measure = Callable[[float, int], dict[str, Any]]


class Limit(System):
    """What moves bytes and nothing else; bytes a second are shown as messages of that size."""

    def __init__(self, name: str, measure: Measure | None, note: str) -> None:
        self.name = name
        self.note = note
        self._measure = measure

    def missing(self) -> str | None:
        """Why it cannot run."""
        return iperf_missing() if self._measure is iperf else None

    def limit(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Move bytes; figures as of messages of ``parameters["bytes"]``."""
        assert self._measure is not None
        size = int(parameters["bytes"])
        figures = self._measure(float(parameters["seconds"]), size)
        delivered = max(int(figures["bytes"]) // size, 1)
        return {
            "per_s": figures["bytes_per_s"] / size,
            "mib_per_s": figures["bytes_per_s"] / (1 << 20),
            "delivered": delivered,
            "client_cpu_s_per_million": figures["cpu_s"] / delivered * 1e6,
        }


class BareSockets(Limit):
    """A block on its way there and back through as many processes as a scenario has."""

    def __init__(self) -> None:
        super().__init__("bare sockets", None, "blocking, no protocol, no service")

    def limit(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Pass blocks of ``parameters["bytes"]`` on through ``parameters["processes"]``."""
        size, processes = int(parameters["bytes"]), int(parameters["processes"])
        figures = hops(float(parameters["seconds"]), size, processes)
        figures["client_cpu_s_per_million"] = figures.pop("cpu_s") / figures["calls"] * 1e6
        return figures


def limits() -> tuple[Limit, ...]:
    """Every limit."""
    return (
        BareSockets(),
        Limit("iperf3", iperf, "one hop of one TCP stream, no messages"),
        Limit("memory copy", memory_copy, "one copy, one core"),
    )
