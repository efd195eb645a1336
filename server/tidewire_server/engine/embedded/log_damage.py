"""
Whether the write-ahead log was damaged in its middle.

SQLite reads its log up to the first frame that does not fit and takes the rest for the remains of a
crash. That is right for the last group, which nobody was told of; whole groups behind the first
unreadable frame were acknowledged and are lost to a damaged byte. They are counted here, so that
the loss is named. Groups that were only asked to reach the operating system can be left the same
way by a power cut, so this is an alarm and no refusal.
"""

import struct
from pathlib import Path
from typing import Final

_HEADER: Final = struct.Struct(">IIIIIIII")
_FRAME: Final = struct.Struct(">IIII")
_FRAME_BYTES: Final = 24
_MAGICS: Final = (0x377F0682, 0x377F0683)
_INDEX_FRAMES_OFFSET: Final = 16
"""
Where the wal-index (the -shm file) says how many frames are valid, in the machine's byte order.
"""
GROUPS_UNREAD_LEGAL: Final = 1


def groups_lost(log: Path, index: Path) -> int:
    """
    Whole groups in the log behind what can be read, less the one that a crash explains.

    The index must be that of an open connection, which has just read the log.
    """
    try:
        data = log.read_bytes()
        shared = index.read_bytes()[:64]
    except FileNotFoundError:
        return 0
    if len(data) < _HEADER.size or len(shared) < 64:
        return 0
    magic, _, page_bytes, _, salt_1, salt_2, _, _ = _HEADER.unpack_from(data)
    if magic not in _MAGICS or page_bytes == 0:
        return 0
    (readable,) = struct.unpack_from("=I", shared, _INDEX_FRAMES_OFFSET)
    step = _FRAME_BYTES + page_bytes
    unread = 0
    for offset in range(_HEADER.size + readable * step, len(data) - step + 1, step):
        _, pages_after_commit, found_1, found_2 = _FRAME.unpack_from(data, offset)
        if (found_1, found_2) == (salt_1, salt_2) and pages_after_commit:
            unread += 1
    return max(0, unread - GROUPS_UNREAD_LEGAL)
