"""Minimum, mean and maximum per day and city, as the operator keeps them. No I/O."""

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Self

MEAN_STEP: Final = Decimal("0.0001")
"""Means are rounded to this."""


@dataclass(slots=True)
class Day:
    """The readings of one city on one day."""

    count: int
    total: Decimal
    minimum: Decimal
    maximum: Decimal

    def add(self, temperature: Decimal) -> None:
        """Take one more reading."""
        self.count += 1
        self.total += temperature
        self.minimum = min(self.minimum, temperature)
        self.maximum = max(self.maximum, temperature)

    def summary(self, city: str, day: str) -> dict[str, Any]:
        """What is told of it."""
        return {
            "city": city,
            "day": day,
            "count": self.count,
            "minimum": str(self.minimum),
            "mean": str((self.total / self.count).quantize(MEAN_STEP)),
            "maximum": str(self.maximum),
        }


class DailySummaries:
    """
    Days by city. A day is over when a reading of a later one comes, or the city's data ends.

    Attributes:
        late: Readings of days that were over; they are not counted.
    """

    def __init__(self) -> None:
        self.late = 0
        self._days: dict[str, dict[str, Day]] = {}
        self._open: dict[str, str] = {}

    def take(self, city: str, day: str, temperature: Decimal) -> dict[str, Any] | None:
        """Take a reading; returns the summary of the day that is over because of it."""
        current = self._open.get(city, "")
        if day < current or (not current and day in self._days.get(city, ())):
            self.late += 1
            return None
        over = self.end(city) if current and day > current else None
        days = self._days.setdefault(city, {})
        if day in days:
            days[day].add(temperature)
        else:
            days[day] = Day(1, temperature, temperature, temperature)
            self._open[city] = day
        return over

    def end(self, city: str) -> dict[str, Any] | None:
        """Close the day that is open; returns its summary."""
        day = self._open.pop(city, None)
        return None if day is None else self._days[city][day].summary(city, day)

    def find(self, city: str, day: str) -> dict[str, Any] | None:
        """The summary of a day so far; ``None`` when nothing is known of it."""
        found = self._days.get(city, {}).get(day)
        return None if found is None else found.summary(city, day)

    def to_bytes(self) -> bytes:
        """Everything, to be read again by `from_bytes`."""
        days = {
            city: {
                day: [it.count, str(it.total), str(it.minimum), str(it.maximum)]
                for day, it in days.items()
            }
            for city, days in self._days.items()
        }
        return json.dumps({"days": days, "open": self._open, "late": self.late}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote."""
        read = json.loads(data)
        made = cls()
        made.late = read["late"]
        made._open = read["open"]
        made._days = {
            city: {
                day: Day(count, Decimal(total), Decimal(minimum), Decimal(maximum))
                for day, (count, total, minimum, maximum) in days.items()
            }
            for city, days in read["days"].items()
        }
        return made
