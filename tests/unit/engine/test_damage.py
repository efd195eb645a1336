"""
Damaged bytes are found, named and set aside; nothing wrong is ever served.

Bits are flipped at random over the whole database. Each reading must give what was written or an
error; the control switches the rows' checksums off and must see wrong values.
"""

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from support.engines import (
    SMALL,
    append_of,
    batch_of,
    delete,
    engine_at,
    messages_of,
    publish,
    put,
    stream_config,
    value_of,
)
from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2
from tidewire_server.engine.base import CheckpointWrite, Transaction
from tidewire_server.engine.embedded import EmbeddedEngine, maintenance, open_engine, rows
from tidewire_server.engine.embedded.session import Session

FLIPS = 200
BATCHES = 40
KEYS = 30


def payload(number: int) -> bytes:
    return f"message {number} ".encode() * (1 + number % 40)


def value(key: int, version: int) -> bytes:
    return f"value {key} {version} ".encode() * (1 + key)


async def fill(directory: Path) -> None:
    async with engine_at(directory) as engine:
        await engine.create_stream(stream_config())
        await engine.create_stream(stream_config("other"))
        for start in range(1, BATCHES * 3, 3):
            await publish(engine, "orders.a", *(payload(n) for n in range(start, start + 3)))
        for version in (1, 2):
            for key in range(KEYS):
                await put(engine, f"key-{key}", value(key, version))
        await put(engine, "gone")
        await delete(engine, "gone")
        epoch, _ = await engine.acquire_operator("op", 0)
        for n in range(2):
            state = payload(1000 + n) * 50
            write = CheckpointWrite("op", epoch, None, state, (), b"", ())
            await engine.commit(Transaction(checkpoint=write))
        await engine.create_consumer("orders", consumer())
        await engine.join_member("node", 5.0, ["group"])


def consumer() -> event_pb2.ConsumerConfig:
    return event_pb2.ConsumerConfig(name="c", start=event_pb2.StartPosition(sequence=5))


async def read_stream(engine: EmbeddedEngine) -> tuple[int, int]:
    """
    Read everything around what is damaged; return how many are wrong and how many are reported.
    """
    wrong = reported = 0
    position = 1
    while position <= BATCHES * 3:
        try:
            part = await engine.read_stream("orders", position, messages_max=7, bytes_max=10_000)
        except errors.DataCorrupt as exc:
            last = exc.figure("last_sequence")
            if last is None:
                return wrong, reported + BATCHES * 3 - position + 1
            reported += last - position + 1
            position = last + 1
            continue
        for stored in part.batches:
            if stored.first_sequence > position:
                wrong += 1  # A hole that nobody reported.
            payloads = common_pb2.PayloadList.FromString(stored.batch.body).payload
            numbers = range(stored.first_sequence, stored.last_sequence + 1)
            wrong += [payload(n) for n in numbers] != list(payloads)
            position = stored.last_sequence + 1
        wrong += position != part.next_sequence
        if not part.batches:
            wrong += part.next_sequence <= BATCHES * 3
            break
        position = part.next_sequence
    return wrong, reported


async def look(engine: EmbeddedEngine) -> tuple[int, int, int]:
    """Read everything; return how much is right, how much wrong, how much reported."""
    right = wrong = reported = 0

    async def check(reading: Callable[[], object], expected: object) -> None:
        nonlocal right, wrong, reported
        try:
            found = await reading()  # type: ignore[misc]
        except errors.DataLoss:
            reported += 1
        else:
            right += found == expected
            wrong += found != expected

    for key in range(KEYS):
        await check(lambda k=key: value_of(engine, f"key-{k}"), value(key, 2))  # type: ignore[misc]
        await check(
            lambda k=key: value_of(engine, f"key-{k}", KEYS + k),  # type: ignore[misc]
            value(key, 1),
        )
    await check(lambda: value_of(engine, "gone"), None)
    await check(lambda: checkpoint_of(engine, 0), (2, payload(1001) * 50))
    await check(lambda: checkpoint_of(engine, 1), (1, payload(1000) * 50))
    await check(lambda: floor_of(engine), 4)
    await check(lambda: keys_of(engine), sorted(f"key-{key}" for key in range(KEYS)))
    try:
        damaged = await read_stream(engine)
    except errors.DataLoss:
        damaged = (0, BATCHES * 3)
    return right, wrong + damaged[0], reported + damaged[1]


async def checkpoint_of(engine: EmbeddedEngine, revision: int) -> tuple[int, bytes]:
    try:
        found = await engine.load_checkpoint("op", revision, with_state=True)
    except errors.CheckpointNotFound:
        # An older one may be gone, if its row is; the last one never without a word.
        assert revision
        return (1, payload(1000) * 50)
    assert found is not None
    return found.revision, found.inline


async def floor_of(engine: EmbeddedEngine) -> int:
    return (await engine.get_consumer("orders", "c")).state.ack_floor


async def keys_of(engine: EmbeddedEngine) -> list[str]:
    entries, _, _ = await engine.range_state("", entries_max=1000, bytes_max=10**7)
    return [entry.key for entry in entries]


async def flip_and_look(original: Path, scratch: Path, seeds: range) -> tuple[int, int, int]:
    """
    Flip one bit for each seed and look; return readings that were right, wrong, and reported or
    refused.
    """
    totals = [0, 0, 0]
    for seed in seeds:
        chance = random.Random(seed)
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(original, scratch)
        path = scratch / "tidewire.db"
        content = bytearray(path.read_bytes())
        place = chance.randrange(len(content) * 8)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            engine = await open_engine(scratch, options=SMALL)
        except errors.StoreUnusable:
            totals[2] += 1
            continue
        try:
            for index, count in enumerate(await look(engine)):
                totals[index] += count
        finally:
            await engine.close()
    return totals[0], totals[1], totals[2]


@pytest.mark.timeout(180)
async def test_flipped_bits_are_never_served(tmp_path: Path) -> None:
    """
    With one flipped bit anywhere in the file, every answer is right or an error, and most are
    right.
    """
    await fill(tmp_path / "store")
    right, wrong, reported = await flip_and_look(
        tmp_path / "store", tmp_path / "flipped", range(FLIPS)
    )

    assert 0 == wrong
    assert reported > FLIPS / 10
    assert right > FLIPS * KEYS


@pytest.mark.timeout(180)
async def test_flipped_bits_are_served_without_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the same flips with the rows' checksums switched off give wrong values."""
    await fill(tmp_path / "store")
    monkeypatch.setattr(rows, "fits", lambda *_: True)
    wrong = 0
    for start in range(0, FLIPS, 20):
        try:
            _, found, _ = await flip_and_look(
                tmp_path / "store", tmp_path / "flipped", range(start, start + 20)
            )
        except Exception:  # noqa: BLE001 (unchecked bytes may break anything)
            found = 1
        wrong += found
        if wrong > 3:
            break

    assert wrong > 3


# Damage at a chosen place.


@pytest.fixture
async def broken(tmp_path: Path) -> Path:
    await fill(tmp_path / "store")
    return tmp_path / "store"


def change(directory: Path, sql: str, *bindings: object) -> None:
    connection = apsw.Connection(str(directory / "tidewire.db"))
    connection.execute(sql, bindings)
    connection.close()


def ranges_of(stream: event_pb2.Stream) -> Iterator[tuple[int, int]]:
    return ((item.first, item.last) for item in stream.state.quarantined)


BATCH_10 = "id = (SELECT id FROM batches WHERE id & 0x7ffffffffff = 10)"


@pytest.mark.parametrize(
    "sql",
    [
        f"UPDATE batches SET batch = zeroblob(20) WHERE {BATCH_10}",
        f"UPDATE batches SET last_sequence = 99 WHERE {BATCH_10}",
        f"UPDATE batches SET time_ns = time_ns + 1 WHERE {BATCH_10}",
        f"UPDATE batches SET subject = 'orders.b' WHERE {BATCH_10}",
        f"UPDATE batches SET id = id + 1 WHERE {BATCH_10}",
        f"DELETE FROM batches WHERE {BATCH_10}",
    ],
)
async def test_a_damaged_batch_is_set_aside(broken: Path, sql: str) -> None:
    """The range is named, remembered and reported; the rest is served; new messages go on."""
    change(broken, sql)
    async with engine_at(broken) as engine:
        before = await engine.read_stream("orders", 1, messages_max=1000, bytes_max=10**7)
        with pytest.raises(errors.DataCorrupt) as caught:
            await engine.read_stream("orders", 11, messages_max=1000, bytes_max=10**7)
        after = await engine.read_stream("orders", 13, messages_max=1000, bytes_max=10**7)

        assert [1, 4, 7] == [item.first_sequence for item in before.batches]
        assert 10 == before.next_sequence
        assert 12 == caught.value.figure("last_sequence")
        assert 13 == after.batches[0].first_sequence
        assert [(10, 12)] == list(ranges_of(await engine.get_stream("orders")))
        response = await publish(engine, "orders.a", b"new")
        assert BATCHES * 3 + 1 == response.stored.first
    async with engine_at(broken) as engine:
        stream = await engine.get_stream("orders")
        assert [(10, 12)] == list(ranges_of(stream))
        assert BATCHES * 3 + 1 == stream.state.messages
        await engine.purge_stream("orders", 12)
        assert [] == list(ranges_of(await engine.get_stream("orders")))
        assert 13 == min(await messages_of(engine, "orders"))


async def test_damage_does_not_stop_retention(broken: Path) -> None:
    """A batch with a damaged end is removed in its turn, and nothing else with it."""
    change(broken, f"UPDATE batches SET last_sequence = 10000 WHERE {BATCH_10}")
    async with engine_at(broken) as engine:
        await engine.update_stream(stream_config(messages_max=60))
        await publish(engine, "orders.a", b"new")

        found = await messages_of(engine, "orders")
        assert BATCHES * 3 + 1 == max(found)
        assert 58 == len(found)


async def test_damaged_values_heal_by_writing(broken: Path) -> None:
    """
    A damaged key is an error for who reads it, and whole again when it is written without
    conditions.
    """
    change(broken, "UPDATE heads SET version = version + 1 WHERE key = 'key-3'")
    async with engine_at(broken) as engine:
        with pytest.raises(errors.DataCorrupt):
            await value_of(engine, "key-3")
        with pytest.raises(errors.DataCorrupt):
            await put(engine, "key-3", b"new", expected_revision=4)
        assert value(4, 2) == await value_of(engine, "key-4")
        await put(engine, "key-3", b"new")
        assert b"new" == await value_of(engine, "key-3")
        assert {"heads"} == engine.damaged
        assert ("heads: 'key-3'",) == engine.damaged_rows
    async with engine_at(broken) as engine:
        assert frozenset() == engine.damaged


@pytest.mark.parametrize(
    ("sql", "reading"),
    [
        ("UPDATE heads SET key = 'kez-3' WHERE key = 'key-3'", lambda e: value_of(e, "key-3")),
        (
            "UPDATE streams SET name = 'ordess' WHERE name = 'orders'",
            lambda e: e.get_stream("orders"),
        ),
        (
            "UPDATE streams SET bytes = 1 WHERE name = 'orders'",
            lambda e: e.commit(Transaction(appends=[append_of(batch_of("orders.a", b"1"))])),
        ),
        (
            "UPDATE streams SET bytes = 1 WHERE name = 'orders'",
            lambda e: e.create_stream(stream_config()),
        ),
        ("UPDATE consumers SET name = 'd'", lambda e: e.get_consumer("orders", "c")),
        ("UPDATE consumers SET state = x'0801'", lambda e: e.get_consumer("orders", "c")),
        ("UPDATE operators SET name = 'oq'", lambda e: e.acquire_operator("op", 0)),
        ("UPDATE operators SET epoch = 0", lambda e: e.acquire_operator("op", 0)),
        (
            "UPDATE operators SET current_revision = 1",
            lambda e: e.load_checkpoint("op", 0, with_state=True),
        ),
        (
            "DELETE FROM checkpoints WHERE revision = 2",
            lambda e: e.load_checkpoint("op", 0, with_state=True),
        ),
        (
            "UPDATE checkpoints SET inline = x'00' WHERE revision = 2",
            lambda e: e.load_checkpoint("op", 0, with_state=True),
        ),
    ],
)
async def test_what_cannot_be_trusted_is_an_error(
    broken: Path, sql: str, reading: Callable[[EmbeddedEngine], object]
) -> None:
    """
    A row that is damaged, or lost from a table in which absence means something, is DATA_CORRUPT.
    """
    change(broken, sql)
    async with engine_at(broken) as engine:
        with pytest.raises(errors.DataCorrupt):
            await reading(engine)  # type: ignore[misc]
        assert value(4, 2) == await value_of(engine, "key-4")


async def test_damaged_members_join_above_all_before(broken: Path) -> None:
    """A member whose record is lost gets an incarnation and token higher than any it had."""
    change(broken, "UPDATE members SET incarnation = 0")
    async with engine_at(broken) as engine:
        assert [] == list(await engine.list_members())
        again = await engine.join_member("node", 5.0, ())

        assert again.incarnation > 1
        assert again.fencing_token > 1


async def test_damaged_chunks_may_be_stored_again(tmp_path: Path) -> None:
    """
    A damaged chunk is reported by reading it and heals by storing it, and the checkpoint that uses
    it keeps it.
    """
    digest = hashlib.sha256(b"chunk").digest()
    options = replace(SMALL, chunk_grace_s=0.0)
    async with engine_at(tmp_path) as engine:
        await engine.put_chunk(digest, b"chunk")
        epoch, _ = await engine.acquire_operator("op", 0)
        write = CheckpointWrite("op", epoch, None, None, [(digest, 5)], b"s" * 32, ())
        await engine.commit(Transaction(checkpoint=write))
    for sql in ("UPDATE chunk_data SET data = x'0011223344'", "UPDATE chunks SET uses = 0"):
        change(tmp_path, sql)
        async with engine_at(tmp_path, options) as engine:
            if "data" in sql:
                with pytest.raises(errors.DataCorrupt):
                    await engine.get_chunk(digest)
            else:
                assert [digest] == list(await engine.find_missing_chunks([digest]))
            assert not await engine.put_chunk(digest, b"chunk")
            await engine._write(sweep_later)
            assert b"chunk" == await engine.get_chunk(digest)
            assert [] == list(await engine.find_missing_chunks([digest]))


def sweep_later(session: Session) -> int:
    session.now_ns += 3600 * 10**9
    return maintenance.sweep(session)
