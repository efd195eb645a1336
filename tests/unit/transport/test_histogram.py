"""Times in buckets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire.transport.histogram import BUCKETS, Histogram, upper_us


@given(st.integers(0, 1 << 28))
def test_each_time_falls_in_its_bucket(us: int) -> None:
    """The bucket ends above the time, and at most a quarter above."""
    histogram = Histogram()
    histogram.record((us + 0.5) / 1e6)

    index = histogram.buckets.index(1)

    assert us < upper_us(index) <= max(us * 1.25 + 1, 1)
    assert 0 == index or upper_us(index - 1) <= us


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e9])
def test_no_time_is_outside(seconds: float) -> None:
    """Times that cannot be, and those that take days, are counted at the ends."""
    histogram = Histogram()
    histogram.record(seconds)

    assert 1 == sum(histogram.buckets)
    assert histogram.buckets.index(1) in (0, BUCKETS - 1)


def test_quantiles_are_near() -> None:
    """Of 1 to 1,000 ms, half lie below 500 ms, to within a bucket."""
    histogram = Histogram()
    for ms in range(1, 1_001):
        histogram.record(ms / 1e3)

    assert 0.0 == Histogram().quantile(0.5)
    assert histogram.quantile(0.5) == pytest.approx(0.5, rel=0.25)
    assert histogram.quantile(0.99) == pytest.approx(0.99, rel=0.25)
    assert 500_500_000 == pytest.approx(histogram.sum_us, rel=1e-3)


def test_cumulative_counts_grow_to_all() -> None:
    """Each bound holds what lies below it; powers of two are exact."""
    histogram = Histogram()
    for us in (1, 63, 64, 65, 1_000):
        histogram.record((us + 0.5) / 1e6)

    assert [2, 4, 5] == histogram.cumulative((64, 128, 1_024))
