"""The table of members, with a clock that is a number."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidewire import errors
from tidewire.v1 import heartbeat_pb2
from tidewire_server.engine.base import MemberRecord
from tidewire_server.members import Life
from tidewire_server.services.heartbeat import table as module
from tidewire_server.services.heartbeat.table import MemberTable

LEASE_S = 15.0
STATUS = heartbeat_pb2.NodeStatus()


def record(node_id: str = "n", incarnation: int = 1, **options: object) -> MemberRecord:
    gone = bool(options.get("gone"))
    return MemberRecord(node_id, incarnation, 10 + incarnation, LEASE_S, ("g",), gone=gone)


def joined(*node_ids: str) -> MemberTable:
    table = MemberTable()
    for node_id in node_ids:
        table.join(record(node_id), STATUS, 0.0, 1)
    return table


def run(table: MemberTable, until_s: float) -> list[tuple[float, str, Life]]:
    """Advance at every due time up to ``until_s``, as a punctual timer does."""
    seen = []
    while (due_s := table.next_due_s()) is not None and due_s <= until_s:
        seen += [
            (due_s, change.entry.record.node_id, change.entry.life)
            for change in table.advance(due_s)
        ]
    return seen


def test_a_silent_member_is_suspect_then_dead_on_time() -> None:
    """SUSPECT after two intervals, DEAD exactly at the end of the lease."""
    assert [(10.0, "n", Life.SUSPECT), (15.0, "n", Life.DEAD)] == run(joined("n"), 100.0)


def test_a_beat_brings_a_suspect_back() -> None:
    """And the beat says what was thought before."""
    table = joined("n")
    run(table, 12.0)
    before, change = table.beat("n", 1, STATUS, 12.0, 2)

    assert Life.SUSPECT is before
    assert change is not None
    assert Life.ALIVE is change.entry.life
    assert Life.DEAD is run(table, 100.0)[-1][2]


def test_a_beat_without_news_changes_nothing() -> None:
    """The revision grows only when a watcher would hear of it; health is such news."""
    table = joined("n")
    revision = table.revision
    assert (Life.ALIVE, None) == table.beat("n", 1, STATUS, 1.0, 2)
    assert revision == table.revision

    ill = heartbeat_pb2.NodeStatus(health=heartbeat_pb2.NODE_HEALTH_DEGRADED)
    _, change = table.beat("n", 1, ill, 2.0, 3)
    assert change is not None
    assert revision + 1 == table.revision


def test_only_the_newest_incarnation_may_beat() -> None:
    """Older: fenced. Never seen, gone, or ahead of us: join again."""
    table = joined("n")
    table.join(record(incarnation=2), STATUS, 1.0, 2)

    with pytest.raises(errors.MemberFenced) as caught:
        table.beat("n", 1, STATUS, 2.0, 3)
    assert 2 == caught.value.figure("actual_incarnation")
    with pytest.raises(errors.NotAMember):
        table.beat("n", 3, STATUS, 2.0, 3)
    with pytest.raises(errors.NotAMember):
        table.beat("other", 1, STATUS, 2.0, 3)
    table.leave("n", 2, 2.0)
    with pytest.raises(errors.NotAMember):
        table.beat("n", 2, STATUS, 3.0, 4)
    with pytest.raises(errors.NotAMember):
        table.leave("n", 2, 3.0)


def test_a_member_that_beats_is_in_use() -> None:
    """Unless it is taken over; a dead one may come back as it likes."""
    table = joined("n")
    with pytest.raises(errors.NodeInUse):
        table.check_join("n", take_over=False)
    table.check_join("n", take_over=True)
    run(table, 20.0)
    table.check_join("n", take_over=False)


def test_our_own_pause_kills_nobody() -> None:
    """A timer that comes late gives the time back: beats that waited unread count first."""
    table = joined("n")
    assert [] == table.advance(14.0)  # 4 s after it was due
    assert [] == table.advance(16.0)
    table.beat("n", 1, STATUS, 16.0, 2)

    assert [] == run(table, 20.0)


def test_a_pause_longer_than_the_lease_only_delays() -> None:
    """Who is really dead is found after it."""
    table = joined("n")
    assert [] == table.advance(1000.0)

    assert Life.DEAD is run(table, 1100.0)[-1][2]


def test_the_gone_are_remembered_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not too many of them."""
    table = joined("a", "b", "c")
    table.leave("a", 1, 1.0)
    run(table, 20.0)
    assert ["a", "b", "c"] == [e.record.node_id for e in table.select(with_gone=True)]
    assert [] == table.select()
    assert [] == table.forget_gone(3600.0)
    assert ["a"] == table.forget_gone(3601.0)
    monkeypatch.setattr(module, "GONE_KEPT_MAX", 1)
    assert ["b"] == table.forget_gone(3601.0)
    assert 1 == len(table)


def test_there_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more member than the limit is refused; coming back is not one more."""
    monkeypatch.setattr(module, "MEMBERS_MAX", 1)
    table = joined("a")
    with pytest.raises(errors.Overloaded):
        table.check_join("b", take_over=False)
    table.check_join("a", take_over=True)
    table.leave("a", 1, 1.0)
    table.check_join("b", take_over=False)


def test_after_a_start_members_have_their_whole_lease() -> None:
    """They beat on without joining; who was gone stays gone."""
    table = MemberTable()
    restored = table.restore([record("a"), record("b"), record("c", gone=True)], 100.0)

    assert {"a": Life.ALIVE, "b": Life.ALIVE, "c": Life.DEAD} == {
        entry.record.node_id: entry.life for entry in restored
    }
    table.beat("a", 1, STATUS, 101.0, 2)
    assert (115.0, "b", Life.DEAD) == run(table, 115.0)[-1]
    with pytest.raises(errors.NotAMember):
        table.beat("c", 1, STATUS, 101.0, 2)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.01, 8.0)), max_size=60))
def test_nobody_dies_early_and_nobody_dies_late(steps: list[tuple[str, float]]) -> None:
    """
    Against a plain model: DEAD at the last beat plus the lease, SUSPECT never before two intervals.
    """
    table = joined("a", "b")
    last = {"a": 0.0, "b": 0.0}
    dead: dict[str, float] = {}
    now_s = 0.0
    for node_id, gap_s in steps:
        now_s += gap_s
        _judge(run(table, now_s), last, dead)
        if node_id not in dead:
            table.beat(node_id, 1, STATUS, now_s, 2)
            last[node_id] = now_s
    _judge(run(table, now_s + 2 * LEASE_S), last, dead)

    assert {"a", "b"} == set(dead)
    assert 0 == table.living


def _judge(
    seen: list[tuple[float, str, Life]], last: dict[str, float], dead: dict[str, float]
) -> None:
    for time_s, node_id, life in seen:
        silence_s = time_s - last[node_id]
        if life is Life.DEAD:
            assert pytest.approx(LEASE_S) == silence_s
            dead[node_id] = time_s
        else:
            assert silence_s >= LEASE_S * 2 / 3 - 1e-9
