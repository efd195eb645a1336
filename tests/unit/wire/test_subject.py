"""Subjects and patterns: the rules, and matching against a model that spells every pattern out."""

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tidewire.errors import InvalidSubject
from tidewire.wire import subject as rules
from tidewire.wire.subject import (
    SubjectIndex,
    check_name,
    check_pattern,
    check_subject,
    matches,
    overlaps,
)

TOKENS = ("a", "b")
DEPTH = 4
SUBJECTS = [".".join(s) for n in range(1, DEPTH + 1) for s in product(TOKENS, repeat=n)]

tokens = st.sampled_from(TOKENS)
subjects = st.sampled_from(SUBJECTS)
patterns = st.builds(
    lambda first, more: ".".join([*first, ">"] if more and len(first) < DEPTH else first or [">"]),
    st.lists(st.sampled_from((*TOKENS, "*")), max_size=DEPTH),
    st.booleans(),
)


def model(pattern: str, subject: str) -> bool:
    """What a pattern selects, by recursion on its tokens."""

    def select(wanted: Sequence[str], tokens: Sequence[str]) -> bool:
        if not wanted or not tokens:
            return not wanted and not tokens
        if wanted[0] == ">":
            return True
        return wanted[0] in ("*", tokens[0]) and select(wanted[1:], tokens[1:])

    return select(pattern.split("."), subject.split("."))


@pytest.mark.parametrize("good", ["a", "a.b", "A-z_0", ".".join("a" * 16), "x" * 64])
def test_subjects_that_are_taken(good: str) -> None:
    """One to sixteen tokens; a subject is a pattern too."""
    assert good == check_subject(good)
    assert good == check_pattern(good)


@pytest.mark.parametrize(
    "bad",
    ["", ".", "a.", ".a", "a..b", "a b", "ä", "a\n", "x" * 65, ".".join("a" * 17), "a/b", "$a"],
)
def test_what_is_neither_subject_nor_pattern(bad: str) -> None:
    """Everything else is refused by both, with the field."""
    for check, field in ((check_subject, "subject"), (check_pattern, "pattern")):
        with pytest.raises(InvalidSubject) as caught:
            check(bad)
        assert [field] == list(caught.value.fields)


@pytest.mark.parametrize(
    "good", [">", "*", "a.>", "*.>", "a.*.b", ".".join("*" * 16), ".".join("*" * 15) + ".>"]
)
def test_patterns_that_are_no_subjects(good: str) -> None:
    """Wildcards stand for whole tokens, and nobody publishes on them."""
    assert good == check_pattern(good)
    with pytest.raises(InvalidSubject):
        check_subject(good)


@pytest.mark.parametrize(
    "bad", [">.a", "a.>.b", ">.>", "a*", "*a.b", "a.>b", "**", ".".join("*" * 16) + ".>"]
)
def test_patterns_that_are_refused(bad: str) -> None:
    """A wildcard within a token, or > before the end."""
    with pytest.raises(InvalidSubject):
        check_pattern(bad)


def test_a_name_is_one_token_and_the_error_names_the_field() -> None:
    """Names have no dots; a long bad one is not repeated in full."""
    assert "a-1" == check_name("a-1")
    for bad in ("", "a.b", "*", "x" * 65):
        with pytest.raises(InvalidSubject) as caught:
            check_name(bad, "stream")
        assert ["stream"] == list(caught.value.fields)
    with pytest.raises(InvalidSubject) as caught:
        check_subject("x" * 100_000)
    assert len(caught.value.message) < 1000


MATCHING = [
    ("a", "a", True),
    ("a", "a.a", False),
    ("*", "a", True),
    ("*", "a.b", False),
    (">", "a.b.c", True),
    ("a.>", "a", False),
    ("a.>", "a.b", True),
    ("a.>", "a.b.c", True),
    ("a.*", "a.b.c", False),
    ("*.b", "a.b", True),
    ("*.b", "b.b.b", False),
    ("*.*.>", "a.b", False),
    ("*.*.>", "a.b.c", True),
]


@pytest.mark.parametrize(("pattern", "subject", "expected"), MATCHING)
def test_patterns_select_subjects(pattern: str, subject: str, expected: bool) -> None:
    """The table of the contract: * is one token, a last > one or more."""
    assert expected == matches(pattern, subject)


@given(patterns, subjects)
@settings(max_examples=500)
def test_matching_agrees_with_the_model(pattern: str, subject: str) -> None:
    """Every drawn pattern is valid, and selects what its tokens spell out."""
    assert pattern == check_pattern(pattern)
    assert model(pattern, subject) == matches(pattern, subject)


@given(patterns, patterns)
@settings(max_examples=500)
def test_patterns_overlap_when_a_subject_is_selected_by_both(left: str, right: str) -> None:
    """Two patterns of these tokens share a subject iff they share one of at most their length."""
    shared = any(model(left, subject) and model(right, subject) for subject in SUBJECTS)

    assert shared == overlaps(left, right)
    assert overlaps(left, right) == overlaps(right, left)


class IndexAgrees(RuleBasedStateMachine):
    """A subject index says what matching every pattern says, through adding and removing."""

    added = Bundle("added")

    def __init__(self) -> None:
        super().__init__()
        self.index: SubjectIndex[int] = SubjectIndex()
        self.entries: list[tuple[str, int]] = []

    @rule(target=added, pattern=patterns, value=st.integers(0, 3))
    def add(self, pattern: str, value: int) -> tuple[str, int]:
        self.index.add(pattern, value)
        self.entries.append((pattern, value))
        return pattern, value

    @rule(entry=consumes(added))
    def remove(self, entry: tuple[str, int]) -> None:
        self.index.remove(*entry)
        self.entries.remove(entry)

    @rule(subject=subjects)
    def find(self, subject: str) -> None:
        found = self.index.find(subject)

        assert {value for pattern, value in self.entries if model(pattern, subject)} == set(found)
        assert len(found) == len(set(found))

    @invariant()
    def holds_what_was_added(self) -> None:
        assert sorted(self.entries) == sorted(self.index)
        assert len(self.entries) == len(self.index)


IndexAgrees.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestIndexAgrees = IndexAgrees.TestCase


def test_the_cache_of_lookups_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subjects nobody sees again do not pile up."""
    monkeypatch.setattr(rules, "CACHE_ENTRIES_MAX", 10)
    index: SubjectIndex[int] = SubjectIndex()
    index.add(">", 1)

    for number in range(100):
        assert (1,) == index.find(f"s{number}")

    assert len(index._found) <= 10


def test_what_was_removed_leaves_no_nodes() -> None:
    """Patterns that come and go do not pile up in the tree."""
    index: SubjectIndex[int] = SubjectIndex()
    index.add("a.*", 1)
    for number in range(100):
        index.add(f"a.{number}.*.b.>", 2)
    for number in range(100):
        index.remove(f"a.{number}.*.b.>", 2)

    assert ["*"] == list(index._tree.below["a"].below)
    assert (1,) == index.find("a.b")


def test_a_lookup_looks_at_the_patterns_on_its_way_only() -> None:
    """Ten thousand patterns of other first tokens are not looked at: a step for each token."""
    index: SubjectIndex[int] = SubjectIndex()
    for number in range(10_000):
        index.add(f"t{number}.*.>", number)
    looked: list[str] = []

    class Watched(dict[str, object]):
        def get(self, key: str, default: object = None) -> object:
            looked.append(key)
            return super().get(key, default)

    index._tree.below = Watched(index._tree.below)  # type: ignore[assignment]

    assert (77,) == index.search("t77.x.y")
    assert ["t77", "*"] == looked
