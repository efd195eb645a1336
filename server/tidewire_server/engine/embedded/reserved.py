"""
Numbers that may have been given, kept in a file of their own beside the database.

A damaged write-ahead log takes the newest groups back, and with them the knowledge of which
sequences were given. So numbers are reserved ahead: before a group passes what is reserved, more is
written here and flushed. It is written seldom, as each reservation is about as large as what was
given since the store was opened. After a loss the numbers go on behind what was reserved (see
`lost_groups`), so that none is given twice.

The file has two places that are written in turn: a write that is cut leaves the one before.
"""

import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import apsw
from crc32c import crc32c

NAME: Final = "reserved"
STEP_MIN: Final = 4096
STEP_MAX: Final = 2**20
ENTRIES_MAX: Final = 16_384
"""Streams that are covered; sequences of further ones are not reserved."""

EPOCH: Final = 2**32 - 1
STATE_REVISION: Final = 2**32 - 2
FENCING_TOKEN: Final = 2**32 - 3
"""Keys of what is no stream; a stream has its number."""

_HEAD: Final = struct.Struct("<8sQII")
"""Magic, generation, entries, CRC32C of the rest."""
_MAGIC: Final = b"tidewRSV"
_ENTRY: Final = struct.Struct("<IQ")
_PLACE_BYTES: Final = 4096 * (1 + (_HEAD.size + ENTRIES_MAX * _ENTRY.size) // 4096)


class Reserved:
    """
    Highest numbers that may have been given. Used by one thread at a time.

    Attributes:
        is_known: False when the file was not there or cannot be read: then nothing is known of
            numbers that were given before.
    """

    def __init__(self, directory: Path) -> None:
        """
        Read the file; it is made when something is reserved.

        Raises:
            OSError: It cannot be read.
        """
        self._path = directory / NAME
        self._marks: dict[int, int] = {}
        self._steps: dict[int, int] = {}
        self._generation = 0
        self._descriptor = -1
        self.is_known = self._read()

    def mark(self, key: int) -> int:
        """Highest number of this key that may have been given; 0 when none."""
        return self._marks.get(key, 0)

    def cover(self, given: Iterable[tuple[int, int]]) -> None:
        """
        Reserve what is about to be given, and more, when that was not done yet.

        Args:
            given: Keys and the highest number of each.

        Raises:
            apsw.FullError: There is no space.
            apsw.IOError: It cannot be written; nothing may be given any more.
        """
        marks = self._marks
        passed = [item for item in given if item[1] > marks.get(item[0], 0)]
        passed = [item for item in passed if item[0] in marks or len(marks) < ENTRIES_MAX]
        if not passed:
            return
        raised = {key: number + self._steps.get(key, STEP_MIN) for key, number in passed}
        try:
            self._write(marks | raised)
        except OSError as exc:
            raise apsw.FullError() if exc.errno == errno.ENOSPC else apsw.IOError() from exc
        marks.update(raised)
        for key in raised:
            self._steps[key] = min(2 * self._steps.get(key, STEP_MIN), STEP_MAX)

    def retain(self, keys: Iterable[int]) -> None:
        """Forget all keys but these, with the next write."""
        kept = set(keys)
        self._marks = {key: mark for key, mark in self._marks.items() if key in kept}

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> bool:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return False
        found = [_parse(data[at : at + _PLACE_BYTES]) for at in (0, _PLACE_BYTES)]
        self._generation, self._marks = max(found, key=lambda place: place[0])
        return self._generation > 0

    def _write(self, marks: dict[int, int]) -> None:
        if self._descriptor < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
            os.posix_fallocate(self._descriptor, 0, 2 * _PLACE_BYTES)
            os.fsync(self._descriptor)
            _flush_directory(self._path.parent)
        generation = self._generation + 1
        body = b"".join(_ENTRY.pack(key, mark) for key, mark in marks.items())
        head = _HEAD.pack(_MAGIC, generation, len(marks), 0)
        crc = int(crc32c(head + body))
        data = _HEAD.pack(_MAGIC, generation, len(marks), crc) + body
        if os.pwrite(self._descriptor, data, generation % 2 * _PLACE_BYTES) != len(data):
            raise OSError(errno.EIO, "the write was cut short")
        os.fdatasync(self._descriptor)
        # Only now: what failed is written again to the same place, never over the good one.
        self._generation = generation


def _parse(place: bytes) -> tuple[int, dict[int, int]]:
    """Generation and marks of a place; generation 0 when it cannot be read."""
    if len(place) < _HEAD.size:
        return 0, {}
    magic, generation, entries, crc = _HEAD.unpack_from(place)
    body = place[_HEAD.size : _HEAD.size + entries * _ENTRY.size]
    head = _HEAD.pack(magic, generation, entries, 0)
    if magic != _MAGIC or entries > ENTRIES_MAX or crc != int(crc32c(head + body)):
        return 0, {}
    return generation, dict(_ENTRY.iter_unpack(body))


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
