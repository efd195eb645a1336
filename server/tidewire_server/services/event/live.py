"""
Live events: from one publisher to everybody who listens now.

A batch is looked up once and becomes one response, which every subscriber gets. A subscriber that
does not keep up loses its oldest batches, whole, and is told how many messages that were; it never
holds memory beyond its bounds.

Publishers are held back to the speed of the faster half of the subscribers that move, also by what
is still on its way through the store: what is committed together arrives in a burst. They stand in
a row: one goes on for each batch that is taken, or after `HOLD_S` for each before it, and nobody
waits for a subscriber that has taken nothing for `MOVING_S`.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import randrange
from typing import Final

from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.subject import SubjectIndex
from tidewire_server.services.event.allowance import Allowance
from tidewire_server.services.event.delivery import Response, live_response, message_count
from tidewire_server.services.event.signal import Signal

ROUTES_MAX: Final = 10_000
"""Subjects whose receivers are remembered, and sets of receivers."""
MOVING_S: Final = 0.25
"""A subscriber that took something, or had nothing to take, this recently is moving."""
HOLD_S: Final = 0.02
"""
A publisher is held back at most this long for one batch, as long for each before it, and as many
times longer as the batch has `LOOKED_AT_MAX` receivers.
"""
HOLD_S_MAX: Final = 1.0
"""However many are before it."""
LOOKED_AT_MAX: Final = 16
"""Receivers that are looked at to see whether more than half of them are behind."""
TOGETHER_MAX: Final = 64
"""Batches in one response, to subscribers that take several."""
TOGETHER_BYTES_MAX: Final = 32 * 1024
"""Bodies of one response that has several: it goes out in one frame."""
SMALL_BYTES: Final = 2 * 1024
"""Bodies above this travel alone."""
SMALL_RESPONSE_BYTES: Final = 2 * SMALL_BYTES
"""Responses above this too: message ids, and fields not known here, are beside the body."""


class LiveBuffer:
    """
    What one live subscriber is still to get, bounded by messages and bytes.

    A batch is always taken into an empty buffer; otherwise the oldest ones go until it fits. ``sent
    + lost + waiting`` is what was put in.

    Attributes:
        messages: Messages that wait.
        bytes: Bytes of bodies that wait.
        moved_at: When something was taken last, or the first batch came into an empty buffer.
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
        self._entries: deque[tuple[Response, int, int]] = deque()
        self._coming_messages = 0
        self._coming_bytes = 0
        self._held: deque[asyncio.Future[None]] = deque()
        self.crowd = 1
        """How many times `HOLD_S` a batch may wait: where many receive it, it is more work."""

    @property
    def is_behind(self) -> bool:
        """
        Whether more than half of the bounds is used, or would be more than three quarters with what
        is being stored: the last quarter is for the batch each publisher has in hand.
        """
        return (
            2 * self.bytes > self._bytes_max
            or 2 * self.messages > self._messages_max
            or 4 * (self.bytes + self._coming_bytes) > 3 * self._bytes_max
            or 4 * (self.messages + self._coming_messages) > 3 * self._messages_max
        )

    @property
    def is_deliverable(self) -> bool:
        """Whether something waits and there is credit for it."""
        return bool(self._entries) and self.allowance.is_open

    def put(self, response: Response, messages: int, body_bytes: int) -> int:
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

    def pop(self, now: float) -> Response | None:
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
        self._let_go()
        return response

    def pop_several(self, now: float) -> Response | None:
        """The next response, with more of the oldest batches in it when they are small."""
        lost, entries = self.lost_messages, self._entries
        first_bytes = entries[0][2] if entries else 0
        first = self.pop(now)
        if first is None or lost or first_bytes > SMALL_BYTES or not _is_small(first):
            return first
        assert isinstance(first, event_pb2.SubscribeResponse)
        several: event_pb2.SubscribeResponse | None = None
        room = TOGETHER_BYTES_MAX - first_bytes
        for _ in range(TOGETHER_MAX - 1):
            if not self.is_deliverable or entries[0][2] > min(SMALL_BYTES, room):
                break
            if not _is_small(entries[0][0]):
                break
            room -= entries[0][2]
            more = self.pop(now)
            assert isinstance(more, event_pb2.SubscribeResponse)
            if several is None:
                several = event_pb2.SubscribeResponse()
                deliveries = several.several.delivery
                deliveries.append(first.delivery)
            deliveries.append(more.delivery)
        return several or first

    def expect(self, messages: int, body_bytes: int) -> None:
        """So much more is on its way through the store; less when negative."""
        self._coming_messages += messages
        self._coming_bytes += body_bytes
        self._let_go()

    async def hold_back(self) -> None:
        """Wait until it is this publisher's turn to publish to a subscriber that is behind."""
        if not self.is_behind:
            return
        loop = asyncio.get_running_loop()
        held: asyncio.Future[None] = loop.create_future()
        self._held.append(held)
        limit_s = min(HOLD_S * self.crowd * len(self._held), HOLD_S_MAX)
        timer = loop.call_later(limit_s, _wake, held)
        try:
            await held
        finally:
            timer.cancel()
            if held in self._held:
                self._held.remove(held)

    def _let_go(self) -> None:
        # One for each batch that was taken: all at once would bring more than there is room for.
        if self._held and not self.is_behind:
            _wake(self._held.popleft())
            while self._held and not self._entries:
                _wake(self._held.popleft())

    def take_lost(self) -> event_pb2.SubscribeResponse | None:
        """What was lost since it was last told; ``None`` when nothing was."""
        if not self.lost_messages:
            return None
        lost = event_pb2.Lost(messages=self.lost_messages, messages_total=self.lost_total)
        self.lost_messages = 0
        return event_pb2.SubscribeResponse(lost=lost)


@dataclass(slots=True)  # frozen would take three times as long to make, for each batch
class Fanout:
    """
    What became of a live batch; not to be changed.

    Attributes:
        receivers: Subscribers that got it.
        lost: Messages others lost for it.
    """

    receivers: int
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

    def expect(self, messages: int, body_bytes: int) -> None:
        """Tell who may get it; the members of a group expect an equal part."""
        for buffer in self.plain:
            buffer.expect(messages, body_bytes)
        for group in self.groups:
            count = len(group.members)
            for buffer in group.members:
                buffer.expect(messages // count, body_bytes // count)


class Coming:
    """A batch on its way through the store to live subscribers."""

    __slots__ = ("_body_bytes", "_messages", "_route")

    def __init__(self, route: _Route, batch: common_pb2.Batch) -> None:
        self._route, self._messages, self._body_bytes = route, batch.count, len(batch.body)
        route.expect(self._messages, self._body_bytes)

    def arrived(self) -> None:
        """It was stored and delivered, or will not be."""
        self._route.expect(-self._messages, -self._body_bytes)


_NOWHERE: Final = Fanout(0)


class LiveHub:
    """Live subscribers by what they listen to."""

    def __init__(self) -> None:
        self._index: SubjectIndex[LiveBuffer] = SubjectIndex()
        self._routes: dict[str, _Route] = {}
        self._shared: dict[tuple[LiveBuffer, ...], _Route] = {}

    def add(self, patterns: Sequence[str], buffer: LiveBuffer) -> None:
        """Let a subscriber hear what matches one of the patterns; each batch once."""
        for pattern in patterns:
            self._index.add(pattern, buffer)
        self._forget()

    def remove(self, patterns: Sequence[str], buffer: LiveBuffer) -> None:
        """End what `add` began, with the same patterns."""
        for pattern in patterns:
            self._index.remove(pattern, buffer)
        self._forget()

    def _forget(self) -> None:
        self._routes.clear()
        self._shared.clear()

    def deliver(
        self,
        batch: common_pb2.Batch,
        *,
        now: float,
        time_ns: int,
        stream: str = "",
        body: memoryview | None = None,
    ) -> Fanout:
        """Hand a batch, and its body if that is apart, to everybody who listens; never waits."""
        route = self._routes.get(batch.subject) or self._find(batch.subject)
        receivers = route.plain
        if route.groups:
            receivers += tuple(group.choose() for group in route.groups)
        if not receivers:
            return _NOWHERE
        response = live_response(batch, time_ns, stream, body)
        messages = message_count(batch)
        body_bytes = len(batch.body if body is None else body)
        lost = 0
        for buffer in receivers:
            if not buffer.messages:
                buffer.moved_at = now
            lost += buffer.put(response, messages, body_bytes)
        return Fanout(len(receivers), lost)

    def expect(self, batch: common_pb2.Batch) -> Coming | None:
        """
        A batch is given to the store: who listens is to expect it. ``None`` when nobody does.
        """
        route = self._routes.get(batch.subject) or self._find(batch.subject)
        return Coming(route, batch) if route.plain or route.groups else None

    def holder(self, subject: str, now: float) -> LiveBuffer | None:
        """Who holds back publishers of this subject: one that moves, when too many are behind."""
        route = self._routes.get(subject) or self._find(subject)
        receivers = route.plain + tuple(b for group in route.groups for b in group.members)
        return _holder(receivers, now)

    def _find(self, subject: str) -> _Route:
        found = self._index.search(subject)
        # Of many subjects most have the same receivers: they share a route.
        route = self._shared.get(found)
        if route is None:
            if len(self._shared) >= ROUTES_MAX:
                self._shared.clear()
            route = self._shared[found] = _route_to(found)
        if len(self._routes) >= ROUTES_MAX:
            self._routes.clear()
        self._routes[subject] = route
        return route


def _route_to(found: tuple[LiveBuffer, ...]) -> _Route:
    groups: dict[str, list[LiveBuffer]] = {}
    for buffer in found:
        if buffer.group:
            groups.setdefault(buffer.group, []).append(buffer)
    return _Route(
        tuple(buffer for buffer in found if not buffer.group),
        tuple(_Group(members) for members in groups.values()),
    )


def _holder(receivers: Sequence[LiveBuffer], now: float) -> LiveBuffer | None:
    """
    Whom a publisher waits for: nobody while half of the receivers keep up, or when none moves.
    """
    crowd = max(1, len(receivers) // LOOKED_AT_MAX)
    if len(receivers) > LOOKED_AT_MAX:
        step = len(receivers) // LOOKED_AT_MAX
        receivers = receivers[randrange(step) :: step]
    behind: list[LiveBuffer] = []
    keeping_up = 0
    for buffer in receivers:
        if buffer.is_behind:
            behind.append(buffer)
        else:
            keeping_up += 1
            if 2 * keeping_up >= len(receivers):
                return None
    for buffer in behind:
        if not buffer.messages or now - buffer.moved_at < MOVING_S:
            buffer.crowd = crowd
            return buffer
    return None


def _is_small(response: Response) -> bool:
    """Whether what is beside the body of a delivery lets it travel with others."""
    return (
        isinstance(response, event_pb2.SubscribeResponse)
        and response.ByteSize() <= SMALL_RESPONSE_BYTES
    )


def _wake(held: asyncio.Future[None]) -> None:
    if not held.done():
        held.set_result(None)
