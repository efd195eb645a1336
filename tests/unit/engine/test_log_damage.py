"""
A write-ahead log that was damaged in its middle is noticed; one that a crash cut is not called
damaged.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.engines import engine_at, messages_of, publish, put, stream_config, value_of
from tidewire.errors import DataCorrupt, OperatorFenced
from tidewire_server.engine.base import CheckpointWrite, Transaction
from tidewire_server.engine.embedded import lost_groups, opening, reserved

PAGE_BYTES = 4096
FRAME_BYTES = 24 + PAGE_BYTES
HEADER_BYTES = 32
MANY: Any = {"messages_max": 1000, "bytes_max": 1_000_000}


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


@pytest.mark.parametrize("was_started_anew", [True, False])
async def test_a_cut_log_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_started_anew: bool
) -> None:
    """
    A log that a power cut has ended in the middle of its last group has lost nothing that was
    acknowledged. Control: while the machine runs, it is known that the group was.
    """
    left = await crashed(tmp_path)
    if was_started_anew:
        monkeypatch.setattr(reserved, "_boot_id", lambda: b"another boot, it")
    log = left / "tidewire.db-wal"
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - FRAME_BYTES - 100)
    async with engine_at(left) as engine:
        assert (0 if was_started_anew else 1) == engine.groups_lost
        state = (await engine.get_stream("orders")).state
        assert (7, not was_started_anew) == (state.messages, state.last_sequence > 8)


@pytest.mark.parametrize("part", [0.2, 0.5])
async def test_a_flipped_bit_in_the_log_is_named(tmp_path: Path, part: float) -> None:
    """Groups behind a damaged frame are counted; what is before it is served."""
    left = await crashed(tmp_path)
    flip(left / "tidewire.db-wal", part)
    async with engine_at(left) as engine:
        assert engine.groups_lost >= 2


def flip(log: Path, part: float, back: int = 0) -> None:
    """Flip one bit in a frame of the log, so many before the one at this part of it."""
    place = HEADER_BYTES + (int(frames_of(log) * part) - back) * FRAME_BYTES + 2000
    with log.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 8]))


async def lose_half(directory: Path) -> tuple[Path, int]:
    """A store that was killed, and whose log then lost its newer half; and its last sequence."""
    left = await crashed(directory)
    flip(left / "tidewire.db-wal", 0.5)
    copy = directory / "copy"
    shutil.copytree(left, copy)
    async with engine_at(copy) as engine:
        kept = [batch.first for batch in (await engine.get_stream("orders")).state.quarantined]
    return left, kept[0] - 1


async def test_lost_sequences_are_not_given_again(tmp_path: Path) -> None:
    """
    Eight messages were delivered and some are lost: what is published next gets a sequence above
    all of them, the lost range is named, and what is kept is served.
    """
    left, kept = await lose_half(tmp_path)
    assert 0 < kept < 8
    async with engine_at(left) as engine:
        state = (await engine.get_stream("orders")).state
        assert kept == state.messages
        [lost] = state.quarantined
        assert (kept + 1, state.last_sequence) == (lost.first, lost.last)
        stored = (await publish(engine, "orders.a", b"new")).stored
        assert stored.first == lost.last + 1 > 8
        assert kept == len((await engine.read_stream("orders", 1, **MANY)).batches)
        with pytest.raises(DataCorrupt) as caught:
            await engine.read_stream("orders", kept + 1, **MANY)
        assert lost.last == caught.value.figure("last_sequence")
        assert {stored.first: b"new"} == await messages_of(engine, "orders", lost.last + 1)
    assert 1 == len(list(left.glob("tidewire.db-wal.damaged-*")))


async def test_other_numbers_are_not_given_again(tmp_path: Path) -> None:
    """Revisions of State, epochs and fencing tokens go on above all that may have been given."""
    async with engine_at(tmp_path / "store") as engine:
        await engine.create_stream(stream_config())
        for i in range(8):
            given = (await put(engine, f"k{i}", b"x" * 3000)).revision
            member = await engine.join_member(f"n{i}", 5.0, ())
        epoch = engine.epoch
        shutil.copytree(
            tmp_path / "store", tmp_path / "left", ignore=shutil.ignore_patterns("*-shm", "lock")
        )
    flip(tmp_path / "left" / "tidewire.db-wal", 0.3)
    async with engine_at(tmp_path / "left") as engine:
        assert await value_of(engine, "k0") is not None
        assert await value_of(engine, "k7") is None
        assert (await put(engine, "k8")).revision > given
        assert (await engine.join_member("n8", 5.0, ())).fencing_token > member.fencing_token
        assert engine.epoch > epoch


async def test_a_fenced_operator_stays_fenced(tmp_path: Path) -> None:
    """An epoch that a damaged log took back is not given to another incarnation."""
    async with engine_at(tmp_path / "store") as engine:
        await engine.acquire_operator("totals", 0)
        for i in range(8):
            await put(engine, f"k{i}", b"x" * 3000)
        lost, _ = await engine.acquire_operator("totals", 0)
        late, _ = await engine.acquire_operator("late", 0)
        shutil.copytree(
            tmp_path / "store", tmp_path / "left", ignore=shutil.ignore_patterns("*-shm", "lock")
        )
    flip(tmp_path / "left" / "tidewire.db-wal", 0.5)
    async with engine_at(tmp_path / "left") as engine:
        epoch, _ = await engine.acquire_operator("totals", 0)
        assert epoch > lost
        assert (await engine.acquire_operator("late", 0))[0] > late
        await engine.commit(Transaction(checkpoint=checkpoint_at(epoch)))
        with pytest.raises(OperatorFenced):
            await engine.commit(Transaction(checkpoint=checkpoint_at(lost)))


def checkpoint_at(epoch: int) -> CheckpointWrite:
    return CheckpointWrite("totals", epoch, None, b"", (), hashlib.sha256().digest(), ())


@pytest.mark.parametrize("was_started_anew", [False, True])
async def test_the_last_group_is_lost_unless_the_power_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_started_anew: bool
) -> None:
    """
    A kill tears no group: when the last one cannot be read, it was damaged, and its sequence is
    not given again. After a power cut it may be torn, and nobody was told of it.
    """
    left = await crashed(tmp_path)
    flip(left / "tidewire.db-wal", 1.0, back=1)
    if was_started_anew:
        monkeypatch.setattr(reserved, "_boot_id", lambda: b"another boot, it")
    async with engine_at(left) as engine:
        assert (0 if was_started_anew else 1) == engine.groups_lost
        stored = (await publish(engine, "orders.a", b"new")).stored
        assert (stored.first == 8) == was_started_anew


async def test_a_damaged_beginning_of_the_log_is_a_loss(tmp_path: Path) -> None:
    """Without its header nothing of the log is read: all of it is lost, and that is noticed."""
    left = await crashed(tmp_path)
    with (left / "tidewire.db-wal").open("r+b") as file:
        file.seek(17)
        file.write(b"\xff")
    async with engine_at(left) as engine:
        assert engine.groups_lost >= 1
        await engine.create_stream(stream_config())
        assert engine.epoch > 1000


async def test_a_kill_at_any_write_loses_nothing(tmp_path: Path) -> None:
    """Whatever was written of a group that nobody was told of is no damage."""
    left = await crashed(tmp_path)
    whole = (left / "tidewire.db-wal").read_bytes()
    salts = whole[16:24]
    for cut in (8, 24, 24 + 100, FRAME_BYTES - 1):
        copy = tmp_path / f"cut{cut}"
        shutil.copytree(left, copy)
        last = whole[-FRAME_BYTES:]
        assert salts == last[8:16]
        torn = last[:cut] + bytes(FRAME_BYTES - cut)
        (copy / "tidewire.db-wal").write_bytes(whole + torn)
        async with engine_at(copy) as engine:
            assert 0 == engine.groups_lost
            assert 9 == (await publish(engine, "orders.a", b"new")).stored.first


async def test_a_loss_is_counted_once(tmp_path: Path) -> None:
    """After a loss was dealt with, a kill and a start find nothing lost, and skip nothing."""
    left, _ = await lose_half(tmp_path)
    async with engine_at(left) as engine:
        stored = (await publish(engine, "orders.a", b"new")).stored
        again = tmp_path / "again"
        shutil.copytree(left, again, ignore=shutil.ignore_patterns("*-shm", "lock"))
    async with engine_at(again) as engine:
        assert 0 == engine.groups_lost
        assert stored.last + 1 == (await publish(engine, "orders.a", b"newer")).stored.first


async def test_without_what_was_reserved_much_is_skipped(tmp_path: Path) -> None:
    """A store restored without the file of reserved numbers skips more than can have been given."""
    left, kept = await lose_half(tmp_path)
    (left / "reserved").unlink()
    async with engine_at(left) as engine:
        stored = (await publish(engine, "orders.a", b"new")).stored
        assert kept + lost_groups.SKIPPED_BLINDLY + 1 == stored.first


async def test_control_sequences_given_again_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: without skipping, a lost sequence names another message."""
    left, kept = await lose_half(tmp_path)
    monkeypatch.setattr(opening, "skip_numbers", lambda *_: None)
    async with engine_at(left) as engine:
        assert kept + 1 == (await publish(engine, "orders.a", b"new")).stored.first


@pytest.mark.parametrize("limits", [{"messages_max": 100}, {"messages_max": 100, "discard": 2}])
async def test_what_was_lost_does_not_count_as_kept(tmp_path: Path, limits: dict[str, Any]) -> None:
    """Retention by count removes nothing for a range in which there is nothing."""
    left, kept = await lose_half(tmp_path)
    async with engine_at(left) as engine:
        await engine.update_stream(stream_config(**limits))
        for _ in range(100 - kept):
            await publish(engine, "orders.a", b"new")
        state = (await engine.get_stream("orders")).state
        assert (1, 100) == (state.first_sequence, state.messages)
    async with engine_at(left) as engine:
        assert 100 == (await engine.get_stream("orders")).state.messages
        if "discard" not in limits:
            await publish(engine, "orders.a", b"new")
            state = (await engine.get_stream("orders")).state
            assert (2, 100) == (state.first_sequence, state.messages)
