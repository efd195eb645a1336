"""
Every I/O of a workload fails once, in each way a disk can fail, and nothing acknowledged is lost.

The workload is small on purpose, so that each of its writes and flushes can be the one that fails.
"""

import asyncio
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import apsw
import pytest

from support.engines import (
    SMALL,
    append_of,
    batch_of,
    engine_at,
    messages_of,
    put_of,
    stream_config,
    value_of,
)
from support.faulty_disk import Disk, Fault, error_at, full_from, power_cut_at
from tidewire import errors
from tidewire.v1 import common_pb2
from tidewire_server.engine.base import Transaction
from tidewire_server.engine.embedded import EmbeddedEngine, EngineOptions, full_disk
from tidewire_server.engine.embedded.files import Ballast

STEPS = 8
NAMES = itertools.count()


@dataclass
class Ledger:
    """What was tried and what was acknowledged; it lives outside of the store."""

    tried: dict[bytes, None] = field(default_factory=dict)
    acknowledged: dict[int, bytes] = field(default_factory=dict)
    value: bytes | None = None
    values_since: list[bytes] = field(default_factory=list)
    refusals: list[errors.TidewireError] = field(default_factory=list)


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk(f"faulty-{next(NAMES)}")
    yield made
    made.close()


def options_on(disk: Disk, **settings: object) -> EngineOptions:
    # A log of a few pages, so that it is copied into the database within the workload.
    return replace(SMALL, vfs=disk.name, wal_pages_max=16, readers=1, **settings)  # type: ignore[arg-type]


async def work(engine: EmbeddedEngine, ledger: Ledger, steps: range) -> None:
    """Publish with a key of State in each transaction, and write down what came of it."""
    for step in steps:
        payload = b"message %d " % step + b"x" * 3000
        ledger.tried[payload] = None
        ledger.values_since.append(payload)
        try:
            done = await engine.commit(
                Transaction(
                    appends=[append_of(batch_of("orders.a", payload))],
                    then=[put_of("last", payload)],
                )
            )
        except errors.TidewireError as exc:
            ledger.refusals.append(exc)
        else:
            assert common_pb2.DURABILITY_FSYNC == done.durability
            ledger.acknowledged[done.appends[0].stored.first] = payload
            ledger.value = payload
            ledger.values_since.clear()


async def make(directory: Path) -> None:
    """A store with a stream; a copy of one that is made once, because making takes flushes."""
    first = directory.parent / "first"
    if not first.exists():
        async with engine_at(first) as engine:
            await engine.create_stream(stream_config())
    await asyncio.to_thread(shutil.copytree, first, directory)


async def run(directory: Path, disk: Disk, fault: Fault | None, options: EngineOptions) -> Ledger:
    """The workload on a disk with a fault that begins after the store is made."""
    ledger = Ledger()
    await make(directory)
    async with engine_at(directory, options) as engine:
        disk.operations = 0
        disk.fault = fault
        await work(engine, ledger, range(STEPS))
        if ledger.refusals and not isinstance(ledger.refusals[0], errors.StoreFull):
            assert engine.failure is not None
            assert engine.failure is await engine.wait_failed()
    disk.fault = None
    return ledger


async def lost(directory: Path, ledger: Ledger) -> int:
    """
    Open what is left; check that it is whole; return how many acknowledged messages are not in it.
    """
    async with engine_at(directory) as engine:
        assert 0 == engine.groups_lost
        found = await messages_of(engine, "orders")
        assert list(range(1, len(found) + 1)) == list(found)
        assert set(found.values()) <= set(ledger.tried)
        assert len(found) == len(set(found.values()))
        value = await value_of(engine, "last")
        missing = sum(found.get(n) != data for n, data in ledger.acknowledged.items())
        if not missing:
            assert value in (ledger.value, *ledger.values_since)
            # The message and the key of one transaction are there together or not at all.
            assert value == (found[len(found)] if found else None)
        return missing


async def operations_of(tmp_path: Path, disk: Disk) -> int:
    """How many I/Os the workload takes without a fault."""
    ledger = await run(tmp_path / "whole", disk, None, options_on(disk))
    assert STEPS == len(ledger.acknowledged)
    assert 0 == await lost(tmp_path / "whole", ledger)
    return disk.operations


async def test_every_failing_write_or_flush_stops_the_engine(tmp_path: Path, disk: Disk) -> None:
    """
    After the n-th I/O failed nothing is acknowledged, though the disk would work again; nothing is
    lost.
    """
    total = await operations_of(tmp_path, disk)
    stopped = 0
    for number in range(1, total + 1):
        directory = tmp_path / str(number)
        ledger = await run(directory, disk, error_at(number), options_on(disk))
        if ledger.refusals:
            stopped += 1
            first, *later = ledger.refusals
            assert isinstance(first, errors.OutcomeUnknown | errors.Unavailable)
            assert all(isinstance(item, errors.Unavailable) for item in later)
            assert len(ledger.acknowledged) + len(ledger.refusals) == STEPS
        assert 0 == await lost(directory, ledger)

    # Only what fails while the store is closed has nobody to refuse.
    assert stopped >= total * 0.7


@pytest.mark.parametrize("survival", [0.0, 0.5, 1.0])
async def test_a_power_cut_at_every_point_loses_nothing(
    tmp_path: Path, disk: Disk, survival: float
) -> None:
    """
    Wherever the power goes, and whatever part of the unflushed sectors survives, what was
    acknowledged is there.
    """
    total = await operations_of(tmp_path, disk)
    for number in range(1, total + 1, 1 if survival == 0.5 else 4):
        disk.images.clear()
        ledger = await run(tmp_path / str(number), disk, power_cut_at(number), options_on(disk))
        left = tmp_path / f"left-{number}"
        disk.after_power_cut(left, survival, seed=number)
        assert 0 == await lost(left, ledger)


async def test_a_power_cut_is_noticed_without_flushing(tmp_path: Path, disk: Disk) -> None:
    """
    Control: with synchronous=NORMAL below the same acknowledgements, the same cuts lose messages.
    """
    options = options_on(disk, synchronous="NORMAL")
    losses = 0
    for number in (8, 12, 20):
        disk.images.clear()
        ledger = await run(tmp_path / str(number), disk, power_cut_at(number), options)
        left = tmp_path / f"left-{number}"
        disk.after_power_cut(left, 0.0, seed=number)
        try:
            losses += await lost(left, ledger)
        except errors.StreamNotFound:
            losses += len(ledger.acknowledged)

    assert losses


@pytest.mark.parametrize(
    ("level", "kept"), [(common_pb2.DURABILITY_OS, 0), (common_pb2.DURABILITY_FSYNC, 1)]
)
async def test_a_copy_is_as_durable_as_it_says(
    tmp_path: Path, disk: Disk, level: common_pb2.Durability.ValueType, kept: int
) -> None:
    """
    A copy that is acknowledged as flushed makes the first one so, which was not; control: one that
    asks for less does not.
    """
    await make(tmp_path / "store")
    append = append_of(batch_of("orders.a", b"a", message_ids=["a"]))
    async with engine_at(tmp_path / "store", options_on(disk)) as engine:
        for asked in (common_pb2.DURABILITY_OS, level):
            done = await engine.commit(Transaction(durability=asked, appends=[append]))
            assert asked == done.appends[0].durability
        disk.after_power_cut(tmp_path / "left", 0.0, seed=0)
    async with engine_at(tmp_path / "left") as engine:
        assert kept == len(await messages_of(engine, "orders"))


async def test_a_full_disk_refuses_and_goes_on(tmp_path: Path, disk: Disk) -> None:
    """
    While there is no space writes are refused and reads work; then it goes on, and nothing is lost.
    """
    total = await operations_of(tmp_path, disk)
    for number in range(1, total, 2):
        directory = tmp_path / str(number)
        ledger = Ledger()
        await make(directory)
        async with engine_at(directory, options_on(disk)) as engine:
            disk.operations = 0
            disk.fault = full_from(number, number + 40)
            await work(engine, ledger, range(STEPS))
            assert all(isinstance(item, errors.StoreFull) for item in ledger.refusals)
            assert ledger.acknowledged == await messages_of(engine, "orders")
            assert ledger.value == await value_of(engine, "last")
            disk.fault = None
            await work(engine, ledger, range(STEPS, STEPS + 3))
            assert engine.failure is None
            assert len(ledger.refusals) < STEPS + 3
        assert 0 == await lost(directory, ledger)


async def test_deleting_is_possible_on_a_full_disk(tmp_path: Path, disk: Disk) -> None:
    """The ballast is given up for what makes room, not for what takes it, and taken again."""
    options = replace(options_on(disk), ballast_bytes=4096)
    ballast = tmp_path / "store" / "ballast"

    def fault(_: int, kind: str) -> BaseException | None:
        return apsw.FullError("full") if kind == "write" and ballast.exists() else None

    async with engine_at(tmp_path / "store", options) as engine:
        await engine.create_stream(stream_config())
        ledger = Ledger()
        await work(engine, ledger, range(3))
        disk.fault = fault
        await work(engine, ledger, range(3, 5))
        assert 2 == len(ledger.refusals)
        assert 4096 == ballast.stat().st_size

        assert 3 == await engine.purge_stream("orders", 0)
        assert 4096 == ballast.stat().st_size
        disk.fault = None
        await work(engine, ledger, range(5, 6))
        assert 2 == len(ledger.refusals)


async def test_without_ballast_nothing_takes_room(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the ballast cannot be taken again deleting goes on and everything else is refused."""
    options = replace(options_on(disk), ballast_bytes=4096)
    ballast = tmp_path / "store" / "ballast"
    async with engine_at(tmp_path / "store", options) as engine:
        await engine.create_stream(stream_config())
        ledger = Ledger()
        await work(engine, ledger, range(3))
        disk.fault = lambda _, kind: (
            apsw.FullError("full") if kind == "write" and ballast.exists() else None
        )
        monkeypatch.setattr(Ballast, "take", lambda _: False)
        assert 3 == await engine.purge_stream("orders", 0)
        await work(engine, ledger, range(3, 4))
        assert 1 == len(ledger.refusals)
        await engine.compact_state(2)

        monkeypatch.undo()
        monkeypatch.setattr(full_disk, "RETRY_S", 0.0)
        disk.fault = None
        await work(engine, ledger, range(4, 5))
        assert 1 == len(ledger.refusals)
        assert ballast.exists()
