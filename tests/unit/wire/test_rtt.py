"""Adaptive timeouts, and silence while a call is open; all with time as an argument."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire.errors import PeerVanished
from tidewire.wire.limits import WireLimits
from tidewire.wire.liveness import Liveness
from tidewire.wire.rtt import RANGE, RttEstimator

LIMITS = WireLimits(probe_s=1.0, keepalive_s=30.0, ping_timeout_s=10.0)


def estimator(average_s: float, jitter_s: float) -> RttEstimator:
    made = RttEstimator()
    made.samples, made.average_s, made.jitter_s = 100, average_s, jitter_s
    return made


@pytest.mark.parametrize(
    ("average_s", "jitter_s", "expected_s"),
    [
        (0.0, 0.0, 1.0),  # nothing measured
        (0.001, 0.0, 1.0),  # never below the base
        (0.5, 0.0, 1.5),
        (0.5, 0.1, 1.5),  # a fifth is not above a fifth
        (0.5, 0.101, 2.0),
        (0.5, 0.25, 2.0),
        (0.5, 0.251, 2.5),
        (1.0, 0.9, 5.0),
        (9.0, 0.0, 10.0),  # never above ten times the base
    ],
)
def test_the_formula(average_s: float, jitter_s: float, expected_s: float) -> None:
    """Three round trips, four or five with jitter, between the base and ten times the base."""
    assert expected_s == pytest.approx(estimator(average_s, jitter_s).timeout_s(1.0))


@given(st.lists(st.floats(0, 1e4), max_size=50), st.floats(0.001, 100))
def test_a_timeout_stays_in_its_range(samples: list[float], base_s: float) -> None:
    """Whatever is measured."""
    rtt = RttEstimator()
    for sample_s in samples:
        rtt.sample(sample_s)

    assert base_s <= rtt.timeout_s(base_s) <= RANGE * base_s


def test_the_average_follows_what_is_measured() -> None:
    """Steady samples have no jitter; after a change the average goes there."""
    rtt = RttEstimator()
    for _ in range(20):
        rtt.sample(0.1)
    assert 0.1 == pytest.approx(rtt.average_s)
    assert 0.0 == pytest.approx(rtt.jitter_s)
    for _ in range(60):
        rtt.sample(0.6)

    assert 0.6 == pytest.approx(rtt.average_s, rel=0.01)
    assert 0.6 * 3 == pytest.approx(rtt.timeout_s(1.0), rel=0.01)


def greeted(limits: WireLimits = LIMITS, rtt_s: float = 0.01) -> Liveness:
    """Return the liveness of a client whose server has answered HELLO; a call opens at 100 s."""
    liveness = Liveness(limits, 0.0)
    liveness.greeted_after(rtt_s)
    liveness.greeted = True
    liveness.heard_s = liveness.asked_s = 100.0
    return liveness


def test_an_open_call_shortens_the_wait_for_a_silent_peer() -> None:
    """With a call open a PING goes out after the probe time; control: idle, after the keepalive."""
    liveness = greeted()

    assert (None, False, 130.0) == liveness.judge(101.0)
    assert (None, False, 101.0) == liveness.judge(100.5, busy=True)
    assert (None, True, 102.0) == liveness.judge(101.0, busy=True)


def test_a_peer_that_hangs_is_gone_after_two_probe_times() -> None:
    """Silence, PING, silence: the connection ends, long before the keepalive would say so."""
    liveness = greeted()
    liveness.judge(101.0, busy=True)

    assert liveness.judge(101.9, busy=True).error is None
    assert isinstance(liveness.judge(102.0, busy=True).error, PeerVanished)


def test_a_slow_handler_is_left_alone() -> None:
    """A peer that answers PINGs is well; it is asked less often while nothing else comes."""
    liveness = greeted()
    pinged = []
    now_s = 100.0
    while now_s < 200.0:
        error, ping, due_s = liveness.judge(now_s, busy=True)
        assert error is None
        if ping:
            pinged.append(now_s)
            liveness.heard_s = now_s + 0.01
            liveness.answered(now_s + 0.01)
        now_s = max(due_s, now_s + 0.01) if not ping else now_s + 0.02

    waits = [later - earlier for earlier, later in pairwise(pinged)]
    assert [2, 4, 8, 16, 30] == [round(wait) for wait in waits[:5]]


def test_other_news_of_the_peer_and_new_calls_start_over() -> None:
    """After data, or with a new call, the first probe comes after the probe time again."""
    for news in ("heard_s", "asked_s"):
        liveness = greeted()
        liveness.judge(101.0, busy=True)
        liveness.heard_s = 101.1
        liveness.answered(101.1)
        assert 103.1 == pytest.approx(liveness.judge(101.2, busy=True).wake_s)
        setattr(liveness, news, 102.0)

        assert 103.0 == pytest.approx(liveness.judge(102.0, busy=True).wake_s)


def test_long_round_trips_make_long_waits() -> None:
    """Over a satellite the same base waits longer: for the probe, and for its answer."""
    liveness = greeted(rtt_s=2.0)

    assert (None, True, 112.0) == liveness.judge(106.0, busy=True)
    assert (None, False, 106.0) == greeted(rtt_s=2.0).judge(105.9, busy=True)


def test_a_short_ping_timeout_is_kept_for_probes() -> None:
    """An answer is not waited for longer than the owner of the limits wants."""
    liveness = greeted(WireLimits(probe_s=5.0, ping_timeout_s=0.2))
    _, ping, due_s = liveness.judge(105.0, busy=True)

    assert ping
    assert 105.2 == pytest.approx(due_s)


def test_a_suspected_peer_answers_at_once_or_goes() -> None:
    """A doubt sends a PING whatever the silence was; a second doubt adds none."""
    liveness = greeted()
    assert liveness.suspect(100.1)
    assert not liveness.suspect(100.2)

    assert (None, False, 101.1) == liveness.judge(100.2)
    assert isinstance(liveness.judge(101.1).error, PeerVanished)


def test_doubts_are_rarer_than_a_peer_stands() -> None:
    """A thousand failed requests in ten seconds cost a few PINGs, fewer than are too many."""
    liveness = greeted()
    sent = 0
    for step in range(1_000):
        now_s = 100.0 + step / 100
        if liveness.suspect(now_s):
            sent += 1
            liveness.heard_s = now_s + 0.001
            liveness.answered(now_s + 0.001)

    assert 1 < sent <= LIMITS.pings_max / 2


def test_an_answer_measures_the_round_trip_once() -> None:
    """A PONG nobody asked for measures nothing."""
    liveness = greeted()
    liveness.answered(100.5)
    assert 1 == liveness.rtt.samples
    liveness.judge(101.0, busy=True)
    liveness.heard_s = 101.25
    liveness.answered(101.25)
    liveness.answered(109.0)

    assert 2 == liveness.rtt.samples
    assert 0.01 + (0.25 - 0.01) / 8 == pytest.approx(liveness.rtt.average_s)
