"""Descriptors of a process: each connection needs one."""

import logging
import sys
from typing import Final

if sys.platform != "win32":
    import resource

SPARE: Final = 64
"""Descriptors a process needs beside its connections: files of the store, pipes, the event loop."""

log = logging.getLogger(__name__)


def raise_limit() -> int | None:
    """
    Let this process have as many descriptors as it may: RLIMIT_NOFILE, soft to hard.

    Shells give 1,024 by tradition, for programs that use ``select``; nothing here does.

    Returns:
        How many it may have now; ``None`` where there is no limit.
    """
    if sys.platform == "win32":
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError) as error:  # macOS: unlimited is more than it allows
            log.warning(
                "the limit of descriptors stays", extra={"descriptors": soft, "why": str(error)}
            )
    return None if soft == resource.RLIM_INFINITY else soft


def warn_if_few(descriptors: int | None, connections_max: int, workers: int) -> None:
    """Say so when the processes cannot hold the connections that the configuration allows."""
    if descriptors is None:
        return
    processes = max(workers, 1)
    possible = processes * max(descriptors - SPARE, 0)
    if possible < connections_max:
        log.warning(
            "fewer descriptors than connections: raise the hard limit of open files, use more"
            " workers, or lower wire.connections_max",
            extra={
                "descriptors_per_process": descriptors,
                "processes": processes,
                "connections_possible": possible,
                "connections_max": connections_max,
            },
        )
