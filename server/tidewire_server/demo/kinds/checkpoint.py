"""Checkpoint: the summaries that the operator committed with its state, each exactly once."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import tidewire
from tidewire.errors import DeadlineExceeded
from tidewire.v1 import common_pb2
from tidewire_server.demo.expected import Summary, read
from tidewire_server.demo.names import Names
from tidewire_server.demo.report import Cell, require

NEXT_TIMEOUT_S: Final = 15.0
COMMITTED_TIMEOUT_S: Final = 30.0
LOOK_S: Final = 0.05


class DailyStream:
    """Reads the summaries as they are published by commits."""

    def __init__(
        self, client: tidewire.Client, names: Names, summaries: tidewire.Subscription
    ) -> None:
        self._client = client
        self._names = names
        self._inbox = summaries
        self._read: list[Summary] = []

    async def read_until(self, count: int) -> None:
        """Read until so many summaries have come. Error: DeadlineExceeded, when none comes."""
        while len(self._read) < count:
            message = await self._inbox.next(timeout_s=NEXT_TIMEOUT_S)
            self._read.append(read(message.payload))

    async def wait_committed(self, position: int) -> None:
        """Wait until a checkpoint is as far in the readings as this. Error: DeadlineExceeded."""
        operator = self._client.checkpoints.operator(self._names.operator)
        try:
            async with asyncio.timeout(COMMITTED_TIMEOUT_S):
                while True:
                    last = await operator.load()
                    if last is not None and last.info.position(self._names.weather) >= position:
                        return
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the operator did not commit reading {position} within {COMMITTED_TIMEOUT_S:g} s"
            ) from None

    async def verify(
        self,
        expected: Mapping[tuple[str, str], Summary],
        status: Mapping[str, Any],
        cell: Cell,
    ) -> None:
        """Every day once, equal to the direct computation; the positions at the streams' ends."""
        times = Counter((summary.city, summary.day) for summary in self._read)
        twice = [place for place, count in times.items() if count > 1]
        require(not twice, f"summaries came more than once: {twice[:5]}")
        got = {(summary.city, summary.day): summary for summary in self._read}
        wrong = [place for place in expected if got.get(place) != expected[place]]
        require(got == dict(expected), f"wrong or missing: {wrong[:5]}, {len(wrong)} in all")
        # The stream, not only what came of it, holds no more: nothing was committed twice.
        daily = (await self._client.events.stream(self._names.daily).info()).state
        require(
            daily.last_sequence == len(expected),
            f"{len(expected)} days were there, {daily.last_sequence} summaries are stored",
        )
        weather = self._client.events.stream(self._names.weather)
        last = (await weather.info()).state.last_sequence
        settled = (await weather.consumer(self._names.operator).info()).state.ack_floor
        checkpoint = await self._client.checkpoints.operator(self._names.operator).load()
        require(checkpoint is not None, "there is no checkpoint")
        assert checkpoint is not None
        position = checkpoint.info.position(self._names.weather)
        require(
            position == settled == last,
            f"of {last} readings {position} are in the checkpoint, {settled} settled",
        )
        require(not status["unreadable"], f"the operator dropped {status['unreadable']} readings")
        cell.count = checkpoint.info.revision
        cell.durable(common_pb2.Durability.Value(status["durability"]))
        if status["commit_p50_s"] is not None:
            cell.p50_us = round(status["commit_p50_s"] * 1e6, 1)
        cell.detail = (
            f"commits; {len(expected):,} daily summaries exactly once across a SIGKILL: restored "
            f"at {status['restored_from']:,}, {status['delivered_again']:,} readings came again"
        )
