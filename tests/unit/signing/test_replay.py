"""The memory of a reader: every batch passes once, wherever it is stored it may come again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire.errors import Replayed
from tidewire.signing import ReplayMemory

WINDOW_S = 30.0
NOW_S = 1_000_000.0


def memory(entries_max: int = 1_000, began_s: float = 0.0) -> ReplayMemory:
    return ReplayMemory(WINDOW_S, entries_max, began_s)


def test_a_live_batch_passes_once() -> None:
    """Nothing is stored, so a second one can only be a copy."""
    seen = memory()
    seen.admit("a", None, signed_s=NOW_S, taken_s=NOW_S)
    seen.admit("b", None, signed_s=NOW_S, taken_s=NOW_S)

    with pytest.raises(Replayed, match="was there before"):
        seen.admit("a", None, signed_s=NOW_S, taken_s=NOW_S + 1)


def test_a_stored_batch_passes_again_from_its_place_only() -> None:
    """Redelivery is the server's right; another sequence, stream or none is a replay."""
    seen = memory()
    for _ in range(3):
        seen.admit("a", ("s", 7), signed_s=NOW_S, taken_s=NOW_S)

    for elsewhere in (("s", 8), ("t", 7), None):
        with pytest.raises(Replayed, match="as 7 of s"):
            seen.admit("a", elsewhere, signed_s=NOW_S, taken_s=NOW_S)


@pytest.mark.parametrize("difference_s", [-WINDOW_S - 0.1, WINDOW_S + 0.1])
def test_a_signature_of_another_time_is_refused(difference_s: float) -> None:
    """Old ones and those of the future; the control is within the window."""
    seen = memory()
    seen.admit("a", None, signed_s=NOW_S - WINDOW_S + 0.1, taken_s=NOW_S)

    with pytest.raises(Replayed, match="the window is 30 s"):
        seen.admit("b", None, signed_s=NOW_S + difference_s, taken_s=NOW_S)


def test_what_was_signed_before_the_memory_began_is_refused() -> None:
    """A restarted reader cannot know it; what was stored before it began is not new, and passes."""
    seen = memory(began_s=NOW_S)
    seen.admit("stored", ("s", 1), signed_s=NOW_S - 20, taken_s=NOW_S - 20)
    seen.admit("skewed", None, signed_s=NOW_S - 4, taken_s=NOW_S + 1)

    with pytest.raises(Replayed, match="before this reader began"):
        seen.admit("captured", None, signed_s=NOW_S - 20, taken_s=NOW_S + 1)


def test_memory_is_bounded_and_the_window_shrinks_with_it() -> None:
    """Beyond the bound live batches as old as the oldest forgotten are refused, never accepted."""
    seen = memory(entries_max=10)
    for number in range(30):
        at_s = NOW_S + number * 0.1
        seen.admit(number, None, signed_s=at_s, taken_s=at_s)

    assert (10, 20) == (len(seen), seen.forgotten)
    for number in range(30):
        with pytest.raises(Replayed):
            seen.admit(number, None, signed_s=NOW_S + number * 0.1, taken_s=NOW_S + 3)


def test_what_is_out_of_the_window_is_forgotten() -> None:
    """Memory follows the rate of a window, not the life of the reader."""
    seen = memory()
    for number in range(5_000):
        seen.admit(number, None, signed_s=NOW_S + number, taken_s=NOW_S + number)

    assert len(seen) <= WINDOW_S + 2
    assert 0 == seen.forgotten


@given(
    st.lists(st.tuples(st.integers(0, 8), st.floats(0.0, 3.0), st.floats(0.0, 40.0)), max_size=200),
    st.integers(1, 12),
)
def test_no_live_batch_ever_passes_twice(
    arrivals: list[tuple[int, float, float]], entries_max: int
) -> None:
    """Whatever the order, the delays and the bound: signed once, admitted at most once."""
    seen = memory(entries_max=entries_max)
    signed: dict[int, float] = {}
    passed: set[int] = set()
    now_s = NOW_S
    for number, step_s, age_s in arrivals:
        now_s += step_s
        signed_s = signed.setdefault(number, now_s - age_s)
        try:
            seen.admit(number, None, signed_s=signed_s, taken_s=now_s)
        except Replayed:
            continue
        assert number not in passed
        passed.add(number)
        assert len(seen) <= entries_max
