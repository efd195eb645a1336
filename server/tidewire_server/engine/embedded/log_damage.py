"""
Whether the write-ahead log was damaged in its middle.

SQLite reads its log up to the first frame that does not fit and takes the rest for the remains of a
crash. That is right for the last group, which nobody was told of; whole groups behind the first
unreadable frame were acknowledged and are lost to a damaged byte. They are counted here, so that
the loss is named. Groups that were only asked to reach the operating system can be left the same
way by a power cut, so this is an alarm and no refusal.
As long as the machine runs, even the last group is told from a torn one: the writer notes how far
the log was written when it answers.
"""

import os
import struct
from pathlib import Path
from typing import Final

from tidewire_server.engine.embedded.reserved import LogPlace, Reserved

_HEADER: Final = struct.Struct(">IIIIIIII")
_FRAME: Final = struct.Struct(">IIII")
_FRAME_BYTES: Final = 24
_MAGICS: Final = (0x377F0682, 0x377F0683)
_INDEX_FRAMES_OFFSET: Final = 16
"""
Where the wal-index (the -shm file) says how many frames are valid, in the machine's byte order.
"""
GROUPS_UNREAD_LEGAL: Final = 1
"""The last one, which was being written and nobody was told of."""


class LogWatch:
    """
    Notes how far the log was written; for the writer's thread.

    Args:
        log: The log.
        reserved: Where it is noted.
    """

    def __init__(self, log: Path, reserved: Reserved) -> None:
        self._log = log
        self._reserved = reserved
        self._descriptor = -1

    def note(self, frames: int) -> None:
        """So many frames of the log are committed now. A log that cannot be read is not noted."""
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(self._descriptor, _HEADER.size, 0)
        except OSError:
            return
        if len(data) == _HEADER.size:
            salt_1, salt_2 = _HEADER.unpack(data)[4:6]
            self._reserved.note_log(LogPlace(salt_1, salt_2, frames))

    def close(self) -> None:
        """Watch no more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def groups_lost(log: Path, index: Path, *, noted: LogPlace | None = None) -> int:
    """
    Whole groups in the log behind what can be read, less the one that a crash explains.

    Args:
        log: The log.
        index: Its index, that of an open connection, which has just read the log.
        noted: How far it was written for certain, where that is known. A log that was noted and is
            neither there nor readable so far has lost at least one group.
    """
    try:
        data = log.read_bytes()
        shared = index.read_bytes()[:64]
    except FileNotFoundError:
        return 0
    if len(data) < _HEADER.size or len(shared) < 64:
        return 0
    magic, _, page_bytes, _, salt_1, salt_2, *_ = _HEADER.unpack_from(data)
    if magic not in _MAGICS or page_bytes == 0 or not _is_whole(data):
        return 1 if noted is not None and noted.frames else 0
    (readable,) = struct.unpack_from("=I", shared, _INDEX_FRAMES_OFFSET)
    step = _FRAME_BYTES + page_bytes
    unread = 0
    for offset in range(_HEADER.size + readable * step, len(data) - step + 1, step):
        _, pages_after_commit, found_1, found_2 = _FRAME.unpack_from(data, offset)
        if (found_1, found_2) == (salt_1, salt_2) and pages_after_commit:
            unread += 1
    if noted is not None and noted[:2] == (salt_1, salt_2) and readable < noted.frames:
        return max(1, unread)
    return max(0, unread - GROUPS_UNREAD_LEGAL)


def _is_whole(header: bytes) -> bool:
    """Whether the header fits its checksum, which SQLite sums up in pairs of words."""
    order = ">" if header[3] & 1 else "<"
    first = second = 0
    words = struct.unpack(f"{order}6I", header[:24])
    for word_1, word_2 in zip(words[::2], words[1::2], strict=True):
        first = (first + word_1 + second) & 0xFFFFFFFF
        second = (second + word_2 + first) & 0xFFFFFFFF
    return (first, second) == struct.unpack(">II", header[24:32])
