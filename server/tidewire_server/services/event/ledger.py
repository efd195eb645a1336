"""
What a durable consumer has delivered and what became of it, without I/O.

Time enters as an argument (monotonic seconds). The work is per run of messages, never per message:
a batch that is delivered whole and settled whole costs two list operations. Everything up to
`next_sequence` that is not in a segment is settled, so the floor needs no bookkeeping of its own.
"""

import heapq
from collections import deque
from collections.abc import Hashable
from typing import Final

from tidewire.errors import NotDelivered, StaleAck
from tidewire.v1 import event_pb2
from tidewire_server.services.event.runs import (
    LedgerPolicy,
    Range,
    Run,
    Unsaved,
    by_attempt,
    merge,
)
from tidewire_server.services.event.segments import Phase, Segment, SegmentList

ACK_WAIT_PASSED: Final = "ack wait passed"
STALE_ENTRIES_KEPT_MAX: Final = 1024
"""Outdated entries of a heap kept before it is built anew."""


class ConsumerLedger:
    """
    Deliveries of one durable consumer.

    Args:
        policy: Rules.
        state: What is stored. Messages that were delivered and not settled are to be delivered
            again at once; those on their last delivery still may be settled within the ack wait.
        now: Monotonic seconds.
    """

    def __init__(self, policy: LedgerPolicy, state: event_pb2.ConsumerState, now: float) -> None:
        self.policy = policy
        self.next_sequence = max(state.delivered_through, state.ack_floor) + 1
        self._segments = SegmentList()
        self._times: list[tuple[float, int, Segment]] = []
        self._ready: list[tuple[int, int, Segment]] = []
        self._given_up: deque[Segment] = deque()
        self._entries = 0
        self._settled_unsaved: list[Range] = []
        self._attempts_unsaved = False
        self._saved_through = state.delivered_through
        self._given_up_unsaved = 0
        self._load(state, now)

    # What there is.

    @property
    def unsettled(self) -> int:
        """Messages that were delivered and are not settled."""
        return self._segments.messages

    @property
    def room(self) -> int:
        """Messages that may be delivered for the first time before others are settled."""
        return max(0, self.policy.ack_pending_max - self._segments.messages)

    @property
    def ack_floor(self) -> int:
        """Everything up to this sequence is settled."""
        first = self._segments.first_sequence
        return (self.next_sequence if first is None else first) - 1

    @property
    def waits(self) -> bool:
        """Whether a delivery is out, or a time is to pass, or a message is to be given up."""
        return any(segment.phase is not Phase.READY for segment in self._segments)

    def holds(self, owner: Hashable) -> bool:
        """Whether this owner has deliveries to settle."""
        return any(segment.owner is owner for segment in self._segments)

    @property
    def has_given_up(self) -> bool:
        """Whether messages wait to be recorded as given up."""
        given_up = self._given_up
        while given_up and not (given_up[0].alive and given_up[0].phase is Phase.GIVEN_UP):
            given_up.popleft()
        return bool(given_up)

    @property
    def next_time(self) -> float | None:
        """When `expire` has something to do; ``None`` when nothing is awaited."""
        while self._times and not _is_due_entry(self._times[0]):
            heapq.heappop(self._times)
        return self._times[0][0] if self._times else None

    # Delivering.

    def deliver(self, first: int, last: int, owner: Hashable, now: float) -> None:
        """
        Record a first delivery. What lies between `next_sequence` and it is not for this consumer.
        """
        self.skip_to(first)
        self.next_sequence = last + 1
        self._add(Segment(first, last, 1, Phase.OUT, now + self.policy.ack_wait_s, owner))

    def skip_to(self, sequence: int) -> None:
        """Messages before this sequence that were never delivered are not for this consumer."""
        if sequence > self.next_sequence:
            self._settled_unsaved.append((self.next_sequence, sequence - 1))
            self.next_sequence = sequence

    def first_ready(self) -> int | None:
        """First sequence that is to be delivered again now."""
        while self._ready and not _is_ready_entry(self._ready[0]):
            heapq.heappop(self._ready)
        return self._ready[0][0] if self._ready else None

    def redeliver(
        self, first: int, last: int, messages_max: int, owner: Hashable, now: float
    ) -> list[Run]:
        """
        Deliver again the first messages that are ready in this range, as many as stand before the
        same delivery, at most so many: they fit in one response. Returns what is.
        """
        runs: list[Run] = []
        for found in self._segments.find(first, last):
            if found.phase is not Phase.READY:
                continue
            if messages_max <= 0 or (runs and found.attempt + 1 != runs[0].attempt):
                break
            start = max(first, found.first)
            end = min(last, found.last, start + messages_max - 1)
            for segment in self._carve(start, end):
                segment.attempt += 1
                segment.attempt_unsaved = self._attempts_unsaved = True
                segment.owner = owner
                self._wait(segment, Phase.OUT, now + self.policy.ack_wait_s)
                runs.append(Run(segment.first, segment.last, segment.attempt))
                messages_max -= segment.count
        return runs

    def take_back(self, run: Run, owner: Hashable) -> None:
        """Undo a delivery that never left: it does not count, and goes to others now."""
        for segment in self._carve(run.first, run.last):
            if segment.owner is owner and segment.attempt == run.attempt:
                segment.attempt -= 1
                segment.attempt_unsaved = self._attempts_unsaved = True
                self._make_ready(segment)

    def release(self, owner: Hashable, now: float) -> None:
        """
        Deliver to others what this owner has, as it is gone.

        A message on its last delivery waits for its ack wait: who has it may still settle it.
        """
        for segment in list(self._segments):
            if segment.owner is owner:
                segment.owner = None
                if segment.phase is Phase.OUT and not self._is_last(segment):
                    self._make_ready(segment)

    # Settling.

    def settle(
        self,
        first: int,
        last: int,
        settlement: event_pb2.Settlement.ValueType,
        *,
        attempt: int,
        now: float,
        delay_s: float | None = None,
        reason: str = "",
    ) -> None:
        """
        Settle what was delivered in this range, by an answer to the given attempt (0: whichever is
        current).

        Raises:
            NotDelivered: Nothing of it is delivered and unsettled.
            StaleAck: Some of it was delivered again since; the rest of the range is settled.
        """
        stale: Segment | None = None
        found = False
        for segment in self._carve(first, last):
            if segment.phase in (Phase.GIVEN_UP, Phase.RECORDING):
                continue
            found = True
            if attempt not in (0, segment.attempt):
                stale = stale or segment
            else:
                self._apply(segment, settlement, now, delay_s, reason)
        if stale is not None:
            raise StaleAck(
                f"message {stale.first} was delivered {stale.attempt} times, this answers delivery "
                f"{attempt}; drop the result, another delivery decides",
                metadata={"sequence": stale.first, "attempt": stale.attempt},
            )
        if not found:
            raise NotDelivered(
                f"none of messages {first} to {last} is delivered and unsettled; they are settled, "
                "or were never delivered",
                metadata={"first_sequence": first, "last_sequence": last},
            )

    def advance(self, through: int) -> None:
        """Everything up to this sequence is settled, delivered or not; it is stored already."""
        for segment in self._carve(1, through):
            self._segments.remove(segment)
        self.next_sequence = max(self.next_sequence, through + 1)

    def forget(self, first: int, last: int) -> int:
        """
        Settle what is ready to go out again in this range: the messages are not there any more.
        Returns how many.
        """
        ready = [s for s in self._carve(first, last) if s.phase is Phase.READY]
        for segment in ready:
            self._finish(segment)
        return sum(segment.count for segment in ready)

    def expire(self, now: float) -> None:
        """Do what the time demands: take back what was not settled, ready what has waited."""
        while self._times and self._times[0][0] <= now:
            entry = heapq.heappop(self._times)
            segment = entry[2]
            if not _is_due_entry(entry):
                continue
            if segment.phase is Phase.OUT:
                self._fail(segment, now, self.policy.wait_s(segment.attempt), ACK_WAIT_PASSED)
            else:
                self._make_ready(segment)

    # Giving up, and storing.

    def take_given_up(self, messages_max: int) -> list[Run]:
        """
        Runs to record as given up, at most so many messages; each ends by `confirm` or `postpone`.
        """
        runs: list[Run] = []
        while self._given_up and messages_max > 0:
            segment = self._given_up.popleft()
            if not segment.alive or segment.phase is not Phase.GIVEN_UP:
                continue
            if segment.count > messages_max:
                segment = self._carve(segment.first, segment.first + messages_max - 1)[0]
            segment.phase = Phase.RECORDING
            runs.append(Run(segment.first, segment.last, segment.attempt, segment.reason))
            messages_max -= segment.count
        return runs

    def confirm(self, run: Run) -> None:
        """What was given up is recorded, and that it is settled is stored."""
        for segment in self._carve(run.first, run.last):
            self._segments.remove(segment)

    def postpone(self, run: Run) -> None:
        """Recording did not work, or was not begun: it is to be tried again."""
        for segment in self._carve(run.first, run.last):
            if segment.phase is Phase.RECORDING:
                segment.phase = Phase.GIVEN_UP
                self._given_up.append(segment)

    def drop(self, run: Run) -> None:
        """What was given up is recorded nowhere; that is still to be stored."""
        for segment in self._carve(run.first, run.last):
            self._finish(segment)
            self._given_up_unsaved += segment.count

    @property
    def has_unsaved(self) -> bool:
        """Whether something was settled that is not stored."""
        return bool(self._settled_unsaved or self._given_up_unsaved)

    @property
    def has_unsaved_deliveries(self) -> bool:
        """Whether deliveries were made that are not stored; losing that only costs their number."""
        return self._attempts_unsaved or self.next_sequence - 1 > self._saved_through

    def take_unsaved(self) -> Unsaved:
        """What to store now; `put_back` when that fails."""
        attempts = [
            (sequence, segment.attempt)
            for segment in (self._segments if self._attempts_unsaved else ())
            if segment.attempt_unsaved
            for sequence in range(segment.first, segment.last + 1)
        ]
        for segment in self._segments if self._attempts_unsaved else ():
            segment.attempt_unsaved = False
        unsaved = Unsaved(
            merge(self._settled_unsaved), attempts, self.next_sequence - 1, self._given_up_unsaved
        )
        self._settled_unsaved, self._attempts_unsaved, self._given_up_unsaved = [], False, 0
        self._saved_through = unsaved.delivered_through
        return unsaved

    def put_back(self, unsaved: Unsaved) -> None:
        """It could not be stored; the next `take_unsaved` has it again."""
        self._settled_unsaved = unsaved.settled + self._settled_unsaved
        self._given_up_unsaved += unsaved.given_up
        for sequence, _ in unsaved.attempts:
            for segment in self._segments.find(sequence, sequence):
                segment.attempt_unsaved = self._attempts_unsaved = True

    # Inside.

    def _load(self, state: event_pb2.ConsumerState, now: float) -> None:
        attempts = {entry.sequence: entry.count for entry in state.attempts}
        start = state.ack_floor + 1
        ends = [(r.first, r.last) for r in state.settled] + [(state.delivered_through + 1,) * 2]
        for first, last in ends:
            for low, high, attempt in by_attempt(start, first - 1, attempts):
                segment = Segment(low, high, attempt, Phase.OUT, now + self.policy.ack_wait_s)
                self._add(segment)
                if not self._is_last(segment):
                    self._make_ready(segment)
            start = last + 1

    def _apply(
        self,
        segment: Segment,
        settlement: event_pb2.Settlement.ValueType,
        now: float,
        delay_s: float | None,
        reason: str,
    ) -> None:
        if settlement == event_pb2.SETTLEMENT_DONE:
            self._finish(segment)
        elif settlement == event_pb2.SETTLEMENT_TERMINATE:
            self._give_up(segment, reason or "terminated")
        elif settlement == event_pb2.SETTLEMENT_RETRY:
            wait_s = self.policy.wait_s(segment.attempt) if delay_s is None else delay_s
            self._fail(segment, now, wait_s, reason or segment.reason or "retried too often")
        else:
            self._wait(segment, Phase.OUT, now + self.policy.ack_wait_s)

    def _fail(self, segment: Segment, now: float, wait_s: float, reason: str) -> None:
        segment.reason = reason
        segment.owner = None
        if self._is_last(segment):
            self._give_up(segment, reason)
        elif wait_s > 0:
            self._wait(segment, Phase.BACK, now + wait_s)
        else:
            self._make_ready(segment)

    def _is_last(self, segment: Segment) -> bool:
        return 0 < self.policy.deliveries_max <= segment.attempt

    def _give_up(self, segment: Segment, reason: str) -> None:
        segment.phase, segment.reason, segment.owner = Phase.GIVEN_UP, reason, None
        self._given_up.append(segment)

    def _finish(self, segment: Segment) -> None:
        self._segments.remove(segment)
        self._settled_unsaved.append((segment.first, segment.last))

    def _make_ready(self, segment: Segment) -> None:
        segment.phase, segment.owner = Phase.READY, None
        self._index(segment)

    def _wait(self, segment: Segment, phase: Phase, time_s: float) -> None:
        segment.phase, segment.time_s = phase, time_s
        self._index(segment)

    def _add(self, segment: Segment) -> None:
        self._segments.add(segment)
        self._index(segment)

    def _carve(self, first: int, last: int) -> list[Segment]:
        inside, made = self._segments.carve(first, last)
        for segment in made:
            if segment.phase is Phase.GIVEN_UP:
                self._given_up.append(segment)
            elif segment.phase is not Phase.RECORDING:
                self._index(segment)
        return inside

    def _index(self, segment: Segment) -> None:
        """
        Find the segment again when its time comes. Old entries stay behind and are known by not
        fitting.
        """
        self._entries += 1
        if segment.phase is Phase.READY:
            heapq.heappush(self._ready, (segment.first, self._entries, segment))
            if len(self._ready) > 2 * len(self._segments) + STALE_ENTRIES_KEPT_MAX:
                self._ready = [entry for entry in self._ready if _is_ready_entry(entry)]
                heapq.heapify(self._ready)
            return
        heapq.heappush(self._times, (segment.time_s, self._entries, segment))
        if len(self._times) > 2 * len(self._segments) + STALE_ENTRIES_KEPT_MAX:
            self._times = [entry for entry in self._times if _is_due_entry(entry)]
            heapq.heapify(self._times)


def _is_due_entry(entry: tuple[float, int, Segment]) -> bool:
    segment = entry[2]
    return segment.alive and segment.time_s == entry[0] and segment.phase in (Phase.OUT, Phase.BACK)


def _is_ready_entry(entry: tuple[int, int, Segment]) -> bool:
    return entry[2].alive and entry[2].phase is Phase.READY
