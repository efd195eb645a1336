"""Opening a store: locks, formats, foreign and damaged files, and that refusing touches nothing."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from support.engines import SMALL, engine_at, messages_of, publish, put, stream_config, value_of
from tidewire import errors
from tidewire_server.engine.embedded import connections, open_engine

Snapshot = dict[str, tuple[bytes, int]]


def snapshot(directory: Path) -> Snapshot:
    """Content and time of every file but the lock."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "lock"]
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def names(directory: Path) -> list[str]:
    """Names of the files of a directory."""
    return sorted(path.name for path in directory.iterdir())


async def make(directory: Path) -> None:
    async with engine_at(directory) as engine:
        await engine.create_stream(stream_config())
        await publish(engine, "orders.a", b"1")
        await put(engine, "k")


def with_pragma(name: str, value: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA {name}={value}")
        connection.close()

    return change


def with_bytes(offset: int, data: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return change


def with_damaged_facts(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value=value+1 WHERE name='state_revision'")
    connection.commit()
    connection.close()


def with_text(path: Path) -> None:
    path.write_text("this is not a database" * 100)


def without_tables(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE members")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_pragma("user_version", 2), "newer version"),
        (with_pragma("user_version", 0), "unknown format"),
        (with_pragma("application_id", 7), "another application"),
        (with_bytes(0, b"SQLite fOrmat"), "not a database"),
        (with_text, "not a database"),
        (with_bytes(100, b"\xff" * 200), "damaged"),
        (with_damaged_facts, "damaged"),
        (without_tables, "damaged"),
    ],
)
async def test_what_is_not_ours_is_refused_untouched(
    tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    """A store that cannot be used is refused, and not a byte or time of it changes."""
    await make(tmp_path)
    change(tmp_path / "tidewire.db")
    before = snapshot(tmp_path)
    with pytest.raises(errors.StoreUnusable, match=words):
        await open_engine(tmp_path, options=SMALL)

    assert before == snapshot(tmp_path)


async def test_a_log_without_its_database_is_refused(tmp_path: Path) -> None:
    """A write-ahead log whose database is gone is not taken for a new store."""
    (tmp_path / "tidewire.db-wal").write_bytes(b"x" * 100)
    with pytest.raises(errors.StoreUnusable):
        await open_engine(tmp_path, options=SMALL)

    assert ["tidewire.db-wal"] == names(tmp_path)


async def test_opening_again_is_fine(tmp_path: Path) -> None:
    """Control: the same store, not changed, opens; the epoch grows and the cluster stays."""
    await make(tmp_path)
    async with engine_at(tmp_path) as engine:
        first = (engine.epoch, engine.cluster_id)
    async with engine_at(tmp_path) as engine:
        assert (first[0] + 1, first[1]) == (engine.epoch, engine.cluster_id)
        assert b"v" == await value_of(engine, "k")


async def test_a_store_has_one_process(tmp_path: Path) -> None:
    """A second opening is refused and says who has it; after closing it is free."""
    async with engine_at(tmp_path):
        with pytest.raises(errors.StoreLocked) as caught:
            await open_engine(tmp_path, options=SMALL)
        assert caught.value.figure("pid")
    async with engine_at(tmp_path):
        pass


HOLD = """
import asyncio, sys
from pathlib import Path
from tidewire_server.engine.embedded import open_engine

async def hold():
    await open_engine(Path(sys.argv[1]))
    print("open", flush=True)
    await asyncio.sleep(60)

asyncio.run(hold())
"""


def start_holder(directory: Path) -> subprocess.Popen[str]:
    """A process that opens the store and says so."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def test_another_process_is_named(tmp_path: Path) -> None:
    """The refusal names the process; when it is killed the store opens."""
    holder = start_holder(tmp_path)
    try:
        assert holder.stdout is not None
        assert "open\n" == await asyncio.to_thread(holder.stdout.readline)
        with pytest.raises(errors.StoreLocked) as caught:
            await open_engine(tmp_path, options=SMALL)
        assert holder.pid == caught.value.figure("pid")
    finally:
        holder.kill()
        holder.communicate()
    async with engine_at(tmp_path) as engine:
        assert 2 == engine.epoch


async def test_an_unfinished_making_is_made_again(tmp_path: Path) -> None:
    """What a making that was cut short left behind is cleared away."""
    (tmp_path / "tidewire.db.new").write_bytes(b"half")
    (tmp_path / "tidewire.db.new-journal").write_bytes(b"half")
    async with engine_at(tmp_path) as engine:
        assert 1 == engine.epoch

    assert ["lock", "reserved", "tidewire.db"] == names(tmp_path)


def test_old_sqlite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SQLite within the range of the WAL-reset bug is refused."""
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(errors.StoreUnusable, match=r"3\.51\.3"):
        connections.check_library()
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.3")
    connections.check_library()


async def test_a_killed_store_loses_nothing(tmp_path: Path) -> None:
    """What was acknowledged is in the log of a store that was copied while open."""
    copy = tmp_path / "copy"
    copy.mkdir()
    async with engine_at(tmp_path / "store") as engine:
        await engine.create_stream(stream_config())
        await publish(engine, "orders.a", b"1")
        for name in ("tidewire.db", "tidewire.db-wal"):
            (copy / name).write_bytes((tmp_path / "store" / name).read_bytes())
    async with engine_at(copy) as engine:
        assert {1: b"1"} == await messages_of(engine, "orders")


async def test_closed_engines_refuse(tmp_path: Path) -> None:
    """After closing, and closing twice, writes are refused and no log is left."""
    async with engine_at(tmp_path) as engine:
        await put(engine, "k")
        await engine.close()
        with pytest.raises(errors.Unavailable):
            await put(engine, "k")
        with pytest.raises(errors.Unavailable):
            await value_of(engine, "k")

    assert ["lock", "reserved", "tidewire.db"] == names(tmp_path)


async def test_too_much_waiting_is_refused(tmp_path: Path) -> None:
    """More than may wait is refused with a hint, what was taken is done, and then it goes on."""
    options = replace(SMALL, pending_transactions_max=10)
    async with engine_at(tmp_path, options) as engine:
        outcomes = await asyncio.gather(
            *(put(engine, f"k{i}") for i in range(100)), return_exceptions=True
        )
        refused = [item for item in outcomes if isinstance(item, errors.Overloaded)]

        assert 90 == len(refused)
        assert refused[0].retry_after_s
        assert 11 == (await put(engine, "again")).revision


async def test_what_is_larger_than_the_bound_is_taken_alone(tmp_path: Path) -> None:
    """One transaction larger than everything that may wait is taken when nothing waits."""
    options = replace(SMALL, pending_bytes_max=1000)
    async with engine_at(tmp_path, options) as engine:
        await put(engine, "k", b"x" * 5000)
        first, second = await asyncio.gather(
            put(engine, "a", b"x" * 5000), put(engine, "b", b"x" * 5000), return_exceptions=True
        )

        assert not isinstance(first, BaseException)
        assert isinstance(second, errors.Overloaded)
