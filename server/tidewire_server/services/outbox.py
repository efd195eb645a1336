"""
What waits to be written on one stream.

Whoever has news puts it here and goes on; the one writer of the stream takes it. No task and no
lock for each item: one future wakes the writer when it has run dry.
"""

import asyncio
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class OutboxClosed(Exception):
    """Nothing follows: everything that was put has been taken."""


class Outbox(Generic[Item]):
    """
    A queue with one taker that tells when it is full and leaves what to do about it to who puts.

    Attributes:
        items_max: From this many items on it is `full`.
        bytes_max: From this many bytes on it is `full`.
        bytes: Bytes of what waits, as said by who put it.
    """

    def __init__(self, items_max: int, bytes_max: int) -> None:
        self.items_max = items_max
        self.bytes_max = bytes_max
        self.bytes = 0
        self._taken = 0
        self._items: deque[tuple[Item, int]] = deque()
        self._closed = False
        self._error: BaseException | None = None
        self._taker: asyncio.Future[None] | None = None
        self._room: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether no more should be put until something was taken."""
        return len(self._items) >= self.items_max or self.bytes >= self.bytes_max

    @property
    def idle(self) -> bool:
        """Whether nothing waits, and it is not closed."""
        return not self._items and not self._closed

    @property
    def closed(self) -> bool:
        """Whether it was closed or has failed; what is put now is dropped."""
        return self._closed

    def put(self, item: Item, size: int = 0) -> None:
        """
        Add an item of ``size`` bytes. It is taken also when the outbox is full: look at `full`
        before or after.
        """
        if self._closed:
            return
        self._items.append((item, size))
        self.bytes += size
        self._wake()

    def put_first(self, item: Item) -> None:
        """Add an item of no size before all others."""
        if not self._closed:
            self._items.appendleft((item, 0))
            self._wake()

    def close(self, error: BaseException | None = None) -> None:
        """
        Let the taker have what was put, and then the end, or the error. The first close counts.
        """
        if not self._closed:
            self._error = error
        self._closed = True
        self._wake()
        self._make_room()

    def fail(self, error: BaseException) -> None:
        """Drop what was put; the taker gets this error at once, unless there was one before."""
        self._items.clear()
        self.bytes = 0
        self._error = self._error or error
        self.close(self._error)

    def take_nowait(self) -> Item | None:
        """
        Take the next item; ``None`` when there is none now.

        Raises:
            OutboxClosed: Nothing follows.
        """
        if self._items:
            item, size = self._items.popleft()
            self.bytes -= size
            self._taken += 1
            if self._room is not None and not self.full:
                self._make_room()
            return item
        if self._error is not None:
            raise self._error
        if self._closed:
            raise OutboxClosed
        return None

    async def take(self) -> Item:
        """
        Take the next item, waiting for one. Cancelling it takes nothing.

        Raises:
            OutboxClosed: Nothing follows.
        """
        while True:
            item = self.take_nowait()
            if item is not None:
                return item
            self._taker = asyncio.get_running_loop().create_future()
            try:
                await self._taker
            finally:
                self._taker = None

    async def wait_room(self, stall_s: float) -> bool:
        """
        Wait until it is not full, or closed.

        Returns:
            False when nothing at all was taken for ``stall_s``.
        """
        while self.full and not self._closed:
            before = self._taken
            self._room = self._room or asyncio.Event()
            try:
                async with asyncio.timeout(stall_s):
                    await self._room.wait()
            except TimeoutError:
                if self._taken == before:
                    return False
        return True

    def _wake(self) -> None:
        taker = self._taker
        if taker is not None and not taker.done():
            taker.set_result(None)

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None
