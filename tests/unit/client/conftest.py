"""What the tests of the client share."""

import pytest

from tidewire.client import turn


@pytest.fixture
def one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine, nobody's turn is over before the work is done."""
    monkeypatch.setattr(turn, "TURN_S", float("inf"))
