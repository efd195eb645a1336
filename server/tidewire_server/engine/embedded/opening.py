"""Opening a store: lock it, look at it, then and only then change anything."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import apsw

from tidewire import errors
from tidewire_server.engine.embedded import quarantine, ranges
from tidewire_server.engine.embedded.connections import (
    Connection,
    check_library,
    make_database,
    open_probe,
    open_reader,
    open_writer,
)
from tidewire_server.engine.embedded.files import Ballast, StoreLock, inspect_database
from tidewire_server.engine.embedded.log_damage import groups_lost
from tidewire_server.engine.embedded.lost_groups import FACTS, put_log_aside, skip_numbers
from tidewire_server.engine.embedded.options import EngineOptions, database_path
from tidewire_server.engine.embedded.reserved import Reserved
from tidewire_server.engine.embedded.session import Session
from tidewire_server.engine.embedded.verification import Damage, has_all_tables, look_through
from tidewire_server.engine.embedded.views import StreamView, views_of


@dataclass(slots=True)
class Store:
    """A store that is open: connections for the threads, and what was read."""

    lock: StoreLock
    ballast: Ballast
    session: Session
    readers: list[Connection]
    views: dict[str, StreamView]
    quarantined: dict[int, list[ranges.Range]]
    cluster_id: str
    epoch: int
    damage: Damage
    reserved: Reserved

    def release(self) -> None:
        """Let others have it."""
        self.lock.release()


def open_store(directory: Path, options: EngineOptions) -> Store:
    """Open a store, making it when it is not there. See `open_engine` for what is raised."""
    check_library()
    inspect_database(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise errors.StoreUnusable(
            f"the directory {directory} cannot be made: {exc.strerror}"
        ) from exc
    lock = StoreLock(directory)
    try:
        if not inspect_database(directory):
            make_database(directory)
        return _open(directory, options, lock)
    except BaseException:
        lock.release()
        raise


def _open(directory: Path, options: EngineOptions, lock: StoreLock) -> Store:
    with contextlib.ExitStack() as opened:
        try:
            reserved = Reserved(directory)
            damage = _probe(directory, options, reserved)
            writer = open_writer(directory, options)
            opened.callback(writer.close)
            writer.damaged = frozenset(damage.tables)
            session = Session(writer, options)
            session.reload()
            opened.callback(reserved.close)
            if damage.groups_lost:
                put_log_aside(directory, session.number("epoch") + 1)
            epoch = _next_epoch(session, reserved, damage)
            readers: list[Connection] = []
            for _ in range(options.readers):
                readers.append(open_reader(directory, options))
                readers[-1].damaged = writer.damaged
                opened.callback(readers[-1].close)
            ballast = Ballast(directory, options.ballast_bytes)
            ballast.take()
            store = Store(
                lock,
                ballast,
                session,
                readers,
                views_of(session),
                quarantine.load(writer),
                str(session.meta["cluster_id"]),
                epoch,
                damage,
                reserved,
            )
        except OSError as exc:
            raise errors.StoreUnusable(
                f"the store at {directory} cannot be used: {exc.strerror}"
            ) from exc
        except (apsw.Error, UnicodeDecodeError) as exc:
            raise _unusable(directory, exc) from exc
        opened.pop_all()
        session.view_changed = False
        return store


def _probe(directory: Path, options: EngineOptions, reserved: Reserved) -> Damage:
    """Look through the store without changing it; refuse one whose own facts are damaged."""
    path = database_path(directory)
    beside = [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]
    made = [file for file in beside if not file.exists()]
    connection = open_probe(directory, options)
    try:
        whole = has_all_tables(connection)
        damage = look_through(connection) if whole else Damage({"meta"})
        damage.groups_lost = groups_lost(*beside, noted=reserved.log)
    finally:
        connection.close()
        for file in made:
            file.unlink(missing_ok=True)
    if "meta" in damage.tables:
        raise errors.StoreUnusable(
            f"the store at {directory} cannot be used: what holds it together is damaged; restore "
            "it from a backup. Nothing was changed",
            metadata={"path": str(path)},
        )
    return damage


def _unusable(directory: Path, exc: Exception) -> errors.TidewireError:
    if isinstance(exc, apsw.FullError):
        return errors.StoreFull(
            f"the disk of {directory} is full; make some space", retry_after_s=1.0
        )
    if isinstance(exc, apsw.CorruptError | apsw.NotADBError | UnicodeDecodeError):
        why = "it is damaged; restore it from a backup"
    else:
        why = "the disk reports an error"
    return errors.StoreUnusable(f"the store at {directory} cannot be used: {why}")


def _next_epoch(session: Session, reserved: Reserved, damage: Damage) -> int:
    session.execute("BEGIN IMMEDIATE")
    session.begin()
    if damage.groups_lost:
        skip_numbers(session, reserved)
    epoch = session.number("epoch") + 1
    session.set_number("epoch", epoch)
    session.flush()
    streams = list(session.streams.by_name.values())
    if "streams" not in damage.tables:
        reserved.retain([*FACTS.values(), *(stream.number for stream in streams)])
    reserved.cover(
        [
            *((key, session.number(name)) for name, key in FACTS.items()),
            *((stream.number, stream.last_sequence) for stream in streams),
        ]
    )
    session.execute("COMMIT")
    if damage.groups_lost:
        # What is left of the lost groups must not be found, and counted, at the next start again.
        session.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    session.take_changed_counters()
    return epoch
