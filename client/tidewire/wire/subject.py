"""
Subjects and the patterns that select them.

A subject is 1 to 16 tokens of ``[A-Za-z0-9_-]{1,64}`` joined by dots. In a pattern ``*`` stands for
exactly one token and a final ``>`` for one or more.
"""

import re
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from tidewire.errors import InvalidSubject

TOKENS_MAX: Final = 16
TOKEN_BYTES_MAX: Final = 64
SUBJECT_BYTES_MAX: Final = TOKENS_MAX * (TOKEN_BYTES_MAX + 1) - 1
CACHE_ENTRIES_MAX: Final = 10_000

_NAME_PATTERN: Final = r"[A-Za-z0-9_-]{1,64}"
_SUBJECT: Final = re.compile(rf"{_NAME_PATTERN}(?:\.{_NAME_PATTERN}){{0,15}}")
_PATTERN: Final = re.compile(
    rf"(?:(?:{_NAME_PATTERN}|\*)(?:\.(?:{_NAME_PATTERN}|\*)){{0,14}}(?:\.>)?)|>|"
    rf"(?:{_NAME_PATTERN}|\*)(?:\.(?:{_NAME_PATTERN}|\*)){{15}}"
)
_NAME: Final = re.compile(_NAME_PATTERN)

Value = TypeVar("Value")


def check_subject(subject: str) -> str:
    """
    Return the subject when it is one to publish on.

    Raises:
        InvalidSubject: It is empty, too long, or has wildcards or other characters.
    """
    if _SUBJECT.fullmatch(subject) is None:
        raise _invalid("subject", subject, "1 to 16 tokens of A-Z a-z 0-9 _ - joined by dots")
    return subject


def check_pattern(pattern: str) -> str:
    """
    Return the pattern when it is one to subscribe with.

    Raises:
        InvalidSubject: It is not a pattern; ``>`` may only be the last token.
    """
    if _PATTERN.fullmatch(pattern) is None:
        raise _invalid(
            "pattern",
            pattern,
            "1 to 16 tokens of A-Z a-z 0-9 _ -, or * for one, or a last > for more",
        )
    return pattern


def check_name(name: str, what: str = "name") -> str:
    """
    Return the name (of a stream, consumer, node or group) when it is one subject token.

    Raises:
        InvalidSubject: It is not.
    """
    if _NAME.fullmatch(name) is None:
        raise _invalid(what, name, "1 to 64 characters of A-Z a-z 0-9 _ -")
    return name


def matches(pattern: str, subject: str) -> bool:
    """Whether a valid pattern selects a valid subject."""
    if pattern in (subject, ">"):
        return True
    wanted = pattern.split(".")
    tokens = subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
    elif len(tokens) != len(wanted):
        return False
    return all(want in ("*", token) for want, token in zip(wanted, tokens, strict=False))


def overlaps(left: str, right: str) -> bool:
    """Whether some subject is selected by both patterns."""
    ours, theirs = left.split("."), right.split(".")
    for index in range(max(len(ours), len(theirs))):
        a = ours[index] if index < len(ours) else None
        b = theirs[index] if index < len(theirs) else None
        if a is None or b is None:
            return False
        if a == ">" or b == ">":
            return True
        if a != b and "*" not in (a, b):
            return False
    return True


class SubjectIndex(Generic[Value]):
    """
    Patterns with values, looked up by subject. A lookup costs a dict read when the subject was seen
    before.

    The cache of lookups holds at most `CACHE_ENTRIES_MAX` subjects and is dropped on every change.
    """

    def __init__(self) -> None:
        self._exact: dict[str, list[Value]] = {}
        self._wild: dict[str, list[Value]] = {}
        self._found: dict[str, tuple[Value, ...]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._exact.values())) + sum(map(len, self._wild.values()))

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        for table in (self._exact, self._wild):
            for pattern, values in table.items():
                for value in values:
                    yield pattern, value

    def add(self, pattern: str, value: Value) -> None:
        """Add a value under a valid pattern; the same value may be added under several."""
        self._table(pattern).setdefault(pattern, []).append(value)
        self._found.clear()

    def remove(self, pattern: str, value: Value) -> None:
        """Remove one value that was added under this pattern."""
        table = self._table(pattern)
        values = table[pattern]
        values.remove(value)
        if not values:
            del table[pattern]
        self._found.clear()

    def find(self, subject: str) -> tuple[Value, ...]:
        """
        Values whose patterns select the subject, each once, in the order they were added under
        their pattern.
        """
        found = self._found.get(subject)
        if found is None:
            if len(self._found) >= CACHE_ENTRIES_MAX:
                self._found.clear()
            found = self._found[subject] = self._search(subject)
        return found

    def _search(self, subject: str) -> tuple[Value, ...]:
        # By identity: a value need not be hashable, and comparing each with each is quadratic.
        values = {id(value): value for value in self._exact.get(subject, ())}
        for pattern, wild in self._wild.items():
            if matches(pattern, subject):
                values.update((id(value), value) for value in wild)
        return tuple(values.values())

    def _table(self, pattern: str) -> dict[str, list[Value]]:
        return self._wild if "*" in pattern or ">" in pattern else self._exact


def _invalid(what: str, text: str, rule: str) -> InvalidSubject:
    shown = text if len(text) <= SUBJECT_BYTES_MAX else f"{text[:80]}... ({len(text)} characters)"
    return InvalidSubject(f"{what} {shown!r} is not valid: it must be {rule}", fields={what: rule})
