"""The policy of the pool, with time as an argument and connections that are only counted."""

import random
from dataclasses import dataclass

import pytest

from tidewire.transport.pool import OPENING_MAX, Ended, MemberState, Pool, PoolOptions
from tidewire.wire.deadlines import FOREVER


@dataclass(eq=False)
class Connection:
    """A connection that is a number of calls."""

    room: int = 2
    busy: int = 0
    carried: int = 0

    @property
    def full(self) -> bool:
        return self.busy >= self.room


def carry(pool: Pool[Connection]) -> Connection | None:
    """Start a call."""
    member = pool.pick()
    if member is not None:
        member.busy += 1
        member.carried += 1
    return member


def end(pool: Pool[Connection], member: Connection, now_s: float) -> Connection | None:
    """End a call."""
    member.busy -= 1
    return pool.rested(member, now_s)


def filled(options: PoolOptions, count: int) -> tuple[Pool[Connection], list[Connection]]:
    """Return a pool whose connections are all full."""
    pool: Pool[Connection] = Pool(options)
    members = [Connection() for _ in range(count)]
    for member in members:
        pool.add(member, 0.0)
    while carry(pool):
        pass
    return pool, members


def test_one_connection_carries_calls_until_it_is_full() -> None:
    """The one in use is taken first; the next one only when that has no room."""
    pool: Pool[Connection] = Pool(PoolOptions())
    first, second = Connection(), Connection()
    pool.add(first, 0.0)
    pool.add(second, 0.0)

    assert [first, first, second, second, None] == [carry(pool) for _ in range(5)]
    end(pool, first, 1.0)
    assert first is carry(pool)


def test_states_are_told_apart() -> None:
    """Opening, with calls, without, and gone; and the counts say the same."""
    pool: Pool[Connection] = Pool(PoolOptions())
    active, idle, gone = Connection(), Connection(), Connection()
    for member in (active, idle, gone):
        pool.add(member, 0.0)
    carry(pool)
    pool.opening = 1
    assert pool.remove(gone, Ended.LOST)
    assert not pool.remove(gone, Ended.LOST)

    assert [MemberState.ACTIVE, MemberState.IDLE, MemberState.CLOSED] == [
        pool.state_of(member) for member in (active, idle, gone)
    ]
    stats = pool.stats(waiting=7)
    assert (1, 1, 1, 1) == (stats.created, stats.active, stats.idle, stats.closed)
    assert (3, 7, {"lost": 1}) == (stats.opened, stats.waiting, stats.closed_by)


def test_reuse_is_counted() -> None:
    """All calls of a connection but its first are reuse, also after it has gone."""
    pool: Pool[Connection] = Pool(PoolOptions())
    first, second = Connection(carried=10), Connection(carried=0)
    pool.add(first, 0.0)
    pool.add(second, 0.0)

    assert 9 == pool.stats(0).reused
    pool.remove(first, Ended.IDLE)
    assert 9 == pool.stats(0).reused


def test_as_many_are_opened_as_the_calls_that_wait_need() -> None:
    """The first alone, for its limit is not known; then by need, few at the same time."""
    pool: Pool[Connection] = Pool(PoolOptions())
    assert (0, 1) == (pool.wanted(0), pool.wanted(1_000))

    pool, _ = filled(PoolOptions(), 1)
    assert [0, 1, 1, 2] == [pool.wanted(waiting) for waiting in (0, 1, 2, 3)]
    assert OPENING_MAX == pool.wanted(1_000)
    pool.opening = 2
    assert [0, 1] == [pool.wanted(4), pool.wanted(5)]


def test_connections_are_limited() -> None:
    """Those being opened count too."""
    pool, _ = filled(PoolOptions(connections_max=3), 2)

    assert 1 == pool.wanted(1_000)
    pool.opening = 1
    assert 0 == pool.wanted(1_000)


def test_prewarmed_ones_are_opened_with_the_first_and_kept() -> None:
    """They are wanted once, and never idle for too long."""
    pool, members = filled(PoolOptions(prewarm=3, idle_timeout_s=1.0), 1)
    assert (2, 0) == (pool.wanted(0, first=True), pool.wanted(0))
    for _ in range(2):
        pool.add(Connection(), 0.0)
    for _ in range(members[0].busy):
        end(pool, members[0], 0.0)

    assert [] == pool.expired(1e6)
    assert FOREVER == pool.next_s()


def test_idle_ones_are_closed_in_time() -> None:
    """After the timeout, those idle for longest, and never the last one."""
    pool, members = filled(PoolOptions(idle_timeout_s=90.0), 3)
    assert [] == pool.expired(1e6)
    for now_s, member in enumerate(members):
        end(pool, member, now_s)
        end(pool, member, now_s)

    assert 90.0 == pool.next_s()
    assert [] == pool.expired(89.9)
    assert members[:2] == pool.expired(1e6)
    for member in members[:2]:
        pool.remove(member, Ended.IDLE)
    assert [] == pool.expired(1e6)
    assert FOREVER == pool.next_s()


def test_one_that_works_again_is_not_idle() -> None:
    """The time of idleness starts anew with each call."""
    pool, (first, second) = filled(PoolOptions(idle_timeout_s=90.0), 2)
    for member in (first, second):
        for _ in range(2):
            end(pool, member, 0.0)
    busy = carry(pool)
    assert busy is not None

    other = second if busy is first else first
    assert [other] == pool.expired(90.0)
    end(pool, busy, 100.0)
    assert [other] == pool.expired(189.0)


def test_too_many_idle_ones_are_closed_at_once() -> None:
    """The one idle for longest goes when the limit is passed."""
    pool, members = filled(PoolOptions(idle_max=2), 4)
    surplus = []
    for now_s, member in enumerate(members):
        member.busy = 1
        over = end(pool, member, now_s)
        if over is not None:
            pool.remove(over, Ended.SURPLUS)
            surplus.append(over)

    assert members[:2] == surplus
    assert 2 == pool.stats(0).idle


def test_the_end_of_calls_matters_only_with_more_than_one() -> None:
    """A channel with one connection does no work for its pool, unless even that one may go."""
    alone, _ = filled(PoolOptions(), 1)
    several, _ = filled(PoolOptions(), 2)
    strict, _ = filled(PoolOptions(idle_least=0), 1)

    assert [False, True, True] == [pool.watched for pool in (alone, several, strict)]


def test_nothing_is_lost_over_many_operations() -> None:
    """100,000 random operations leave the books balanced; every pick has room."""
    source = random.Random(7)
    pool: Pool[Connection] = Pool(PoolOptions(connections_max=20, idle_max=5, idle_timeout_s=50.0))
    held: list[Connection] = []
    refused = 0
    for step in range(100_000):
        choice = source.random()
        if choice < 0.5:
            member = carry(pool)
            if member is None:
                refused += 1
                if pool.wanted(1):
                    pool.add(Connection(room=source.randint(1, 4)), step)
            else:
                assert member.busy <= member.room
                held.append(member)
        elif held:
            member = held.pop(source.randrange(len(held)))
            surplus = end(pool, member, step)
            if surplus is not None:
                assert not surplus.busy
                pool.remove(surplus, Ended.SURPLUS)
        if choice > 0.999 and pool.members:
            lost = source.choice(list(pool.members))
            pool.remove(lost, Ended.LOST)
            held = [member for member in held if member is not lost]
        for idle in pool.expired(step):
            pool.remove(idle, Ended.IDLE)

    stats = pool.stats(0)
    assert refused
    assert stats.opened == len(pool.members) + stats.closed
    assert len(held) == sum(member.busy for member in pool.members)
    assert stats.active + stats.idle == len(pool.members) <= 20
    assert {"lost", "idle", "surplus"} == set(stats.closed_by)


@pytest.mark.parametrize(
    "wrong",
    [{"connections_max": 0}, {"idle_max": -1}, {"prewarm": 2, "connections_max": 1}],
    ids=str,
)
def test_options_that_make_no_pool(wrong: dict[str, int]) -> None:
    """A pool that could hold nothing is refused."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PoolOptions(**wrong)
