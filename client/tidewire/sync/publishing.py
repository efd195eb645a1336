"""A blocking publisher that changes threads once for many messages."""

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Final, Self

from tidewire.client.publisher import Publisher
from tidewire.errors import DeadlineExceeded, TidewireError
from tidewire.sync.loop import LoopThread
from tidewire.wire.payload import Value, as_bytes

Headers = Sequence[tuple[str, bytes]]

WAITING_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bytes handed over to the loop's thread and not taken, before `publish` waits."""
MESSAGE_COST_BYTES: Final = 64


class BlockingPublisher:
    """
    Stands for a `Publisher`; any thread may publish. Attributes are those of the publisher.

    `publish` returns when the message is handed over; errors come at the next call or `flush`.
    """

    def __init__(self, publisher: Publisher, loop: LoopThread) -> None:
        self._publisher = publisher
        self._loop = loop
        self._lock = threading.Condition()
        self._waiting: deque[tuple[str, bytes, Headers | None]] = deque()
        self._waiting_bytes = 0
        self._taking = False
        self._taker: Future[None] | None = None
        self._failure: TidewireError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._publisher, name)

    def publish(self, subject: str, data: Value, *, headers: Headers | None = None) -> None:
        """
        Publish one message; see `Publisher.publish`.

        Waits while `WAITING_BYTES_MAX` bytes wait, at most the client's timeout.
        """
        raw = as_bytes(data)
        with self._lock:
            self._raise_failure()
            cost = len(raw) + MESSAGE_COST_BYTES
            if self._waiting_bytes and self._waiting_bytes + cost > WAITING_BYTES_MAX:
                self._wait_for_room(cost)
            self._waiting.append((subject, raw, headers))
            self._waiting_bytes += cost
            if self._taking:
                return
            self._taking = True
            self._taker = self._loop.submit(self._take())

    def flush(self, *, timeout_s: float | None = None) -> None:
        """Wait until everything published is acknowledged; see `Publisher.flush`."""
        self._loop.run(self._flush(timeout_s))
        with self._lock:
            self._raise_failure()

    def close(self) -> None:
        """Flush, then end."""
        self._loop.run(self._close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _take(self) -> None:
        """Hand over what waits; on the loop's thread, one at a time."""
        publish = self._publisher.publish
        while True:
            with self._lock:
                taken, self._waiting = self._waiting, deque()
                self._waiting_bytes = 0
                self._taking = bool(taken)
                self._lock.notify_all()
            if not taken:
                return
            for subject, data, headers in taken:
                try:
                    await publish(subject, data, headers=headers)
                except TidewireError as error:
                    self._failure = self._failure or error

    async def _flush(self, timeout_s: float | None) -> None:
        # What waits was handed over before this was, or is taken here.
        await self._take_rest()
        await self._publisher.flush(timeout_s=timeout_s)

    async def _close(self) -> None:
        await self._take_rest()
        await self._publisher.close()

    async def _take_rest(self) -> None:
        while self._taking and self._taker is not None:
            await asyncio.wrap_future(self._taker)

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _wait_for_room(self, cost: int) -> None:
        limit_s = self._publisher.timeout_s
        ready = self._lock.wait_for(
            lambda: not self._waiting_bytes or self._waiting_bytes + cost <= WAITING_BYTES_MAX,
            limit_s,
        )
        if not ready:
            raise DeadlineExceeded(
                f"{self._waiting_bytes} bytes wait to be published; nothing moved for {limit_s:g} s"
            )
