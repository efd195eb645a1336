"""Streams and consumers: making, changing, listing and deleting them."""

from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

from tidewire.errors import StreamNotFound
from tidewire.v1 import event_pb2
from tidewire_server.services.event.checks import (
    consumer_config,
    invalid,
    named,
    page_size,
    stream_config,
)
from tidewire_server.services.event.exchange import Exchange

_FIRST: Final = ""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class _Entry(Protocol):
    @property
    def config(self) -> _Named: ...


Entry = TypeVar("Entry", bound=_Entry)


class Administration:
    """Answers the administrative calls of the event service."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._core = exchange.core
        self._engine = exchange.core.engine

    async def create_stream(
        self, request: event_pb2.CreateStreamRequest
    ) -> event_pb2.CreateStreamResponse:
        """Make a stream; see `checks.stream_config` for the defaults."""
        config = stream_config(request.config, self._engine.durability_max)
        return event_pb2.CreateStreamResponse(stream=await self._engine.create_stream(config))

    async def update_stream(
        self, request: event_pb2.UpdateStreamRequest
    ) -> event_pb2.UpdateStreamResponse:
        """Replace the configuration of a stream."""
        config = stream_config(request.config, self._engine.durability_max)
        return event_pb2.UpdateStreamResponse(stream=await self._engine.update_stream(config))

    async def get_stream(self, request: event_pb2.GetStreamRequest) -> event_pb2.GetStreamResponse:
        """Configuration and state of a stream."""
        stream = await self._engine.get_stream(named(request.name, "name"))
        return event_pb2.GetStreamResponse(stream=stream)

    async def list_streams(
        self, request: event_pb2.ListStreamsRequest
    ) -> event_pb2.ListStreamsResponse:
        """Streams by name, a page at a time."""
        streams, token = _page(
            await self._engine.list_streams(), request.page_size, request.page_token
        )
        return event_pb2.ListStreamsResponse(streams=streams, next_page_token=token)

    async def delete_stream(
        self, request: event_pb2.DeleteStreamRequest
    ) -> event_pb2.DeleteStreamResponse:
        """Delete a stream with its messages and consumers."""
        messages = await self._engine.delete_stream(named(request.name, "name"))
        return event_pb2.DeleteStreamResponse(messages=messages)

    async def purge_stream(
        self, request: event_pb2.PurgeStreamRequest
    ) -> event_pb2.PurgeStreamResponse:
        """Delete messages up to a sequence."""
        messages = await self._engine.purge_stream(named(request.name, "name"), request.through)
        return event_pb2.PurgeStreamResponse(messages=messages)

    async def create_consumer(
        self, request: event_pb2.CreateConsumerRequest
    ) -> event_pb2.CreateConsumerResponse:
        """Make a durable consumer; see `checks.consumer_config` for the defaults."""
        named(request.stream, "stream")
        config = consumer_config(request.config, self._core.limits.ack_pending_max)
        letters = config.dead_letter_stream
        if letters == request.stream:
            why = "a stream cannot take its own dead letters: the consumer would get them again"
            raise invalid("config.dead_letter_stream", why)
        if letters and self._engine.stream_config(letters) is None:
            raise StreamNotFound(
                f"there is no stream {letters!r} for dead letters; make it first",
                metadata={"subject": letters},
                fields={"config.dead_letter_stream": "must exist"},
            )
        consumer = await self._engine.create_consumer(request.stream, config)
        return event_pb2.CreateConsumerResponse(consumer=await self._with_figures(consumer))

    async def get_consumer(
        self, request: event_pb2.GetConsumerRequest
    ) -> event_pb2.GetConsumerResponse:
        """Configuration and state of a consumer."""
        named(request.stream, "stream")
        consumer = await self._engine.get_consumer(
            request.stream, named(request.consumer, "consumer")
        )
        return event_pb2.GetConsumerResponse(consumer=await self._with_figures(consumer))

    async def list_consumers(
        self, request: event_pb2.ListConsumersRequest
    ) -> event_pb2.ListConsumersResponse:
        """Consumers of a stream by name, a page at a time."""
        stored = await self._engine.list_consumers(named(request.stream, "stream"))
        consumers, token = _page(stored, request.page_size, request.page_token)
        return event_pb2.ListConsumersResponse(
            consumers=[await self._with_figures(consumer) for consumer in consumers],
            next_page_token=token,
        )

    async def delete_consumer(
        self, request: event_pb2.DeleteConsumerRequest
    ) -> event_pb2.DeleteConsumerResponse:
        """Delete a consumer; those who use it hear CONSUMER_NOT_FOUND."""
        named(request.stream, "stream")
        await self._engine.delete_consumer(request.stream, named(request.consumer, "consumer"))
        self._exchange.drop(request.stream, request.consumer)
        return event_pb2.DeleteConsumerResponse()

    async def _with_figures(self, stored: event_pb2.Consumer) -> event_pb2.Consumer:
        """Add what only the running consumer knows, or what follows from the stored state."""
        consumer = event_pb2.Consumer()
        consumer.CopyFrom(stored)
        runner = self._exchange.running(stored.stream, stored.config.name)
        state = consumer.state
        delivered = max(state.delivered_through, state.ack_floor)
        if runner is None:
            settled = sum(part.last - part.first + 1 for part in state.settled)
            consumer.ack_pending = max(0, delivered - state.ack_floor - settled)
        else:
            delivered = runner.ledger.next_sequence - 1
            consumer.ack_pending = runner.ledger.unsettled
            consumer.subscriptions = len(runner.subscribers)
        consumer.pending = await self._engine.count_pending(
            stored.stream, delivered, tuple(stored.config.subjects)
        )
        return consumer


def _page(entries: Sequence[Entry], size: int, token: str) -> tuple[list[Entry], str]:
    """
    The entries after a token, at most so many, and the token of the next page; it is the last name.
    """
    if token != _FIRST:
        named(token, "page_token")
    count = page_size(size)
    left = sorted(
        (entry for entry in entries if entry.config.name > token), key=lambda e: e.config.name
    )
    return left[:count], left[count - 1].config.name if len(left) > count else ""
