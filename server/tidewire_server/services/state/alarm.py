"""A timer that is set anew all the time and rings almost never."""

import asyncio
from collections.abc import Callable


class Alarm:
    """
    Calls back when a deadline passes that is moved on with every message.

    Setting it costs an assignment, where a timer of the event loop would be made and cancelled: the
    one timer it has goes off at an old deadline and is then set for the rest.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, delay_s: float) -> None:
        """Ring after this time, unless it is set again or put off before."""
        self._deadline = self._loop.time() + delay_s
        if self._timer is None or self._timer.when() > self._deadline:
            self.close()
            self._timer = self._loop.call_at(self._deadline, self._look)

    def put_off(self) -> None:
        """Do not ring until it is set again."""
        self._deadline = None

    def close(self) -> None:
        """Give the timer back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look)
            return
        self._deadline = None
        self._ring()
