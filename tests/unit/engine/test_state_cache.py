"""Current entries in memory show exactly what the store has, and never what is over."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2

from support.engines import SMALL, delete, delete_of, engine_at, put, put_of, value_of
from support.faulty_disk import Disk, error_at
from tidewire import errors
from tidewire.v1 import state_pb2
from tidewire_server.engine.base import Transaction
from tidewire_server.engine.embedded import EmbeddedEngine, maintenance, state_reads
from tidewire_server.engine.embedded.state_cache import ENTRY_SHARE, StateCache

LIMIT_S = 20.0
HOUR_NS = 3600 * 10**9
TTL = duration_pb2.Duration(seconds=1000)
LATER = duration_pb2.Duration(seconds=10**6)
KEYS = [f"k{n}" for n in range(6)]
MORE_KEYS = [f"k{n}" for n in range(16)]


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    async with engine_at(tmp_path / "store") as opened:
        yield opened


def reads_of(engine: EmbeddedEngine) -> int:
    return engine.readers.reads


def found(engine: EmbeddedEngine, key: str) -> state_pb2.GetResponse | None:
    answer = engine.find_state(key)
    return None if answer is None else state_pb2.GetResponse.FromString(answer)


async def stored(engine: EmbeddedEngine, key: str) -> state_pb2.GetResponse:
    """What a thread reads."""
    return await engine.readers.read(lambda c: state_reads.get(c, key, 0))


async def test_the_second_read_needs_no_thread(engine: EmbeddedEngine) -> None:
    """An entry and an absence that were read once are answered from memory, word for word."""
    await put(engine, "a", b"1", ttl=TTL)
    for key in ("a", "none"):
        assert engine.find_state(key) is None
        first = await engine.get_state(key)
        before = reads_of(engine)
        assert first == await engine.get_state(key) == found(engine, key)
        assert before == reads_of(engine)
    assert (b"1", 1) == (first_value(engine, "a"), engine.state_revision)


def first_value(engine: EmbeddedEngine, key: str) -> bytes:
    answer = found(engine, key)
    assert answer is not None
    return answer.entry.value.data


async def test_every_way_to_change_a_key_is_seen(engine: EmbeddedEngine) -> None:
    """
    Put, delete, transaction, refused transaction, touch, expiry and a lost lease: memory says what
    the store says after each, and never needs to be asked twice.
    """
    member = await engine.join_member("n", 5.0, ())
    lease = state_pb2.LeaseRef(node_id="n", fencing_token=member.fencing_token)

    async def refuse() -> None:
        with pytest.raises(errors.RevisionMismatch):
            await engine.commit(Transaction(then=[put_of("a"), put_of("b", expected_revision=99)]))

    steps: list[Callable[[], Any]] = [
        lambda: put(engine, "a", b"1"),
        lambda: put(engine, "a", b"2"),
        refuse,
        lambda: delete(engine, "a"),
        lambda: put(engine, "a", b"3", ttl=TTL),
        lambda: engine.touch_state("a", None),
        lambda: engine.compact_state(engine.state_revision),
        lambda: engine._write(maintenance.sweep, frees=True),
        lambda: engine.expire_state(engine_now(engine) + 2 * HOUR_NS),
        lambda: engine.commit(Transaction(then=[put_of("a", b"4", lease=lease), delete_of("b")])),
        lambda: engine.drop_leased_state("n", member.fencing_token),
    ]
    for step in steps:
        await step()
        for key in ("a", "b"):
            assert await stored(engine, key) == await engine.get_state(key), key
            assert await stored(engine, key) == found(engine, key), key
    assert engine.state_cache.hits >= len(steps)


def engine_now(engine: EmbeddedEngine) -> int:
    return engine.writer._session.now_ns


async def test_many_changes_leave_memory_exact(engine: EmbeddedEngine) -> None:
    """2,000 random operations at once in a cache that is too small: each read fits the store."""
    engine.state_cache.bytes_max = ENTRY_SHARE * 400
    rng = random.Random(7)

    async def client() -> None:
        for step in range(100):
            key = rng.choice(MORE_KEYS)
            match rng.randrange(6):
                case 0:
                    await put(engine, key, b"%d" % step, ttl=rng.choice([None, LATER]))
                case 1:
                    await delete(engine, key)
                case 2:
                    await touch(key)
                case _:
                    await engine.get_state(key)

    async def touch(key: str) -> None:
        try:
            await engine.touch_state(key, None)
        except errors.KeyNotFound:
            assert await value_of(engine, key) in (None, *map(b"%d".__mod__, range(100)))

    await asyncio.gather(*(client() for _ in range(20)))
    for key in MORE_KEYS:
        assert await stored(engine, key) == await engine.get_state(key)
    assert engine.state_cache.hits > 100


# Reads that race with commits.


class HeldReads:
    """Holds what a reader thread has read until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_read = threading.Event()
        self.go_on = threading.Event()
        real = state_reads.get

        def get(*arguments: Any) -> state_pb2.GetResponse:
            response = real(*arguments)
            self.has_read.set()
            assert self.go_on.wait(LIMIT_S)
            return response

        monkeypatch.setattr(state_reads, "get", get)


class Trusting(StateCache):
    """Control: takes what a thread has read, whatever became known meanwhile."""

    def forget(self, ticket: dict[str, object]) -> set[str]:
        super().forget(ticket)
        return set(ticket)


async def overtaken(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch, change: Callable[[], Any]
) -> state_pb2.GetResponse:
    """What a read shows that begins after a change that overtook the read before it."""
    with monkeypatch.context() as patched:
        held = HeldReads(patched)
        slow = asyncio.create_task(engine.get_state("a"))
        assert await asyncio.to_thread(held.has_read.wait, LIMIT_S)
        await change()
        held.go_on.set()
        await slow
    return await engine.get_state("a")


async def test_a_change_overtakes_a_read(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A thread reads, the key is changed and acknowledged, then the thread's answer comes: it is not
    kept. Put, delete and touch alike.
    """
    await put(engine, "a", b"old", ttl=TTL)
    changes: list[Callable[[], Any]] = [
        lambda: engine.touch_state("a", None),
        lambda: put(engine, "a", b"new"),
        lambda: delete(engine, "a"),
    ]
    for change in changes:
        engine.state_cache._entries.clear()
        shown = await overtaken(engine, monkeypatch, change)
        assert await stored(engine, "a") == shown


async def test_an_overtaken_read_that_is_kept_is_noticed(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: without the guard the read after an acknowledged write shows what was before."""
    await put(engine, "a", b"old")
    engine.state_cache = Trusting(1_000_000)

    shown = await overtaken(engine, monkeypatch, lambda: put(engine, "a", b"new"))
    assert b"old" == shown.entry.value.data


class HeldNews:
    """Holds the writer between its commit and telling of it."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.committed = threading.Event()
        self.go_on = threading.Event()
        real: Any = engine.writer._answer

        def answer(jobs: Sequence[Any]) -> None:
            self.committed.set()
            assert self.go_on.wait(LIMIT_S)
            real(jobs)

        engine.writer._answer = answer  # type: ignore[method-assign]


@contextmanager
def unsaid(engine: EmbeddedEngine) -> Iterator[HeldNews]:
    held = HeldNews(engine)
    try:
        yield held
    finally:
        held.go_on.set()


async def shown_after(engine: EmbeddedEngine) -> tuple[state_pb2.GetResponse, ...]:
    """Two keys of one transaction, read one after the other before anybody hears of it."""
    await put(engine, "a", b"old")
    await put(engine, "b", b"old")
    await engine.get_state("b")
    with unsaid(engine) as held:
        both = Transaction(then=[put_of("a", b"new"), put_of("b", b"new")])
        commit = asyncio.create_task(engine.commit(both))
        assert await asyncio.to_thread(held.committed.wait, LIMIT_S)
        shown = await engine.get_state("a"), await engine.get_state("b")
    await commit
    return shown


async def test_what_a_thread_has_shown_is_not_taken_back(engine: EmbeddedEngine) -> None:
    """
    A thread shows one key of a transaction before its news is out: the other key is not answered
    from memory, where it is still the old one. Afterwards it is again.
    """
    first, second = await shown_after(engine)

    assert (b"new", b"new") == (first.entry.value.data, second.entry.value.data)
    assert (3, 3) == (first.revision, second.revision)
    before = reads_of(engine)
    assert b"new" == await value_of(engine, "b")
    assert before == reads_of(engine)


class Unaware(StateCache):
    """Control: does not hear of what threads show."""

    def exposed(self, turn: int) -> None:
        pass


async def test_what_is_taken_back_is_noticed(engine: EmbeddedEngine) -> None:
    """Control: without hearing of it the second read shows an older store than the first."""
    engine.state_cache = Unaware(1_000_000)
    first, second = await shown_after(engine)

    assert (b"new", b"old") == (first.entry.value.data, second.entry.value.data)
    assert first.revision > second.revision


async def test_a_failed_store_is_not_remembered(tmp_path: Path) -> None:
    """After a write failed nothing is answered from memory, and no listener hears of it."""
    disk = Disk("faulty-cache")
    try:
        options = replace(SMALL, vfs=disk.name, readers=1)
        async with engine_at(tmp_path / "store", options) as engine:
            await put(engine, "a", b"old")
            await engine.get_state("a")
            heard: list[object] = []
            engine.listeners.changed.append(lambda changes, _: heard.append(changes))
            disk.operations = 0
            disk.fault = error_at(1)
            with pytest.raises(errors.TidewireError):
                await put(engine, "a", b"new")
            assert engine.failure is not None
            assert engine.find_state("a") is None
            assert [] == heard
            disk.fault = None
    finally:
        disk.close()


# Bounds.


async def test_memory_is_bounded(tmp_path: Path) -> None:
    """The least recently used entries go; one that is large is not kept; 0 keeps nothing."""
    options = replace(SMALL, state_cache_bytes=16_000)
    async with engine_at(tmp_path / "some", options) as engine:
        for number in range(50):
            await put(engine, f"k{number}", b"x" * 500)
            await engine.get_state(f"k{number}")
            assert engine.state_cache.bytes <= 16_000
            assert engine.find_state("k0") is not None
        assert engine.find_state("k1") is None
        assert engine.find_state("k49") is not None
        await put(engine, "large", b"x" * (16_000 // ENTRY_SHARE))
        await engine.get_state("large")
        assert engine.find_state("large") is None
        for number in range(50):
            await delete(engine, f"k{number}")
        assert 0 < engine.state_cache.bytes < 16_000

    async with engine_at(tmp_path / "none", replace(SMALL, state_cache_bytes=0)) as engine:
        await put(engine, "a")
        await engine.get_state("a")
        assert (None, 0) == (engine.find_state("a"), engine.state_cache.bytes)


async def test_reads_that_end_early_leave_nothing(engine: EmbeddedEngine) -> None:
    """A read that is cancelled is forgotten, and does not keep others from filling."""
    await put(engine, "a")
    reading = asyncio.create_task(engine.get_state("a"))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert {} == engine.state_cache._reading
    await engine.get_state("a")
    assert engine.find_state("a") is not None


# Many keys.


async def test_many_keys_come_from_memory_when_all_are_there(engine: EmbeddedEngine) -> None:
    """One miss makes a thread read them all, at one revision; then all are in memory."""
    for key in KEYS[:4]:
        await put(engine, key, key.encode())
    await engine.get_state("k1")
    wanted = ["k3", "none", "k1", "k3"]
    assert engine.find_states(wanted, 10_000) is None
    read = await engine.get_states(wanted, bytes_max=10_000)
    before = reads_of(engine)
    again = await engine.get_states(wanted, bytes_max=10_000)

    assert read == again
    assert before == reads_of(engine)
    assert (["k3", "k1", "k3"], 4, 4) == ([e.key for e in read.entries], read.revision, read.read)


async def test_many_keys_end_where_they_are_too_large(engine: EmbeddedEngine) -> None:
    """From the first key on as far as it fits, at least one, from memory as from the store."""
    for key in KEYS:
        await put(engine, key, b"x" * 1000)
    for _ in range(2):
        for bytes_max, fits in ((10, 1), (2500, 2), (100_000, 6)):
            answer = await engine.get_states(KEYS, bytes_max=bytes_max)
            assert (fits, KEYS[:fits]) == (answer.read, [e.key for e in answer.entries])


async def test_many_keys_at_a_revision(engine: EmbeddedEngine) -> None:
    """What was current then; refused when it is forgotten or has not been."""
    await put(engine, "a", b"1")
    await put(engine, "b", b"1")
    await put(engine, "a", b"2")
    for _ in range(2):
        then = await engine.get_states(["a", "b"], 1, bytes_max=1000)
        assert ([(b"1", "a")], 1) == ([(e.value.data, e.key) for e in then.entries], then.revision)
        assert [b"2", b"1"] == [
            e.value.data for e in (await engine.get_states(["a", "b"], bytes_max=1000)).entries
        ]
    await engine.compact_state(3)
    with pytest.raises(errors.RevisionCompacted):
        await engine.get_states(["a"], 1, bytes_max=1000)
    with pytest.raises(errors.RevisionInFuture):
        await engine.get_states(["a"], 9, bytes_max=1000)
