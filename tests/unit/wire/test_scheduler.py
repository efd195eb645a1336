"""The order in which frames leave, and what a connection keeps when none wait."""

from collections.abc import Iterator

import pytest

from tidewire.wire import scheduler
from tidewire.wire.scheduler import SPARE_MAX, Scheduler

MUCH = 1 << 20


@pytest.fixture(autouse=True)
def _no_spares() -> Iterator[None]:
    """Begin and end without queues that other tests left."""
    scheduler._SPARE.clear()
    yield
    scheduler._SPARE.clear()


def taken(made: Scheduler, bytes_max: int = MUCH) -> list[bytes]:
    """What leaves now."""
    out: list[bytes | memoryview] = []
    made.take(out, bytes_max)
    return [bytes(piece) for piece in out]


class Caller:
    """A call with some frames, which queues itself for each."""

    def __init__(self, made: Scheduler, priority: int, *frames: bytes) -> None:
        self.made, self.priority, self.frames = made, priority, list(frames)

    def emit(self, out: list[bytes | memoryview]) -> int:
        """Make a frame."""
        frame = self.frames.pop(0)
        out.append(frame)
        if self.frames:
            self.made.push_call(self.priority, self)
        return len(frame)


def test_the_urgent_leave_first_and_equals_in_turn() -> None:
    """Priorities are strict; calls of one priority take turns, frame by frame."""
    made = Scheduler()
    made.push_frame(7, b"late")
    made.push_call(5, Caller(made, 5, b"a1", b"a2"))
    made.push_call(5, Caller(made, 5, b"b1", b"b2"))
    made.push_frame(0, b"now")
    assert [b"now", b"a1", b"b1", b"a2", b"b2", b"late"] == taken(made)
    assert [] == taken(made)


def test_an_idle_connection_has_no_queue() -> None:
    """A queue goes when the last frame leaves, not before, and the next connection has it."""
    made, other = Scheduler(), Scheduler()
    made.push_frame(5, b"one")
    made.push_frame(5, b"two")
    assert [b"one"] == taken(made, 1)
    assert made._queues[5] is not None
    assert [b"two"] == taken(made)
    assert [None] * len(made._queues) == made._queues
    (spare,) = scheduler._SPARE
    other.push_frame(3, b"three")
    assert spare is other._queues[3]
    made.push_frame(3, b"four")
    assert [[b"three"], [b"four"]] == [taken(other), taken(made)]


def test_what_is_kept_is_bounded() -> None:
    """Queues that were all in use at once are not all kept."""
    many = [Scheduler() for _ in range(SPARE_MAX + 10)]
    for made in many:
        made.push_frame(5, b"x")
    for made in many:
        assert [b"x"] == taken(made)
    assert SPARE_MAX == len(scheduler._SPARE)


def test_a_connection_that_ends_within_a_frame_leaves_nothing_to_others() -> None:
    """A queue with something in it is never kept: its frames are of a connection that is over."""
    made = Scheduler()

    class Ending:
        def emit(self, out: list[bytes | memoryview]) -> int:
            made.clear()
            return len(out)

    made.push_call(5, Ending())
    made.push_frame(5, b"lost")
    taken(made)
    assert all(not queue for queue in scheduler._SPARE)
    other = Scheduler()
    other.push_frame(5, b"mine")
    assert [b"mine"] == taken(other)
