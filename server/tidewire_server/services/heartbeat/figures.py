"""Measured figures of this process. What cannot be measured is absent."""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tidewire.v1 import heartbeat_pb2

SAMPLE_S_MIN: Final = 1.0
"""Rates are taken over at least this long."""
_STATM: Final = Path("/proc/self/statm")


class ServerFigures:
    """
    Figures of the server process.

    Args:
        version: Version of the software.
        connections: Counts open connections; ``None``: not measured.
        events: Counts events handled since the start; ``None``: not measured.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        version: str,
        *,
        connections: Callable[[], int] | None = None,
        events: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._version = version
        self._connections = connections
        self._events = events
        self._clock = clock
        self._sampled_s = clock()
        self._cpu_s = time.process_time()
        self._events_seen = events() if events is not None else 0
        self._memory_bytes = resident_bytes()
        self._cpu_cores: float | None = None
        self._events_per_second: float | None = None

    def read(self, health: heartbeat_pb2.NodeHealth.ValueType) -> heartbeat_pb2.NodeStatus:
        """Take the figures; rates are of the last whole sample, absent before the first."""
        self._sample()
        status = heartbeat_pb2.NodeStatus(
            health=health,
            version=self._version,
            cpu_cores=self._cpu_cores,
            events_per_second=self._events_per_second,
            memory_bytes=self._memory_bytes,
        )
        if self._connections is not None:
            status.connections = self._connections()
        return status

    def _sample(self) -> None:
        now_s = self._clock()
        passed_s = now_s - self._sampled_s
        if passed_s < SAMPLE_S_MIN:
            return
        cpu_s = time.process_time()
        self._cpu_cores = (cpu_s - self._cpu_s) / passed_s
        self._sampled_s, self._cpu_s = now_s, cpu_s
        self._memory_bytes = resident_bytes()
        if self._events is not None:
            seen = self._events()
            self._events_per_second = (seen - self._events_seen) / passed_s
            self._events_seen = seen


def resident_bytes() -> int | None:
    """Resident memory of this process; ``None`` where the system does not tell."""
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * resource.getpagesize()
