"""
One call of StreamEvents: what is stored and what comes live, as EventFlux events.

Stored events are read from their streams, one stream at a time, so a slow reader costs what was
read ahead once, however many streams there are. Only events that no stream keeps wait in memory, in
the bounded buffer of any live subscriber.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from typing import Final

from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.spliced import Spliced
from tidewire.wire.subject import overlaps
from tidewire_server.core import Context, Core
from tidewire_server.engine.base import StoredBatch
from tidewire_server.services.event.allowance import Allowance
from tidewire_server.services.event.delivery import Response
from tidewire_server.services.event.exchange import Exchange
from tidewire_server.services.event.follow import StreamFollower
from tidewire_server.services.event.live import LiveBuffer
from tidewire_server.services.event.signal import Signal
from tidewire_server.services.event.sources import OrderedEvents
from tidewire_server.services.eventflux.filters import Wanted
from tidewire_server.services.eventflux.messages import MILLISECOND_NS, TransportMessage
from tidewire_server.services.eventflux.translate import from_delivery

log = logging.getLogger(__name__)

STREAMS_MAX: Final = 1024
"""Durable streams that one reader follows."""
BATCH_BYTES_MAX: Final = 1024 * 1024
"""A batch ends here, whatever its number of events; one event may be larger."""
WRITE_BYTES_PER_S_MIN: Final = 256 * 1024
"""An event may take this much longer than a stall by its size."""
_ALL: Final = common_pb2.Credit(messages_until=1 << 62, bytes_until=1 << 62)


class _Unstored(LiveBuffer):
    """A buffer for what no stream keeps; the rest is read from where it is kept."""

    def put(self, response: Response, messages: int, body_bytes: int) -> int:
        """Add a batch unless it is stored, which one that is serialized already never is."""
        if not isinstance(response, Spliced) and response.delivery.stream:
            return 0
        return super().put(response, messages, body_bytes)

    def expect(self, messages: int, body_bytes: int) -> None:
        """What comes through the store does not come here."""


class _Follower(StreamFollower):
    """Follows a stream and keeps nothing of what it hears: it reads that when its turn comes."""

    def appended(self, stored: StoredBatch) -> None:
        """Hear of a batch that was stored."""
        if stored.last_sequence >= self._read_to:
            self._heard += 1
            self._is_caught_up = False
            self.signal.set()


class EventsSession:
    """Serves one call of ``StreamEvents``."""

    def __init__(self, core: Core, exchange: Exchange, wanted: Wanted, context: Context) -> None:
        self._core = core
        self._exchange = exchange
        self._wanted = wanted
        self._context = context
        self._signal = Signal()
        self._streams: dict[str, OrderedEvents] = {}
        self._turns: deque[str] = deque()
        self._live = _Unstored(
            Allowance(_ALL),
            messages_max=core.limits.subscriber_pending_messages_max,
            bytes_max=core.limits.subscriber_pending_bytes_max,
        )
        self._live.signal = self._signal
        self._ready: Iterator[TransportMessage] = iter(())
        self._lost = 0
        self._is_live_turn = False
        self._error: errors.TidewireError | None = None
        self._is_draining = False

    async def run(self) -> None:
        """
        Serve until the end that was asked for, or until the client goes.

        Raises:
            Draining: The server goes.
            SlowConsumer: The reader takes nothing for too long.
            DataCorrupt: A stream is damaged; metadata says which sequences.
            Overloaded: More streams take the subjects than one reader may follow.
        """
        patterns = self._wanted.patterns
        changed = self._core.engine.listeners.streams_changed
        self._exchange.live.add(patterns, self._live)
        self._exchange.add_session(self)
        changed.append(self._stream_changed)
        try:
            for stream in await self._core.engine.list_streams():
                await self._open(stream.config)
            # Many clients wait for this before they go on; from here on nothing is missed.
            await self._context.send_initial_metadata(())
            await self._serve()
        finally:
            changed.remove(self._stream_changed)
            self._exchange.remove_session(self)
            self._exchange.live.remove(patterns, self._live)
            for source in self._streams.values():
                source.close()

    # Hearing of the end of the server, and of streams.

    def drain(self) -> None:
        """End when everything that is there now was sent."""
        self._is_draining = True
        self._signal.set()

    def end(self) -> None:
        """End now."""
        self._error = self._error or _draining()
        self._signal.set()

    def wake(self) -> None:
        """Nothing to look at."""

    async def _open(self, config: event_pb2.StreamConfig) -> None:
        """Follow a stream from where the reader wants it."""
        name = config.name
        if name in self._streams or not self._takes(config):
            return
        engine, wanted = self._core.engine, self._wanted
        position = engine.last_sequence(name) + 1
        if wanted.start_ms:
            position = await engine.sequence_at(name, wanted.seek_ns)
        self._follow(name, position)

    def _stream_changed(self, name: str) -> None:
        """
        A stream that comes to take subjects of the reader is followed before anything is in it.
        """
        config = self._core.engine.stream_config(name)
        if config is None:
            self._drop(name)
        elif name not in self._streams and self._takes(config):
            self._follow(name, self._core.engine.last_sequence(name) + 1)
        self._signal.set()

    def _drop(self, name: str) -> None:
        """Follow a stream no more: it was deleted, and another may get its name."""
        source = self._streams.pop(name, None)
        if source is not None:
            source.close()
            self._turns.remove(name)

    def _takes(self, config: event_pb2.StreamConfig) -> bool:
        return any(
            overlaps(subject, pattern)
            for subject in config.subjects
            for pattern in self._wanted.patterns
        )

    def _follow(self, name: str, position: int) -> None:
        if name in self._streams:
            return
        if len(self._streams) >= STREAMS_MAX:
            self._error = errors.Overloaded(
                f"over {STREAMS_MAX} streams take these subjects; name fewer in stream_names",
                metadata={"streams_max": STREAMS_MAX},
            )
            return
        follower = _Follower(
            self._core.engine, name, position, self._wanted.patterns, signal=self._signal
        )
        self._streams[name] = OrderedEvents(self._exchange, follower, Allowance(_ALL))
        self._turns.append(name)

    # Serving.

    async def _serve(self) -> None:
        end_ms = self._wanted.end_ms
        while True:
            if self._error is not None:
                raise self._error
            is_over = 0 < end_ms < self._now_ms()
            is_draining = self._is_draining
            batch = await self._next_batch()
            if batch:
                await self._write(batch)
            elif is_over:
                return
            elif is_draining:
                raise _draining()
            else:
                await self._wait()

    async def _wait(self) -> None:
        end_ms = self._wanted.end_ms
        if not end_ms:
            await self._signal.wait()
            return
        now_s = self._core.clock()
        left_s = max(0, end_ms + 1 - self._now_ms()) / 1000
        await self._signal.wait_until(now_s + left_s, now_s)

    def _now_ms(self) -> int:
        return self._core.wall_ns() // MILLISECOND_NS

    async def _next_batch(self) -> list[TransportMessage]:
        """Events that are there now, up to a batch."""
        batch: list[TransportMessage] = []
        size = 0
        while len(batch) < self._wanted.batch_size and size < BATCH_BYTES_MAX:
            message = next(self._ready, None)
            if message is None:
                delivery = await self._next_delivery()
                if delivery is None:
                    break
                self._ready = await self._decode(delivery)
            elif self._wanted.takes(message):
                batch.append(message)
                size += len(message.payload)
        return batch

    async def _next_delivery(self) -> event_pb2.Delivery | None:
        """What to look into next: live and stored events in turn."""
        self._is_live_turn = not self._is_live_turn
        if self._is_live_turn:
            return self._pop_live() or await self._pull_next()
        return await self._pull_next() or self._pop_live()

    def _pop_live(self) -> event_pb2.Delivery | None:
        while (response := self._live.pop(self._core.clock())) is not None:
            if isinstance(response, Spliced):
                response = event_pb2.SubscribeResponse.FromString(bytes(response))
            if response.WhichOneof("kind") == "lost":
                self._lost += response.lost.messages
            elif not self._is_past(response.delivery):
                return response.delivery
        return None

    async def _pull_next(self) -> event_pb2.Delivery | None:
        for _ in range(len(self._turns)):
            delivery = await self._pull(self._turns[0]) if self._turns else None
            if delivery is not None:
                return delivery
            self._turns.rotate(-1)
        return None

    async def _pull(self, name: str) -> event_pb2.Delivery | None:
        """
        The next of a stream. It keeps its turn until what it has read is used up, so that no two
        streams have read ahead.
        """
        source = self._streams.get(name)
        if source is None:
            return None
        while True:
            try:
                response = await source.pull()
            except errors.StreamNotFound:
                self._drop(name)
                return None
            if response is None or self._is_past(response.delivery):
                return None
            # A dead letter is the record of an event, not one more.
            if not response.delivery.HasField("dead_letter"):
                return response.delivery

    def _is_past(self, delivery: event_pb2.Delivery) -> bool:
        return self._wanted.is_past(delivery.time.ToNanoseconds() // MILLISECOND_NS)

    async def _decode(self, delivery: event_pb2.Delivery) -> Iterator[TransportMessage]:
        try:
            return await from_delivery(delivery, self._core.limits.payload_bytes_max)
        except errors.TidewireError as error:
            # Its publisher made it so, and nobody looked: that must not end who reads others too.
            log.warning("a batch cannot be read", extra={"reason": error.message})
            self._core.counters.add("eventflux_batches_unreadable_total")
            self._lost += delivery.batch.count
            return iter(())

    async def _write(self, batch: list[TransportMessage]) -> None:
        batch[-1].headers["batch"] = str(len(batch))
        if self._lost:
            batch[0].headers["lost"] = str(self._lost)
            self._lost = 0
        stall_s = self._core.limits.subscriber_stall_s
        for message in batch:
            patience_s = stall_s + len(message.payload) / WRITE_BYTES_PER_S_MIN
            try:
                async with asyncio.timeout(patience_s):
                    await self._context.write(message)
            except TimeoutError:
                self._core.counters.add("subscribers_cut")
                raise errors.SlowConsumer(
                    f"no event was taken for {patience_s:.1f} s; read faster, or name fewer"
                    " streams",
                    metadata={"stall_s": f"{patience_s:.1f}"},
                ) from None


def _draining() -> errors.Draining:
    return errors.Draining(
        "the server is shutting down; stream from another, from the time of the last event on",
        retry_after_s=1.0,
    )
