"""Kill -9 loses nothing that was acknowledged; the size that fits into every run of the tests."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CRASH = Path(__file__).parent / "crash.py"


def run(*arguments: str) -> tuple[dict[str, Any], str]:
    """
    Run the harness in a process of its own, because it forks; return its report and all it said.
    """
    command = [sys.executable, str(CRASH), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[0]), done.stdout + done.stderr


@pytest.mark.timeout(160)
def test_nothing_acknowledged_is_lost_by_kill_9() -> None:
    """50 kills at random moments: nothing lost, damaged, used again or invented."""
    report, said = run("--cycles", "50", "--seconds-max", "55")

    assert 0 == report["faults"], said
    assert report["cycles"] - report["void"] >= 5
    assert report["acknowledgements"] > 1000


@pytest.mark.timeout(160)
def test_acknowledging_early_is_caught() -> None:
    """Control: an engine that answers before the commit is found to lose what it acknowledged."""
    report, said = run("--cycles", "20", "--seconds-max", "60", "--early")

    assert report["faults"], said
