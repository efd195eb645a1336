"""Memory that is freed and needed again at once stays with the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from tidewire_server.ops.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def churn():
    pieces = [b"x" * (1 << 20) for _ in range(8)]
    pieces.clear()

churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own")
def test_pages_are_not_asked_for_again_and_again() -> None:
    """The kernel hands out few pages while 400 MiB come and go; the control takes many."""
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("kept", "given back")
    }

    assert 10 * faults["kept"] < faults["given back"], faults
