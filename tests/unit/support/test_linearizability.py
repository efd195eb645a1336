"""The checker that judges State: exact on small histories, and never blind to a stale read."""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.linearizability import Operation, find_violations, find_wrong_reads

Drawn = tuple[bool, int, int, int]


def has_an_order(history: Sequence[Operation]) -> bool:
    """Search every order, as Wing and Gong do: the sequential rule is a register with versions."""

    def search(left: frozenset[int], version: int, value: bytes | None) -> bool:
        if not left:
            return True
        first_return = min(history[index].returned for index in left)
        for index in left:
            operation = history[index]
            if operation.called > first_return:
                continue
            rest = left - {index}
            seen = operation.version or 0
            if operation.wrote:
                if seen > version and search(rest, seen, operation.value):
                    return True
            elif (seen, operation.value) == (version, value) and search(rest, version, value):
                return True
        return False

    return search(frozenset(range(len(history))), 0, None)


def operation(drawn: Drawn) -> Operation:
    wrote, version, called, seconds = drawn
    version = max(version, 1) if wrote else version
    value = f"v{version}".encode() if version else None
    return Operation("k", version, wrote, called, called + seconds, value)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 12), st.integers(0, 6)),
        max_size=7,
    )
)
@settings(max_examples=600, deadline=None)
def test_agrees_with_a_search_over_all_orders(drawn: list[Drawn]) -> None:
    """On small histories the one pass says what an exhaustive search says."""
    history = [operation(one) for one in drawn]

    found = find_violations(history)

    assert has_an_order(history) == (not found)


def legal_history(seed: int, count: int = 5000, clients: int = 20) -> list[Operation]:
    """Operations that took effect at one instant between their call and their return."""
    rng = random.Random(seed)
    free = [0.0] * clients
    instants = []
    for _ in range(count):
        client = rng.randrange(clients)
        called = free[client] + rng.random()
        instant = called + rng.random()
        returned = instant + rng.random()
        free[client] = returned
        instants.append((instant, called, returned, rng.random() < 0.4))
    version, history = 0, []
    for _, called, returned, wrote in sorted(instants):
        version += wrote
        value = f"v{version}".encode() if version else None
        history.append(Operation("k", version, wrote, called, returned, value))
    return history


@pytest.mark.parametrize("seed", range(5))
def test_accepts_what_is_linearizable(seed: int) -> None:
    """5,000 operations of 20 clients with instants of their own have no violation."""
    assert [] == find_violations(legal_history(seed))


def test_catches_every_seeded_stale_read() -> None:
    """Control: one read of 5,000 answered with an overwritten version is always caught."""
    caught = 0
    for seed in range(50):
        rng = random.Random(seed)
        history = legal_history(seed)
        first_returns: dict[int, float] = {
            op.version or 0: op.returned for op in history if op.wrote
        }
        stale = [
            (index, op)
            for index, op in enumerate(history)
            if not op.wrote and op.version and first_returns[op.version] < op.called
        ]
        index, read = rng.choice(stale)
        version = (read.version or 0) - 1
        value = f"v{version}".encode() if version else None
        history[index] = Operation("k", version, False, read.called, read.returned, value)
        caught += bool(find_violations(history))

    assert 50 == caught


def test_names_what_is_wrong_with_values() -> None:
    """A value that was never written, a version made twice and a wrong value are each found."""
    write = Operation("k", 1, True, 0, 1, b"a")

    assert [] == find_violations([write, Operation("k", 1, False, 2, 3, b"a")])
    assert 1 == len(find_violations([write, Operation("k", 1, False, 2, 3, b"b")]))
    assert 1 == len(find_violations([write, Operation("k", 2, False, 2, 3, b"b")]))
    assert 1 == len(find_violations([write, Operation("k", 1, True, 2, 3, b"a")]))


def test_takes_an_unknown_write_as_done_only_when_it_was_seen() -> None:
    """A write without an answer may have happened at any time after its call, or never."""
    unknown = Operation("k", None, True, 5, math.inf, b"a")

    assert [] == find_violations([unknown, Operation("k", 0, False, 6, 7)])
    assert [] == find_violations([unknown, Operation("k", 3, False, 6, 7, b"a")])
    assert 1 == len(find_violations([unknown, Operation("k", 3, False, 1, 2, b"a")]))


def test_reads_at_a_revision_see_the_last_write_up_to_it() -> None:
    """Reads of keys are judged against the writes by store revision, deletes included."""
    writes = [("a", 1, b"x"), ("a", 4, None), ("b", 2, b"y")]
    good = [("a", 3, b"x"), ("a", 4, None), ("b", 1, None), ("b", 9, b"y"), ("c", 5, None)]

    assert [] == find_wrong_reads(writes, good)
    assert 2 == len(find_wrong_reads(writes, [("a", 5, b"x"), ("b", 1, b"y")]))
