"""The engine's methods on streams and consumers."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.subject import SubjectIndex
from tidewire_server.engine.base import StreamSlice
from tidewire_server.engine.embedded import consumers, quarantine, stream_reads, streams
from tidewire_server.engine.embedded.appends import stream_not_found
from tidewire_server.engine.embedded.connections import Connection
from tidewire_server.engine.embedded.facts import Consumer
from tidewire_server.engine.embedded.readers import Readers
from tidewire_server.engine.embedded.session import Session
from tidewire_server.engine.embedded.views import StreamView

Result = TypeVar("Result")
Range = tuple[int, int]


class StreamEngine:
    """Streams and consumers: what is durable is read from memory, the rest by the threads."""

    readers: Readers
    damaged: frozenset[str]
    _loop: asyncio.AbstractEventLoop
    _views: dict[str, StreamView]
    _subjects: SubjectIndex[str]
    _quarantined: dict[int, list[Range]]

    async def _write(
        self,
        run: Callable[[Session], Result],
        *,
        level: common_pb2.Durability.ValueType = common_pb2.DURABILITY_FSYNC,
        size: int = 0,
        atomic: bool = False,
        frees: bool = False,
    ) -> Result:
        raise NotImplementedError

    def _index(self) -> None:
        self._subjects = SubjectIndex()
        for name, view in self._views.items():
            for pattern in view.config.subjects:
                self._subjects.add(pattern, name)

    def _view(self, name: str) -> StreamView:
        view = self._views.get(name)
        if view is None:
            if "streams" in self.damaged:
                raise errors.DataCorrupt(
                    f"stream {name!r} is not found, but the store's list of streams is damaged",
                    metadata={"stream": name},
                )
            raise stream_not_found(name)
        return view

    # From memory.

    def stream_for(self, subject: str) -> str | None:
        """Name of the stream that takes this subject; ``None`` when none does."""
        found = self._subjects.find(subject)
        return found[0] if found else None

    def stream_config(self, name: str) -> event_pb2.StreamConfig | None:
        """Configuration of a stream; ``None`` when there is none of this name."""
        view = self._views.get(name)
        return view.config if view is not None else None

    def last_sequence(self, stream: str) -> int:
        """Last durable sequence of a stream; 0 for an empty one."""
        return self._view(stream).last_sequence

    def _describe(self, name: str) -> event_pb2.Stream:
        view = self._view(name)
        return streams.describe(
            view.as_stream(), view.consumers, self._quarantined.get(view.number, ())
        )

    async def get_stream(self, name: str) -> event_pb2.Stream:
        """Configuration and state of a stream."""
        return self._describe(name)

    async def list_streams(self) -> Sequence[event_pb2.Stream]:
        """All streams, by name."""
        return [self._describe(name) for name in sorted(self._views)]

    # Changing.

    async def create_stream(self, config: event_pb2.StreamConfig) -> event_pb2.Stream:
        """Make a stream; the same one again is no error."""
        await self._write(lambda session: streams.create(session, config))
        return self._describe(config.name)

    async def update_stream(self, config: event_pb2.StreamConfig) -> event_pb2.Stream:
        """Change the configuration of a stream."""
        await self._write(lambda session: streams.update(session, config))
        return self._describe(config.name)

    async def delete_stream(self, name: str) -> int:
        """Delete a stream with its consumers; return its messages."""
        number = self._view(name).number
        removed = await self._write(lambda session: streams.delete(session, name), frees=True)
        self._quarantined.pop(number, None)
        return removed

    async def purge_stream(self, name: str, through: int) -> int:
        """
        Delete whole batches up to a sequence (0: all); return how many messages went.

        It is done in pieces, so that publishing does not wait long; cancelling leaves some.
        """
        removed, rest = await self._write(
            lambda session: streams.purge(session, name, through), frees=True
        )
        while rest:
            piece, rest = await self._write(
                lambda session, rest=rest: streams.purge(session, name, rest),  # type: ignore[misc]
                frees=True,
            )
            removed += piece
        view = self._views.get(name)
        if view is not None:
            quarantine.drop_through(self._quarantined, view.number, view.first_sequence - 1)
        return removed

    # Reading.

    async def read_stream(
        self,
        stream: str,
        first_sequence: int,
        *,
        messages_max: int,
        bytes_max: int,
        subjects: Sequence[str] = (),
    ) -> StreamSlice:
        """Batches from a sequence on; see `tidewire_server.engine.base.Engine.read_stream`."""
        number = self._view(stream).number

        def damaged(found: Range) -> None:
            self._loop.call_soon_threadsafe(self._set_aside, number, found)

        def read(connection: Connection) -> StreamSlice:
            place = stream_reads.place_of(connection, number, stream)
            return stream_reads.read(
                connection, place, first_sequence, messages_max, bytes_max, subjects, damaged
            )

        return await self.readers.read(read)

    def _set_aside(self, number: int, found: Range) -> None:
        """Remember a damaged range, here and in the store."""
        if quarantine.add(self._quarantined, number, found):
            task = self._loop.create_task(
                self._write(lambda session: quarantine.save(session, number, found))
            )
            # When the range cannot be recorded it is found again by the next reader.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def sequence_at(self, stream: str, time_ns: int) -> int:
        """
        Sequence of the first message stored at or after this time; last + 1 when there is none.
        """
        number = self._view(stream).number
        return await self.readers.read(
            lambda c: stream_reads.sequence_at(c, stream_reads.place_of(c, number, stream), time_ns)
        )

    async def count_pending(self, stream: str, after: int, subjects: Sequence[str] = ()) -> int:
        """Messages kept after this sequence that match."""
        view = self._view(stream)
        if not subjects:
            return max(0, view.last_sequence - max(after, view.first_sequence - 1))
        return await self.readers.read(
            lambda c: stream_reads.count_pending(
                c, stream_reads.place_of(c, view.number, stream), after, subjects
            )
        )

    # Consumers.

    async def create_consumer(
        self, stream: str, config: event_pb2.ConsumerConfig
    ) -> event_pb2.Consumer:
        """Make a durable consumer; the same one again is no error."""
        made = await self._write(lambda session: _tell(consumers.create(session, stream, config)))
        return self._consumer(stream, made)

    def _consumer(self, stream: str, consumer: event_pb2.Consumer) -> event_pb2.Consumer:
        consumer.stream = stream
        return consumer

    async def get_consumer(self, stream: str, name: str) -> event_pb2.Consumer:
        """Configuration and stored state of a consumer."""
        number = self._view(stream).number

        def read(connection: Connection) -> event_pb2.Consumer:
            row = connection.execute(
                "SELECT * FROM consumers WHERE stream=? AND name=?", (number, name)
            ).get
            if row is None:
                connection.check_absence("consumers", f"consumer {name!r}")
                raise consumers.consumer_not_found(stream, name)
            return _tell(consumers.parse(row))

        return self._consumer(stream, await self.readers.read(read))

    async def list_consumers(self, stream: str) -> Sequence[event_pb2.Consumer]:
        """All consumers of a stream, by name."""
        number = self._view(stream).number

        def read(connection: Connection) -> list[event_pb2.Consumer]:
            found = connection.execute(
                "SELECT * FROM consumers WHERE stream=? ORDER BY name", (number,)
            )
            return [_tell(consumers.parse(row)) for row in found]

        return [self._consumer(stream, item) for item in await self.readers.read(read)]

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer."""
        await self._write(lambda session: consumers.delete(session, stream, name), frees=True)


def _tell(consumer: Consumer) -> event_pb2.Consumer:
    told = event_pb2.Consumer(config=consumer.config, state=consumer.state())
    told.created.FromNanoseconds(consumer.created_ns)
    return told
