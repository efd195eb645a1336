"""
The event loop's time, shared by those of one process who never run out of work.

A publisher with room and a subscription with deliveries could each keep the loop for as long as
they liked. Turns are measured in time: counted in messages, one side's turn may be a thousand times
as long as the other's, and the slower side loses what it has no time to take.
"""

import asyncio
from time import perf_counter
from typing import Final

TURN_S: Final = 0.005
"""Who had the event loop for longer lets others have it."""


class Turn:
    """When it was last that the event loop was let go."""

    __slots__ = ("_began_at",)

    def __init__(self) -> None:
        self.begin()

    @property
    def is_over(self) -> bool:
        """Whether `TURN_S` have passed; also when the time was spent waiting for work."""
        return perf_counter() - self._began_at > TURN_S

    def begin(self) -> None:
        """The loop has just come round."""
        self._began_at = perf_counter()

    async def end(self) -> None:
        """Let others have their turn, and begin the next."""
        await asyncio.sleep(0)
        self.begin()
