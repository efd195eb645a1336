"""The daily summaries computed directly from the rows, to compare with what the operator says."""

import json
from collections.abc import Iterable
from fractions import Fraction
from itertools import groupby
from typing import NamedTuple

from tidewire_server.demo.data import Reading

MEAN_DIGITS = 4


class Summary(NamedTuple):
    """One day of one city, in exact numbers."""

    city: str
    day: str
    readings: int
    minimum: Fraction
    mean: Fraction
    maximum: Fraction


def compute(readings: Iterable[Reading]) -> dict[tuple[str, str], Summary]:
    """Summaries by city and day, from all rows at once."""

    def place(reading: Reading) -> tuple[str, str]:
        return reading.city, reading.day

    found: dict[tuple[str, str], Summary] = {}
    for (city, day), rows in groupby(sorted(readings, key=place), place):
        values = [Fraction(row.temperature) for row in rows]
        mean = round(sum(values, Fraction()) / len(values), MEAN_DIGITS)
        found[city, day] = Summary(city, day, len(values), min(values), mean, max(values))
    return found


def days_over(readings: Iterable[Reading]) -> int:
    """Days that these rows, in order, show to be over: a later one of the city has begun."""
    days: dict[str, set[str]] = {}
    for reading in readings:
        days.setdefault(reading.city, set()).add(reading.day)
    return sum(len(of_city) - 1 for of_city in days.values())


def read(text: str | bytes) -> Summary:
    """A summary as the operator tells it, in exact numbers; ValueError when it is none."""
    told = json.loads(text)
    try:
        return Summary(
            told["city"],
            told["day"],
            told["count"],
            Fraction(told["minimum"]),
            Fraction(told["mean"]),
            Fraction(told["maximum"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{told!r} is no summary") from error
