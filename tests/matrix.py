"""
The support matrix: every wire by every behaviour, measured and written into ``proto/SUPPORT.md``.

    python tests/matrix.py [--wire SCHEME ...] [--check]

The conformance kit runs over each wire, then the behaviour suite. What is not shown has a number
and a footnote with the typed reason the wire gave. ``--check`` writes nothing. The exit code is 1
when anything fails: then the page stays as it was.
"""

import argparse
import asyncio
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import uvloop

from support.wires import LACKS, WIRES, listen_url
from tidewire.testing import ABILITIES, BEHAVIOURS, Outcome, Report, check_transport
from tidewire.transport import missing

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "proto" / "SUPPORT.md"
BEGIN: Final = "<!-- begin: written by tests/matrix.py -->"
END: Final = "<!-- end -->"
SUITE: Final = ROOT / "tests" / "behaviour"
SHOWN: Final = "ok"
KINDS_TEXT: Final = """\
Tests of the behaviour suite that pass on each wire; `typed` are those that end, as they must
there, with the typed error for what the wire cannot carry. `-`: no test of this module is about
this wire."""
NOT_PARAMETRIZED: Final = "each"


@dataclass
class Suite:
    """Outcomes of the behaviour suite: tests by module and wire."""

    shown: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        """Note the outcome of a test under its wire."""
        report = yield
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            place = (Path(item.path).stem.removeprefix("test_"), wire_of(item))
            refused = dict(item.user_properties).get("refused", False)
            (self.refused if refused else self.shown)[place] += 1
        return report

    def modules(self) -> list[str]:
        """Modules that have tests on wires."""
        return sorted({module for module, wire in [*self.shown, *self.refused] if wire in WIRES})


class Footnotes:
    """Reasons by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, why: str) -> str:
        """Return the reference to a reason."""
        return f"[{self._numbers.setdefault(general(why), len(self._numbers) + 1)}]"

    def lines(self) -> Iterator[str]:
        """The reasons, as a list."""
        for why, number in self._numbers.items():
            yield f"- [{number}] {why}"


def general(why: str) -> str:
    """Return a reason without what differs between runs and wires: methods, addresses, figures."""
    why = re.sub(r"/tidewire\.testing\.Echo/\w+", "the call", why)
    why = re.sub(r"([a-z+]+)://(?:127\.0\.0\.1:\d+\S*|/\S*\w|[0-9a-f]{8}\b)", r"\1://", why)
    why = re.sub(r"after \d+ of \d+", "after some", why)
    why = re.sub(r"[a-z+]+:// (is not encrypted|carries)", r"this wire \1", why)
    why = re.sub(r"(certificates are given): use [a-z]+://", r"\1", why)
    return re.sub(r"\b\d{5,}\b", "many", why)


def wire_of(item: pytest.Item) -> str:
    """Return the wire a test runs on."""
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec is not None else ()
    found = [value for value in values if isinstance(value, str) and value in WIRES]
    return found[0] if len(found) == 1 else NOT_PARAMETRIZED


def run_kit(wire: str) -> Report:
    """Run the conformance kit over one wire."""
    carries = set(ABILITIES) - LACKS.get(wire, frozenset())
    with (
        tempfile.TemporaryDirectory(prefix="tw") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(check_transport(listen_url(wire, Path(folder)), carries=carries))


def run_suite(wires: Sequence[str]) -> Suite:
    """Run the behaviour suite, over these wires only."""
    suite = Suite()
    chosen = [] if set(wires) == set(WIRES) else ["-k", " or ".join(wires)]
    pytest.main(["-q", "-p", "no:cacheprovider", *chosen, str(SUITE)], plugins=[suite])
    return suite


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def kit_rows(reports: Sequence[Report], notes: Footnotes) -> list[list[str]]:
    """One row for each behaviour of the kit."""
    rows = []
    for behaviour in BEHAVIOURS:
        results = [report.of(behaviour.name) for report in reports]
        cells = [
            SHOWN if result.outcome is Outcome.OK else notes.number(result.why)
            for result in results
        ]
        rows.append([f"`{behaviour.name}`", behaviour.proves, *cells])
    return rows


def suite_rows(suite: Suite, wires: Sequence[str]) -> list[list[str]]:
    """One row for each module of the behaviour suite: how many tests, how many of them refused."""
    rows = []
    for module in suite.modules():
        cells = []
        for wire in wires:
            shown, refused = suite.shown[module, wire], suite.refused[module, wire]
            text = f"{shown}" if not refused else f"{shown} + {refused} typed"
            cells.append(text if shown or refused else "-")
        rows.append([f"`test_{module}.py`", *cells])
    return rows


def render(reports: Sequence[Report], suite: Suite) -> str:
    """The generated part of the page."""
    wires = [report.scheme for report in reports]
    notes = Footnotes()
    columns = [f"`{wire}`" for wire in wires]
    kit = kit_rows(reports, notes)
    lines = [
        *table(["behaviour", "what is shown", *columns], kit),
        "",
        "Reasons, as the wires gave them:",
        "",
        *notes.lines(),
        "",
        "### Kinds of messages",
        "",
        KINDS_TEXT,
        "",
        *table(["module", *columns], suite_rows(suite, wires)),
        "",
        "### Wires that are known and not here",
        "",
        *table(["scheme", "why"], [[f"`{one.scheme}`", one.reason] for one in missing()]),
    ]
    return "\n".join(lines)


def write(generated: str) -> None:
    """Put the generated part into the page."""
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}", "utf-8")


def main() -> int:
    """Measure everything, and write the page when nothing fails."""
    parser = argparse.ArgumentParser(description="Measure the support matrix.")
    parser.add_argument("--wire", action="append", choices=WIRES, help="only this wire")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    wires = arguments.wire or WIRES
    reports = []
    for wire in wires:
        report = run_kit(wire)
        sys.stderr.write(report.text().splitlines()[-1] + "\n")
        reports.append(report)
    suite = run_suite(wires)
    faults = [
        f"{report.url}: {one.behaviour}: {one.why}" for report in reports for one in report.failures
    ]
    faults += suite.failed
    generated = render(reports, suite) if not faults else ""
    if faults:
        sys.stderr.write("\n".join(["not written, because of:", *faults]) + "\n")
        return 1
    if arguments.check or arguments.wire:
        sys.stdout.write(generated + "\n")
    else:
        write(generated)
    return 0


if __name__ == "__main__":
    sys.exit(main())
