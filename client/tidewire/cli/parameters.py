"""Types of parameters that several commands take, and what they look like in the end."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

SECONDS_MAX: Final = 3_153_600_000.0
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_SIZES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Seconds(click.ParamType[float]):
    """A time: seconds, or a number with ms, s, m, h or d."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Turn "1.5h" into 5400.0."""
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", value.strip())
        if match is None:
            self.fail(f"{value!r} is no time, such as 30, 1.5h or 7d.", param, ctx)
        seconds = float(match[1]) * _UNITS[match[2] or "s"]
        if seconds > SECONDS_MAX:
            self.fail(f"{value!r} is longer than a hundred years.", param, ctx)
        return seconds


class Size(click.ParamType[int]):
    """A size: bytes, or a number with k, m, g or t (powers of 1,024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Turn "10m" into 10485760."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15})([kmgt]?)(?:i?b)?", value.strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size, such as 4096, 64k or 10g.", param, ctx)
        return int(match[1]) * _SIZES[match[2]]


class Header(click.ParamType[tuple[str, bytes]]):
    """A header: NAME=VALUE."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, bytes]:
        """Split at the first equals sign."""
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is not NAME=VALUE.", param, ctx)
        return key, text.encode()


class Start(click.ParamType["str | int | datetime"]):
    """Where reading starts: all, new, last, a sequence, or @ and a time."""

    name = "all|new|last|SEQUENCE|@TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int | datetime:
        """Turn the text into a word, a number or a time; "@1h" is an hour ago."""
        if not isinstance(value, str) or value in ("all", "new", "last"):
            return value  # type: ignore[no-any-return]
        if value.isdigit() and int(value) > 0:
            return int(value)
        if value.startswith("@"):
            return self._time(value[1:], param, ctx)
        text = "all, new, last, a sequence from 1, or @2026-01-31T12:00:00Z"
        raise click.BadParameter(f"{value!r} is no start: {text}.", ctx, param)

    def _time(
        self, text: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if re.fullmatch(r"\d+(\.\d+)?(ms|s|m|h|d)", text):
            ago_s = SECONDS.convert(text, param, ctx)
            return datetime.fromtimestamp(max(datetime.now(UTC).timestamp() - ago_s, 0.0), UTC)
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is no time, such as 2026-01-31T12:00:00Z or 1h.", param, ctx)
        return time if time.tzinfo else time.astimezone()


SECONDS: Final = Seconds()
SIZE: Final = Size()
HEADER: Final = Header()
START: Final = Start()
DURABILITIES: Final = ("memory", "os", "fsync", "quorum")


def confirm(question: str, yes: bool) -> None:
    """Ask before something that cannot be undone; --yes answers."""
    if not yes:
        click.confirm(question, abort=True, err=True)


def duration(seconds: float) -> "Duration":
    """Seconds as they travel."""
    from google.protobuf.duration_pb2 import Duration

    made = Duration()
    made.FromNanoseconds(round(seconds * 1e9))
    return made


def when(timestamp: "Timestamp") -> str:
    """A timestamp for people, in UTC to the second; empty when it is not set."""
    if not timestamp.seconds:
        return ""
    return datetime.fromtimestamp(timestamp.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def long(seconds: float) -> str:
    """A time for people: the largest unit that shows it exactly."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _UNITS[unit] and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:g}{unit}"
    return f"{seconds:g}s"


def enum_name(kind: Any, number: int, prefix: str) -> str:
    """The name of a protobuf enum's value without its prefix, in lower case."""
    if number not in kind.values():
        return str(number)
    return str(kind.Name(number)).removeprefix(prefix).lower()


def joined(words: Sequence[str]) -> str:
    """Words for a table."""
    return " ".join(words)
