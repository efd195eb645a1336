"""
Numbers that may have been given, kept in a file of their own beside the database.

A damaged write-ahead log takes the newest groups back, and with them the knowledge of which
sequences were given. So numbers are reserved ahead: before a group passes what is reserved, more is
written here and flushed. It is written seldom, as each reservation is about as large as what was
given since the store was opened. After a loss the numbers go on behind what was reserved (see
`lost_groups`), so that none is given twice.

The file has two places that are written in turn: a write that is cut leaves the one before. Behind
them it notes, without flushing, how far the log was written: as long as the machine runs, a log
that can be read less far than that was damaged.
"""

import contextlib
import errno
import os
import struct
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import apsw
from crc32c import crc32c

from tidewire_server.engine.embedded.connections import flush_directory

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
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_BOOT_UNKNOWN: Final = bytes(16)
_ENTRY: Final = struct.Struct("<IQ")
_PLACE_BYTES: Final = 4096 * (1 + (_HEAD.size + ENTRIES_MAX * _ENTRY.size) // 4096)
_NOTE: Final = struct.Struct("<16sIIQ")
"""Run of the machine, both salts of the log, frames in it."""
_NOTE_AT: Final = 2 * _PLACE_BYTES


class LogPlace(NamedTuple):
    """
    A place in the write-ahead log.

    Attributes:
        salt_1: First salt: which filling of the log it is.
        salt_2: Second salt.
        frames: Frames up to there.
    """

    salt_1: int
    salt_2: int
    frames: int


class Reserved:
    """
    Highest numbers that may have been given. Used by one thread at a time.

    Attributes:
        is_known: False when the file was not there or cannot be read: then nothing is known of
            numbers that were given before.
        log: How far the log was written in this run of the machine; ``None`` when that is not
            known, or the machine was started anew.
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
        self._boot = _boot_id()
        self.log: LogPlace | None = None
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

    def note_log(self, log: LogPlace) -> None:
        """Say how far the log was written; what fails is only noticed less."""
        if log == self.log or self._boot == _BOOT_UNKNOWN:
            return
        self.log = log
        data = _NOTE.pack(self._boot, *log)
        with contextlib.suppress(OSError):
            self._open()
            os.pwrite(self._descriptor, data + crc32c(data).to_bytes(4, "little"), _NOTE_AT)

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
        note, crc = data[_NOTE_AT : _NOTE_AT + _NOTE.size], data[_NOTE_AT + _NOTE.size :][:4]
        if len(note) == _NOTE.size and crc == crc32c(note).to_bytes(4, "little"):
            boot, *log = _NOTE.unpack(note)
            self.log = LogPlace(*log) if boot == self._boot != _BOOT_UNKNOWN else None
        return self._generation > 0

    def _write(self, marks: dict[int, int]) -> None:
        self._open()
        generation = self._generation + 1
        body = b"".join(_ENTRY.pack(key, mark) for key, mark in marks.items())
        head = (_MAGIC, generation, len(marks))
        crc = int(crc32c(_HEAD.pack(*head, 0) + body))
        data = _HEAD.pack(*head, crc) + body
        if os.pwrite(self._descriptor, data, generation % 2 * _PLACE_BYTES) != len(data):
            raise OSError(errno.EIO, "the write was cut short")
        os.fdatasync(self._descriptor)
        # Only now: what failed is written again to the same place, never over the good one.
        self._generation = generation

    def _open(self) -> None:
        if self._descriptor >= 0:
            return
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._descriptor, 0, _NOTE_AT + _NOTE.size + 4)
        os.fsync(self._descriptor)
        flush_directory(self._path.parent)


def _parse(place: bytes) -> tuple[int, dict[int, int]]:
    """Generation and marks of a place; generation 0 when it cannot be read."""
    if len(place) < _HEAD.size:
        return 0, {}
    *head, crc = _HEAD.unpack_from(place)
    magic, generation, entries = head
    body = place[_HEAD.size : _HEAD.size + entries * _ENTRY.size]
    whole = crc == int(crc32c(_HEAD.pack(*head, 0) + body))
    if magic != _MAGIC or entries > ENTRIES_MAX or not whole:
        return 0, {}
    return generation, dict(_ENTRY.iter_unpack(body))


def _boot_id() -> bytes:
    """What names this run of the machine; `_BOOT_UNKNOWN` where the system does not tell."""
    try:
        return uuid.UUID(_BOOT_ID.read_text().strip()).bytes
    except (OSError, ValueError):
        return _BOOT_UNKNOWN
