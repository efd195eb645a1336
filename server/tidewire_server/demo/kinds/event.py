"""Event: readings into a durable stream, and what the stream holds afterwards."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import tidewire
from tidewire_server.demo.data import Reading
from tidewire_server.demo.names import Names
from tidewire_server.demo.report import Cell, Stopwatch, require

END: Final = json.dumps({"end": True})
"""Last message of a city: its last day is over."""
READ_TIMEOUT_S: Final = 20.0


class Readings:
    """Publishes readings on the subjects of their cities, and reads the stream back."""

    def __init__(self, client: tidewire.Client, names: Names, cell: Cell) -> None:
        self._client = client
        self._names = names
        self._cell = cell
        self._watch = Stopwatch()
        self._published: dict[str, list[str]] = defaultdict(list)

    async def create_streams(self) -> None:
        """Make the stream of readings with its consumer, and the stream of summaries."""
        weather = self._client.events.stream(self._names.weather)
        await weather.create(self._names.reading(">"), durability="fsync")
        await weather.consumer(self._names.operator).create()
        daily = self._client.events.stream(self._names.daily)
        await daily.create(self._names.summary("*"), durability="fsync")

    async def publish(self, readings: Sequence[Reading]) -> None:
        """Publish many: pipelined, in batches; all are acknowledged when this returns."""
        async with self._client.events.publisher(stream=self._names.weather) as publisher:
            for reading in readings:
                await publisher.publish(self._names.reading(reading.city), reading.payload)
                self._published[reading.city].append(reading.payload)
            await publisher.flush()

    async def publish_measured(self, readings: Sequence[Reading]) -> None:
        """Publish one after the other, each acknowledged; the last one again, under its id."""
        ack = None
        for number, reading in enumerate(readings):
            with self._watch.measured():
                ack = await self._publish_once(reading, number)
            self._published[reading.city].append(reading.payload)
            require(not ack.duplicate, f"a new message was taken for a duplicate: {ack}")
            self._cell.durable(ack.durability)
        if ack is not None:
            again = await self._publish_once(readings[-1], len(readings) - 1)
            expected = (True, ack.sequence)
            require((again.duplicate, again.sequence) == expected, f"stored twice: {again}")

    async def publish_ends(self, cities: Sequence[str]) -> None:
        """Say that no more comes."""
        for city in cities:
            await self._client.events.publish(self._names.reading(city), END)
            self._published[city].append(END)

    async def last_sequence(self) -> int:
        """Sequence of the last message in the stream."""
        return (await self._client.events.stream(self._names.weather).info()).state.last_sequence

    async def verify(self) -> None:
        """Read the stream back: what was published, of each city in order, and nothing else."""
        total = sum(map(len, self._published.values()))
        last = await self.last_sequence()
        require(last == total, f"{total} messages were published, the stream holds {last}")
        stored: dict[str, list[str]] = defaultdict(list)
        async with self._client.events.read(self._names.weather) as messages:
            for sequence in range(1, total + 1):
                message = await messages.next(timeout_s=READ_TIMEOUT_S)
                require(message.sequence == sequence, f"{sequence} is missing before {message!r}")
                stored[message.subject.rpartition(".")[2]].append(message.payload.decode())
        require(stored == self._published, "the stream holds other messages than were published")
        self._cell.count = total
        self._cell.p50_us = self._watch.p50_us
        self._cell.detail = (
            "readings published and read back in order, one published twice stored once"
        )

    async def _publish_once(self, reading: Reading, number: int) -> tidewire.PublishAck:
        return await self._client.events.publish(
            self._names.reading(reading.city),
            reading.payload,
            message_id=f"{number}-{reading.city}-{reading.time}",
        )
