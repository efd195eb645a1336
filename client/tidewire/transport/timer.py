"""One timer of the event loop, for shells that have a time at which they must look."""

import asyncio

from tidewire.wire.deadlines import FOREVER


class OneTimer:
    """
    A timer that is set to one time and set anew for an earlier one.

    It is inherited, not held: there is a shell for each connection, and an object more in each
    would be a hundred bytes of it. ``_loop`` is the shell's.
    """

    _loop: asyncio.AbstractEventLoop
    _timer: asyncio.TimerHandle | None = None
    _timer_s: float = FOREVER
    """When it will fire; FOREVER while it is not set."""

    def _arm(self, due_s: float) -> None:
        """Fire at this time of the loop's clock, and at no other."""
        self._disarm()
        if due_s < FOREVER:
            self._timer_s = due_s
            self._timer = self._loop.call_at(due_s, self._fire)

    def _disarm(self) -> None:
        """Do not fire."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_s = FOREVER

    def _fire(self) -> None:
        due_s = self._timer_s
        self._timer = None
        self._timer_s = FOREVER
        self._on_timer(due_s)

    def _on_timer(self, due_s: float) -> None:
        """Look; it was set for this time, and the loop's clock may show a little less."""
        raise NotImplementedError
