"""
Kill -9 at random moments, restart, compare with what was acknowledged.

    python tests/robustness/crash.py --cycles 500            must find nothing
    python tests/robustness/crash.py --cycles 20 --early     control: acknowledges before the
    commit, must be caught

Each cycle forks a process with the load (`crash_load`), kills it after a random time, in one of
five cycles kills the next one while it recovers, and then opens the store and compares
(`crash_check`). A cycle with fewer than 100 acknowledgements does not count. On a fault the store
and the ledger stay where they are, and the seed is printed.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from robustness.crash_check import Seen, check
from robustness.crash_load import Known, read_ledger, work

ACKNOWLEDGEMENTS_MIN = 100
LEDGER_BYTES_MIN = 600 * ACKNOWLEDGEMENTS_MIN
"""The ledger grows by so much before the time to the kill begins."""
READY_TIME_LIMIT_S = 30.0
FAULTS_SHOWN = 10


@dataclass
class Report:
    """What a run came to."""

    seed: int
    cycles: int = 0
    void: int = 0
    recoveries_killed: int = 0
    acknowledgements: int = 0
    messages: int = 0
    faults: int = 0
    ready_s_max: float = 0.0


class Harness:
    """One store, one ledger, and the processes that are killed on them."""

    def __init__(self, scratch: Path, seed: int, *, early: bool) -> None:
        self.report = Report(seed)
        self.faults: list[str] = []
        self._store = scratch / "store"
        self._ledger = scratch / "ledger"
        self._ledger.touch()
        self._offset = 0
        self._known = Known()
        self._seen = Seen()
        self._chance = random.Random(seed)
        self._early = early

    def cycle(self, load_s: float) -> None:
        """One load, one kill or two, one check."""
        before = self._known.acknowledgements
        self._run_and_kill(self._chance.uniform(0.0, load_s), wait_ready=True)
        if self._chance.random() < 0.2:
            self.report.recoveries_killed += 1
            self._offset = read_ledger(self._ledger, self._known, self._offset)
            self._run_and_kill(self._chance.uniform(0.0, 0.3), wait_ready=False)
        self._offset = read_ledger(self._ledger, self._known, self._offset)
        started = time.monotonic()
        found = asyncio.run(check(self._store, self._known, self._seen))
        self.report.ready_s_max = max(self.report.ready_s_max, time.monotonic() - started)
        self.faults.extend(found)
        self._forget_checked()
        gained = self._known.acknowledgements - before
        self.report.cycles += 1
        self.report.void += gained < ACKNOWLEDGEMENTS_MIN
        self.report.acknowledgements = self._known.acknowledgements
        self.report.messages = max(self._seen.messages, default=0)
        self.report.faults = len(self.faults)

    def _forget_checked(self) -> None:
        """What was purged is not compared any more."""
        through = self._seen.purged_through
        self._known.acknowledged = {
            name: sequence
            for name, sequence in self._known.acknowledged.items()
            if sequence > through
        }
        self._known.settled = [item for item in self._known.settled if item[1] > through]

    def _run_and_kill(self, after_s: float, *, wait_ready: bool) -> None:
        readable, writable = os.pipe()
        seed = self._chance.randrange(2**31)
        child = os.fork()
        if child == 0:
            self._be_child(readable, writable, seed)
        os.close(writable)
        try:
            if wait_ready:
                self._wait_for_load(readable)
            time.sleep(after_s)
        finally:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            os.close(readable)
        if os.WIFEXITED(status) and wait_ready:
            raise RuntimeError(f"the process with the load ended by itself: {status}")

    def _wait_for_load(self, readable: int) -> None:
        if os.read(readable, 1) != b"r":
            raise RuntimeError("the process with the load ended by itself")
        wanted = self._offset + LEDGER_BYTES_MIN
        deadline = time.monotonic() + READY_TIME_LIMIT_S
        while self._ledger.stat().st_size < wanted and time.monotonic() < deadline:
            time.sleep(0.005)

    def _be_child(self, readable: int, writable: int, seed: int) -> None:
        """In the forked process: never return."""
        os.close(readable)
        try:
            signal.alarm(int(READY_TIME_LIMIT_S))
            options = {"acknowledge_early": True} if self._early else {}
            work(self._store, self._ledger, self._known, seed, writable, options)
        finally:
            os._exit(70)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the cycles and print the report as one line of JSON; exit code 1 when faults were found.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument(
        "--load-s",
        type=float,
        default=0.3,
        help="longest load after the first 100 acknowledgements of a cycle",
    )
    parser.add_argument("--seconds-max", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--early", action="store_true", help="control: acknowledge before commit")
    chosen = parser.parse_args(arguments)
    seed = chosen.seed if chosen.seed is not None else random.randrange(2**31)
    scratch = Path(tempfile.mkdtemp(prefix="tidewire-crash-"))
    harness = Harness(scratch, seed, early=chosen.early)
    deadline = time.monotonic() + chosen.seconds_max
    while harness.report.cycles < chosen.cycles and time.monotonic() < deadline:
        harness.cycle(chosen.load_s)
        if harness.faults:
            break
    sys.stdout.write(json.dumps(asdict(harness.report)) + "\n")
    sys.stdout.write("".join(f"{fault}\n" for fault in harness.faults[:FAULTS_SHOWN]))
    if harness.faults and not chosen.early:
        sys.stdout.write(f"the store and the ledger are in {scratch}\n")
    else:
        shutil.rmtree(scratch)
    return 1 if harness.faults else 0


if __name__ == "__main__":
    sys.exit(main())
