"""
One call of StreamMessages: messages in, answers out, in the same order.

The handler itself reads and brings events to their streams, which keeps their order; a few workers
do everything else, taken in order too. One task beside them writes. What waits is bounded by the
number and the bytes of the messages whose answers are not written.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire_server.core import Context, Core
from tidewire_server.services.event import EventService
from tidewire_server.services.event.publish import Outcome, live_answer
from tidewire_server.services.event.signal import Signal
from tidewire_server.services.eventflux.kinds import Kinds
from tidewire_server.services.eventflux.messages import (
    Incoming,
    Reader,
    TransportMessage,
    Writer,
)

log = logging.getLogger(__name__)

WINDOW_MESSAGES_MAX: Final = 256
"""Messages that are read and not answered yet."""
WORKERS_MAX: Final = 16
"""Messages other than events that are worked on at once: each may bring the largest payload."""

EVENTS: Final = (transport_pb2.MESSAGE_TYPE_EVENT, transport_pb2.MESSAGE_TYPE_METADATA)


class _Entry:
    """A message that was read, until its answer is written."""

    __slots__ = ("answer", "asked", "bytes")

    def __init__(self, asked: TransportMessage) -> None:
        self.bytes = asked.ByteSize()
        # What an answer repeats; the payload must not be held until it is written.
        self.asked = TransportMessage(
            id=asked.id, source_node=asked.source_node, priority=asked.priority
        )
        self.answer: TransportMessage | None = None


class MessageSession:
    """Serves one call of ``StreamMessages``."""

    def __init__(
        self,
        core: Core,
        event: EventService,
        reader: Reader,
        writer: Writer,
        kinds: Kinds,
        context: Context,
    ) -> None:
        self._core = core
        self._exchange = event.exchange
        self._publisher = event.publisher
        self._commits = event.commits
        self._reader = reader
        self._writer = writer
        self._kinds = kinds
        self._context = context
        self._entries: deque[_Entry] = deque()
        self._bytes = 0
        self._room = Signal()
        self._answered = Signal()
        self._work: deque[tuple[_Entry, Incoming]] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._workers: list[asyncio.Task[None]] = []
        self._is_over = False
        self._is_draining = False
        self._is_cut = False
        self._is_taking = False
        self._reading = asyncio.timeout(None)

    async def run(self, requests: AsyncIterator[TransportMessage]) -> None:
        """
        Serve until the client ends its messages, goes, or does not read.

        Raises:
            SlowConsumer: Answers are not read.
            Draining: The server goes; every message that was read has its answer.
        """
        writing = asyncio.create_task(self._write())
        writing.add_done_callback(lambda _: self._cut())
        self._exchange.publisher_opened()
        self._exchange.add_session(self)
        try:
            # Many clients wait for this before they write their first message.
            await self._context.send_initial_metadata(())
            await self._read(requests, writing)
            await writing
        finally:
            self._exchange.remove_session(self)
            self._exchange.publisher_closed()
            tasks = [writing, *self._workers]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._is_draining:
            raise errors.Draining(
                "the server is shutting down; send what has no answer to another, with its id",
                retry_after_s=1.0,
            )

    # Hearing of the end of the server.

    def drain(self) -> None:
        """Read no more: EventFlux has no word for what is coming. What was read is answered."""
        self._is_draining = True
        self._cut()

    def end(self) -> None:
        """Nothing more to do: reading has ended with the beginning of the drain."""

    def wake(self) -> None:
        """Nothing to look at."""

    def _cut(self) -> None:
        """End reading, between two messages: one that was begun gets its answer."""
        self._is_cut = True
        self._room.set()
        if not self._is_taking and not self._is_over:
            self._reading.reschedule(asyncio.get_running_loop().time())

    # Reading.

    async def _read(
        self, requests: AsyncIterator[TransportMessage], writing: asyncio.Task[None]
    ) -> None:
        try:
            async with self._reading:
                async for request in requests:
                    self._is_taking = True
                    while not self._has_room() and not writing.done():
                        await self._room.wait()
                    await self._take(request)
                    self._is_taking = False
                    if self._is_cut:
                        return
        except TimeoutError:
            if not self._is_cut:
                raise
        finally:
            self._is_over = True
            self._answered.set()

    async def _take(self, request: TransportMessage) -> None:
        entry = _Entry(request)
        self._entries.append(entry)
        self._bytes += entry.bytes
        try:
            message = await self._reader.read(request)
            if message.kind in EVENTS:
                await self._publish(entry, message)
            else:
                self._give(entry, message)
        except errors.TidewireError as error:
            self._answer(entry, self._writer.failure(entry.asked, error))

    def _has_room(self) -> bool:
        bytes_max = self._core.limits.publish_pending_bytes_max
        return len(self._entries) < WINDOW_MESSAGES_MAX and self._bytes < bytes_max

    # Doing.

    async def _publish(self, entry: _Entry, message: Incoming) -> None:
        """Publish an event behind those before it; who has to wait for room is this stream."""
        request = await self._kinds.to_publish(message, self._context)
        transaction = self._publisher.plan(request)
        if transaction is None:
            await self._publisher.hold_back(request.batch.subject)
            fanout = self._publisher.fan_out(request.batch)
            self._answer(entry, self._kinds.published(message, live_answer(fanout)))
            return
        coming = self._exchange.live.expect(request.batch)

        def done(outcome: Outcome) -> None:
            if coming is not None:
                coming.arrived()
            if isinstance(outcome, errors.TidewireError):
                self._answer(entry, self._writer.failure(entry.asked, outcome))
            else:
                self._publisher.count(request.batch)
                self._answer(entry, self._kinds.published(message, outcome.appends[0]))

        self._commits.submit(transaction, done)
        if coming is not None:
            await self._publisher.hold_back(request.batch.subject)

    def _give(self, entry: _Entry, message: Incoming) -> None:
        """Leave a message to the workers, of which there are as many as were needed at once."""
        self._work.append((entry, message))
        while self._idle:
            sleeper = self._idle.pop()
            if not sleeper.done():
                sleeper.set_result(None)
                return
        if len(self._workers) < WORKERS_MAX:
            self._workers.append(asyncio.create_task(self._serve()))

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._work:
                entry, message = self._work.popleft()
                self._answer(entry, await self._do(entry, message))
            sleeper = loop.create_future()
            self._idle.append(sleeper)
            await sleeper

    async def _do(self, entry: _Entry, message: Incoming) -> TransportMessage:
        try:
            return await self._kinds.do(message, self._context)
        except errors.TidewireError as error:
            return self._writer.failure(entry.asked, error)
        except Exception:
            log.exception("a message failed for a reason of our own")
            mistake = errors.Internal("the server made a mistake; it is in its log")
            return self._writer.failure(entry.asked, mistake)

    def _answer(self, entry: _Entry, answer: TransportMessage) -> None:
        entry.answer = answer
        size = answer.ByteSize()
        self._bytes += size
        entry.bytes += size
        self._answered.set()

    # Writing.

    async def _write(self) -> None:
        entries = self._entries
        while True:
            while entries and (answer := entries[0].answer) is not None:
                await self._write_one(answer)
                self._bytes -= entries.popleft().bytes
                self._room.set()
            if self._is_over and not entries:
                return
            await self._answered.wait()

    async def _write_one(self, answer: TransportMessage) -> None:
        stall_s = self._core.limits.subscriber_stall_s
        try:
            async with asyncio.timeout(stall_s):
                await self._context.write(answer)
        except TimeoutError:
            self._core.counters.add("subscribers_cut")
            raise errors.SlowConsumer(f"answers were not read for {stall_s:g} s") from None
