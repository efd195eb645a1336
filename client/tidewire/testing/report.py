"""What a run of the conformance kit found: one result for each behaviour."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What became of one behaviour."""

    OK = "ok"
    """It was shown."""
    UNSUITABLE = "unsuitable"
    """The wire cannot carry it, and said so by the typed error that is asked for."""
    FAILED = "failed"
    """It is not as it must be."""


@dataclass(frozen=True, slots=True)
class Result:
    """
    One behaviour on one wire.

    Attributes:
        behaviour: Its name.
        group: Group of behaviours it belongs to.
        proves: What it proves, in a sentence.
        outcome: What became of it.
        why: The typed reason of what is unsuitable, or what went wrong; empty when it was shown.
        seconds: How long it took.
    """

    behaviour: str
    group: str
    proves: str
    outcome: Outcome
    why: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """
    All behaviours on one wire.

    Attributes:
        url: What was listened on.
        encrypted: The wire has certificates.
        results: One for each behaviour that was run, in the kit's order.
    """

    url: str
    encrypted: bool
    results: Sequence[Result]

    @property
    def scheme(self) -> str:
        """Scheme of the wire."""
        return self.url.partition("://")[0]

    @property
    def ok(self) -> bool:
        """Nothing failed, and something was run."""
        return bool(self.results) and not self.failures

    @property
    def failures(self) -> list[Result]:
        """What failed."""
        return [result for result in self.results if result.outcome is Outcome.FAILED]

    def of(self, behaviour: str) -> Result:
        """Return the result of one behaviour; raise ``KeyError`` when it was not run."""
        for result in self.results:
            if result.behaviour == behaviour:
                return result
        raise KeyError(behaviour)

    def text(self) -> str:
        """Lines for a terminal, the verdict last."""
        width = max((len(result.behaviour) for result in self.results), default=0)
        lines = [
            f"{result.outcome:<10}  {result.behaviour:<{width}}  {result.seconds:6.2f} s"
            + (f"  {result.why}" if result.why else "")
            for result in self.results
        ]
        counted = ", ".join(
            f"{sum(result.outcome is outcome for result in self.results)} {outcome}"
            for outcome in Outcome
        )
        return "\n".join([*lines, f"{self.url}: {counted}"])

    def json(self) -> str:
        """One JSON object."""
        return json.dumps(
            {
                "url": self.url,
                "scheme": self.scheme,
                "encrypted": self.encrypted,
                "ok": self.ok,
                "results": [asdict(result) for result in self.results],
            }
        )

    def markdown(self) -> str:
        """A table of Markdown."""
        lines = ["| behaviour | outcome | why |", "| --- | --- | --- |"]
        for result in self.results:
            why = result.why.replace("|", "\\|")
            lines.append(f"| {result.behaviour} | {result.outcome} | {why} |")
        return "\n".join(lines) + "\n"
