"""
What a server remembers of a session's requests, so that it does none twice. Without I/O.

Every id is in one of five states: not seen, running, answered (the answer is kept), forgotten (it
was dropped for a bound, so whether it was done cannot be told any more) or settled (the client
wants nothing of it). An id is never taken for new once it was seen.
"""

from enum import Enum
from typing import Final

from tidewire.wire.cookie import Cookies
from tidewire.wire.datagram_limits import DatagramLimits

_ENTRY_BYTES: Final = 200
"""What a kept answer costs besides its bytes, about."""


class Verdict(Enum):
    """What a request id stands for."""

    NEW = 1
    RUNNING = 2
    ANSWERED = 3
    FORGOTTEN = 4
    SETTLED = 5


class KeptBytes:
    """Bytes kept by all sessions of a listener."""

    __slots__ = ("bytes_max", "used")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0


class Kept:
    """An answer that is kept."""

    __slots__ = ("at_s", "flags", "resends", "response")

    def __init__(self, flags: int, response: bytes, at_s: float) -> None:
        self.flags = flags
        self.response = response
        self.at_s = at_s
        self.resends = 0

    @property
    def cost_bytes(self) -> int:
        """What it takes of the bounds."""
        return len(self.response) + _ENTRY_BYTES


class Requests:
    """The requests of one session. Seconds are those of the clock that methods are given."""

    def __init__(self, limits: DatagramLimits, kept_bytes: KeptBytes) -> None:
        self.floor = 0
        """Lowest id the client may still want something of."""
        self.highest = 0
        self.running: set[int] = set()
        self._limits = limits
        self._kept: dict[int, Kept] = {}
        self._used_bytes = 0
        self._all_bytes = kept_bytes
        self._forgotten = 0
        """Highest id that was dropped for a bound."""

    def judge(self, number: int) -> Verdict:
        """Return what an id stands for."""
        if number < self.floor:
            return Verdict.SETTLED
        if number in self.running:
            return Verdict.RUNNING
        if number in self._kept:
            return Verdict.ANSWERED
        return Verdict.FORGOTTEN if number <= self._forgotten else Verdict.NEW

    def begin(self, number: int) -> None:
        """Note that a new request is being done."""
        self.running.add(number)
        if number > self.highest:
            self.highest = number

    def answer(self, number: int, flags: int, response: bytes, now_s: float) -> None:
        """Keep the answer of a request, and drop old ones where bounds ask for it."""
        self.running.discard(number)
        if number > self.highest:
            self.highest = number
        if number < self.floor:
            return
        entries = self._kept
        if number in entries:
            self._drop(number)
        entries[number] = Kept(flags, response, now_s)
        size = len(response) + _ENTRY_BYTES
        self._used_bytes += size
        self._all_bytes.used += size
        if len(entries) > 1:
            self._bound(now_s)

    def _bound(self, now_s: float) -> None:
        """Forget the oldest answers until the bounds hold."""
        limits, entries, shared = self._limits, self._kept, self._all_bytes
        while entries:
            oldest = next(iter(entries))
            if (
                len(entries) <= limits.kept_max
                and self._used_bytes <= limits.kept_bytes_max
                and shared.used <= shared.bytes_max
                and now_s - entries[oldest].at_s <= limits.kept_s
            ):
                return
            self._drop(oldest)
            self._forgotten = max(self._forgotten, oldest)

    def kept(self, number: int) -> Kept:
        """Return the answer of an id that is answered."""
        return self._kept[number]

    def raise_floor(self, floor: int) -> list[int]:
        """
        Forget what the client wants no more.

        Returns:
            Requests below the floor that still run.
        """
        if floor <= self.floor:
            return []
        entries, below = self._kept, self.floor
        self.floor = floor
        if floor == below + 1:  # one call after the other, the usual case
            if below in entries:
                self._drop(below)
        else:
            known = len(entries) < floor - below
            candidates = list(entries) if known else range(below, floor)
            for number in candidates:
                if number < floor and number in entries:
                    self._drop(number)
        return [number for number in self.running if number < floor] if self.running else []

    def clear(self) -> None:
        """Give back what the session took of the bound of all sessions."""
        self._all_bytes.used -= self._used_bytes
        self._used_bytes = 0
        self._kept.clear()

    def _drop(self, number: int) -> None:
        size = len(self._kept.pop(number).response) + _ENTRY_BYTES
        self._used_bytes -= size
        self._all_bytes.used -= size


class EndedSessions:
    """
    Sessions that are over: a HELLO that comes late, or again, must not begin them anew, for what
    was done in them would be done once more.

    A HELLO is good for as long as its cookie, so no session is remembered for longer; and when
    there are too many to remember, the cookies from before go instead.
    """

    def __init__(self, limits: DatagramLimits, cookies: Cookies) -> None:
        self._life_s = limits.cookie_life_s
        self._sessions_max = limits.ended_max
        self._cookies = cookies
        self._ended: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, session: int, now_s: float) -> None:
        """Note that a session is over."""
        ended = self._ended
        ended.pop(session, None)
        ended[session] = now_s
        while True:
            oldest = next(iter(ended))
            at_s = ended[oldest]
            if now_s - at_s <= self._life_s:
                if len(ended) <= self._sessions_max:
                    return
                self._cookies.void(at_s)
            del ended[oldest]

    def __contains__(self, session: int) -> bool:
        return session in self._ended


class Sequences:
    """Which sequences have come: each is taken once, late ones within a window. Without I/O."""

    __slots__ = ("_seen", "_window", "highest", "taken")

    def __init__(self, window: int) -> None:
        self._window = window
        self._seen = 0
        """Bit k: ``highest - k`` has come."""
        self.highest = 0
        self.taken = 0

    def take(self, sequence: int) -> bool:
        """Whether a sequence is new; then it is taken."""
        ahead = sequence - self.highest
        if ahead > 0:
            kept = self._seen << ahead if ahead < self._window else 0
            self._seen = (kept | 1) & ((1 << self._window) - 1)
            self.highest = sequence
        elif -ahead >= self._window or self._seen >> -ahead & 1:
            return False
        else:
            self._seen |= 1 << -ahead
        self.taken += 1
        return True

    @property
    def missing(self) -> int:
        """Sequences up to the highest that have not come."""
        return self.highest - self.taken
