"""When a gather is complete, as tables and against a plain model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire import errors
from tidewire_server.services.query.gather import Gathering, Until


def test_first_asks_all_and_ends_with_enough() -> None:
    """Two of four: what comes later does not count."""
    gathering = Gathering(Until.FIRST, 2, 4)

    assert [0, 1, 2, 3] == gathering.start()
    assert [] == gathering.fail(0)
    assert gathering.succeed(1)
    assert not gathering.over
    assert gathering.succeed(3)
    assert gathering.complete
    assert not gathering.succeed(2)
    assert ((2, 1, [2])) == (gathering.replies, gathering.failures, gathering.missing)


def test_first_ends_when_it_can_no_longer_succeed() -> None:
    """One more failure than it can bear ends it, incomplete, without waiting."""
    gathering = Gathering(Until.FIRST, 2, 3)
    gathering.start()
    gathering.fail(0)
    gathering.fail(1)

    assert gathering.over
    assert not gathering.complete


def test_all_is_complete_with_failures() -> None:
    """Everybody has answered, failed or died: that is what "all" promises."""
    gathering = Gathering(Until.ALL, 0, 2)
    gathering.start()
    gathering.succeed(0)
    assert not gathering.over
    gathering.fail(1)

    assert gathering.complete


def test_quorum_asks_only_as_many_as_needed() -> None:
    """A failure brings a replacement, a reply does not."""
    gathering = Gathering(Until.QUORUM, 2, 4)

    assert [0, 1] == gathering.start()
    assert [2] == gathering.fail(0)
    assert gathering.succeed(1)
    assert [3] == gathering.fail(2)
    assert [] == gathering.fail(3)
    assert gathering.over
    assert not gathering.complete


@pytest.mark.parametrize("until", [Until.FIRST, Until.QUORUM])
def test_too_few_responders_is_an_error_at_once(until: Until) -> None:
    """Nothing is asked when it cannot succeed."""
    with pytest.raises(errors.TooFewResponders) as caught:
        Gathering(until, 3, 2)

    assert {"wanted": "3", "responders": "2"} == caught.value.metadata


@given(
    st.sampled_from(list(Until)),
    st.integers(1, 6),
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=40),
)
def test_a_gather_never_asks_twice_and_always_ends(
    until: Until, wanted: int, responders: int, events: list[tuple[int, bool]]
) -> None:
    """Each is asked at most once, and when all that were asked have answered it is over."""
    if until is not Until.ALL and responders < wanted:
        return
    gathering = Gathering(until, wanted, responders)
    asked = gathering.start()
    for index, good in events:
        if index in asked and not gathering.over:
            asked += [] if good and gathering.succeed(index) else gathering.fail(index)
        if until is Until.QUORUM and not gathering.over:
            assert wanted - gathering.replies == len(gathering.missing)
    for index in list(asked):
        gathering.succeed(index)

    assert len(asked) == len(set(asked))
    assert gathering.over
    if until is not Until.ALL and gathering.complete:
        assert wanted == gathering.replies
