"""Connections to the database: how it is made, and how each connection is set up."""

import os
import uuid
from pathlib import Path
from typing import Final

import apsw

from tidewire import errors
from tidewire_server.engine.embedded import rows, schema
from tidewire_server.engine.embedded.options import EngineOptions, database_path


class Connection(apsw.Connection):
    """
    A connection that knows what was found damaged when the store was opened.

    Attributes:
        damaged: Tables in which a row that is not found may be a row that was lost.
    """

    damaged: frozenset[str] = frozenset()

    def check_absence(self, table: str, what: str) -> None:
        """
        Believe that something is not there.

        Raises:
            DataCorrupt: The table is damaged, so it may have been there.
        """
        if table in self.damaged:
            raise errors.DataCorrupt(
                f"{what} is not found, but the store's list of {table} is damaged: it may have "
                "been "
                "there; restore it from a backup, or make it again",
                metadata={"table": table},
            )


STATEMENTS_CACHED: Final = 256
_PAGE_BYTES: Final = 4096


def check_library() -> None:
    """
    Refuse an SQLite that can corrupt a database.

    Raises:
        StoreUnusable: The linked SQLite is older than `schema.SQLITE_VERSION_MIN`.
    """
    linked = apsw.sqlite_lib_version()
    if tuple(map(int, linked.split(".")[:3])) < schema.SQLITE_VERSION_MIN:
        wanted = ".".join(map(str, schema.SQLITE_VERSION_MIN))
        raise errors.StoreUnusable(
            f"SQLite {linked} can corrupt a write-ahead log; use an APSW with {wanted} or newer"
        )


def make_database(directory: Path) -> None:
    """Make an empty database under a name of its own, flush it, and give it its real name."""
    path = database_path(directory)
    part = path.with_name(path.name + ".new")
    for suffix in ("", "-journal", "-wal", "-shm"):
        part.with_name(part.name + suffix).unlink(missing_ok=True)
    connection = apsw.Connection(str(part))
    try:
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        # So that pages that were freed can be given back when the disk is full.
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={schema.FORMAT}")
        connection.execute(schema.TABLES)
        for name, value in _first_facts().items():
            connection.execute(
                "INSERT INTO meta VALUES (?, ?, ?)", (name, value, rows.seal(name, value))
            )
        connection.execute("COMMIT")
        connection.pragma("journal_mode", "wal")
    finally:
        connection.close()
    part.chmod(0o600)  # The log and its index are made with the same mode.
    part.rename(path)
    flush_directory(directory)


def _first_facts() -> dict[str, int | str]:
    return {
        "cluster_id": uuid.uuid4().hex,
        "epoch": 0,
        "flushes": 0,
        "state_revision": 0,
        "compacted_revision": 0,
        "swept_revision": 0,
        "fencing_token": 0,
        "stream_number": 0,
    }


def flush_directory(directory: Path) -> None:
    """Make names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_writer(directory: Path, options: EngineOptions) -> Connection:
    """The connection of the writer thread."""
    connection = Connection(
        str(database_path(directory)),
        flags=apsw.SQLITE_OPEN_READWRITE,
        vfs=options.vfs or None,
        statementcachesize=STATEMENTS_CACHED,
    )
    if connection.pragma("journal_mode", "wal") != "wal":
        connection.close()
        raise errors.StoreUnusable(f"the file system below {directory} cannot hold the store")
    connection.execute(f"PRAGMA synchronous={options.synchronous}")
    connection.execute(f"PRAGMA cache_size={-options.cache_bytes // 1024}")
    # SQLite's own copying of the log ignores a failed flush; the writer copies it instead.
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute(f"PRAGMA journal_size_limit={4 * options.wal_pages_max * _PAGE_BYTES}")
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection


def open_probe(directory: Path, options: EngineOptions) -> Connection:
    """A connection that changes nothing, not even by copying the write-ahead log when it closes."""
    connection = Connection(
        str(database_path(directory)), flags=apsw.SQLITE_OPEN_READONLY, vfs=options.vfs or None
    )
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.execute("PRAGMA query_only=1")
    return connection


def open_reader(directory: Path, options: EngineOptions) -> Connection:
    """A connection that can only read."""
    connection = Connection(
        str(database_path(directory)),
        flags=apsw.SQLITE_OPEN_READWRITE,
        vfs=options.vfs or None,
        statementcachesize=STATEMENTS_CACHED,
    )
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.execute("PRAGMA query_only=1")
    connection.execute(f"PRAGMA cache_size={-options.cache_bytes // 1024}")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection
