"""Values as people write them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tidewire.cli.parameters import HEADER, SECONDS, SIZE, START, duration, long, when
from tidewire.cli.streams import start_position


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (SECONDS, "30", 30.0),
        (SECONDS, "1.5h", 5_400.0),
        (SECONDS, "250ms", 0.25),
        (SECONDS, "7d", 604_800.0),
        (SIZE, "4096", 4_096),
        (SIZE, "64k", 65_536),
        (SIZE, "10GiB", 10 << 30),
        (HEADER, "a=b=c", ("a", b"b=c")),
        (START, "all", "all"),
        (START, "17", 17),
        (START, "@2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
    ],
)
def test_values_are_understood(kind: click.ParamType[Any], text: str, value: object) -> None:
    """Units, signs and words give what they say."""
    assert value == kind.convert(text, None, None)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (SECONDS, "soon"),
        (SECONDS, "-1"),
        (SECONDS, "99999999d"),
        (SIZE, "10x"),
        (SIZE, "-1"),
        (HEADER, "a"),
        (HEADER, "=b"),
        (START, "0"),
        (START, "first"),
        (START, "@yesterday"),
    ],
)
def test_the_rest_is_refused(kind: click.ParamType[Any], text: str) -> None:
    """Control: what is no such value is a usage error that names it."""
    with pytest.raises(click.BadParameter, match=text.lstrip("@")):
        kind.convert(text, None, None)


def test_a_time_may_be_so_long_ago() -> None:
    """@1h is an hour before now, in UTC."""
    started = datetime.now(UTC)

    time = START.convert("@1h", None, None)

    assert isinstance(time, datetime)
    assert timedelta(minutes=59) < started - time < timedelta(minutes=61)


def test_starts_travel_as_they_are_meant() -> None:
    """Each kind of start becomes its field."""
    time = datetime(2026, 1, 31, 12, tzinfo=UTC)

    assert start_position("all").all
    assert start_position("new").next
    assert start_position("last").last
    assert 17 == start_position(17).sequence
    assert time == start_position(time).time.ToDatetime(UTC)


def test_times_are_shown_to_people() -> None:
    """In UTC to the second, and durations in the unit that fits."""
    assert "" == when(Timestamp())
    assert "1970-01-01T00:00:05Z" == when(Timestamp(seconds=5))
    assert ["7d", "90s", "1.5s", "1h"] == [long(s) for s in (604_800, 90, 1.5, 3_600)]
    assert 1_500_000_000 == duration(1.5).ToNanoseconds()
