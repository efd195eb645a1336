"""Watchers that are slow, stall, or come and go: bounded memory, no gap, or a typed error."""

import asyncio
import random
from pathlib import Path

import pytest

from support.store import (
    WAIT_S,
    Store,
    delete_operation,
    open_store,
    put,
    put_operation,
    refused,
    until,
)
from support.watching import Reader, Seen, figures, watching_store
from tidewire import errors
from tidewire.v1 import state_pb2
from tidewire_server.core import ServiceLimits
from tidewire_server.engine.embedded import EngineOptions

WIRES = ("grpc", "tcp")
SMALL = ServiceLimits(
    subscriber_pending_bytes_max=20_000, subscriber_pending_messages_max=50, subscriber_stall_s=60
)


@pytest.mark.parametrize("wire", WIRES)
async def test_a_slow_watcher_costs_bounded_memory_and_loses_nothing(
    tmp_path: Path, wire: str
) -> None:
    """Its tail is emptied when it is full; it catches up from history when it reads again."""
    async with open_store(tmp_path, limits=SMALL, wire=wire) as store:
        async with watching_store(store) as reader:
            await reader.snapshot()
            for _ in range(20):
                # Enough that no buffer on the way holds all of it.
                await asyncio.gather(
                    *(store.state.Put(put(f"k{n}", bytes(20_000))) for n in range(20))
                )
            seen = await reader.seen(400)

        assert [revision for _, _, revision in seen] == list(range(1, 401))
        assert store.core.counters.values["state_watch_catch_ups_total"] > 0


@pytest.mark.parametrize("wire", WIRES)
async def test_a_slow_watcher_whose_history_is_gone_is_told(tmp_path: Path, wire: str) -> None:
    """It gets what was on its way, then REVISION_COMPACTED, never a gap."""
    async with open_store(tmp_path, limits=SMALL, wire=wire) as store:
        async with watching_store(store) as reader:
            await reader.snapshot()
            for _ in range(20):
                await asyncio.gather(
                    *(store.state.Put(put(f"k{n}", bytes(20_000))) for n in range(20))
                )
            await store.state.Compact(state_pb2.CompactRequest(revision=400))
            revisions: list[int] = []

            async def read_on() -> None:
                while True:
                    changes = (await reader.response()).changes.changes
                    revisions.extend(change.entry.revision for change in changes)

            error = await refused(read_on())

        assert isinstance(error, errors.RevisionCompacted)
        assert list(range(1, len(revisions) + 1)) == revisions


@pytest.mark.parametrize("wire", WIRES)
async def test_a_watcher_that_stalls_is_cut_off(tmp_path: Path, wire: str) -> None:
    """Who takes nothing for the stall time is ended with SLOW_CONSUMER and the place to resume."""
    limits = ServiceLimits(subscriber_stall_s=0.3)
    async with open_store(tmp_path, limits=limits, wire=wire) as store:
        async with watching_store(store) as reader:
            await reader.snapshot()
            await asyncio.gather(
                *(store.state.Put(put(f"k{n}", bytes(500_000))) for n in range(40))
            )
            await until(lambda: "state_watch_stalls_total" in store.core.counters.values)
            revisions: list[int] = []

            async def read_on() -> None:
                while True:
                    changes = (await reader.response()).changes.changes
                    revisions.extend(change.entry.revision for change in changes)

            error = await refused(read_on())

        assert isinstance(error, errors.SlowConsumer)
        assert list(range(1, len(revisions) + 1)) == revisions
        assert 0 == len(store.service._feed)


@pytest.mark.parametrize("seed", range(3))
async def test_every_watcher_sees_the_log_as_it_is(tmp_path: Path, seed: int) -> None:
    """
    Writers of several keys at once, watchers of several prefixes with tiny tails that stop and go
    and come back: each sees exactly the log of its prefix, whole revisions, in order.
    """
    rng = random.Random(seed)
    limits = ServiceLimits(subscriber_pending_messages_max=4)
    keys = [f"{prefix}/{n}" for prefix in "ab" for n in range(3)]

    async def write(store: Store) -> None:
        for _ in range(40):
            chosen = rng.sample(keys, rng.randint(1, 3))
            operations = [
                delete_operation(key) if rng.random() < 0.3 else put_operation(key)
                for key in chosen
            ]
            await store.state.Transact(state_pb2.TransactRequest(then=operations))

    async def watch(store: Store, prefix: str, done: asyncio.Event) -> list[Seen]:
        seen: list[Seen] = []
        revision = 0
        while not (done.is_set() and revision >= store.engine.state_revision):
            request = state_pb2.WatchRequest(prefix=prefix, after_revision=revision)
            request.changes_only = not revision
            request.idle_bookmark.FromMilliseconds(100)
            call = store.state.Watch(request)
            reader = await Reader(call).opened()
            for _ in range(rng.randint(1, 6)):
                response = await reader.response()
                seen += map(figures, response.changes.changes)
                revision = max(revision, response.changes.revision, response.bookmark.revision)
                await asyncio.sleep(rng.random() * 0.02)
            call.cancel()
        return seen

    async with open_store(tmp_path, limits=limits, options=EngineOptions(ballast_bytes=0)) as store:
        await store.state.Put(put("c"))
        done = asyncio.Event()
        prefixes = ["", "a", "b/1", "a/2"]
        watchers = [asyncio.create_task(watch(store, prefix, done)) for prefix in prefixes]
        await until(lambda: len(store.service._feed) == len(prefixes))
        await asyncio.gather(*(write(store) for _ in range(4)))
        done.set()
        async with asyncio.timeout(WAIT_S):
            seen = await asyncio.gather(*watchers)
        log = await store.state.Changes(
            state_pb2.ChangesRequest(after_revision=1, changes_max=10_000)
        )

    for prefix, got in zip(prefixes, seen, strict=True):
        expected = [c for c in log.changes if c.entry.key.startswith(prefix)]
        assert list(map(figures, expected)) == got
