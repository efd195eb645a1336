"""The policy of several servers, without any."""

import random
from collections import Counter

import pytest

from tidewire.errors import InvalidArgument
from tidewire.transport.balance import Backend, Balance, BalanceOptions, Standing


def balance(count: int, policy: str = "round_robin", **options: float) -> Balance:
    """Return servers that are all connected."""
    backends = [Backend(index, f"tcp://s{index}") for index in range(count)]
    made = Balance(backends, policy, BalanceOptions(**options), random.Random(7))  # type: ignore[arg-type]
    for backend in backends:
        made.connection(backend, Standing.READY)
    return made


def spread(made: Balance, calls: int) -> list[int]:
    """Make calls that end well at once; return how many went to each server."""
    counted = Counter[int]()
    for _ in range(calls):
        backend = made.pick()
        counted[backend.index] += 1
        made.ended(backend, failed=False)
    return [counted[backend.index] for backend in made.backends]


@pytest.mark.parametrize("policy", ["round_robin", "least_outstanding"])
def test_calls_are_spread_evenly(policy: str) -> None:
    """Each server has its share, to the call; control: the first alone has all with `first`."""
    assert [100, 100, 100] == spread(balance(3, policy), 300)
    assert [300, 0, 0] == spread(balance(3, "first"), 300)


def test_the_least_busy_server_is_chosen() -> None:
    """One with slow calls gets no more of them while others have fewer."""
    made = balance(3, "least_outstanding")
    slow = made.pick()
    others = spread(made, 300)

    assert 0 == others[slow.index]
    assert [150, 150] == sorted(others)[1:]


def test_one_that_is_not_connected_is_left_out() -> None:
    """Until it is; when none is, those that are on their way get the calls, then any."""
    made = balance(3)
    made.connection(made.backends[1], Standing.FAILING)
    assert [50, 0, 50] == spread(made, 100)
    made.connection(made.backends[1], Standing.READY)
    assert [30, 30, 30] == spread(made, 90)
    for backend in made.backends:
        made.connection(backend, Standing.FAILING)
    made.connection(made.backends[2], Standing.CONNECTING)
    assert [0, 0, 10] == spread(made, 10)
    made.connection(made.backends[2], Standing.FAILING)
    assert [10, 10, 10] == spread(made, 30)


def test_the_first_that_is_there() -> None:
    """With `first` the next one takes over, and gives back."""
    made = balance(2, "first")
    made.connection(made.backends[0], Standing.FAILING)
    assert [0, 10] == spread(made, 10)
    made.connection(made.backends[0], Standing.READY)
    assert [10, 0] == spread(made, 10)


def fail(made: Balance, backend: Backend) -> float | None:
    """End a call of a server badly."""
    backend.outstanding += 1
    return made.ended(backend, failed=True)


def test_a_server_is_ejected_after_failures_in_a_row() -> None:
    """Three by default, one success between starts over; it comes back when it is healthy."""
    made = balance(2)
    bad = made.backends[0]
    assert [None, None] == [fail(made, bad), fail(made, bad)]
    bad.outstanding += 1
    made.ended(bad, failed=False)
    assert [None, None] == [fail(made, bad), fail(made, bad)]
    wait_s = fail(made, bad)

    assert wait_s is not None
    assert 1.6 <= wait_s <= 2.4
    assert Standing.EJECTED is bad.standing
    assert [0, 100] == spread(made, 100)
    made.healthy(bad)
    assert [50, 50] == spread(made, 100)


def test_each_ejection_is_longer() -> None:
    """Twice as long each time, up to the limit; a server that stayed healthy begins anew."""
    made = balance(2, jitter=0.0)
    bad = made.backends[0]

    assert [2, 4, 8, 16, 32, 60, 60] == [made.eject(bad) for _ in range(7)]
    made.healthy(bad)
    made.settled(bad)
    assert 2 == made.eject(bad)


def test_when_all_are_ejected_calls_still_go_somewhere() -> None:
    """An error of a server says more than one of ours."""
    made = balance(2)
    for backend in made.backends:
        made.eject(backend)

    assert [5, 5] == spread(made, 10)


def test_late_failures_of_an_ejected_server_do_not_prolong() -> None:
    """Calls that were under way when it was ejected are one trouble, not many."""
    made = balance(2)
    bad = made.backends[0]
    waits = [fail(made, bad) for _ in range(10)]

    assert 1 == sum(wait is not None for wait in waits)


@pytest.mark.parametrize(("count", "policy"), [(0, "first"), (1, "random")])
def test_what_cannot_be_balanced(count: int, policy: str) -> None:
    """No server, or a policy nobody knows."""
    with pytest.raises(InvalidArgument):
        balance(count, policy)
