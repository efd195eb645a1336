"""
How many connections are open, of all wires.

Raw wires count their own. gRPC tells nobody how many it has, so those are counted in the kernel's
tables: established sockets of the ports, and in the folders, it listens at. They are read once a
second at most.
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tidewire_server.listeners import GRPC_SCHEMES, GRPC_UNIX, Listeners

AGE_S_MAX: Final = 1.0
_TCP_TABLES: Final = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_UNIX_TABLE: Final = Path("/proc/self/net/unix")
_TCP_ESTABLISHED: Final = b"01"
_UNIX_CONNECTED: Final = b"03"


class Connections:
    """Counts the open connections of a server; a system without these tables counts raw wires."""

    def __init__(self, listeners: Listeners, clock: Callable[[], float] = time.monotonic) -> None:
        self._listeners = listeners
        self._clock = clock
        self._of_grpc = 0
        self._counted_s = float("-inf")

    def count(self) -> int:
        """Connections that are open now; those of gRPC up to `AGE_S_MAX` ago."""
        raw = sum(server.counters.connections_active for server in self._listeners.raw.values())
        now_s = self._clock()
        if now_s - self._counted_s >= AGE_S_MAX:
            self._of_grpc, self._counted_s = self._count_grpc(), now_s
        return raw + self._of_grpc

    def _count_grpc(self) -> int:
        ports, folders = set(), set()
        for listener in self._listeners.bound:
            parts = urlsplit(listener.url)
            if parts.scheme == GRPC_UNIX:
                folders.add(os.path.dirname(parts.path).encode())  # noqa: PTH120 (of bytes)
            elif parts.scheme in GRPC_SCHEMES and parts.port:
                ports.add(parts.port)
        total = sum(count_tcp(_lines(table), ports) for table in _TCP_TABLES) if ports else 0
        if folders:
            total += count_unix(_lines(_UNIX_TABLE), folders, _own_sockets())
            unix = self._listeners.raw.get("unix")  # a raw wire, whose sockets look the same
            total -= unix.counters.connections_active if unix is not None else 0
        return max(0, total)


def count_tcp(lines: Iterable[bytes], ports: set[int]) -> int:
    """Established connections whose local port is one of these, in a table like /proc/net/tcp."""
    endings = {f":{port:04X}".encode() for port in ports}
    total = 0
    for line in lines:
        fields = line.split(None, 4)
        if len(fields) > 3 and fields[3] == _TCP_ESTABLISHED:
            total += fields[1][-5:] in endings
    return total


def tcp_tables() -> list[bytes]:
    """The lines of the kernel's tables of TCP sockets; none on systems without them."""
    return [line for table in _TCP_TABLES for line in _lines(table)]


def count_unix(lines: Iterable[bytes], folders: set[bytes], inodes: set[bytes]) -> int:
    """
    Connected sockets among these that were accepted at a path in one of these folders, in a table
    like /proc/net/unix. The path itself says nothing: a socket keeps the name it was bound with,
    and that is moved to its place afterwards.
    """
    total = 0
    for line in lines:
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[5] == _UNIX_CONNECTED and fields[6] in inodes:
            total += os.path.dirname(fields[7].strip()) in folders  # noqa: PTH120 (of bytes)
    return total


def _own_sockets() -> set[bytes]:
    """Numbers of the sockets this process has."""
    found: set[bytes] = set()
    try:
        names = os.listdir(b"/proc/self/fd")  # noqa: PTH208 (of bytes)
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(b"/proc/self/fd/" + name)  # noqa: PTH115 (of bytes)
        except OSError:
            continue  # closed since
        if target.startswith(b"socket:["):
            found.add(target[8:-1])
    return found


def _lines(table: Path) -> list[bytes]:
    try:
        return table.read_bytes().splitlines()[1:]
    except OSError:
        return []
