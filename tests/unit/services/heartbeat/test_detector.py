"""The detector's bounds, with a clock that is a number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire_server.services.heartbeat.detector import EXCUSES_MAX, Detector

LEASE_S = 15.0
INTERVAL_S = 5.0

gaps = st.lists(st.floats(0.0, 14.9), max_size=80)


def after(gaps_s: list[float]) -> Detector:
    detector = Detector(LEASE_S, 0.0)
    now_s = 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        detector.beat(now_s)
    return detector


@given(gaps)
def test_the_bounds_hold_whatever_was_learned(gaps_s: list[float]) -> None:
    """SUSPECT between two intervals and 0.9 of the lease after the last beat, DEAD at the lease."""
    detector = after(gaps_s)

    assert 2 * INTERVAL_S - 1e-9 <= detector.suspect_s - detector.beat_s <= 0.9 * LEASE_S + 1e-9
    assert detector.beat_s + LEASE_S == detector.dead_s


@given(gaps, st.floats(0.0, 30.0))
def test_suspicion_grows_and_is_one_at_suspect(gaps_s: list[float], later_s: float) -> None:
    """1.0 is where SUSPECT begins, and there is no suspicion at the beat itself."""
    detector = after(gaps_s)

    assert 0.0 == detector.suspicion(detector.beat_s)
    assert pytest.approx(1.0) == detector.suspicion(detector.suspect_s)
    assert detector.suspicion(detector.beat_s + later_s) <= detector.suspicion(
        detector.beat_s + later_s + 1.0
    )


def test_a_regular_member_is_suspected_early_and_an_irregular_one_late() -> None:
    """That is what learning is for."""
    regular = after([INTERVAL_S] * 40)
    irregular = after([2.0, 9.0] * 20)

    assert pytest.approx(2 * INTERVAL_S) == regular.suspect_after_s
    assert pytest.approx(0.9 * LEASE_S) == irregular.suspect_after_s


def test_old_habits_are_forgotten() -> None:
    """After a window of regular beats nothing of the irregular ones is left."""
    detector = after([2.0, 9.0] * 20 + [INTERVAL_S] * 32)

    assert pytest.approx(2 * INTERVAL_S, rel=1e-3) == detector.suspect_after_s


def test_a_pause_of_our_own_is_excused_a_few_times() -> None:
    """The time comes back, but a server that is always late still finds the dead."""
    detector = after([INTERVAL_S])
    detector.excuse(4.0)
    assert INTERVAL_S + 4.0 + LEASE_S == detector.dead_s
    for _ in range(10):
        detector.excuse(4.0)
    assert INTERVAL_S + EXCUSES_MAX * 4.0 + LEASE_S == detector.dead_s

    detector.beat(20.0)
    detector.excuse(1.0)
    assert 20.0 + 1.0 + LEASE_S == detector.dead_s
