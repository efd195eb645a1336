"""
The directory of a store: its lock, its ballast, and the look before anything is touched.

What is not certainly ours and whole is refused before a single byte of it is written.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from tidewire import errors
from tidewire_server.engine.embedded import schema
from tidewire_server.engine.embedded.options import database_path

LOCK_NAME: Final = "lock"
BALLAST_NAME: Final = "ballast"
_HEADER_BYTES: Final = 100
_MAGIC: Final = b"SQLite format 3\x00"


class StoreLock:
    """
    Exclusive right to a store, held until `release`; the operating system releases it when the
    process ends.
    """

    def __init__(self, directory: Path) -> None:
        """
        Take the lock.

        Raises:
            StoreLocked: Another process has it; its pid is in the metadata.
            StoreUnusable: The directory cannot be written.
        """
        path = directory / LOCK_NAME
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise errors.StoreUnusable(
                f"the store at {directory} cannot be opened: {exc.strerror}"
            ) from exc
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise errors.StoreUnusable(
                    f"the store at {directory} cannot be locked: {exc.strerror}"
                ) from exc
            raise errors.StoreLocked(
                f"the store at {directory} is in use by process {holder or 'unknown'}; end it or "
                "choose another directory",
                metadata={"pid": holder},
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)


class Ballast:
    """
    A file that holds space back.

    When the disk is full it is given up, so that deleting, which needs room in the write-ahead log,
    is still possible.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self._path = directory / BALLAST_NAME
        self._size = size

    @property
    def held(self) -> bool:
        """Whether the space is held back now."""
        return self._path.exists()

    def take(self) -> bool:
        """Hold the space back; False when there is not enough."""
        if self._size == 0 or self.held:
            return True
        part = self._path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self._size)
        except OSError:
            part.unlink(missing_ok=True)
            return False
        part.rename(self._path)
        return True

    def give_up(self) -> bool:
        """Free the space; False when it was not held."""
        if not self.held:
            return False
        self._path.unlink()
        return True


def inspect_database(directory: Path) -> bool:
    """
    Look at what is there without touching it; False when there is no database yet.

    Raises:
        StoreUnusable: It is not ours, of a newer format, or damaged where it says what it is.
    """
    path = database_path(directory)
    if not path.exists() or path.stat().st_size == 0:
        return _inspect_empty(path)
    header = _read_header(path)
    if header[:16] != _MAGIC:
        raise _unusable(path, "it is not a database, or its beginning is damaged")
    application = int.from_bytes(header[68:72], "big")
    found = int.from_bytes(header[60:64], "big")
    if application != schema.APPLICATION_ID:
        raise _unusable(path, "it belongs to another application")
    if found > schema.FORMAT:
        raise _unusable(
            path,
            f"it has format {found}, this version knows up to {schema.FORMAT}; use a newer version",
        )
    if found < schema.FORMAT:
        raise _unusable(path, f"it has the unknown format {found}")
    return True


def _inspect_empty(path: Path) -> bool:
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        raise _unusable(path, "the database is missing but its write-ahead log is there")
    return False


def _read_header(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEADER_BYTES)
    except OSError as exc:
        raise _unusable(path, f"it cannot be read: {exc.strerror}") from exc


def _unusable(path: Path, why: str) -> errors.StoreUnusable:
    return errors.StoreUnusable(
        f"the store {path} cannot be used: {why}. Nothing was changed",
        metadata={"path": str(path)},
    )
