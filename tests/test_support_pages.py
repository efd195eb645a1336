"""The pages about wires say what there is: no wire, behaviour or test is missing or invented."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.wires import WIRES
from tidewire.testing import BEHAVIOURS
from tidewire.transport import missing

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "proto" / "SUPPORT.md"
CHECKLIST = ROOT / "proto" / "CHECKLIST.md"
ROWS = range(9, 39)
OF_ONE_WIRE = {"test_datagrams.py", "test_http3.py"}
"""Modules of the behaviour suite that are about one wire only, which no fixture names."""


def tables(text: str) -> Iterator[list[list[str]]]:
    """Yield the tables of a page as rows of cells, the head first."""
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in block.splitlines()]
        yield [rows[0], *rows[2:]]


def named(text: str) -> Iterator[str]:
    """Yield what a page names in its code spans."""
    yield from re.findall(r"`([^`\n]+)`", text)


def unknown(names: Iterator[str]) -> Iterator[str]:
    """Yield names of tests, behaviours and commands that do not exist."""
    behaviours = {behaviour.name for behaviour in BEHAVIOURS}
    for name in names:
        path, _, test = name.removeprefix("python ").partition("::")
        if name.startswith("kit:"):
            if name != "kit:" and name.removeprefix("kit:") not in behaviours:
                yield name
        elif path.startswith("tests/") and (
            not (ROOT / path).is_file() or (test and test not in functions(ROOT / path))
        ):
            yield name


def functions(path: Path) -> set[str]:
    """Return the tests of a module."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    body = ast.parse(path.read_text("utf-8")).body
    return {node.name for node in body if isinstance(node, kinds)}


def test_the_matrix_has_every_wire_and_every_behaviour() -> None:
    """Its columns are the wires the suites run over, its rows the kit's behaviours: none is old."""
    kit, kinds, absent = tables(SUPPORT.read_text("utf-8"))
    columns = [f"`{wire}`" for wire in WIRES]
    suite = {path.name for path in (ROOT / "tests" / "behaviour").glob("test_*.py")}

    assert ["behaviour", "what is shown", *columns] == kit[0]
    assert [(f"`{each.name}`", each.proves) for each in BEHAVIOURS] == [
        (row[0], row[1]) for row in kit[1:]
    ]
    assert ["module", *columns] == kinds[0]
    assert suite - {row[0].strip("`") for row in kinds[1:]} <= OF_ONE_WIRE
    assert {f"`{one.scheme}`" for one in missing()} <= {row[0] for row in absent[1:]}


def test_the_matrix_has_no_unexplained_hole() -> None:
    """A cell was shown, or has a footnote with a typed reason."""
    text = SUPPORT.read_text("utf-8")
    kit, kinds, _ = tables(text)
    notes = dict(re.findall(r"^- (\[\d+\]) (\w+): \S", text, re.MULTILINE))

    cells = [cell for row in kit[1:] for cell in row[2:]]
    assert [] == [cell for cell in cells if cell != "ok" and cell not in notes]
    typed = {"WireUnsuitable", "InvalidArgument", "MessageTooLarge", "priorities"}
    assert set(notes.values()) <= typed
    assert all(
        re.fullmatch(r"-|\d+( \+ \d+ typed)?", cell) for row in kinds[1:] for cell in row[1:]
    )
    assert {f"[{n}]" for n in range(1, len(notes) + 1)} == set(notes) == {*cells} - {"ok"}


def test_the_checklist_has_every_row() -> None:
    """Rows 9 to 38, each with something that shows it."""
    rows = [row for table in tables(CHECKLIST.read_text("utf-8")) for row in table[1:]]

    assert list(ROWS) == [int(number) for number, _, _ in rows]
    assert all("`" in shown for _, _, shown in rows)


@pytest.mark.parametrize("page", [SUPPORT, CHECKLIST], ids=lambda page: page.name)
def test_what_the_pages_name_exists(page: Path) -> None:
    """Every test, behaviour and command."""
    assert [] == list(unknown(named(page.read_text("utf-8"))))


@pytest.mark.parametrize(
    "name",
    ["tests/test_none.py", "tests/test_tidy.py::test_none", "kit:none", "python tests/none.py"],
)
def test_what_does_not_exist_is_found(name: str) -> None:
    """Control: a name that was changed is a fault; one that is there is none."""
    assert [name] == list(unknown(iter([name])))
    assert [] == list(unknown(iter(["tests/test_tidy.py::test_modules_are_short", "kit:status"])))
