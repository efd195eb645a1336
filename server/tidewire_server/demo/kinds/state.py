"""State: records in transactions, a series of changes by compare-and-set, and a watcher of all."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import tidewire
from tidewire.errors import RevisionMismatch
from tidewire.v1 import common_pb2
from tidewire_server.demo.data import Dataset
from tidewire_server.demo.names import Names
from tidewire_server.demo.report import Cell, Stopwatch, Unverified, require

OPERATIONS_MAX: Final = 128
WATCH_TIMEOUT_S: Final = 20.0


class Board:
    """Keys of one run, and what was done to them."""

    def __init__(
        self,
        client: tidewire.Client,
        names: Names,
        *,
        operations_max: int = OPERATIONS_MAX,
        page_size: int = 0,
    ) -> None:
        self._page_size = page_size
        self._operations_max = operations_max
        self._state = client.state
        self._names = names
        self._watch = Stopwatch()
        self._done: list[tuple[str, str]] = []

    async def verify(self, dataset: Dataset, cell: Cell) -> None:
        """Write everything; the watcher must see every change, in order, and nothing else."""
        prefix = self._names.key("")
        async with self._state.watch(prefix, changes_only=True) as watch:
            watching = asyncio.create_task(self._collect(watch, dataset))
            try:
                await self._load(dataset.records)
                latest = await self._change(dataset.series)
                async with asyncio.timeout(WATCH_TIMEOUT_S):
                    seen = await watching
            finally:
                watching.cancel()
        require(seen == self._done, "the watcher saw other changes than were made")
        await self._conflict(latest)
        final = dict(self._done)
        stored = {
            entry.key: entry.text
            async for entry in self._state.range(prefix, page_size=self._page_size)
        }
        require(stored == final, f"{len(stored)} keys are there, {len(final)} were written")
        cell.count = len(self._done)
        cell.p50_us = self._watch.p50_us
        cell.durable(common_pb2.DURABILITY_FSYNC)  # asked for below, so nothing less was accepted
        cell.detail = f"changes to {len(final):,} keys watched in order; a stale write was refused"

    async def _load(self, records: Mapping[str, str]) -> None:
        """Write records, many in one transaction."""
        items = list(records.items())
        for begin in range(0, len(items), self._operations_max):
            transaction = self._state.transact()
            for name, value in items[begin : begin + self._operations_max]:
                transaction.put(self._names.key(name), value)
                self._done.append((self._names.key(name), value))
            await transaction.commit(durability="fsync")

    async def _change(self, series: Sequence[tuple[str, str]]) -> dict[str, tidewire.Entry]:
        """Write one after the other, each on top of the one before; returns the last of each."""
        latest: dict[str, tidewire.Entry] = {}
        for name, value in series:
            key = self._names.key(name)
            revision = latest[key].revision if key in latest else 0
            with self._watch.measured():
                latest[key] = await self._state.put(
                    key, value, expected_revision=revision, durability="fsync"
                )
            self._done.append((key, value))
        return latest

    async def _conflict(self, latest: Mapping[str, tidewire.Entry]) -> None:
        """A write on top of an old revision is refused, and told the actual one."""
        key, entry = next(iter(latest.items()))
        try:
            await self._state.put(key, "stale", expected_revision=entry.revision - 1)
        except RevisionMismatch as error:
            actual = error.figure("actual_revision")
            require(actual == entry.revision, f"revision {entry.revision} was told as {actual}")
            return
        raise Unverified(f"a stale write of {key} was taken")

    async def _collect(self, watch: tidewire.Watch, dataset: Dataset) -> list[tuple[str, str]]:
        seen: list[tuple[str, str]] = []
        total = len(dataset.records) + len(dataset.series)
        async for event in watch:
            if event.kind is not tidewire.ChangeKind.PUT or event.entry is None:
                raise Unverified(f"the watcher saw {event}")
            seen.append((event.key, event.entry.text))
            if len(seen) == total:
                return seen
        raise Unverified(f"the watch ended after {len(seen)} changes")
