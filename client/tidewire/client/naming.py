"""Options that people write as words, and the enums they travel as."""

from datetime import datetime
from enum import IntEnum
from typing import Any, Final, TypeAlias

from tidewire.client.times import to_timestamp
from tidewire.errors import InvalidArgument
from tidewire.v1 import common_pb2, event_pb2

Durability: TypeAlias = str | common_pb2.Durability.ValueType
"""``"memory"``, ``"os"``, ``"fsync"``, ``"quorum"``, or the enum of the proto."""
Start: TypeAlias = str | int | datetime
"""``"new"``, ``"all"``, ``"last"``, a sequence, or a time with its zone."""


class DurabilityLevel(IntEnum):
    """A level of durability: equal to the enum of the proto, and printed as its word."""

    UNSPECIFIED = common_pb2.DURABILITY_UNSPECIFIED
    MEMORY = common_pb2.DURABILITY_MEMORY
    OS = common_pb2.DURABILITY_OS
    FSYNC = common_pb2.DURABILITY_FSYNC
    QUORUM = common_pb2.DURABILITY_QUORUM

    def __str__(self) -> str:
        return self.name.lower()


_LEVELS: Final[dict[int, Any]] = {int(level): level for level in DurabilityLevel}
_DURABILITIES: Final = {
    "memory": common_pb2.DURABILITY_MEMORY,
    "os": common_pb2.DURABILITY_OS,
    "fsync": common_pb2.DURABILITY_FSYNC,
    "quorum": common_pb2.DURABILITY_QUORUM,
}


def durability_of(level: Durability | None) -> common_pb2.Durability.ValueType:
    """Return the enum of a level; ``None`` leaves it to the server."""
    if level is None:
        return common_pb2.DURABILITY_UNSPECIFIED
    if not isinstance(level, str):
        return level
    found = _DURABILITIES.get(level)
    if found is None:
        raise InvalidArgument(f"durability {level!r} is none of {', '.join(_DURABILITIES)}")
    return found


def level_of(
    level: common_pb2.Durability.ValueType,
) -> common_pb2.Durability.ValueType:
    """Return a level of the server such that it prints as its word; an unknown one as it is."""
    known: common_pb2.Durability.ValueType = _LEVELS.get(level, level)
    return known


def start_of(start: Start) -> event_pb2.StartPosition:
    """Return where reading starts."""
    if isinstance(start, bool):
        raise InvalidArgument("a start is a word, a sequence or a time, not a truth value")
    if isinstance(start, int):
        return event_pb2.StartPosition(sequence=start)
    if isinstance(start, datetime):
        return event_pb2.StartPosition(time=to_timestamp(start))
    if start == "new":
        return event_pb2.StartPosition(next=True)
    if start == "all":
        return event_pb2.StartPosition(all=True)
    if start == "last":
        return event_pb2.StartPosition(last=True)
    raise InvalidArgument(f"start {start!r} is none of new, all, last, a sequence, a time")


def discard_of(discard: str) -> event_pb2.Discard.ValueType:
    """Return what happens at a limit: ``"old"`` or ``"new"`` messages go."""
    if discard not in ("old", "new"):
        raise InvalidArgument(f"discard {discard!r} is neither 'old' nor 'new'")
    return event_pb2.DISCARD_NEW if discard == "new" else event_pb2.DISCARD_OLD
