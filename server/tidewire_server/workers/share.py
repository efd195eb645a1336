"""How many connections each worker has, in memory that all of them see."""

import mmap
from pathlib import Path
from typing import Final

SLOT_BYTES: Final = 8
WORKERS_MAX: Final = 64


class Shared:
    """
    A count for each worker and scheme, in a file that is mapped.

    A worker writes its own counts and reads those of all, so ``wire.connections_max`` holds over
    all workers together, however unevenly the kernel hands connections out. Two workers that accept
    within the same microseconds may both take the last place; handshakes in flight are counted by
    their own worker only.
    """

    def __init__(self, path: Path, schemes: list[str]) -> None:
        """Map the file, making it when it is not there."""
        size = len(schemes) * WORKERS_MAX * SLOT_BYTES
        path.touch(mode=0o600)
        with path.open("r+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self._counts = memoryview(self._map).cast("q")
        self._first = {scheme: WORKERS_MAX * at for at, scheme in enumerate(schemes)}

    def put(self, scheme: str, worker: int, count: int) -> None:
        """Set a worker's count."""
        self._counts[self._first[scheme] + worker] = count

    def others(self, scheme: str, worker: int) -> int:
        """Return the connections of this scheme that the other workers have."""
        first = self._first[scheme]
        return sum(self._counts[first : first + WORKERS_MAX]) - self._counts[first + worker]

    def forget(self, worker: int) -> None:
        """A worker is gone, and its connections with it."""
        for scheme in self._first:
            self.put(scheme, worker, 0)

    def close(self) -> None:
        """Unmap the file."""
        self._counts.release()
        self._map.close()
