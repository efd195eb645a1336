"""
The members, what is thought of them, and when that changes. No I/O; time enters as an argument.

One heap says which living member to look at next. A beat hardly ever touches the heap; an entry
that comes up too early goes back with its new time. So a beat costs the same with thousands of
members as with one, and one timer serves them all.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tidewire import errors
from tidewire.v1 import heartbeat_pb2
from tidewire_server.engine.base import MemberRecord
from tidewire_server.members import Life
from tidewire_server.services.heartbeat.detector import Detector

MEMBERS_MAX: Final = 10_000
GONE_KEPT_S: Final = 3600.0
GONE_KEPT_MAX: Final = 10_000
LATE_S: Final = 0.05
"""Looking later than this means that we were away ourselves, and beats may wait unread."""
SETTLE_S: Final = 0.25
"""Time that is given after being away, to read what came meanwhile."""

STATUSES: Final = {
    Life.ALIVE: heartbeat_pb2.MEMBER_STATUS_ALIVE,
    Life.SUSPECT: heartbeat_pb2.MEMBER_STATUS_SUSPECT,
    Life.DEAD: heartbeat_pb2.MEMBER_STATUS_DEAD,
    Life.LEFT: heartbeat_pb2.MEMBER_STATUS_LEFT,
}


class Entry:
    """One member."""

    __slots__ = (
        "detector",
        "due_s",
        "gone_s",
        "joined_ns",
        "last_beat_ns",
        "life",
        "node",
        "record",
    )

    def __init__(
        self, record: MemberRecord, node: heartbeat_pb2.NodeStatus, now_s: float, now_ns: int
    ) -> None:
        self.record = record
        self.node = node
        self.life = Life.ALIVE
        self.joined_ns = now_ns
        self.last_beat_ns = now_ns
        self.detector = Detector(record.lease_s, now_s)
        self.gone_s = 0.0
        self.due_s = 0.0
        """When the table looks at it next: the time of its one valid entry in the heap."""

    @property
    def living(self) -> bool:
        """ALIVE or SUSPECT."""
        return self.life is Life.ALIVE or self.life is Life.SUSPECT

    def to_proto(self, now_s: float) -> heartbeat_pb2.Member:
        """Say how the member is at this moment."""
        record = self.record
        member = heartbeat_pb2.Member(
            node_id=record.node_id,
            incarnation=record.incarnation,
            status=STATUSES[self.life],
            groups=record.groups,
            node=self.node,
            suspicion=self.detector.suspicion(now_s) if self.living else 0.0,
        )
        if self.joined_ns:
            member.joined.FromNanoseconds(self.joined_ns)
        if self.last_beat_ns:
            member.last_beat.FromNanoseconds(self.last_beat_ns)
        member.lease.FromNanoseconds(int(record.lease_s * 1e9))
        return member


@dataclass(frozen=True, slots=True)
class Change:
    """
    A member changed its life, incarnation or health.

    Attributes:
        before: Its life before; ``None`` for a new member.
        groups_before: Groups of the incarnation before, for who watches one of them.
        revision: Revision of the table with this change.
        joined: True for a new member and for a new incarnation.
    """

    entry: Entry
    before: Life | None
    groups_before: Sequence[str]
    revision: int
    joined: bool = False


class MemberTable:
    """
    All members of one server.

    Attributes:
        revision: Grows with every change.
    """

    def __init__(self) -> None:
        self.revision = 0
        self._entries: dict[str, Entry] = {}
        self._living = 0
        self._gone: OrderedDict[str, Entry] = OrderedDict()
        self._heap: list[tuple[float, str, int]] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def living(self) -> int:
        """Members that are ALIVE or SUSPECT."""
        return self._living

    def get(self, node_id: str) -> Entry | None:
        """Look a member up; also one that is gone and still remembered."""
        return self._entries.get(node_id)

    def select(self, group: str = "", *, with_gone: bool = False) -> list[Entry]:
        """List members by node id."""
        return [
            entry
            for _, entry in sorted(self._entries.items())
            if (with_gone or entry.living) and (not group or group in entry.record.groups)
        ]

    def check_join(self, node_id: str, *, take_over: bool) -> None:
        """
        Refuse a join before anything is stored.

        Raises:
            NodeInUse: Another incarnation beats, and is not to be taken over.
            Overloaded: There are `MEMBERS_MAX` members.
        """
        entry = self._entries.get(node_id)
        if entry is not None and entry.living:
            if take_over:
                return
            raise errors.NodeInUse(
                f"node {node_id!r} beats already, as incarnation {entry.record.incarnation}; wait"
                f" until its lease of {entry.record.lease_s:g} s is over, or join with take_over",
                metadata={"node_id": node_id, "incarnation": entry.record.incarnation},
            )
        if self._living >= MEMBERS_MAX:
            raise errors.Overloaded(
                f"{MEMBERS_MAX} members are here already, which is the limit",
                metadata={"members_max": MEMBERS_MAX},
            )

    def join(
        self, record: MemberRecord, node: heartbeat_pb2.NodeStatus, now_s: float, now_ns: int
    ) -> Change:
        """Take a member, or a new incarnation of one."""
        old = self._entries.get(record.node_id)
        if old is None or not old.living:
            self._living += 1
            self._gone.pop(record.node_id, None)
        entry = self._entries[record.node_id] = Entry(record, node, now_s, now_ns)
        self._schedule(entry)
        before = old.life if old is not None else None
        groups_before = old.record.groups if old is not None else ()
        return self._change(entry, before, groups_before, joined=True)

    def restore(self, records: Iterable[MemberRecord], now_s: float) -> list[Entry]:
        """
        Take members from the store after a start. Who was alive has its whole lease to beat again.

        Of those that were gone the newest `GONE_KEPT_MAX` are remembered as DEAD: whether they had
        left is not stored.
        """
        records = sorted(records, key=lambda record: record.fencing_token)
        gone = [record for record in records if record.gone][-GONE_KEPT_MAX:]
        entries = []
        for record in [*gone, *(record for record in records if not record.gone)]:
            entry = Entry(record, heartbeat_pb2.NodeStatus(), now_s, 0)
            self._entries[record.node_id] = entry
            entries.append(entry)
            if record.gone:
                entry.life = Life.DEAD
                self._bury(entry, now_s)
            else:
                self._living += 1
                self._schedule(entry)
        self.revision += bool(entries)
        return entries

    def beat(
        self,
        node_id: str,
        incarnation: int,
        node: heartbeat_pb2.NodeStatus,
        now_s: float,
        now_ns: int,
    ) -> tuple[Life, Change | None]:
        """
        Take a beat; return the life before it, and what changed.

        Raises:
            NotAMember: It never joined, or its lease is over.
            MemberFenced: A newer incarnation has joined.
        """
        entry = self._current(node_id, incarnation)
        before, health_before = entry.life, entry.node.health
        entry.detector.beat(now_s)
        entry.last_beat_ns = now_ns
        entry.node = node
        entry.life = Life.ALIVE
        if entry.detector.suspect_s < entry.due_s:
            self._schedule(entry)  # it beats more regularly than before
        if before is Life.ALIVE and node.health == health_before:
            return before, None
        return before, self._change(entry, before, entry.record.groups)

    def leave(self, node_id: str, incarnation: int, now_s: float) -> Change:
        """
        Let a member go in order.

        Raises:
            NotAMember: It never joined, or is gone already.
            MemberFenced: A newer incarnation has joined.
        """
        return self._end(self._current(node_id, incarnation), Life.LEFT, now_s)

    def next_due_s(self) -> float | None:
        """When to call `advance` next; ``None`` when there is nobody."""
        return self._heap[0][0] if self._heap else None

    def advance(self, now_s: float) -> list[Change]:
        """
        Let time pass: return who became SUSPECT or DEAD, in the order it happened.

        When this is called later than `LATE_S` after `next_due_s`, the server was away and could
        not hear the beats. Nobody is judged by that: everybody gets the time back and `SETTLE_S`
        more, a few times in one silence.
        """
        due_s = self.next_due_s()
        if due_s is None or due_s > now_s:
            return []
        if now_s - due_s > LATE_S:
            self._excuse(now_s - due_s + SETTLE_S)
        changes: list[Change] = []
        while self._heap and self._heap[0][0] <= now_s:
            due_s, node_id, incarnation = heapq.heappop(self._heap)
            entry = self._entries.get(node_id)
            if (
                entry is None
                or not entry.living
                or (due_s, incarnation) != (entry.due_s, entry.record.incarnation)
            ):
                continue
            before = entry.life
            if entry.detector.dead_s <= now_s:
                changes.append(self._end(entry, Life.DEAD, now_s))
                continue
            if before is Life.ALIVE and entry.detector.suspect_s <= now_s:
                entry.life = Life.SUSPECT
                changes.append(self._change(entry, before, entry.record.groups))
            self._schedule(entry)
        return changes

    def forget_gone(self, now_s: float) -> list[str]:
        """
        Drop members that have been gone for `GONE_KEPT_S`, or are too many; return their node ids.
        """
        forgotten = []
        while self._gone:
            node_id, entry = next(iter(self._gone.items()))
            if len(self._gone) <= GONE_KEPT_MAX and now_s - entry.gone_s < GONE_KEPT_S:
                break
            del self._gone[node_id]
            del self._entries[node_id]
            forgotten.append(node_id)
        return forgotten

    def _current(self, node_id: str, incarnation: int) -> Entry:
        entry = self._entries.get(node_id)
        if entry is not None and incarnation < entry.record.incarnation:
            raise errors.MemberFenced(
                f"node {node_id!r} has joined again as incarnation {entry.record.incarnation}; this"
                f" is {incarnation}, which must stop",
                metadata={
                    "subject": node_id,
                    "incarnation": incarnation,
                    "actual_incarnation": entry.record.incarnation,
                },
            )
        if entry is None or not entry.living or incarnation > entry.record.incarnation:
            thought = "never joined" if entry is None else f"is {entry.life.name} here"
            raise errors.NotAMember(
                f"node {node_id!r} with incarnation {incarnation} {thought}; join again",
                metadata={"subject": node_id, "incarnation": incarnation},
            )
        return entry

    def _end(self, entry: Entry, life: Life, now_s: float) -> Change:
        before = entry.life
        entry.life = life
        self._living -= 1
        self._bury(entry, now_s)
        return self._change(entry, before, entry.record.groups)

    def _bury(self, entry: Entry, now_s: float) -> None:
        entry.gone_s = now_s
        self._gone[entry.record.node_id] = entry

    def _excuse(self, pause_s: float) -> None:
        for entry in self._entries.values():
            if entry.living:
                entry.detector.excuse(pause_s)

    def _schedule(self, entry: Entry) -> None:
        detector = entry.detector
        entry.due_s = detector.suspect_s if entry.life is Life.ALIVE else detector.dead_s
        heapq.heappush(self._heap, (entry.due_s, entry.record.node_id, entry.record.incarnation))

    def _change(
        self,
        entry: Entry,
        before: Life | None,
        groups_before: Sequence[str],
        *,
        joined: bool = False,
    ) -> Change:
        self.revision += 1
        return Change(entry, before, groups_before, self.revision, joined)
