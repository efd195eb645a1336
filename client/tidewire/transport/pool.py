"""
Which connections a channel keeps: the policy alone, without I/O.

Calls share a connection until it is full, so one connection carries the normal case; another one
is opened when all are full, and closed again when it has been idle. The channel tells the pool
what happens and does what it says. Nothing here looks at a socket: that a peer has gone is told by
the event loop, or by a PING without an answer, never found by reading.
"""

import math
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, Protocol, TypeVar

from tidewire.wire.deadlines import FOREVER

OPENING_MAX: Final = 8
"""Further connections that are being opened at the same time."""


class MemberState(Enum):
    """What a connection of a pool is at."""

    CREATED = "created"
    """It is being opened: name, socket, TLS, HELLO."""
    ACTIVE = "active"
    """Calls are under way on it."""
    IDLE = "idle"
    """It is ready and carries no call."""
    CLOSED = "closed"
    """It takes no more calls, or is gone."""


class Ended(Enum):
    """Why a connection left its pool."""

    IDLE = "idle"
    """Nobody needed it for ``idle_timeout_s``."""
    SURPLUS = "surplus"
    """More than ``idle_max`` were idle."""
    DRAINING = "draining"
    """The server takes no new calls on it, or its call ids have run out."""
    LOST = "lost"
    """The peer closed it, broke the protocol or was silent for too long."""
    CHANNEL = "channel"
    """Its channel was closed."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How many connections a channel has to its address."""

    connections_max: int = 1_000
    """Connections at most; calls for which there is no room wait until their deadline."""
    idle_max: int = 100
    """Idle connections at most; of more, those idle for longest are closed."""
    idle_timeout_s: float = 90.0
    """A connection that was idle for this long is closed."""
    idle_least: int = 1
    """Connections that stay although they are idle, so that a call after a pause need not wait."""
    calls_per_connection: int = 0
    """Calls on one connection before another one is opened; 0 takes the server's ``calls_max``."""
    prewarm: int = 0
    """Connections to open, and to keep, as soon as the first one is there."""

    def __post_init__(self) -> None:
        """Refuse a pool that could not carry a call, or could not hold what it must."""
        if self.connections_max < 1:
            raise ValueError(f"connections_max is {self.connections_max}; it must be at least 1")
        for name in ("idle_max", "idle_least", "calls_per_connection", "prewarm", "idle_timeout_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.prewarm > self.connections_max:
            raise ValueError(
                f"prewarm is {self.prewarm}; connections_max is {self.connections_max}"
            )

    @property
    def kept(self) -> int:
        """Connections that are not closed for being idle."""
        return max(self.idle_least, self.prewarm)


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool has now, and what it had so far."""

    created: int
    """Connections being opened now."""
    active: int
    """Connections with calls now."""
    idle: int
    """Connections without calls now."""
    waiting: int
    """Calls that wait for room now."""
    opened: int
    """Connections that became ready, so far."""
    reused: int
    """Calls that went out on a connection which had carried one before, so far."""
    waits: int
    """Calls that had to wait for a connection or for room, so far."""
    closed_by: dict[str, int]
    """Connections that left, by reason (see :class:`Ended`), so far."""

    @property
    def closed(self) -> int:
        """Connections that left, so far."""
        return sum(self.closed_by.values())


class Member(Protocol):
    """A ready connection, as a pool sees it."""

    @property
    def busy(self) -> int:
        """Calls on it."""
        ...

    @property
    def full(self) -> bool:
        """Whether it takes no call now."""
        ...

    @property
    def room(self) -> int:
        """Calls it takes at the same time."""
        ...

    @property
    def carried(self) -> int:
        """Calls that went out on it so far."""
        ...


MemberT = TypeVar("MemberT", bound=Member)


class Pool(Generic[MemberT]):
    """
    The ready connections of one channel.

    Picking takes constant time on average: a connection is looked at again only after one of its
    calls has ended.
    """

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.members: dict[MemberT, None] = {}
        self.opening = 0
        """Connections being opened; the owner counts them."""
        self.opened = 0
        self.waits = 0
        """Calls that had to wait; the owner counts them."""
        self.closed_by: Counter[str] = Counter()
        self._roomy: dict[MemberT, None] = {}
        self._idle: dict[MemberT, float] = {}
        self._reused = 0

    @property
    def watched(self) -> bool:
        """Whether the end of each call matters: not with the one connection of most channels."""
        return len(self.members) > 1 or not self.options.kept

    def add(self, member: MemberT, now_s: float) -> None:
        """Take in a connection that is ready."""
        self.members[member] = None
        self._roomy[member] = None
        self.opened += 1
        for other in self.members:
            if not other.busy:
                self._idle.setdefault(other, now_s)

    def remove(self, member: MemberT, why: Ended) -> bool:
        """Let a connection go; return whether it was there."""
        if member not in self.members:
            return False
        del self.members[member]
        self._roomy.pop(member, None)
        self._idle.pop(member, None)
        self.closed_by[why.value] += 1
        self._reused += max(0, member.carried - 1)
        return True

    def pick(self) -> MemberT | None:
        """Return a connection that takes a call: the one in use as long as it has room."""
        roomy = self._roomy
        while roomy:
            member = next(iter(roomy))
            if not member.full:
                return member
            del roomy[member]
        return None

    def rested(self, member: MemberT, now_s: float) -> MemberT | None:
        """
        Note that a call of ``member`` has ended; return an idle connection that is one too many.
        """
        if member not in self.members:
            return None
        if member not in self._roomy and not member.full:
            self._roomy[member] = None
        if member.busy:
            return None
        self._idle.pop(member, None)  # the order is that of going idle
        self._idle[member] = now_s
        return self._surplus()

    def _surplus(self) -> MemberT | None:
        while len(self._idle) > max(self.options.idle_max, self.options.kept):
            longest = next(iter(self._idle))
            del self._idle[longest]
            if not longest.busy:
                return longest
        return None

    def expired(self, now_s: float) -> list[MemberT]:
        """Return the connections to be closed now: idle for too long, and more than are kept."""
        due: list[MemberT] = []
        spare = len(self.members) - self.options.kept
        for member, since_s in list(self._idle.items()):
            if member.busy:
                del self._idle[member]  # it was given a call since
            elif len(due) < spare and now_s - since_s >= self.options.idle_timeout_s:
                due.append(member)
        return due

    def next_s(self) -> float:
        """When to ask :meth:`expired` again; ``FOREVER`` when nothing can expire."""
        if len(self.members) <= self.options.kept or not self._idle:
            return FOREVER
        return next(iter(self._idle.values())) + self.options.idle_timeout_s

    def wanted(self, waiting: int, *, first: bool = False) -> int:
        """
        Return how many more connections to open now.

        Args:
            waiting: Calls for which no connection has room.
            first: The first connection has just come: open those that are to be there beforehand.
        """
        options = self.options
        if not self.members:
            return 1 if waiting and not self.opening else 0
        room = max(1, next(iter(self.members)).room)
        missing = math.ceil(waiting / room) - self.opening
        if first:
            missing = max(missing, options.prewarm - len(self.members) - self.opening)
        free = options.connections_max - len(self.members) - self.opening
        return max(0, min(missing, free, OPENING_MAX - self.opening))

    def state_of(self, member: MemberT) -> MemberState:
        """Return what a connection is at."""
        if member not in self.members:
            return MemberState.CLOSED
        return MemberState.ACTIVE if member.busy else MemberState.IDLE

    def stats(self, waiting: int) -> PoolStats:
        """Return the figures."""
        active = sum(1 for member in self.members if member.busy)
        return PoolStats(
            created=self.opening,
            active=active,
            idle=len(self.members) - active,
            waiting=waiting,
            opened=self.opened,
            reused=self._reused + sum(max(0, member.carried - 1) for member in self.members),
            waits=self.waits,
            closed_by=dict(self.closed_by),
        )
