"""
Live events: from one publisher to everybody who listens now.

A batch is looked up once and becomes one response, which every subscriber gets. A subscriber that
does not keep up loses its oldest batches, whole, and is told how many messages that were; it never
holds memory beyond its bounds.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.subject import SubjectIndex
from tidewire_server.services.event.allowance import Allowance
from tidewire_server.services.event.delivery import live_response, message_count
from tidewire_server.services.event.signal import Signal

ROUTES_MAX: Final = 10_000
"""Subjects whose receivers are remembered."""
MOVING_S: Final = 0.1
"""A subscriber that took something this recently is moving."""
HOLD_S: Final = 0.001
HOLD_TURNS_MAX: Final = 5
"""A publisher is held back at most this often, `HOLD_S` each, for one batch."""


class LiveBuffer:
    """
    What one live subscriber is still to get, bounded by messages and bytes.

    A batch is always taken into an empty buffer; otherwise the oldest ones go until it fits. ``sent
    + lost + waiting`` is what was put in.
    """

    def __init__(
        self, allowance: Allowance, *, messages_max: int, bytes_max: int, group: str = ""
    ) -> None:
        self.allowance = allowance
        self.group = group
        self.signal = Signal()
        self.messages = 0
        self.bytes = 0
        self.lost_messages = 0
        self.lost_total = 0
        self.moved_at = float("-inf")
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._entries: deque[tuple[event_pb2.SubscribeResponse, int, int]] = deque()

    @property
    def is_behind(self) -> bool:
        """Whether more than half of the bounds is used."""
        return 2 * self.bytes > self._bytes_max or 2 * self.messages > self._messages_max

    @property
    def is_deliverable(self) -> bool:
        """Whether something waits and there is credit for it."""
        return bool(self._entries) and self.allowance.is_open

    def put(self, response: event_pb2.SubscribeResponse, messages: int, body_bytes: int) -> int:
        """Add a batch and return how many messages were lost for it."""
        entries = self._entries
        lost = 0
        while entries and (
            self.messages + messages > self._messages_max
            or self.bytes + body_bytes > self._bytes_max
        ):
            _, old_messages, old_bytes = entries.popleft()
            self.messages -= old_messages
            self.bytes -= old_bytes
            lost += old_messages
        entries.append((response, messages, body_bytes))
        self.messages += messages
        self.bytes += body_bytes
        if lost:
            self.lost_messages += lost
            self.lost_total += lost
        self.signal.set()
        return lost

    def pop(self, now: float) -> event_pb2.SubscribeResponse | None:
        """The next response: first what was lost, then the oldest batch there is credit for."""
        if not self.is_deliverable:
            return None
        if self.lost_messages:
            return self.take_lost()
        response, messages, body_bytes = self._entries.popleft()
        self.messages -= messages
        self.bytes -= body_bytes
        self.allowance.take(messages, body_bytes)
        self.moved_at = now
        return response

    def take_lost(self) -> event_pb2.SubscribeResponse | None:
        """What was lost since it was last told; ``None`` when nothing was."""
        if not self.lost_messages:
            return None
        lost = event_pb2.Lost(messages=self.lost_messages, messages_total=self.lost_total)
        self.lost_messages = 0
        return event_pb2.SubscribeResponse(lost=lost)


@dataclass(frozen=True, slots=True)
class Fanout:
    """
    What became of a live batch.

    Attributes:
        receivers: Subscribers that got it.
        held_by: When all of them are behind but moving, one of them.
        lost: Messages others lost for it.
    """

    receivers: int
    held_by: LiveBuffer | None = None
    lost: int = 0


@dataclass(slots=True)
class _Group:
    """Members of a queue group that want a subject; each batch goes to one."""

    members: list[LiveBuffer]
    turn: int = 0

    def choose(self) -> LiveBuffer:
        """The member with the least to do, in turn among equals."""
        count = len(self.members)
        self.turn = (self.turn + 1) % count
        best = self.members[self.turn]
        for step in range(1, count):
            if not best.messages:
                break
            other = self.members[(self.turn + step) % count]
            if other.messages < best.messages:
                best = other
        return best


@dataclass(frozen=True, slots=True)
class _Route:
    plain: tuple[LiveBuffer, ...]
    groups: tuple[_Group, ...]


_NOWHERE: Final = Fanout(0)


class LiveHub:
    """Live subscribers by what they listen to."""

    def __init__(self) -> None:
        self._index: SubjectIndex[LiveBuffer] = SubjectIndex()
        self._routes: dict[str, _Route] = {}

    def add(self, patterns: Sequence[str], buffer: LiveBuffer) -> None:
        """Let a subscriber hear what matches one of the patterns; each batch once."""
        for pattern in patterns:
            self._index.add(pattern, buffer)
        self._routes.clear()

    def remove(self, patterns: Sequence[str], buffer: LiveBuffer) -> None:
        """End what `add` began, with the same patterns."""
        for pattern in patterns:
            self._index.remove(pattern, buffer)
        self._routes.clear()

    def deliver(
        self, batch: common_pb2.Batch, *, now: float, time_ns: int, stream: str = ""
    ) -> Fanout:
        """Hand a batch to everybody who listens; never waits."""
        route = self._routes.get(batch.subject) or self._find(batch.subject)
        receivers = route.plain
        if route.groups:
            receivers += tuple(group.choose() for group in route.groups)
        if not receivers:
            return _NOWHERE
        response = live_response(batch, time_ns, stream)
        messages, body_bytes = message_count(batch), len(batch.body)
        lost = 0
        held_by: LiveBuffer | None = receivers[0]
        for buffer in receivers:
            lost += buffer.put(response, messages, body_bytes)
            if not buffer.is_behind:
                held_by = None
        if held_by is not None and not any(now - b.moved_at < MOVING_S for b in receivers):
            held_by = None
        return Fanout(len(receivers), held_by, lost)

    def _find(self, subject: str) -> _Route:
        found = self._index.find(subject)
        groups: dict[str, list[LiveBuffer]] = {}
        for buffer in found:
            if buffer.group:
                groups.setdefault(buffer.group, []).append(buffer)
        route = _Route(
            tuple(buffer for buffer in found if not buffer.group),
            tuple(_Group(members) for members in groups.values()),
        )
        if len(self._routes) >= ROUTES_MAX:
            self._routes.clear()
        self._routes[subject] = route
        return route


async def hold_back(buffer: LiveBuffer) -> None:
    """
    Give subscribers a turn when every one of them is behind.

    A publisher is slowed down to a reader that moves, for a few milliseconds a batch, and never by
    one that does not, nor by a slow one among faster ones.
    """
    await asyncio.sleep(0)
    for _ in range(HOLD_TURNS_MAX):
        if not buffer.is_behind:
            return
        await asyncio.sleep(HOLD_S)
