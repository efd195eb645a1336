"""CPU and memory of other processes."""

import time
from collections.abc import Iterable
from typing import Final

import psutil

_PROCESS_CLOCK: Final = 2
"""CPUCLOCK_SCHED of all threads of a process: see clock_getcpuclockid(3)."""


def cpu_s(pid: int) -> float:
    """
    CPU seconds a process has used, all its threads, in the kernel and out of it.

    To the nanosecond: /proc and what reads it know hundredths of a second.

    Raises:
        OSError: There is no such process.
    """
    return time.clock_gettime((~pid << 3) | _PROCESS_CLOCK)


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    return int(psutil.Process(pid).memory_info().rss)


def families(pids: Iterable[int]) -> list[int]:
    """These processes and all under them."""
    found = []
    for pid in pids:
        found += [pid, *(each.pid for each in psutil.Process(pid).children(recursive=True))]
    return found
