"""Is the peer still there, and does it keep its times? HELLO, frames, PINGs against the clock."""

from collections import deque
from typing import NamedTuple

from tidewire.errors import PeerTooSlow, PeerVanished, TidewireError, TooManyPings
from tidewire.wire.deadlines import FOREVER
from tidewire.wire.limits import WireLimits


class Judgement(NamedTuple):
    """What is to be done now, and when to ask again."""

    error: TidewireError | None
    """Why the connection must end."""
    ping: bool
    """Whether a PING must go out."""
    wake_s: float
    """When to ask again."""


class Liveness:
    """Times of one connection. Seconds, of the clock the connection is given."""

    def __init__(self, limits: WireLimits, now_s: float) -> None:
        self.heard_s = now_s
        """When the last bytes came."""
        self.frame_begun_s: float | None = None
        """When the frame that is not complete yet began."""
        self.greeted = False
        """Whether the peer's HELLO has come."""
        self._limits = limits
        self._started_s = now_s
        self._pinged_s: float | None = None
        self._pings: deque[float] = deque(maxlen=limits.pings_max + 1)

    def judge(self, now_s: float) -> Judgement:
        """Hold the peer to its times."""
        limits = self._limits
        wake_s = FOREVER
        if not self.greeted:
            wake_s = self._started_s + limits.hello_timeout_s
            if now_s >= wake_s:
                return self._late("HELLO", limits.hello_timeout_s)
        if self.frame_begun_s is not None:
            due_s = self.frame_begun_s + limits.frame_timeout_s
            if now_s >= due_s:
                return self._late("the rest of a frame", limits.frame_timeout_s)
            wake_s = min(wake_s, due_s)
        if not self.greeted:
            return Judgement(None, False, wake_s)
        return self._judge_silence(now_s, wake_s)

    def _late(self, what: str, wait_s: float) -> Judgement:
        return Judgement(PeerTooSlow(f"{what} did not come within {wait_s:g} s"), False, FOREVER)

    def _judge_silence(self, now_s: float, wake_s: float) -> Judgement:
        limits = self._limits
        if self._pinged_s is not None and self.heard_s < self._pinged_s:
            due_s = self._pinged_s + limits.ping_timeout_s
            if now_s < due_s:
                return Judgement(None, False, min(wake_s, due_s))
            silence_s = now_s - self.heard_s
            error = PeerVanished(f"the peer has been silent for {silence_s:.1f} s and a PING")
            return Judgement(error, False, FOREVER)
        self._pinged_s = None
        due_s = self.heard_s + limits.keepalive_s
        if now_s < due_s:
            return Judgement(None, False, min(wake_s, due_s))
        self._pinged_s = now_s
        return Judgement(None, True, min(wake_s, now_s + limits.ping_timeout_s))

    def count_ping(self, now_s: float, *, busy: bool) -> None:
        """
        Count a PING of the peer.

        Args:
            now_s: When it came.
            busy: Whether a call is open; then PINGs are never too many.

        Raises:
            TooManyPings: It pings more often than ``pings_max`` in ``pings_window_s``.
        """
        pings, limits = self._pings, self._limits
        if busy:
            pings.clear()
            return
        pings.append(now_s)
        if len(pings) > limits.pings_max and now_s - pings[0] < limits.pings_window_s:
            raise TooManyPings(
                f"more than {limits.pings_max} PINGs in {limits.pings_window_s:g} s and no call"
            )
