"""Is the peer still there, and does it keep its times? HELLO, frames, PINGs against the clock."""

from collections import deque
from typing import Final, NamedTuple

from tidewire.errors import PeerTooSlow, PeerVanished, TidewireError, TooManyPings
from tidewire.wire.deadlines import FOREVER
from tidewire.wire.limits import WireLimits
from tidewire.wire.rtt import RttEstimator

DOUBLINGS_MAX: Final = 16
SPACING: Final = 2
"""PINGs out of doubt take at most one of so many that a peer of the same limits stands."""


class Judgement(NamedTuple):
    """What is to be done now, and when to ask again."""

    error: TidewireError | None
    """Why the connection must end."""
    ping: bool
    """Whether a PING must go out."""
    wake_s: float
    """When to ask again."""


class Liveness:
    """
    Times of one connection. Seconds, of the clock the connection is given.

    While a client's call is open, silence is looked into sooner than on an idle connection: a PING
    goes out after the adaptive timeout over ``probe_s``, and again after twice that and so on as
    long as only PONGs come, for then the handler is slow and the peer is well. A peer that does not
    answer a probe in the same time is gone. So a call whose peer hangs is ended, and can be made
    again elsewhere, and one whose handler takes its time is left alone.
    """

    def __init__(self, limits: WireLimits, now_s: float) -> None:
        self.heard_s = now_s
        """When the last bytes came."""
        self.frame_begun_s: float | None = None
        """When the frame that is not complete yet began."""
        self.greeted = False
        """Whether the peer's HELLO has come."""
        self.asked_s = now_s
        """When this client last opened a call."""
        self.rtt = RttEstimator()
        self.probe_after_s = limits.probe_s
        """Silence with an open call after which the peer is probed; grows with the round trip."""
        self._limits = limits
        self._started_s = now_s
        self._pinged_s: float | None = None
        self._answer_s = limits.ping_timeout_s
        self._ponged_s = now_s
        self._quiet_probes = 0
        self._pings: deque[float] | None = None
        """When the last PINGs came, once one has."""

    def start(self, now_s: float) -> None:
        """Count the time for HELLO from ``now_s``: a handshake came before it."""
        self._started_s = now_s

    def measured(self, rtt_s: float) -> None:
        """Take a round trip."""
        self.rtt.sample(rtt_s)
        self.probe_after_s = self.rtt.timeout_s(self._limits.probe_s)

    def greeted_after(self, now_s: float) -> None:
        """Take the exchange of HELLOs as the first round trip; for the side that began it."""
        self.measured(now_s - self._started_s)

    def answered(self, now_s: float) -> None:
        """Take a PONG."""
        if self._pinged_s is not None and self._ponged_s < self._pinged_s:
            self.measured(now_s - self._pinged_s)
            self._ponged_s = now_s
            self._quiet_probes += 1

    def suspect(self, now_s: float) -> bool:
        """
        Doubt the peer; return whether a PING must go out now, to be answered in short time.

        Doubts come as often as requests fail, and a peer ends a connection that PINGs too often:
        they are answered by the last PING when that is not long ago.
        """
        limits = self._limits
        apart_s = SPACING * limits.pings_window_s / limits.pings_max
        if not self.greeted or (self._pinged_s is not None and now_s < self._pinged_s + apart_s):
            return False
        self._ping(now_s, hurried=True)
        return True

    def _ping(self, now_s: float, *, hurried: bool) -> None:
        limits = self._limits
        base_s = limits.ping_timeout_s
        if hurried:
            base_s = min(base_s, limits.probe_s)
        self._answer_s = self.rtt.timeout_s(base_s)
        self._pinged_s = now_s

    def _silence_s(self, busy: bool) -> float:
        """How long the peer may be silent before it is pinged."""
        if not busy:
            return self._limits.keepalive_s
        if self.heard_s > self._ponged_s or self.asked_s > self._ponged_s:
            self._quiet_probes = 0
        doublings = min(self._quiet_probes, DOUBLINGS_MAX)
        return min(self._limits.keepalive_s, self.probe_after_s * 2.0**doublings)

    def judge(self, now_s: float, *, busy: bool = False) -> Judgement:
        """
        Hold the peer to its times.

        Args:
            now_s: The time.
            busy: Whether this is a client with calls open.
        """
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
        return self._judge_silence(now_s, wake_s, busy)

    def _late(self, what: str, wait_s: float) -> Judgement:
        return Judgement(PeerTooSlow(f"{what} did not come within {wait_s:g} s"), False, FOREVER)

    def _judge_silence(self, now_s: float, wake_s: float, busy: bool) -> Judgement:
        if self._pinged_s is not None and self.heard_s < self._pinged_s:
            due_s = self._pinged_s + self._answer_s
            if now_s < due_s:
                return Judgement(None, False, min(wake_s, due_s))
            silence_s = now_s - self.heard_s
            error = PeerVanished(f"the peer has been silent for {silence_s:.1f} s and a PING")
            return Judgement(error, False, FOREVER)
        quiet_since_s = max(self.heard_s, self.asked_s) if busy else self.heard_s
        due_s = quiet_since_s + self._silence_s(busy)
        if now_s < due_s:
            return Judgement(None, False, min(wake_s, due_s))
        self._ping(now_s, hurried=busy)
        return Judgement(None, True, min(wake_s, now_s + self._answer_s))

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
            self._pings = None
            return
        if pings is None:
            pings = self._pings = deque(maxlen=limits.pings_max + 1)
        pings.append(now_s)
        if len(pings) > limits.pings_max and now_s - pings[0] < limits.pings_window_s:
            raise TooManyPings(
                f"more than {limits.pings_max} PINGs in {limits.pings_window_s:g} s and no call"
            )
