"""
How long may datagrams be? Probes a path for the sizes that exist, upwards, as RFC 8899 says.

A connection begins with what every path takes. A probe that arrives raises the size; one that is
lost twice ends the search for ten minutes. When nothing arrives any more the path may have become
narrower: back to the least.
"""

from typing import Final

from tidewire.transport.quic.backend import DATAGRAM_BYTES_MAX

SIZES: Final = (1_452, 8_952, DATAGRAM_BYTES_MAX)
"""Ethernet, jumbo frames, loopback; each less the headers of IPv6 and UDP."""
ATTEMPTS_MAX: Final = 2
RAISE_S: Final = 600.0
"""Wait before a size that did not pass is tried again."""
STUCK_PROBES: Final = 3
"""Probes of the recovery that went unanswered before the path is taken to have become narrower."""
FOREVER: Final = float("inf")


class PathProbe:
    """The search of one connection. Seconds of the clock it is given."""

    def __init__(self, bytes_max: int) -> None:
        self._sizes = tuple(size for size in SIZES if size <= bytes_max)
        self._step = 0
        self._attempts = 0
        self._sent_s = 0.0
        self._outstanding = 0
        self.next_s = 0.0
        """When the next probe is due."""

    @property
    def waiting(self) -> bool:
        """Whether there is a size left to try."""
        return self._step < len(self._sizes)

    def due(self, now_s: float) -> int:
        """Return the size to probe now, or 0."""
        if not self.waiting or now_s < self.next_s:
            return 0
        return self._sizes[self._step]

    def sent(self, size: int, now_s: float) -> None:
        """A probe of ``size`` went out."""
        self._outstanding = size
        self._sent_s = now_s
        self.next_s = FOREVER

    def answered(self, size: int, *, arrived: bool) -> bool:
        """Take the fate of a probe; return whether its size may be used now."""
        if size != self._outstanding:
            return False
        self._outstanding = 0
        if arrived:
            self._step += 1
            self._attempts = 0
            self.next_s = self._sent_s
            return True
        self._attempts += 1
        if self._attempts >= ATTEMPTS_MAX:
            self._attempts = 0
            self.next_s = self._sent_s + RAISE_S
        else:
            self.next_s = self._sent_s
        return False

    def refused(self, size: int) -> bool:
        """Whether ``size`` was a probe that the system did not even send; it is given up then."""
        if size != self._outstanding:
            return False
        self._attempts = ATTEMPTS_MAX
        self.answered(size, arrived=False)
        return True

    def stuck(self, unanswered: int) -> bool:
        """Whether so many unanswered probes of the recovery mean that the path is narrower now."""
        return unanswered >= STUCK_PROBES

    def shrink(self, now_s: float) -> None:
        """Begin anew from the least, later."""
        self._step = 0
        self._attempts = 0
        self._outstanding = 0
        self.next_s = now_s + RAISE_S
