"""When the next key expires, without a clock."""

from tidewire.v1 import state_pb2
from tidewire_server.services.state.expiry import WALL_CHECK_S, Schedule

S = 1_000_000_000


def expiring(at_ns: int) -> state_pb2.Change:
    change = state_pb2.Change(kind=state_pb2.CHANGE_KIND_PUT)
    change.entry.expires.FromNanoseconds(at_ns)
    return change


def test_nothing_expires_by_itself() -> None:
    """Without a key with a time to live there is nothing to wait for."""
    schedule = Schedule()
    schedule.sweep_ended(None)

    assert not schedule.note([state_pb2.Change()])
    assert (None, False) == (schedule.delay_s(0), schedule.is_due(1 << 60))


def test_a_sooner_key_wakes_and_a_later_one_does_not() -> None:
    """Only what makes the wait shorter is news."""
    schedule = Schedule()
    schedule.sweep_ended(8 * S)

    assert not schedule.note([expiring(9 * S)])
    assert schedule.note([expiring(5 * S)])
    assert (3.0, False, True) == (
        schedule.delay_s(2 * S),
        schedule.is_due(2 * S),
        schedule.is_due(5 * S),
    )


def test_a_key_written_during_a_sweep_is_not_forgotten() -> None:
    """The sweep's answer may be older than a key that came while it ran."""
    schedule = Schedule()
    schedule.sweep_begins()
    schedule.note([expiring(3 * S)])
    schedule.sweep_ended(9 * S)

    assert 3 * S == schedule.next_ns


def test_a_long_wait_is_cut_so_that_a_set_clock_is_noticed() -> None:
    """The wall clock is looked at every few seconds; a time that has passed is due at once."""
    schedule = Schedule()
    schedule.sweep_ended(10_000 * S)

    assert (WALL_CHECK_S, 0.0) == (schedule.delay_s(0), schedule.delay_s(20_000 * S))
