"""
Says in the log which connections were not taken, and why.

An operator whose client "cannot connect" looks in the log first, and TLS 1.3 tells the client next
to nothing of a refused certificate. A line for each connection would let strangers fill the disk;
here it is one line for each wire and reason in each interval, with their number.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import structlog

from tidewire_server.ops.wire_metrics import Connected

INTERVAL_S: Final = 1.0

log = structlog.stdlib.get_logger(__name__)


class RefusalLog:
    """
    Looks at the counters of the raw wires; gRPC's library counts no refusals.

    Args:
        wires: Returns the connections of each raw wire, by scheme.
    """

    def __init__(self, wires: Callable[[], Mapping[str, Connected]]) -> None:
        self._wires = wires
        self._told: Counter[tuple[str, str]] = Counter()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look once in each interval."""
        self._task = asyncio.create_task(self._run(), name="refusal-log")

    def close(self) -> None:
        """Say what is left to say, and look no more."""
        if self._task is not None:
            self._task.cancel()
        self.tell()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            self.tell()

    def tell(self) -> None:
        """Write what happened since it was last said."""
        for wire, reason, count in self._new():
            log.info("connections refused", wire=wire, reason=reason, count=count)

    def _new(self) -> Iterator[tuple[str, str, int]]:
        for wire, connected in self._wires().items():
            for reason, count in list(connected.counters.refusals.items()):
                new = count - self._told[wire, reason]
                if new:
                    self._told[wire, reason] = count
                    yield wire, reason, new
