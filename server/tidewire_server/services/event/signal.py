"""One task sleeping until something happens; cheaper than an event that must be cleared."""

import asyncio


class Signal:
    """Wakes one waiter. What is set while nobody waits is not lost; several sets are one."""

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake the waiter, or let the next wait return at once."""
        self._is_set = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for the next `set`; only one task may wait. Cancelling it loses nothing."""
        if not self._is_set:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_set = False

    async def wait_until(self, when_s: float | None, now: float) -> None:
        """
        Wait for the next `set`, or until a time on the same clock as ``now``; ``None``: no time.
        """
        if when_s is None or self._is_set:
            await self.wait()
            return
        timer = asyncio.get_running_loop().call_later(max(0.0, when_s - now), self.set)
        try:
            await self.wait()
        finally:
            timer.cancel()
