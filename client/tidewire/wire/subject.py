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


class _Node(Generic[Value]):
    """A token of patterns with wildcards, below the tokens before it."""

    __slots__ = ("below", "rest", "values")

    def __init__(self) -> None:
        self.below: dict[str, _Node[Value]] = {}
        self.values: list[Value] = []
        """Of the pattern that ends here."""
        self.rest: list[Value] = []
        """Of the pattern that ends here with one more token, ``>``."""


class SubjectIndex(Generic[Value]):
    """
    Patterns with values, looked up by subject. A lookup costs a dict read when the subject was seen
    before, and else a step for each token, however many patterns there are.

    The cache of lookups holds at most `CACHE_ENTRIES_MAX` subjects and is dropped on every change.
    """

    def __init__(self) -> None:
        self._exact: dict[str, list[Value]] = {}
        self._wild: dict[str, list[Value]] = {}
        self._tree: _Node[Value] = _Node()
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
        if "*" not in pattern and ">" not in pattern:
            self._exact.setdefault(pattern, []).append(value)
        else:
            values = self._wild.get(pattern)
            if values is None:
                values = self._wild[pattern] = self._grow(pattern)
            values.append(value)
        self._found.clear()

    def remove(self, pattern: str, value: Value) -> None:
        """Remove one value that was added under this pattern."""
        table = self._exact if pattern in self._exact else self._wild
        values = table[pattern]
        values.remove(value)
        if not values:
            del table[pattern]
            if table is self._wild:
                self._prune(self._tree, pattern.split("."), 0)
        self._found.clear()

    def find(self, subject: str) -> tuple[Value, ...]:
        """
        Values whose patterns select the subject, each once, in the order they were added under
        their pattern.
        """
        found = self._found.get(subject)
        if found is None:
            if not self._wild and not self._exact:
                return ()
            if len(self._found) >= CACHE_ENTRIES_MAX:
                self._found.clear()
            found = self._found[subject] = self.search(subject)
        return found

    def search(self, subject: str) -> tuple[Value, ...]:
        """The same, for who keeps what was found."""
        lists = [self._exact[subject]] if subject in self._exact else []
        nodes = [self._tree] if self._wild else []
        for token in subject.split("."):
            below: list[_Node[Value]] = []
            for node in nodes:
                if node.rest:
                    lists.append(node.rest)
                for step in (token, "*"):
                    child = node.below.get(step)
                    if child is not None:
                        below.append(child)
            nodes = below
        lists += [node.values for node in nodes if node.values]
        if len(lists) == 1 and len(lists[0]) == 1:
            return (lists[0][0],)
        # By identity: a value need not be hashable, and comparing each with each is quadratic.
        return tuple({id(value): value for values in lists for value in values}.values())

    def _grow(self, pattern: str) -> list[Value]:
        """The list of values of a new pattern with wildcards, in its place in the tree."""
        node = self._tree
        for part in pattern.split("."):
            if part == ">":
                return node.rest
            node = node.below.setdefault(part, _Node())
        return node.values

    def _prune(self, node: "_Node[Value]", tokens: list[str], depth: int) -> None:
        """Drop the nodes of a pattern that nothing needs any more."""
        if depth == len(tokens) or tokens[depth] == ">":
            return
        child = node.below[tokens[depth]]
        self._prune(child, tokens, depth + 1)
        if not child.below and not child.values and not child.rest:
            del node.below[tokens[depth]]


def _invalid(what: str, text: str, rule: str) -> InvalidSubject:
    shown = text if len(text) <= SUBJECT_BYTES_MAX else f"{text[:80]}... ({len(text)} characters)"
    return InvalidSubject(f"{what} {shown!r} is not valid: it must be {rule}", fields={what: rule})
