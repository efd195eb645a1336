"""
A write-ahead log that was damaged in its middle is noticed; one that a crash cut is not called
damaged.
"""

import shutil
from pathlib import Path

import pytest

from support.engines import engine_at, messages_of, publish, stream_config

PAGE_BYTES = 4096
FRAME_BYTES = 24 + PAGE_BYTES
HEADER_BYTES = 32


async def crashed(directory: Path) -> Path:
    """A copy of a store as a kill leaves it: everything is in the log."""
    left = directory / "left"
    async with engine_at(directory / "store") as engine:
        await engine.create_stream(stream_config())
        for i in range(8):
            await publish(engine, "orders.a", b"%d" % i * 3000)
        shutil.copytree(directory / "store", left, ignore=shutil.ignore_patterns("*-shm", "lock"))
    return left


def frames_of(log: Path) -> int:
    return (log.stat().st_size - HEADER_BYTES) // FRAME_BYTES


async def test_a_whole_log_has_lost_nothing(tmp_path: Path) -> None:
    """Control: the log of a killed store is read to its end."""
    async with engine_at(await crashed(tmp_path)) as engine:
        assert 0 == engine.groups_lost
        assert 8 == len(await messages_of(engine, "orders"))


async def test_a_cut_log_is_no_damage(tmp_path: Path) -> None:
    """A log that ends in the middle of its last group has lost nothing that was acknowledged."""
    left = await crashed(tmp_path)
    log = left / "tidewire.db-wal"
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - FRAME_BYTES - 100)
    async with engine_at(left) as engine:
        assert 0 == engine.groups_lost
        assert 7 == len(await messages_of(engine, "orders"))


@pytest.mark.parametrize("part", [0.2, 0.5])
async def test_a_flipped_bit_in_the_log_is_named(tmp_path: Path, part: float) -> None:
    """Groups behind a damaged frame are counted; what is before it is served."""
    left = await crashed(tmp_path)
    log = left / "tidewire.db-wal"
    place = HEADER_BYTES + int(frames_of(log) * part) * FRAME_BYTES + 2000
    with log.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 8]))
    async with engine_at(left) as engine:
        assert engine.groups_lost >= 2
