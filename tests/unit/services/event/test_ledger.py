"""The ledger of a durable consumer, by table and against a model that keeps every message apart."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tidewire.errors import NotDelivered, StaleAck
from tidewire.v1 import common_pb2, event_pb2
from tidewire_server.services.event.ledger import (
    ACK_WAIT_PASSED,
    STALE_ENTRIES_KEPT_MAX,
    ConsumerLedger,
)
from tidewire_server.services.event.runs import LedgerPolicy, Run, merge

DONE = event_pb2.SETTLEMENT_DONE
RETRY = event_pb2.SETTLEMENT_RETRY
EXTEND = event_pb2.SETTLEMENT_EXTEND
TERMINATE = event_pb2.SETTLEMENT_TERMINATE


def new_ledger(**policy: Any) -> ConsumerLedger:
    return ConsumerLedger(LedgerPolicy(**policy), event_pb2.ConsumerState(), 0.0)


def redeliver_all(
    ledger: ConsumerLedger, first: int, last: int, most: int, owner: str, now: float
) -> list[Run]:
    """Deliver again until nothing is ready; what goes out together has one attempt."""
    every: list[Run] = []
    while runs := ledger.redeliver(first, last, most, owner, now):
        assert 1 == len({run.attempt for run in runs})
        every += runs
        most -= sum(run.count for run in runs)
    return every


def test_settled_whole_moves_the_floor() -> None:
    """A batch that is delivered and settled leaves nothing behind but the floor."""
    ledger = new_ledger()
    ledger.deliver(1, 256, "a", 0.0)

    ledger.settle(1, 256, DONE, attempt=1, now=1.0)

    assert (256, 0) == (ledger.ack_floor, ledger.unsettled)
    assert [(1, 256)] == ledger.take_unsaved().settled
    assert not ledger.has_unsaved


def test_ranges_inside_a_batch_are_settled_apart() -> None:
    """Acknowledgements count messages: the rest of a batch is delivered again, and only that."""
    ledger = new_ledger(ack_wait_s=10)
    ledger.deliver(1, 10, "a", 0.0)
    ledger.settle(2, 3, DONE, attempt=1, now=1.0)
    ledger.settle(7, 7, DONE, attempt=1, now=1.0)

    ledger.expire(10.0)
    runs = ledger.redeliver(1, 10, 100, "b", 10.0)

    assert [(1, 1, 2), (4, 6, 2), (8, 10, 2)] == [(r.first, r.last, r.attempt) for r in runs]
    assert 0 == ledger.ack_floor


def test_an_older_attempt_is_refused() -> None:
    """Who answers a delivery that was made again since is told, and changes nothing."""
    ledger = new_ledger(ack_wait_s=10)
    ledger.deliver(1, 2, "a", 0.0)
    ledger.expire(10.0)
    ledger.redeliver(1, 1, 100, "b", 10.0)

    with pytest.raises(StaleAck) as caught:
        ledger.settle(1, 2, DONE, attempt=1, now=11.0)

    assert 1 == caught.value.figure("sequence")
    assert 1 == ledger.unsettled  # message 2 was not delivered again: that answer counts
    ledger.settle(1, 1, DONE, attempt=2, now=11.0)
    assert 2 == ledger.ack_floor
    with pytest.raises(NotDelivered):
        ledger.settle(1, 2, DONE, attempt=0, now=11.0)


def test_an_answer_after_the_ack_wait_counts_until_it_is_delivered_again() -> None:
    """Late is not wrong: nobody else has the message yet."""
    ledger = new_ledger(ack_wait_s=10)
    ledger.deliver(1, 1, "a", 0.0)
    ledger.expire(10.0)

    ledger.settle(1, 1, DONE, attempt=1, now=11.0)

    assert ledger.first_ready() is None
    assert 1 == ledger.ack_floor


def test_extending_starts_the_ack_wait_anew() -> None:
    """A delivery that is extended is taken back an ack wait after that."""
    ledger = new_ledger(ack_wait_s=10)
    ledger.deliver(1, 1, "a", 0.0)
    ledger.settle(1, 1, EXTEND, attempt=1, now=8.0)

    ledger.expire(17.9)
    assert ledger.first_ready() is None
    assert 18.0 == ledger.next_time
    ledger.expire(18.0)
    assert 1 == ledger.first_ready()


def test_backoff_by_delivery_and_the_last_entry_repeats() -> None:
    """The wait grows with the deliveries; a delay that is said goes before it."""
    ledger = new_ledger(ack_wait_s=100, backoff_s=(1.0, 5.0))
    ledger.deliver(1, 1, "a", 0.0)
    now = 0.0
    for attempt, wait in ((1, 1.0), (2, 5.0), (3, 5.0)):
        ledger.settle(1, 1, RETRY, attempt=attempt, now=now)
        assert now + wait == ledger.next_time
        now += wait
        ledger.expire(now)
        assert attempt + 1 == ledger.redeliver(1, 1, 1, "a", now)[0].attempt
    ledger.settle(1, 1, RETRY, attempt=4, now=now, delay_s=0.5)
    assert now + 0.5 == ledger.next_time


def test_given_up_after_the_last_delivery_with_the_reason() -> None:
    """
    After the last delivery a message is given up: by silence, by RETRY with its reason, by
    TERMINATE.
    """
    ledger = new_ledger(ack_wait_s=10, deliveries_max=1)
    ledger.deliver(1, 3, "a", 0.0)
    ledger.settle(1, 1, RETRY, attempt=1, now=1.0, reason="no table")
    ledger.settle(2, 2, TERMINATE, attempt=1, now=1.0, reason="poison")
    ledger.expire(10.0)

    runs = ledger.take_given_up(100)

    assert {
        Run(1, 1, 1, "no table"),
        Run(2, 2, 1, "poison"),
        Run(3, 3, 1, ACK_WAIT_PASSED),
    } == set(runs)
    assert 3 == ledger.unsettled  # until it is recorded
    with pytest.raises(NotDelivered):
        ledger.settle(1, 3, DONE, attempt=1, now=11.0)
    ledger.postpone(runs[0])
    assert [runs[0]] == ledger.take_given_up(100)
    for run in runs:
        ledger.confirm(run)
    assert (3, 0) == (ledger.ack_floor, ledger.unsettled)
    assert not ledger.has_unsaved


def test_giving_up_is_cut_to_what_is_asked() -> None:
    """A large run is recorded in parts, each message once."""
    ledger = new_ledger()
    ledger.deliver(1, 100, "a", 0.0)
    ledger.settle(1, 100, TERMINATE, attempt=1, now=0.0, reason="x")

    recorded: list[int] = []
    while ledger.has_given_up:
        for run in ledger.take_given_up(33):
            recorded += range(run.first, run.last + 1)
            ledger.confirm(run)

    assert list(range(1, 101)) == sorted(recorded)
    assert 100 == ledger.ack_floor


def test_what_an_owner_had_goes_to_others() -> None:
    """
    A subscription that ends gives back what it has; what was never sent does not count as a
    delivery.
    """
    ledger = new_ledger()
    ledger.deliver(1, 5, "a", 0.0)
    ledger.deliver(6, 8, "b", 0.0)

    ledger.take_back(Run(4, 5, 1), "a")
    ledger.release("a", 1.0)
    runs = redeliver_all(ledger, 1, 8, 100, "b", 1.0)

    assert [(1, 3, 2), (4, 5, 1)] == [(run.first, run.last, run.attempt) for run in runs]


def test_a_last_delivery_outlives_its_subscription() -> None:
    """On its last delivery a message waits for the ack wait, though the subscription ended."""
    ledger = new_ledger(ack_wait_s=10, deliveries_max=1)
    ledger.deliver(1, 1, "a", 0.0)
    ledger.release("a", 1.0)

    assert ledger.first_ready() is None
    ledger.settle(1, 1, DONE, attempt=1, now=2.0)
    assert 1 == ledger.ack_floor


def test_stored_progress_is_taken_up() -> None:
    """
    After a restart exactly what was delivered and not settled is delivered again, and attempts go
    on.
    """
    state = event_pb2.ConsumerState(
        ack_floor=2,
        settled=[common_pb2.SequenceRange(first=4, last=5)],
        attempts=[event_pb2.Attempt(sequence=7, count=3)],
        delivered_through=9,
    )
    ledger = ConsumerLedger(LedgerPolicy(), state, 0.0)

    runs = redeliver_all(ledger, 1, 20, 100, "a", 0.0)

    assert [(3, 3, 2), (6, 6, 2), (7, 7, 4), (8, 9, 2)] == [
        (run.first, run.last, run.attempt) for run in runs
    ]
    assert (10, 2) == (ledger.next_sequence, ledger.ack_floor)


def test_a_checkpoint_moves_the_consumer() -> None:
    """Moved past deliveries and past the end of them, everything before is settled."""
    ledger = new_ledger()
    ledger.deliver(1, 10, "a", 0.0)

    ledger.advance(5)
    assert (5, 5) == (ledger.ack_floor, ledger.unsettled)
    ledger.advance(20)
    assert (20, 0, 21) == (ledger.ack_floor, ledger.unsettled, ledger.next_sequence)


def test_what_could_not_be_stored_is_stored_next_time() -> None:
    """Progress that was refused is offered again, with what came since."""
    ledger = new_ledger(ack_wait_s=10)
    ledger.deliver(1, 10, "a", 0.0)
    ledger.expire(10.0)
    ledger.redeliver(1, 2, 2, "a", 10.0)
    ledger.settle(5, 6, DONE, attempt=1, now=11.0)

    unsaved = ledger.take_unsaved()
    assert not ledger.has_unsaved
    ledger.put_back(unsaved)
    ledger.settle(7, 7, DONE, attempt=1, now=11.0)
    again = ledger.take_unsaved()

    assert [(5, 7)] == again.settled
    assert [(1, 2), (2, 2)] == again.attempts == unsaved.attempts
    assert 10 == again.delivered_through


def test_the_clock_stays_small() -> None:
    """Extending for ever does not make the ledger grow."""
    ledger = new_ledger()
    ledger.deliver(1, 4, "a", 0.0)
    for step in range(10 * STALE_ENTRIES_KEPT_MAX):
        ledger.settle(1, 4, EXTEND, attempt=1, now=step / 1000)

    assert len(ledger._times) <= STALE_ENTRIES_KEPT_MAX + 16


@pytest.mark.parametrize(
    ("ranges", "merged"),
    [
        ([], []),
        ([(3, 4), (1, 2)], [(1, 4)]),
        ([(1, 5), (2, 3), (7, 7)], [(1, 5), (7, 7)]),
    ],
)
def test_merge(ranges: list[tuple[int, int]], merged: list[tuple[int, int]]) -> None:
    """Touching ranges become one."""
    assert merged == merge(ranges)


@dataclass
class ModelMessage:
    """One message, as the model keeps it."""

    attempt: int
    phase: str  # out, back, ready, given
    time_s: float
    owner: str | None


SEQUENCES = st.integers(1, 40)
OWNERS = st.sampled_from(["a", "b"])


class LedgerAgainstModel(RuleBasedStateMachine):
    """Whatever happens, runs of messages behave as single messages would."""

    @initialize(
        deliveries_max=st.sampled_from([0, 1, 3]),
        backoff=st.sampled_from([(), (2.0,), (1.0, 4.0)]),
    )
    def begin(self, deliveries_max: int, backoff: tuple[float, ...]) -> None:
        self.policy = LedgerPolicy(
            ack_wait_s=5.0, backoff_s=backoff, deliveries_max=deliveries_max, ack_pending_max=30
        )
        self.ledger = ConsumerLedger(self.policy, event_pb2.ConsumerState(), 0.0)
        self.messages: dict[int, ModelMessage] = {}
        self.settled: set[int] = set()
        self.stored: set[int] = set()
        self.next = 1
        self.now = 0.0

    @rule(count=st.integers(1, 8), skip=st.integers(0, 2), owner=OWNERS)
    def deliver(self, count: int, skip: int, owner: str) -> None:
        count = min(count, self.ledger.room)
        assert max(0, 30 - len(self.messages)) == self.ledger.room
        if not count:
            return
        first = self.next + skip
        self.settled |= set(range(self.next, first))
        self.ledger.deliver(first, first + count - 1, owner, self.now)
        for sequence in range(first, first + count):
            self.messages[sequence] = ModelMessage(1, "out", self.now + 5.0, owner)
        self.next = first + count

    @rule(
        first=SEQUENCES,
        count=st.integers(1, 12),
        kind=st.sampled_from([DONE, RETRY, EXTEND, TERMINATE]),
        attempt=st.integers(0, 3),
        delay=st.sampled_from([None, 0.0, 3.0]),
    )
    def settle(
        self,
        first: int,
        count: int,
        kind: event_pb2.Settlement.ValueType,
        attempt: int,
        delay: float | None,
    ) -> None:
        last = first + count - 1
        hit = [s for s, m in self.messages.items() if first <= s <= last and m.phase != "given"]
        fits = [s for s in hit if attempt in (0, self.messages[s].attempt)]
        error: type[Exception] | None = None
        try:
            self.ledger.settle(first, last, kind, attempt=attempt, now=self.now, delay_s=delay)
        except (StaleAck, NotDelivered) as caught:
            error = type(caught)
        assert error is (NotDelivered if not hit else StaleAck if len(fits) < len(hit) else None)
        for sequence in fits:
            self.apply(sequence, kind, delay)

    def apply(
        self, sequence: int, kind: event_pb2.Settlement.ValueType, delay: float | None
    ) -> None:
        message = self.messages[sequence]
        if kind == DONE:
            del self.messages[sequence]
            self.settled.add(sequence)
        elif kind == TERMINATE:
            message.phase = "given"
        elif kind == EXTEND:
            message.phase, message.time_s = "out", self.now + 5.0
        else:
            wait = self.policy.wait_s(message.attempt) if delay is None else delay
            self.fail(message, wait)

    def fail(self, message: ModelMessage, wait: float) -> None:
        message.owner = None
        if 0 < self.policy.deliveries_max <= message.attempt:
            message.phase = "given"
        elif wait:
            message.phase, message.time_s = "back", self.now + wait
        else:
            message.phase = "ready"

    @rule(step=st.sampled_from([0.5, 1.0, 2.0, 6.0]))
    def pass_time(self, step: float) -> None:
        self.now += step
        self.ledger.expire(self.now)
        for message in self.messages.values():
            if message.phase == "out" and message.time_s <= self.now:
                self.fail(message, self.policy.wait_s(message.attempt))
            elif message.phase == "back" and message.time_s <= self.now:
                message.phase = "ready"

    @rule(first=SEQUENCES, count=st.integers(1, 20), most=st.integers(1, 9), owner=OWNERS)
    def redeliver(self, first: int, count: int, most: int, owner: str) -> None:
        last = first + count - 1
        runs = redeliver_all(self.ledger, first, last, most, owner, self.now)
        ready = [
            s for s, m in sorted(self.messages.items()) if first <= s <= last and m.phase == "ready"
        ][:most]
        got = {s: run.attempt for run in runs for s in range(run.first, run.last + 1)}
        assert ready == list(got)
        for sequence in ready:
            message = self.messages[sequence]
            message.attempt += 1
            message.phase, message.time_s, message.owner = "out", self.now + 5.0, owner
        assert {s: self.messages[s].attempt for s in ready} == got

    @rule(owner=OWNERS)
    def release(self, owner: str) -> None:
        self.ledger.release(owner, self.now)
        for message in self.messages.values():
            if message.owner == owner:
                message.owner = None
                last = 0 < self.policy.deliveries_max <= message.attempt
                if message.phase == "out" and not last:
                    message.phase = "ready"

    @rule(most=st.integers(1, 10), works=st.booleans())
    def record(self, most: int, works: bool) -> None:
        for run in self.ledger.take_given_up(most):
            for sequence in range(run.first, run.last + 1):
                assert "given" == self.messages[sequence].phase
                if works:
                    del self.messages[sequence]
                    self.settled.add(sequence)
                    self.stored.add(sequence)
            (self.ledger.confirm if works else self.ledger.postpone)(run)

    @rule(through=SEQUENCES)
    def advance(self, through: int) -> None:
        self.ledger.advance(through)
        gone = [sequence for sequence in self.messages if sequence <= through]
        for sequence in gone:
            del self.messages[sequence]
        self.settled |= set(gone) | set(range(self.next, through + 1))
        self.stored |= set(range(1, through + 1))
        self.next = max(self.next, through + 1)

    @rule(works=st.booleans())
    def save(self, works: bool) -> None:
        unsaved = self.ledger.take_unsaved()
        if not works:
            self.ledger.put_back(unsaved)
            return
        self.stored |= {s for first, last in unsaved.settled for s in range(first, last + 1)}
        assert self.settled == self.stored & set(range(1, self.next))

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert len(self.messages) == self.ledger.unsettled
        floor = min(self.messages, default=self.next) - 1
        assert floor == self.ledger.ack_floor
        ready = [s for s, m in self.messages.items() if m.phase == "ready"]
        assert min(ready, default=None) == self.ledger.first_ready()
        times = [m.time_s for m in self.messages.values() if m.phase in ("out", "back")]
        assert min(times, default=None) == self.ledger.next_time
        assert any(m.phase == "given" for m in self.messages.values()) == self.ledger.has_given_up


TestLedgerAgainstModel = LedgerAgainstModel.TestCase
