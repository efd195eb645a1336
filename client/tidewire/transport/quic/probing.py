"""
How long may datagrams be? Probes a path for the sizes that exist, upwards, as RFC 8899 says.

A connection begins with what every path takes. A probe that arrives raises the size; one that is
lost twice ends the search for ten minutes. When long datagrams are lost and none arrives any more
the path has become narrower: back to the least.
"""

from typing import Final

from tidewire.transport.quic.backend import DATAGRAM_BYTES_MAX

SIZES: Final = (1_452, 8_952, DATAGRAM_BYTES_MAX)
"""Ethernet, jumbo frames, loopback; each less the headers of IPv6 and UDP."""
ATTEMPTS_MAX: Final = 2
RAISE_S: Final = 600.0
"""Wait before a size that did not pass is tried again."""
NARROW_S: Final = 30.0
"""Wait before longer datagrams are tried again on a path that seemed to have become narrower."""
NARROW_LOSSES: Final = 3
NARROW_TIMEOUTS: Final = 4.0
"""So many long datagrams lost and none arrived for so many probe timeouts: it is narrower."""
FOREVER: Final = float("inf")


class PathProbe:
    """The search of one connection. Seconds of the clock it is given."""

    def __init__(self, bytes_max: int) -> None:
        self._sizes = tuple(size for size in SIZES if size <= bytes_max)
        self._step = 0
        self._attempts = 0
        self._sent_s = 0.0
        self._outstanding = 0
        self._passed_s = 0.0
        self._lost = 0
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

    def passed(self, now_s: float) -> None:
        """A long datagram has arrived."""
        self._passed_s = now_s
        self._lost = 0

    def lost(self, count: int, now_s: float, timeout_s: float) -> bool:
        """
        Take the news that long datagrams were lost.

        Args:
            count: How many.
            now_s: The time.
            timeout_s: Probe timeout of the recovery.

        Returns:
            Whether the path has become narrower: then short ones are to be sent from now on.
        """
        self._lost += count
        if self._lost < NARROW_LOSSES or now_s - self._passed_s < NARROW_TIMEOUTS * timeout_s:
            return False
        self._step = self._attempts = self._lost = self._outstanding = 0
        self.next_s = now_s + NARROW_S
        return True
