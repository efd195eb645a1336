"""The demo's parts without processes: its input, the operator's arithmetic, the order it keeps."""

from decimal import Decimal
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire_server.demo import expected
from tidewire_server.demo.data import DatasetError, Reading, load
from tidewire_server.demo.ordering import InOrder
from tidewire_server.demo.report import Cell, Unverified, require, table
from tidewire_server.demo.summaries import DailySummaries

HEADER = "time,city,temperature\n"
GOOD = "".join(f"2024-01-01 {hour:02}:00,Oslo,{hour}.5\n" for hour in range(10))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column time, city, temperature"),
        ("time,city\n", "no column temperature"),
        (HEADER, "0 rows"),
        (HEADER + "2024-01-01 00:00,Oslo,warm\n", "line 2: 'warm'"),
        (HEADER + "2024-01-01 00:00,Oslo,nan\n", "'nan'"),
        (HEADER + "2024-01-01 00:00,Oslo,1e99\n", "'1e99'"),
        (HEADER + "2024-13-01 00:00,Oslo,1\n", "'2024-13-01 00:00'"),
        (HEADER + "2024-01-01T00:00+01:00,Oslo,1\n", "offset"),
        (HEADER + "2024-01-01 00:00,a>b,1\n", "'a>b'"),
        (HEADER + "2024-01-01 00:00\n", "''"),
        (HEADER + '2024-01-01 00:00,"Oslo,1\n', "not CSV"),
        ("\xff", "not UTF-8"),
    ],
)
def test_an_input_that_cannot_be_used_is_told(tmp_path: Path, text: str, says: str) -> None:
    """The message names what is wrong, and where."""
    path = tmp_path / "input.csv"
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(DatasetError) as caught:
        load(path)

    assert says in caught.value.message


def test_an_input_is_put_in_order(tmp_path: Path) -> None:
    """Rows come in the order of their time, cities become subject tokens; a BOM is no harm."""
    path = tmp_path / "input.csv"
    path.write_text(HEADER + GOOD + "2023-12-31 23:00,St. Moritz,-3\n", "utf-8-sig")

    dataset = load(path)

    assert Reading("2023-12-31T23:00", "st-moritz", "-3") == dataset.readings[0]
    assert ("oslo", "st-moritz") == dataset.cities
    assert 11 == len(dataset.records) == len(dataset.series)


def test_the_bundled_data_is_what_was_promised() -> None:
    """Two cities, 17,500 rows, airports and stock prices; pandas is not needed."""
    try:
        distribution("vega_datasets")
    except PackageNotFoundError:
        pytest.skip("vega_datasets comes with the extra `demo`")
    dataset = load(None)

    assert ("san-francisco", "seattle") == dataset.cities
    assert 17_500 < len(dataset.readings) < 17_600
    assert len(dataset.records) > 3_000
    assert len(dataset.series) > 500


READINGS = st.lists(
    st.tuples(
        st.sampled_from(["oslo", "rome"]),
        st.integers(1, 5),
        st.decimals(-99, 99, places=2),
    ),
    max_size=60,
)


@given(READINGS, st.integers(0, 60))
def test_summaries_survive_their_state(rows: list[tuple[str, int, Decimal]], cut: int) -> None:
    """Stored and read in the middle, they come out once each, as a direct computation says."""
    rows.sort(key=lambda row: row[1])
    readings = [Reading(f"2024-01-0{day}T00:00", city, str(value)) for city, day, value in rows]
    summaries = DailySummaries()
    told = []
    for number, reading in enumerate(readings):
        if number == cut:
            summaries = DailySummaries.from_bytes(summaries.to_bytes())
        told.append(summaries.take(reading.city, reading.day, Decimal(reading.temperature)))
    assert expected.days_over(readings) == len([summary for summary in told if summary])
    told += [summaries.end(city) for city in ("oslo", "rome")]

    got = [summary for summary in told if summary is not None]
    read = {(it["city"], it["day"]): it for it in got}
    assert len(read) == len(got)
    direct = expected.compute(readings)
    assert direct.keys() == read.keys()
    assert all(summaries.find(*place) == read[place] for place in direct)
    assert 0 == summaries.late


def test_a_summary_is_exact() -> None:
    """Both computations round halves to even, and agree to the last digit."""
    readings = [Reading(f"2024-01-01T0{n}:00", "oslo", value) for n, value in enumerate("112")]
    summaries = DailySummaries()
    for reading in readings:
        summaries.take(reading.city, reading.day, Decimal(reading.temperature))

    told = summaries.end("oslo")

    assert {"minimum": "1", "mean": "1.3333", "maximum": "2", "count": 3} == {
        name: value for name, value in (told or {}).items() if name not in ("city", "day")
    }
    assert expected.compute(readings)["oslo", "2024-01-01"].mean == Fraction("1.3333")


def test_late_readings_are_counted_and_left_out() -> None:
    """A day that was told is not told again."""
    summaries = DailySummaries()
    summaries.take("oslo", "2024-01-02", Decimal(1))
    summaries.take("oslo", "2024-01-01", Decimal(1))
    summaries.end("oslo")
    summaries.take("oslo", "2024-01-02", Decimal(1))

    assert 2 == summaries.late
    assert summaries.find("oslo", "2024-01-01") is None


@given(st.integers(0, 5), st.lists(st.integers(1, 12)))
def test_messages_come_once_and_in_order(position: int, sequences: list[int]) -> None:
    """Whatever is repeated or overtaken, what comes out is the stream without a gap."""
    order: InOrder[int] = InOrder(position)
    out = []
    for sequence in sequences:
        order.put(sequence, sequence)
        while (item := order.pop()) is not None:
            out.append(item)

    assert out == list(range(position + 1, order.position + 1))
    assert order.position + 1 not in sequences


def test_a_cell_is_verified_only_without_a_fault() -> None:
    """Control: a comparison that does not hold says so in the table."""
    good, bad = Cell("Event", "tcp", count=1_000, p50_us=12.0), Cell("Query", "tcp")
    with good.judged():
        require(True, "never told")
        good.detail = "compared"
    with bad.judged():
        require(False, "one is not two")

    _, first, second = table([good, bad]).splitlines()
    assert ["Event", "tcp", "1,000", "12", "us", "-", "yes", "compared"] == first.split()
    assert "NO" in second
    assert f"{Unverified.__name__}: one is not two" in second
