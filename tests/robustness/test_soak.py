"""The long campaigns, as far as their verdicts go."""

import pytest

from robustness.soak import CAMPAIGNS, judge_connections, main


def test_a_campaign_that_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 0, further words are the campaign's own."""
    assert 0 == main(["fuzz", "--inputs", "800"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("fuzz: ok in ")


def test_a_campaign_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """The control: what ends with another code than it must is a failure, of the whole too."""
    assert 1 == main(["fuzz", "--only", "nothing of that name"])
    assert "fuzz: FAILED in " in capsys.readouterr().out


def test_all_of_them_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """`--list` names every campaign and runs none."""
    assert 0 == main(["--list"])
    assert list(CAMPAIGNS) == [line.split()[0] for line in capsys.readouterr().out.splitlines()]


def test_memory_of_connections_is_judged() -> None:
    """Too much for each is a failure; with few connections nothing is said."""
    row = '{"wire": "tcp", "connections": %d, "bytes_each": 13000}'
    assert "tcp takes 13000 bytes" in judge_connections(row % 10_000)
    assert "" == judge_connections(row % 50)
