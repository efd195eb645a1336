"""
A disk that fails, fills up, or loses power, below the store.

It is an SQLite VFS over the real one. Every write, truncation and flush is counted; `Disk.fault`
decides what happens to the n-th. What was flushed is kept apart, so that `Disk.after_power_cut` can
say what a disk would have after the power went: what was flushed for certain, and of the rest
nothing, or a random part in sectors.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

SECTOR_BYTES = 512
Fault = Callable[[int, str], BaseException | None]
"""
Called with the number of the I/O from 1 and what it is (write, truncate, flush); returns what to
raise.
"""


class _Image:
    """One file: what is flushed, and what was written since."""

    def __init__(self, flushed: bytes) -> None:
        self.flushed = bytearray(flushed)
        self.since: list[tuple[int, bytes | None]] = []

    def apply(self, target: bytearray, offset: int, data: bytes | None) -> None:
        if data is None:
            del target[offset:]
            return
        if len(target) < offset:
            target.extend(bytes(offset - len(target)))
        target[offset : offset + len(data)] = data

    def flush(self) -> None:
        for offset, data in self.since:
            self.apply(self.flushed, offset, data)
        self.since.clear()

    def after_cut(self, survival: float, chance: random.Random) -> bytes:
        content = bytearray(self.flushed)
        for offset, data in self.since:
            if data is None:
                continue
            for start in range(0, len(data), SECTOR_BYTES):
                if chance.random() < survival:
                    self.apply(content, offset + start, data[start : start + SECTOR_BYTES])
        return bytes(content)


class Disk(apsw.VFS):
    """
    A registered VFS; give `name` to the engine's options. Close it when nothing uses it any more.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.operations = 0
        self.fault: Fault | None = None
        self.images: dict[str, _Image] = {}
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> "_File":
        return _File(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self.images.pop(filename, None)

    def check(self, kind: str) -> None:
        """Count an I/O, and let it fail when it is its turn."""
        self.operations += 1
        error = self.fault(self.operations, kind) if self.fault is not None else None
        if error is not None:
            raise error

    def after_power_cut(self, directory: Path, survival: float, seed: int) -> None:
        """
        Write what the disk has after the power went; of what was not flushed each sector survives
        with a chance.
        """
        directory.mkdir()
        chance = random.Random(seed)
        for path, image in self.images.items():
            content = image.after_cut(survival, chance)
            if content or path.endswith(".db"):
                (directory / Path(path).name).write_bytes(content)

    def close(self) -> None:
        """Take the VFS out of SQLite."""
        self.unregister()


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        path = name.filename() if hasattr(name, "filename") else str(name)
        self._image: _Image | None = None
        if flags[0] & (apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_WAL):
            if path not in disk.images:
                disk.images[path] = _Image(Path(path).read_bytes())
            self._image = disk.images[path]

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._image is not None:
            self._disk.check("write")
            self._image.since.append((offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        if self._image is not None:
            self._disk.check("truncate")
            self._image.since.append((newsize, None))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        if self._image is not None:
            self._disk.check("flush")
            self._image.flush()


def power_cut_at(number: int) -> Fault:
    """Everything from the n-th I/O on fails: the machine is gone."""
    return lambda count, _: apsw.IOError("power") if count >= number else None


def error_at(number: int) -> Fault:
    """The n-th I/O fails, those after it would work: they must not be tried."""
    return lambda count, _: apsw.IOError("disk") if count == number else None


def full_from(number: int, until: int) -> Fault:
    """From the n-th I/O on until another, writes find no space."""

    def fault(count: int, kind: str) -> BaseException | None:
        return apsw.FullError("full") if kind == "write" and number <= count < until else None

    return fault
