"""Standard input, and programs that answer."""

import io
import os
import sys
import threading
from typing import Any

import click
import pytest

from tidewire.cli import input as module
from tidewire.cli.program import run_program
from tidewire.errors import ResponderFailed


async def collect() -> list[bytes]:
    return [line async for some in module.lines() for line in some]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\n\nb", [b"a", b"", b"b"]),
        (b"x" * 200_000 + b"\ny\n", [b"x" * 200_000, b"y"]),
        (b"\r\n\xff\n", [b"\r", b"\xff"]),
    ],
)
async def test_lines_are_cut_at_their_ends(
    data: bytes, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is between line feeds is a line, byte for byte, over any number of reads."""
    read, write = os.pipe()
    monkeypatch.setattr("sys.stdin", os.fdopen(read, "r"))
    monkeypatch.setattr(module, "READ_BYTES", 7)

    def feed() -> None:
        with os.fdopen(write, "wb") as pipe:
            pipe.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        assert expected == await collect()
    finally:
        thread.join()
        sys.stdin.close()


async def test_lines_come_from_streams_without_a_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Standard input that is no file, as in a notebook, works too."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\nb")))

    assert [b"a", b"b"] == await collect()


async def test_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without end is refused before it fills the memory."""
    monkeypatch.setattr(module, "LINE_BYTES_MAX", 10)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x" * 11)))

    with pytest.raises(click.ClickException, match="longer than 10 bytes"):
        await collect()


def test_values_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One value is all of the input, up to a limit; other texts are themselves."""
    monkeypatch.setattr(module, "VALUE_BYTES_MAX", 3)

    assert b"text" == module.read_value("text")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    assert b"abc" == module.read_value("-")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abcd")))
    with pytest.raises(click.ClickException, match="longer than 3 bytes"):
        module.read_value("-")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def run(command: list[str], data: bytes = b"", **options: Any) -> bytes:
    return await run_program(command, data, {"WHO": "me"}, options.get("timeout_s", 20.0))


async def test_programs_get_input_and_variables() -> None:
    """What goes in comes out, with the environment it was promised."""
    code = "import os, sys; sys.stdout.write(os.environ['WHO'] + sys.stdin.read())"

    assert b"me and you" == await run(python(code), b" and you")


async def test_programs_need_not_read() -> None:
    """One that ignores a long input is no failure."""
    assert b"done" == await run(python("print('done', end='')"), b"x" * 1_000_000)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/nothing/there"], "cannot be started: No such file"),
        (python("import sys; sys.exit('why')"), "exit code 1: why"),
        (python("import os; os.kill(os.getpid(), 9)"), "exit code -9"),
        (python("print('x' * 2000)"), "wrote more than 1000 bytes"),
    ],
)
async def test_failures_are_told(
    command: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong is one sentence for whoever asked."""
    monkeypatch.setattr("tidewire.cli.program.OUTPUT_BYTES_MAX", 1_000)

    with pytest.raises(ResponderFailed, match=said):
        await run(command)


async def test_programs_are_killed_when_time_is_over() -> None:
    """One that goes on for ever is ended; nothing is left behind."""
    with pytest.raises(ResponderFailed, match=r"took longer than 0\.2 s"):
        await run(python("import time; time.sleep(600)"), timeout_s=0.2)
