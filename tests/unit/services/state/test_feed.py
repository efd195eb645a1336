"""The tail of the change log: complete from its base, bounded, shared by filters."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tidewire.v1 import common_pb2, state_pb2
from tidewire_server.services.state.feed import Feed, KeyFilter, Tail, size_of

KEYS = ["a", "a/1", "a/2", "b", "b/1"]
LARGE = 1 << 30


def put(key: str, revision: int, data: bytes = b"") -> state_pb2.Change:
    entry = state_pb2.Entry(key=key, revision=revision, value=common_pb2.Payload(data=data))
    return state_pb2.Change(kind=state_pb2.CHANGE_KIND_PUT, entry=entry)


def seen(changes: Sequence[state_pb2.Change]) -> list[tuple[str, int]]:
    return [(change.entry.key, change.entry.revision) for change in changes]


def take(tail: Tail, after: int, most: int = LARGE, size: int = LARGE) -> list[tuple[str, int]]:
    taken = tail.take(after, changes_max=most, bytes_max=size)
    return [figures for revised in taken for figures in seen(revised.changes)]


def attach(feed: Feed, prefix: str, *, exact: bool = False, changes_max: int = LARGE) -> Tail:
    return feed.attach(
        KeyFilter(prefix, exact), lambda: None, changes_max=changes_max, bytes_max=LARGE
    )


def test_each_tail_gets_what_its_filter_takes() -> None:
    """A prefix takes all keys that begin with it, an exact filter one key, the empty one all."""
    feed = Feed(0)
    everything, prefix, exact = attach(feed, ""), attach(feed, "a"), attach(feed, "a", exact=True)

    feed.offer([put("a", 1), put("b", 1), put("a/1", 1)], 1)

    assert [("a", 1), ("b", 1), ("a/1", 1)] == take(everything, 0)
    assert [("a", 1), ("a/1", 1)] == take(prefix, 0)
    assert [("a", 1)] == take(exact, 0)


def test_what_was_read_from_history_is_not_given_again() -> None:
    """Changes up to the watcher's position are left out, whichever way it got there."""
    feed = Feed(0)
    tail = attach(feed, "")
    for revision in (1, 2, 3):
        feed.offer([put("a", revision)], revision)

    assert [("a", 3)] == take(tail, 2)
    assert [] == take(tail, 0)


def test_revisions_are_taken_whole() -> None:
    """Limits cut between revisions, and the first one is given however large it is."""
    feed = Feed(0)
    tail = attach(feed, "")
    feed.offer([put("a", 1), put("b", 1), put("a/1", 1)], 1)
    feed.offer([put("a", 2)], 2)

    first = take(tail, 0, most=2)
    second = take(tail, 1, most=2, size=1)

    assert [("a", 1), ("b", 1), ("a/1", 1)] == first
    assert [("a", 2)] == second
    assert [] == take(tail, 2)


def test_a_response_is_made_once_for_all_watchers() -> None:
    """Tails of one filter share what is sent."""
    feed = Feed(0)
    tails = [attach(feed, "a") for _ in range(2)]
    feed.offer([put("a", 1), put("b", 1)], 1)
    taken = [tail.take(0, changes_max=LARGE, bytes_max=LARGE)[0] for tail in tails]

    assert taken[0].response() is taken[1].response()
    assert (1, 1) == (
        taken[0].response().changes.revision,
        len(taken[0].response().changes.changes),
    )


def test_one_offer_of_several_revisions_is_kept_apart() -> None:
    """What became durable together under several revisions is still cut between them."""
    feed = Feed(0)
    tail = attach(feed, "")
    feed.offer([put("a", 1), put("b", 2)], 2)

    assert [("b", 2)] == take(tail, 1)


def test_a_full_tail_is_emptied_and_says_so() -> None:
    """Over its bytes a tail holds nothing any more until it is restarted."""
    feed = Feed(0)
    size = size_of([put("a", 1, bytes(100))])
    tail = feed.attach(KeyFilter(""), lambda: None, changes_max=LARGE, bytes_max=2 * size)
    for revision in (1, 2):
        feed.offer([put("a", revision, bytes(100))], revision)
    before = tail.overflowed

    feed.offer([put("a", 3)], 3)

    assert (False, True) == (before, tail.overflowed)
    assert [] == take(tail, 0)
    tail.restart(feed.revision)
    feed.offer([put("a", 4)], 4)
    assert (3, [("a", 4)]) == (tail.base, take(tail, 3))


def test_a_tail_wakes_its_watcher_only_for_its_keys() -> None:
    """A watcher sleeps through what is not for it; a detached one through everything."""
    feed = Feed(0)
    woken: list[str] = []
    tail = feed.attach(
        KeyFilter("a"), lambda: woken.append("a"), changes_max=LARGE, bytes_max=LARGE
    )

    feed.offer([put("b", 1)], 1)
    assert [] == woken
    feed.offer([put("a", 2)], 2)
    assert ["a"] == woken
    feed.detach(tail)
    feed.offer([put("a", 3)], 3)

    assert (["a"], 0, 3) == (woken, len(feed), feed.revision)


class WatchersFollow(RuleBasedStateMachine):
    """
    A log, a tail and a watcher that is slow now and then: it gets every change once, in order.

    The watcher is the loop of the service without its waiting: history while the position is before
    the base, the tail afterwards.
    """

    @initialize(prefix=st.sampled_from(["", "a", "b/"]), room=st.integers(0, 6))
    def begin(self, prefix: str, room: int) -> None:
        self.feed = Feed(0)
        self.log: list[state_pb2.Change] = []
        self.prefix = prefix
        self.tail = attach(self.feed, prefix, changes_max=room)
        self.position = 0
        self.got: list[tuple[str, int]] = []
        self.offered = 0

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True))
    def commit(self, keys: list[str]) -> None:
        """History has it first; listeners hear of it later."""
        revision = self.log[-1].entry.revision + 1 if self.log else 1
        self.log.extend(put(key, revision) for key in keys)

    @rule()
    def hear(self) -> None:
        fresh = [change for change in self.log if change.entry.revision > self.offered]
        if fresh:
            self.offered = fresh[-1].entry.revision
            self.feed.offer(fresh, self.offered)

    @rule(most=st.integers(1, 4))
    def step(self, most: int) -> None:
        if self.tail.overflowed:
            self.tail.restart(self.feed.revision)
        if self.position < self.tail.base:
            self.got.extend(seen(self.history(most)))
            return
        taken = self.tail.take(self.position, changes_max=most, bytes_max=LARGE)
        for revised in taken:
            self.got.extend(seen(revised.changes))
            self.position = revised.revision
        if not taken:
            self.position = max(self.position, self.feed.revision)

    def history(self, most: int) -> list[state_pb2.Change]:
        """As `Engine.state_changes`: whole revisions, and the store's revision at the end."""
        found: list[state_pb2.Change] = []
        last = self.log[-1].entry.revision
        for change in self.log:
            revision = change.entry.revision
            if revision <= self.position or not change.entry.key.startswith(self.prefix):
                continue
            if len(found) >= most and found[-1].entry.revision != revision:
                last = found[-1].entry.revision
                break
            found.append(change)
        self.position = last
        return found

    @precondition(lambda self: self.position >= self.offered and not self.tail.overflowed)
    @invariant()
    def got_everything_once(self) -> None:
        expected = [
            (change.entry.key, change.entry.revision)
            for change in self.log
            if change.entry.key.startswith(self.prefix) and change.entry.revision <= self.position
        ]
        assert expected == self.got


WatchersFollow.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWatchersFollow = WatchersFollow.TestCase
