"""The Event service: publish and subscribe, streams and durable consumers."""

from collections.abc import AsyncIterator

from tidewire.v1 import event_pb2, event_pb2_grpc
from tidewire.wire.spliced import PUBLISH_BODY, gives_spliced, takes_apart
from tidewire_server.core import Context, Core
from tidewire_server.services.event.admin import Administration
from tidewire_server.services.event.exchange import Exchange
from tidewire_server.services.event.fetch import Fetcher
from tidewire_server.services.event.publish import CommitPool, Publisher, live_answer
from tidewire_server.services.event.publish_stream import PublishSession, Requests
from tidewire_server.services.event.subscribe import SubscribeSession


class EventService(event_pb2_grpc.EventServiceServicer):
    """
    Serves events from the engine and from memory.

    A subject that a stream takes goes through the engine, and readers and live subscribers see it
    when it is durable. One that no stream takes is handed to who listens now, at level MEMORY.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._exchange = Exchange(core)
        self._publisher = Publisher(self._exchange)
        self._commits = CommitPool(core.engine)
        self._fetcher = Fetcher(self._exchange)
        self._administration = Administration(self._exchange)

    async def start(self) -> None:
        """Begin to hear from the engine. Consumers are loaded when somebody uses them."""
        self._exchange.start()

    async def close(self) -> None:
        """Stop, and store the progress of the consumers."""
        await self._commits.close()
        await self._exchange.close()

    # For services that publish and subscribe on behalf of their own clients.

    @property
    def exchange(self) -> Exchange:
        """Who listens and who follows."""
        return self._exchange

    @property
    def publisher(self) -> Publisher:
        """Checks batches and brings them where they belong."""
        return self._publisher

    @property
    def commits(self) -> CommitPool:
        """Commits batches in the order they are given."""
        return self._commits

    # Publishing and receiving.

    async def Publish(
        self, request: event_pb2.PublishRequest, context: Context
    ) -> event_pb2.PublishResponse:
        """Publish one batch."""
        transaction = self._publisher.plan(request)
        if transaction is None:
            await self._publisher.hold_back(request.batch.subject)
            return live_answer(self._publisher.fan_out(request.batch))
        return await self._publisher.commit(request.batch, transaction)

    @takes_apart(PUBLISH_BODY)
    async def PublishStream(  # type: ignore[override]  # read/write style: responses are written
        self, requests: Requests, context: Context
    ) -> None:
        """Publish many batches, pipelined."""
        await PublishSession(
            self._exchange, self._publisher, self._commits, requests, context
        ).run()

    @gives_spliced
    async def Subscribe(  # type: ignore[override]  # read/write style: responses are written
        self, requests: AsyncIterator[event_pb2.SubscribeRequest], context: Context
    ) -> None:
        """
        Receive events.

        A live or ordered subscription goes on when the client ends its requests; one of a durable
        consumer ends then, as nothing could be acknowledged any more.
        """
        await SubscribeSession(self._exchange, requests, context).run()

    async def Fetch(
        self, request: event_pb2.FetchRequest, context: Context
    ) -> event_pb2.FetchResponse:
        """Take the next events of a durable consumer, or read a stream."""
        return await self._fetcher.fetch(request)

    async def Acknowledge(
        self, request: event_pb2.AcknowledgeRequest, context: Context
    ) -> event_pb2.AcknowledgeResponse:
        """Settle deliveries."""
        return await self._fetcher.acknowledge(request)

    # Streams and consumers.

    async def CreateStream(
        self, request: event_pb2.CreateStreamRequest, context: Context
    ) -> event_pb2.CreateStreamResponse:
        """Make a stream."""
        return await self._administration.create_stream(request)

    async def UpdateStream(
        self, request: event_pb2.UpdateStreamRequest, context: Context
    ) -> event_pb2.UpdateStreamResponse:
        """Change a stream."""
        return await self._administration.update_stream(request)

    async def GetStream(
        self, request: event_pb2.GetStreamRequest, context: Context
    ) -> event_pb2.GetStreamResponse:
        """Show a stream."""
        return await self._administration.get_stream(request)

    async def ListStreams(
        self, request: event_pb2.ListStreamsRequest, context: Context
    ) -> event_pb2.ListStreamsResponse:
        """List streams."""
        return await self._administration.list_streams(request)

    async def DeleteStream(
        self, request: event_pb2.DeleteStreamRequest, context: Context
    ) -> event_pb2.DeleteStreamResponse:
        """Delete a stream."""
        return await self._administration.delete_stream(request)

    async def PurgeStream(
        self, request: event_pb2.PurgeStreamRequest, context: Context
    ) -> event_pb2.PurgeStreamResponse:
        """Delete messages of a stream."""
        return await self._administration.purge_stream(request)

    async def CreateConsumer(
        self, request: event_pb2.CreateConsumerRequest, context: Context
    ) -> event_pb2.CreateConsumerResponse:
        """Make a durable consumer."""
        return await self._administration.create_consumer(request)

    async def GetConsumer(
        self, request: event_pb2.GetConsumerRequest, context: Context
    ) -> event_pb2.GetConsumerResponse:
        """Show a durable consumer."""
        return await self._administration.get_consumer(request)

    async def ListConsumers(
        self, request: event_pb2.ListConsumersRequest, context: Context
    ) -> event_pb2.ListConsumersResponse:
        """List the durable consumers of a stream."""
        return await self._administration.list_consumers(request)

    async def DeleteConsumer(
        self, request: event_pb2.DeleteConsumerRequest, context: Context
    ) -> event_pb2.DeleteConsumerResponse:
        """Delete a durable consumer."""
        return await self._administration.delete_consumer(request)
