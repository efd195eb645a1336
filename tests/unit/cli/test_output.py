"""What is written to standard output."""

import enum
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from tidewire.cli.output import Output, payload_fields, printable, to_plain
from tidewire.v1 import event_pb2


class Screen(io.BytesIO):
    """Standard output that is, or is not, a terminal."""

    is_terminal = True

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture
def screen() -> Screen:
    return Screen()


def test_a_terminal_is_not_obedient_to_payloads(screen: Screen) -> None:
    """Escape sequences of a stranger's message are shown, not sent; control: a pipe gets them."""
    evil = b"\x1b]0;owned\x07 \xff ok\tfine"

    Output(screen).payload(evil)
    screen.is_terminal = False
    Output(screen).payload(evil)
    Output(screen).raw(evil)

    shown, *piped = screen.getvalue().split(b"\n", 1)
    assert b"\\x1b]0;owned\\x07 \\xff ok\tfine" == shown
    assert [evil + b"\n" + evil] == piped


def test_tables_are_as_wide_as_they_must(screen: Screen) -> None:
    """Columns line up; cells of strangers stay harmless."""
    Output(screen).table(["name", "count"], [["a", 1], ["long\x1bname", 20]])

    assert [b"NAME          COUNT", b"a             1", b"long\\x1bname  20"] == (
        screen.getvalue().splitlines()
    )


def test_tables_may_be_empty(screen: Screen) -> None:
    """Only the columns then."""
    Output(screen).table(["name"], [])

    assert b"NAME\n" == screen.getvalue()


class Colour(enum.Enum):
    """An enum of a client."""

    RED = 1


class Level(enum.IntEnum):
    """An enum that is a number too."""

    HIGH = 7


@dataclass(slots=True)
class Thing:
    """What a client may return."""

    name: str
    data: bytes


@pytest.mark.parametrize(
    ("thing", "plain"),
    [
        (None, None),
        (True, True),
        (1.5, 1.5),
        (b"text", "text"),
        (Colour.RED, "red"),
        (Level.HIGH, "high"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        ({"a": [Colour.RED]}, {"a": ["red"]}),
        (Thing("n", b"d"), {"name": "n", "data": "d"}),
        (event_pb2.StreamConfig(name="s", subjects=["a.>"]), {"name": "s", "subjects": ["a.>"]}),
    ],
)
def test_everything_becomes_json(thing: Any, plain: Any) -> None:
    """What commands get from the client can be written as JSON."""
    assert plain == json.loads(json.dumps(to_plain(thing)))


def test_payloads_in_json_are_text_or_base64() -> None:
    """Nothing is lost: bytes that are no text are encoded under another name."""
    assert {"payload": "é"} == payload_fields("é".encode())
    assert {"payload_base64": "/w=="} == payload_fields(b"\xff")
    assert "\\x9b" == printable("\x9b")
