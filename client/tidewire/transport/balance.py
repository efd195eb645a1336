"""Which of several servers gets the next call: the policy alone, without I/O."""

import random
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, get_args

from tidewire.errors import InvalidArgument

BalancePolicy = Literal["round_robin", "least_outstanding", "first"]
BALANCE_POLICIES: Final[tuple[str, ...]] = get_args(BalancePolicy)
SERVERS_MAX: Final = 256
"""Servers of one channel."""


@dataclass(frozen=True, slots=True)
class BalanceOptions:
    """When a server gets no calls, and when it gets some again. Times are seconds."""

    failures_max: int = 3
    """Calls in a row that end with UNAVAILABLE before a server is ejected."""
    eject_first_s: float = 2.0
    """How long a server is out before it is asked for its health; each further time doubles it."""
    eject_last_s: float = 60.0
    """Longest time out."""
    jitter: float = 0.2
    """Each time out is longer or shorter by up to this part of itself."""
    health_interval_s: float = 5.0
    """How often a server that gets calls is asked for its health; 0 asks only after troubles."""
    health_timeout_s: float = 5.0
    """Time for the answer."""


class Standing(Enum):
    """How a server stands; better ones come first."""

    READY = 0
    """Connected and healthy."""
    CONNECTING = 1
    """Not connected yet; calls would wait."""
    FAILING = 2
    """It cannot be reached, or says that it is not serving."""
    EJECTED = 3
    """Its calls failed; it is out until it says that it is healthy."""


@dataclass(slots=True, eq=False)
class Backend:
    """One server of several, as the policy sees it."""

    index: int
    url: str
    connected: Standing = Standing.CONNECTING
    """READY, CONNECTING or FAILING."""
    ejected: bool = False
    outstanding: int = 0
    """Calls of this channel that have not ended."""
    calls: int = 0
    """Calls it was given so far."""
    failures: int = 0
    """Calls that failed since one that did not."""
    ejections: int = 0
    """Times it was ejected since it last did well."""

    @property
    def standing(self) -> Standing:
        """How it stands."""
        return Standing.EJECTED if self.ejected else self.connected


@dataclass(slots=True)
class Balance:
    """
    The servers and the turn.

    A call goes to a server of the best standing there is; so one that is ejected is only tried when
    all are no better, and a dead one costs the calls that found out and no more.
    """

    backends: list[Backend]
    policy: str = "round_robin"
    options: BalanceOptions = field(default_factory=BalanceOptions)
    source: random.Random = field(default_factory=random.Random)
    _turn: int = 0
    _candidates: list[Backend] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what cannot be balanced."""
        if self.policy not in BALANCE_POLICIES:
            raise InvalidArgument(
                f"{self.policy!r} is no way to balance; there are {', '.join(BALANCE_POLICIES)}"
            )
        if not 1 <= len(self.backends) <= SERVERS_MAX:
            raise InvalidArgument(
                f"{len(self.backends)} servers are given; there must be 1 to {SERVERS_MAX}"
            )

    def pick(self) -> Backend:
        """Return the server for the next call, and count the call."""
        candidates = self._candidates or self._choose()
        if self.policy == "first":
            chosen = candidates[0]
        else:
            turn = self._turn = (self._turn + 1) % len(candidates)
            chosen = candidates[turn]
            if self.policy == "least_outstanding" and chosen.outstanding:
                # From the turn on, or equal ones would all send their calls to the first.
                around = candidates[turn:] + candidates[:turn]
                chosen = min(around, key=_outstanding)
                self._turn = candidates.index(chosen)
        chosen.outstanding += 1
        chosen.calls += 1
        return chosen

    def _choose(self) -> list[Backend]:
        best = min(backend.standing.value for backend in self.backends)
        chosen = [backend for backend in self.backends if backend.standing.value == best]
        self._candidates = chosen
        return chosen

    def connection(self, backend: Backend, standing: Standing) -> None:
        """Note whether a server is connected."""
        if backend.connected is not standing:
            backend.connected = standing
            self._candidates = []

    def ended(self, backend: Backend, *, failed: bool) -> float | None:
        """
        Count the end of a call; return for how many seconds its server is out, if it is out now.
        """
        backend.outstanding -= 1
        if not failed:
            backend.failures = 0
            return None
        backend.failures += 1
        if backend.ejected or backend.failures < self.options.failures_max:
            return None
        return self.eject(backend)

    def eject(self, backend: Backend) -> float:
        """Give a server no more calls; return after how many seconds to ask for its health."""
        options = self.options
        wait_s = min(
            options.eject_first_s * 2.0 ** min(backend.ejections, 32), options.eject_last_s
        )
        backend.ejected = True
        backend.ejections += 1
        self._candidates = []
        return wait_s * (1.0 + options.jitter * (2.0 * self.source.random() - 1.0))

    def healthy(self, backend: Backend) -> None:
        """Give a server calls again that said it is healthy."""
        backend.failures = 0
        if backend.ejected:
            backend.ejected = False
            self._candidates = []

    def settled(self, backend: Backend) -> None:
        """Forget earlier ejections of a server that has stayed healthy."""
        backend.ejections = 0


def _outstanding(backend: Backend) -> int:
    return backend.outstanding
