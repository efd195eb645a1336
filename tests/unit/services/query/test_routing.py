"""Routing of queries, against a plain model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire import errors
from tidewire.wire.subject import matches
from tidewire_server.services.query.routing import Directory, Seat

PATTERNS = ["a", "a.b", "a.*", ">", "a.>"]
SUBJECTS = ["a", "a.b", "b", "a.b.c"]


def seat(name: str, *subjects: str, group: str = "", most: int = 100) -> Seat:
    return Seat(name, subjects or ("a",), group=group, in_flight_max=most)


def directory_of(*seats: Seat) -> Directory[Seat]:
    directory: Directory[Seat] = Directory()
    for each in seats:
        directory.add(each)
    return directory


def take(directory: Directory[Seat], subject: str = "a") -> str:
    chosen = directory.choose(subject)
    chosen.take()
    return chosen.name


def test_queries_go_to_the_least_busy() -> None:
    """Equal ones take turns; one that answers gets the next."""
    one, two, three = seat("one"), seat("two"), seat("three")
    directory = directory_of(one, two, three)

    assert ["one", "two", "three", "one"] == [take(directory) for _ in range(4)]
    one.give_back()
    one.give_back()
    assert ["one", "two"] == [take(directory), directory.choose("a").name]


def test_nobody_and_busy_are_different_errors() -> None:
    """No responder is UNAVAILABLE at once; full hands are RESOURCE_EXHAUSTED with a hint."""
    directory = directory_of(seat("one", most=1))

    with pytest.raises(errors.NoResponders):
        directory.choose("nobody.here")
    take(directory)
    with pytest.raises(errors.RespondersBusy) as caught:
        directory.choose("a")
    assert {"subject": "a"} == caught.value.metadata
    assert caught.value.retry_after_s is not None


def test_a_draining_responder_does_not_count() -> None:
    """Who serves no more is not busy: it is not there."""
    one = seat("one")
    directory = directory_of(one)
    one.serving = False
    one.place()

    with pytest.raises(errors.NoResponders):
        directory.choose("a")
    assert [] == directory.everyone("a")


def test_a_clogged_responder_is_busy() -> None:
    """Too much unwritten: it takes none now, but it is there."""
    one = seat("one")
    directory = directory_of(one)
    one.clogged = True
    one.place()

    with pytest.raises(errors.RespondersBusy):
        directory.choose("a")
    assert [one] == directory.everyone("a")


def test_groups_share_evenly_whatever_their_size() -> None:
    """Between groups that are equally busy the turn changes."""
    left = [seat(f"left-{i}", group="left") for i in range(3)]
    directory = directory_of(*left, seat("right", group="right"))
    names: list[str] = []
    for _ in range(8):
        chosen = directory.choose("a")
        names.append(chosen.group)

    assert 4 == names.count("left")


def test_everyone_is_listed_once_with_the_busy_last() -> None:
    """A responder of several matching patterns is one responder."""
    one, two = seat("one", "a", ">", most=1), seat("two", "a")
    directory = directory_of(one, two)
    one.take()

    assert [two, one] == directory.everyone("a")


def test_who_was_placed_before_joining_is_found() -> None:
    """A responder whose member's life was looked at first stands in its row all the same."""
    one = seat("one")
    one.place()
    directory = directory_of(one)

    assert ["one", "one"] == [take(directory), take(directory)]


def test_leaving_twice_is_leaving() -> None:
    """Removal cleans every table and may be repeated."""
    one = seat("one", "a", "a.*")
    directory = directory_of(one)
    directory.remove(one)
    directory.remove(one)

    with pytest.raises(errors.NoResponders):
        directory.choose("a")
    assert 0 == len(directory)


@given(
    st.lists(
        st.tuples(
            st.sets(st.sampled_from(PATTERNS), min_size=1),
            st.sampled_from(["", "g"]),
            st.integers(1, 3),
        ),
        min_size=1,
        max_size=6,
    ),
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "answer", "drain", "clog", "free", "leave", "back"]),
            st.integers(0, 5),
            st.sampled_from(SUBJECTS),
        ),
        max_size=60,
    ),
)
def test_the_choice_is_always_a_least_busy_one(
    responders: list[tuple[set[str], str, int]], steps: list[tuple[str, int, str]]
) -> None:
    """Whatever happens, the pools agree with a scan over all responders."""
    seats = [
        Seat(str(i), sorted(patterns), group=group, in_flight_max=most)
        for i, (patterns, group, most) in enumerate(responders)
    ]
    directory = directory_of(*seats)
    for act, number, subject in steps:
        one = seats[number % len(seats)]
        if act == "ask":
            _check_choice(directory, [s for s in seats if s in directory.seats], subject)
        elif act == "answer" and one.in_hand:
            one.give_back()
        elif act in ("drain", "back") and one in directory.seats:
            one.serving = act == "back"
            one.place()
        elif act in ("clog", "free"):
            one.clogged = act == "clog"
            one.place()
        elif act == "leave":
            directory.remove(one)


def _check_choice(directory: Directory[Seat], seats: list[Seat], subject: str) -> None:
    serving = [s for s in seats if s.serving and any(matches(p, subject) for p in s.subjects)]
    ready = [s for s in serving if not s.clogged and s.in_hand < s.in_flight_max]
    try:
        chosen = directory.choose(subject)
    except errors.NoResponders:
        assert [] == serving
    except errors.RespondersBusy:
        assert serving
        assert [] == ready
    else:
        assert min(s.in_hand for s in ready) == chosen.in_hand
        assert chosen in ready
        chosen.take()


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 8)), min_size=1, max_size=6),
    st.integers(1, 40),
)
def test_several_are_shared_as_if_given_one_by_one(
    seats: list[tuple[int, int]], count: int
) -> None:
    """The least busy get them; what nobody has room for is left over."""

    def scene() -> Directory[Seat]:
        directory = directory_of(*(seat(str(n), most=most) for n, (_, most) in enumerate(seats)))
        for each, (in_hand, most) in zip(directory.seats, seats, strict=True):
            each.take(min(in_hand, most))
        return directory

    one_by_one, together = scene(), scene()
    try:
        for _ in range(count):
            take(one_by_one)
    except errors.RespondersBusy:
        assert all(each.in_hand == each.in_flight_max for each in one_by_one.seats)
    try:
        for each, number in together.share("a", count):
            each.take(number)
    except errors.RespondersBusy:
        assert not any(each.ready for each in together.seats)

    # Which of equals gets one more is not said, but how many of them do.
    assert sorted(each.in_hand for each in one_by_one.seats) == sorted(
        each.in_hand for each in together.seats
    )


def test_sharing_spans_groups() -> None:
    """Responders of two groups are equals to a run of questions."""
    directory = directory_of(seat("one"), seat("two", group="g"), seat("three", "b"))

    assert {"one": 3, "two": 3} == {each.name: n for each, n in directory.share("a", 6)}
    with pytest.raises(errors.NoResponders):
        directory.share("c", 2)
