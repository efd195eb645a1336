"""``tidewire check-wire``, as people call it."""

import json

import pytest

from tidewire.cli.app import main
from tidewire.testing import BEHAVIOURS

URL = "tcp://127.0.0.1:0"


def test_a_wire_that_conforms(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, a line for each behaviour, and a verdict; JSON and Markdown on request."""
    words = ["check-wire", URL, "--only", "unary_unary", "--only", "token"]

    assert [0, 0, 0] == [main(words), main([*words, "--json"]), main([*words, "--markdown"])]
    out = capsys.readouterr().out
    assert f"{URL}: 1 ok, 1 unsuitable, 0 failed\n" in out
    assert [True] == [json.loads(line)["ok"] for line in out.splitlines() if line[0] == "{"]
    assert "| unary_unary | ok |" in out


def test_a_wire_that_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 when something fails: here streams, which tcp does carry."""
    words = ["check-wire", URL, "--lacks", "streams", "--only", "unary_stream"]

    assert 1 == main(words)
    assert "0 ok, 0 unsuitable, 1 failed" in capsys.readouterr().out


def test_our_datagrams_need_no_excuse(capsys: pytest.CaptureFixture[str]) -> None:
    """What udp:// does not carry is known without ``--lacks``, and is still tried."""
    names = ("unary_unary", "unary_stream", "large_message")
    only = [word for name in names for word in ("--only", name)]

    assert 0 == main(["check-wire", "udp://127.0.0.1:0", *only])
    assert "1 ok, 2 unsuitable, 0 failed" in capsys.readouterr().out


def test_behaviours_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Every behaviour with what it proves."""
    assert 0 == main(["check-wire", "--list"])
    out = capsys.readouterr().out
    assert all(f"{behaviour.name} " in out and behaviour.proves in out for behaviour in BEHAVIOURS)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        ((URL, "--lacks", "wings"), 2),
        ((URL, "--only", "no_such"), 1),
        (("gopher://h",), 1),
    ],
)
def test_wrong_words(words: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Names nobody knows are told, with those there are."""
    assert code == main(["check-wire", *words])
    assert capsys.readouterr().err
