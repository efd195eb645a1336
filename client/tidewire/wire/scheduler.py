"""
Which frame goes next: lowest priority number first, calls of one priority in turn.

Entries are finished frames, or calls that make their next frame when asked (``emit``), so that a
10 MiB message is cut while the transport takes it and an urgent frame waits for one fragment.
"""

from collections import deque
from collections.abc import Collection
from typing import Final, Protocol

from tidewire.wire.frame import PRIORITY_LAST


class Emitter(Protocol):
    """A call with something to send."""

    def emit(self, out: list[bytes | memoryview]) -> int:
        """Append at most one frame to ``out``; return its bytes, 0 when it must wait."""
        ...


_TAKING: Final = 1 << 40
"""More entries than ever wait: a call that queues itself for its next frame hurries nobody."""


SPARE_MAX: Final = 64
"""Empty queues that are kept; more wait at the same time only under load."""
_SPARE: Final[list[deque[bytes | Emitter]]] = []


def _empty_queue() -> deque[bytes | Emitter]:
    try:
        return _SPARE.pop()
    except IndexError:  # asked this way since other threads have connections, too
        return deque()


class Scheduler:
    """
    Ten queues, and a bit for each that is not empty.

    A connection has a queue only while something waits in it: an empty one takes 760 bytes, and
    all ten most of what an idle connection takes altogether. Empty ones are kept for the next that
    needs one, of whatever connection.
    """

    __slots__ = ("_queues", "queued", "ready", "waiting_bytes")

    def __init__(self) -> None:
        self._queues: list[deque[bytes | Emitter] | None] = [None] * (PRIORITY_LAST + 1)
        self.ready = 0
        """Bit n is set when queue n is not empty."""
        self.queued = 0
        """Entries queued since the last ``take``; meaningless within one."""
        self.waiting_bytes = 0
        """Size of the finished frames that wait."""

    def push_frame(self, priority: int, frame: bytes) -> None:
        """Queue a finished frame."""
        queue = self._queues[priority]
        if queue is None:
            queue = self._queues[priority] = _empty_queue()
        queue.append(frame)
        self.queued += 1
        self.ready |= 1 << priority
        self.waiting_bytes += len(frame)

    def push_call(self, priority: int, call: Emitter) -> None:
        """Queue a call for one frame; it queues itself again for the next."""
        queue = self._queues[priority]
        if queue is None:
            queue = self._queues[priority] = _empty_queue()
        queue.append(call)
        self.queued += 1
        self.ready |= 1 << priority

    def take(self, out: list[bytes | memoryview], bytes_max: int) -> int:
        """Append frames to ``out`` until ``bytes_max`` is reached or passed; return their bytes."""
        taken = 0
        self.queued = _TAKING
        while self.ready and taken < bytes_max:
            bit = self.ready & -self.ready
            queue = self._queues[bit.bit_length() - 1]
            assert queue is not None
            while queue and taken < bytes_max:
                entry = queue.popleft()
                if type(entry) is bytes:
                    out.append(entry)
                    taken += len(entry)
                    self.waiting_bytes -= len(entry)
                else:
                    taken += entry.emit(out)  # type: ignore[union-attr]
                    if self.ready & (bit - 1):
                        break  # making a frame let something more urgent in
            if not queue:
                self.ready &= ~bit
                self._queues[bit.bit_length() - 1] = None
                if len(_SPARE) < SPARE_MAX:
                    _SPARE.append(queue)
        self.queued = 0
        return taken

    def drop(self, calls: Collection[Emitter]) -> None:
        """Take calls out of their queues: they go elsewhere."""
        for priority, queue in enumerate(self._queues):
            if queue is None:
                continue
            kept = [entry for entry in queue if isinstance(entry, bytes) or entry not in calls]
            if len(kept) < len(queue):
                queue.clear()
                queue.extend(kept)
                if not kept:
                    self.ready &= ~(1 << priority)

    def clear(self) -> None:
        """Drop everything: the connection is over."""
        self._queues = [None] * (PRIORITY_LAST + 1)
        self.ready = 0
        self.queued = 0
        self.waiting_bytes = 0
