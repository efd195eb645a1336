"""Opening a store: lock it, look at it, then and only then change anything."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import apsw

from tidewire import errors
from tidewire_server.engine.embedded import quarantine, ranges, rows
from tidewire_server.engine.embedded.connections import (
    check_library,
    make_database,
    open_reader,
    open_writer,
)
from tidewire_server.engine.embedded.files import Ballast, StoreLock, inspect_database
from tidewire_server.engine.embedded.options import EngineOptions
from tidewire_server.engine.embedded.session import Session
from tidewire_server.engine.embedded.views import StreamView, views_of


@dataclass(slots=True)
class Store:
    """A store that is open: connections for the threads, and what was read."""

    lock: StoreLock
    ballast: Ballast
    session: Session
    readers: list[apsw.Connection]
    views: dict[str, StreamView]
    quarantined: dict[int, list[ranges.Range]]
    cluster_id: str
    epoch: int

    def release(self) -> None:
        """Let others have it."""
        self.lock.release()


def open_store(directory: Path, options: EngineOptions) -> Store:
    """Open a store, making it when it is not there. See `open_engine` for what is raised."""
    check_library()
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
            writer = open_writer(directory, options)
            opened.callback(writer.close)
            session = Session(writer, options)
            session.reload()
            _check_facts(session)
            epoch = _next_epoch(session)
            readers = []
            for _ in range(options.readers):
                readers.append(open_reader(directory, options))
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
            )
        except apsw.Error as exc:
            raise _unusable(directory, exc) from exc
        opened.pop_all()
        session.view_changed = False
        return store


def _unusable(directory: Path, exc: apsw.Error) -> errors.TidewireError:
    if isinstance(exc, apsw.FullError):
        return errors.StoreFull(
            f"the disk of {directory} is full; make some space", retry_after_s=1.0
        )
    if isinstance(exc, apsw.CorruptError | apsw.NotADBError):
        why = "it is damaged; restore it from a backup"
    else:
        why = "the disk reports an error"
    return errors.StoreUnusable(f"the store at {directory} cannot be used: {why}")


def _check_facts(session: Session) -> None:
    for name, value, crc in session.execute("SELECT * FROM meta"):
        if not rows.fits(crc, name, value):
            raise errors.StoreUnusable(
                f"the store's {str(name).replace('_', ' ')} is damaged; restore it from a backup"
            )


def _next_epoch(session: Session) -> int:
    epoch = session.number("epoch") + 1
    session.execute("BEGIN IMMEDIATE")
    session.begin()
    session.set_number("epoch", epoch)
    session.flush()
    session.execute("COMMIT")
    return epoch
