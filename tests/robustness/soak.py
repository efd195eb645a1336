"""
What is too long for the tests: kill -9 in a loop, millions of bad inputs, leaks, many connections.

    ./run soak                          all campaigns, one line of verdict each
    ./run soak --list                   what there is
    ./run soak crash --cycles 50        one campaign; further words are its own
    ./run soak calls --count 20000      the same, for those that are tests with a larger number

Exit code 1 when one of them found something. Each is a process of its own; of one that failed the
end of its output follows.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parents[1]
SHOWN_LINES: Final = 25
"""Of the output of a campaign that failed."""
VERDICT_CHARS: Final = 160
GOALS_BYTES: Final = {"tcp": 12_000, "tls": 70_000}
"""Memory of the server for each idle connection, at most."""

CONNECTIONS_LEAST: Final = 1_000
"""Fewer say nothing about each: what the server takes once is shared by too few."""

Judge = Callable[[str], str]
"""Takes the output; returns what is wrong with it, or nothing."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """
    Something long.

    Attributes:
        shows: What it shows, in one line.
        command: What to run, below ``tests``; of tests, what pytest is given.
        exit_code: That of a run in which all is as it must be: controls must fail.
        counts: Environment variable that sets the number of a test; none for scripts.
        count: Its default.
        judge: Looks at the output where the exit code does not say it all.
    """

    shows: str
    command: tuple[str, ...]
    exit_code: int = 0
    counts: str = ""
    count: int = 0
    judge: Judge | None = None

    def argv(self, words: Sequence[str]) -> list[str]:
        """Return the command with further words."""
        first, *rest = self.command
        if not self.counts:
            return [sys.executable, str(TESTS / first), *rest, *words]
        return [sys.executable, "-m", "pytest", "-q", "-x", str(TESTS / first), *rest, *words]


def judge_connections(output: str) -> str:
    """Compare the memory of idle connections with the goals."""
    over = []
    for line in output.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            goal = GOALS_BYTES.get(found["wire"])
            if found["connections"] < CONNECTIONS_LEAST:
                continue
            if goal is not None and found["bytes_each"] > goal:
                over.append(f"{found['wire']} takes {found['bytes_each']:.0f} bytes, not {goal}")
    return "; ".join(over)


CAMPAIGNS: Final = {
    "crash": Campaign(
        "kill -9 under load, 500 times: nothing acknowledged is lost",
        ("robustness/crash.py", "--cycles", "500"),
    ),
    "crash-control": Campaign(
        "the same, acknowledging before the commit: must be caught",
        ("robustness/crash.py", "--cycles", "50", "--early"),
        exit_code=1,
    ),
    "fuzz": Campaign(
        "10 million inputs into every parser and both sides of a connection",
        ("robustness/fuzz_wire.py", "--inputs", "10000000"),
    ),
    "fuzz-control": Campaign(
        "the same with one check missing in each: must be found",
        ("robustness/fuzz_wire.py", "--inputs", "1600000", "--control"),
    ),
    "websocket": Campaign(
        "damaged WebSocket sessions, upgrade included",
        ("robustness/test_websocket.py",),
        counts="FUZZ_SESSIONS",
        count=1_000_000,
    ),
    "operations": Campaign(
        "calls, losses and idle closings of a pool on every wire: nothing leaks",
        ("unit/transport/test_pooled_channel.py", "-k", "leaks"),
        counts="TIDEWIRE_POOL_OPERATIONS",
        count=100_000,
    ),
    "calls": Campaign(
        "100,000 calls opened on one connection, on every wire, beside an honest client",
        ("robustness/test_bad_input.py", "-k", "flood"),
        counts="FLOOD_CALLS",
        count=100_000,
    ),
    "connections": Campaign(
        "10,000 idle connections: memory of each, and what they do to a call",
        ("bench/connections.py", "--count", "10000", "--json"),
        judge=judge_connections,
    ),
}


def run(name: str, words: Sequence[str]) -> bool:
    """Run a campaign, print its line, and say whether all is as it must be."""
    campaign = CAMPAIGNS[name]
    environment = dict(os.environ)
    if campaign.counts:
        options = argparse.ArgumentParser(prog=f"soak {name}")
        options.add_argument("--count", type=int, default=campaign.count)
        chosen, words = options.parse_known_args(list(words))
        environment[campaign.counts] = str(chosen.count)
    begun_s = time.monotonic()
    done = subprocess.run(
        campaign.argv(words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    wrong = campaign.judge(done.stdout) if campaign.judge is not None else ""
    if done.returncode != campaign.exit_code:
        wrong = wrong or f"exit code {done.returncode}, not {campaign.exit_code}"
    took_s = time.monotonic() - begun_s
    said = wrong or (lines[-1] if lines else "")
    verdict = "FAILED" if wrong else "ok"
    sys.stdout.write(f"{name}: {verdict} in {took_s:.0f} s: {said[:VERDICT_CHARS]}\n")
    if wrong:
        sys.stdout.write("".join(f"    {line}\n" for line in lines[-SHOWN_LINES:]))
    sys.stdout.flush()
    return not wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; exit code 1 when one of them found something."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("campaign", nargs="?", choices=sorted(CAMPAIGNS), help="default: all")
    options.add_argument("--list", action="store_true", help="what there is")
    chosen, words = options.parse_known_args(arguments)
    if chosen.list:
        width = max(map(len, CAMPAIGNS))
        for name, campaign in CAMPAIGNS.items():
            sys.stdout.write(f"{name.ljust(width)}  {campaign.shows}\n")
        return 0
    if words and chosen.campaign is None:
        options.error(f"{' '.join(words)} must follow the name of a campaign")
    names = [chosen.campaign] if chosen.campaign else list(CAMPAIGNS)
    good = [run(name, words) for name in names]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
