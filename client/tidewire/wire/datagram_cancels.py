"""CANCELs of a client, each sent until it is answered or was sent often enough. Without I/O."""

from collections.abc import Callable

from tidewire.wire.datagram_limits import DatagramLimits
from tidewire.wire.datagram_rtt import RoundTrip
from tidewire.wire.deadlines import FOREVER


class Cancels:
    """
    Request ids that are wanted no more.

    Attributes:
        next_s: When :meth:`due` must be asked again, at the latest.
    """

    def __init__(
        self, limits: DatagramLimits, rtt: RoundTrip, jittered: Callable[[float], float]
    ) -> None:
        self.next_s = FOREVER
        self._limits = limits
        self._rtt = rtt
        self._jittered = jittered
        self._sent: dict[int, tuple[int, float]] = {}
        """Times sent, and when it is due again."""

    def add(self, number: int, now_s: float) -> None:
        """Cancel a request; it is due at once."""
        self._sent[number] = (0, now_s)
        self.next_s = now_s

    def answered(self, number: int) -> None:
        """The server has answered: it runs no more."""
        self._sent.pop(number, None)

    def due(self, now_s: float) -> list[int]:
        """Return the ids to send CANCEL for now."""
        if now_s < self.next_s:
            return []
        self.next_s = FOREVER
        out: list[int] = []
        for number, (sends, due_s) in list(self._sent.items()):
            if due_s <= now_s:
                if sends >= self._limits.cancels_max:
                    del self._sent[number]
                    continue
                out.append(number)
                due_s = now_s + self._jittered(self._rtt.backed_off_s(sends + 1))
                self._sent[number] = (sends + 1, due_s)
            self.next_s = min(self.next_s, due_s)
        return out
