"""
Publishing: one batch, or many, pipelined.

What no stream takes is handed to live subscribers at once; what a stream takes is committed, and
reaches readers through the engine's listener only. A fixed number of tasks commits for all
publishing streams, in order of arrival: none is made for a batch.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from tidewire.errors import (
    Internal,
    NoStream,
    StreamNotFound,
    StreamPaused,
    TidewireError,
)
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import check_batch
from tidewire_server.engine.base import Append, Committed, Engine, Transaction
from tidewire_server.services.event.checks import check_durability
from tidewire_server.services.event.exchange import Exchange
from tidewire_server.services.event.live import Fanout

log = logging.getLogger(__name__)

ANSWERS_MAX: Final = 256
"""Answers to live publishes that are kept; they differ by the number of receivers."""
COMMITTERS_MAX: Final = 256
"""Transactions of publishing streams in the engine's hands at once."""

Outcome = Committed | TidewireError
Done = Callable[[Outcome], None]


class Publisher:
    """Checks batches and brings them where they belong."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._core = exchange.core

    def plan(
        self, request: event_pb2.PublishRequest, body: memoryview | None = None
    ) -> Transaction | None:
        """
        Check a publish and say what to commit; ``None``: no stream takes it.

        Args:
            request: The publish; what is committed is whole afterwards.
            body: Body of its batch where that is kept apart from it.

        Raises:
            NoStream: More was asked for than live subscribers can give.
            TidewireError: See ``EventService.Publish``.
        """
        core = self._core
        batch = request.batch
        check_batch(batch, core.limits, codecs=core.codecs, body=body)
        check_durability(request.durability, core.engine.durability_max, "durability")
        stream = core.engine.stream_for(batch.subject)
        if request.expected_stream and request.expected_stream != stream:
            raise self._not_there(request, stream)
        if stream is None:
            if request.durability > common_pb2.DURABILITY_MEMORY or request.HasField(
                "expected_last_sequence"
            ):
                raise NoStream(
                    f"no stream takes {batch.subject!r}, so nothing can be stored; make a stream "
                    "for it, or publish with DURABILITY_MEMORY",
                    metadata={"subject": batch.subject},
                )
            return None
        config = core.engine.stream_config(stream)
        if config is not None and config.paused:
            raise StreamPaused(
                f"stream {stream!r} is paused; publish again when it is resumed",
                metadata={"subject": stream},
            )
        if body is not None:
            batch.body = bytes(body)
        return Transaction(durability=request.durability, appends=(Append(request),))

    def fan_out(self, batch: common_pb2.Batch, body: memoryview | None = None) -> Fanout:
        """Hand a batch, and its body if that is apart, to live subscribers: no stream takes it."""
        core = self._core
        fanout = self._exchange.live.deliver(
            batch, now=core.clock(), time_ns=core.wall_ns(), body=body
        )
        self.count(batch, body)
        if fanout.lost:
            core.counters.add("events_lost", fanout.lost)
        return fanout

    async def commit(
        self, batch: common_pb2.Batch, transaction: Transaction
    ) -> event_pb2.PublishResponse:
        """Store a batch, after who listens live has had its time to make room for it."""
        await self.hold_back(batch.subject)
        coming = self._exchange.live.expect(batch)
        try:
            committed = await self._core.engine.commit(transaction)
        finally:
            if coming is not None:
                coming.arrived()
        self.count(batch)
        return committed.appends[0]

    async def hold_back(self, subject: str) -> None:
        """
        Wait for who listens live; before a batch is handed over, not after: the batches that many
        publishers have in hand would not find room.
        """
        holder = self._exchange.live.holder(subject, self._core.clock())
        if holder is not None:
            await holder.hold_back()

    def count(self, batch: common_pb2.Batch, body: memoryview | None = None) -> None:
        """Count what was published."""
        self._core.counters.add("events_published", batch.count)
        size = len(batch.body if body is None else body)
        self._core.counters.add("events_published_bytes", size)

    def _not_there(self, request: event_pb2.PublishRequest, stream: str | None) -> TidewireError:
        expected, subject = request.expected_stream, request.batch.subject
        if self._core.engine.stream_config(expected) is None:
            return StreamNotFound(
                f"there is no stream {expected!r}", metadata={"subject": expected}
            )
        taker = f"stream {stream!r} does" if stream else "none does"
        return NoStream(
            f"stream {expected!r} does not take {subject!r}, {taker}",
            metadata={"subject": subject, "stream": stream or ""},
        )


def live_answer(fanout: Fanout) -> event_pb2.PublishResponse:
    """What became of a batch that no stream takes; not to be changed."""
    return _live_answer(fanout.receivers)


@lru_cache(ANSWERS_MAX)
def _live_answer(receivers: int) -> event_pb2.PublishResponse:
    return event_pb2.PublishResponse(durability=common_pb2.DURABILITY_MEMORY, receivers=receivers)


class CommitPool:
    """
    Commits transactions in the order they are given, many at once.

    It grows to `COMMITTERS_MAX` tasks as they are needed. How much may wait is bounded by the
    credit of the publishing streams.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: deque[tuple[Transaction, Done]] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, transaction: Transaction, done: Done) -> None:
        """
        Commit this after what was submitted before; ``done`` is called with the outcome and must
        not raise.
        """
        self._waiting.append((transaction, done))
        while self._idle:
            sleeper = self._idle.pop()
            if not sleeper.done():
                sleeper.set_result(None)
                return
        if len(self._tasks) < COMMITTERS_MAX:
            self._tasks.add(asyncio.create_task(self._commit()))

    async def close(self) -> None:
        """Stop. What the engine was given is done or not, never half."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _commit(self) -> None:
        while True:
            while self._waiting:
                transaction, done = self._waiting.popleft()
                done(await self._outcome(transaction))
            sleeper = asyncio.get_running_loop().create_future()
            self._idle.append(sleeper)
            await sleeper

    async def _outcome(self, transaction: Transaction) -> Outcome:
        try:
            return await self._engine.commit(transaction)
        except TidewireError as error:
            return error
        except Exception:
            log.exception("a publish failed for a reason of our own")
            return Internal("the server made a mistake; it is in its log; the batch may be stored")
