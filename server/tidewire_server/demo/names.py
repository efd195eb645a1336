"""What things are called on one wire: every wire has its own, so that none sees another's."""

import re
from dataclasses import dataclass
from typing import Final, Self

LEASE_S: Final = 3.0
"""Lease of the operator: it is DEAD after this long without a beat."""


@dataclass(frozen=True, slots=True)
class Names:
    """
    Names of one run.

    Attributes:
        run: One subject token, such as the wire's name.
    """

    run: str

    @classmethod
    def of(cls, wire: str) -> Self:
        """Names of a wire by its scheme."""
        return cls(re.sub(r"[^A-Za-z0-9_-]", "-", wire))

    @property
    def weather(self) -> str:
        """Stream of the readings."""
        return f"weather-{self.run}"

    def reading(self, city: str) -> str:
        """Subject of a city's readings; ``*`` and ``>`` stand for cities."""
        return f"weather.{self.run}.{city}"

    @property
    def daily(self) -> str:
        """Stream of the daily summaries."""
        return f"daily-{self.run}"

    def summary(self, city: str) -> str:
        """Subject of a city's summaries."""
        return f"daily.{self.run}.{city}"

    @property
    def operator(self) -> str:
        """Name of the operator, of its node and of its durable consumer."""
        return f"daily-report-{self.run}"

    def question(self, city: str) -> str:
        """Subject to ask for a day of a city."""
        return f"report.{self.run}.day.{city}"

    @property
    def status(self) -> str:
        """Subject to ask how far the operator is."""
        return f"report.{self.run}.status"

    def key(self, rest: str) -> str:
        """Key of State; with an empty rest the prefix of all."""
        return f"demo/{self.run}/{rest}"
