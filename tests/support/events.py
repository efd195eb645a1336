"""An Event service on a real engine over a real socket, and short ways to use it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from google.rpc import status_pb2

from support.serving import serving
from tidewire.errors import STATUS_TRAILER, TidewireError, from_status
from tidewire.v1 import common_pb2, event_pb2, event_pb2_grpc
from tidewire.wire.batch import decode_payloads, encode_payloads
from tidewire_server.core import Core, ServiceLimits
from tidewire_server.engine.embedded import open_engine
from tidewire_server.members import Members
from tidewire_server.services.event import EventService

WAIT_S = 10.0
MUCH = common_pb2.Credit(messages_until=1 << 40, bytes_until=1 << 50)


@dataclass
class Events:
    """A running service and a stub for it."""

    core: Core
    service: EventService
    stub: Any
    calls: list[Any] = field(default_factory=list)

    async def create_stream(self, name: str, *subjects: str, **config: Any) -> event_pb2.Stream:
        """Make a stream."""
        made = event_pb2.StreamConfig(name=name, subjects=subjects, **config)
        response = await self.call("CreateStream", event_pb2.CreateStreamRequest(config=made))
        return response.stream  # type: ignore[no-any-return]

    async def create_consumer(self, stream: str, name: str, **config: Any) -> event_pb2.Consumer:
        """Make a consumer that starts at the first message."""
        config.setdefault("start", event_pb2.StartPosition(all=True))
        request = event_pb2.CreateConsumerRequest(
            stream=stream, config=event_pb2.ConsumerConfig(name=name, **config)
        )
        response = await self.call("CreateConsumer", request)
        return response.consumer  # type: ignore[no-any-return]

    async def publish(
        self, subject: str, payloads: Sequence[bytes], **fields: Any
    ) -> event_pb2.PublishResponse:
        """Publish a batch; ``batch_*`` set fields of the batch."""
        batch = encode_payloads(subject, payloads)
        for name in [name for name in fields if name.startswith("batch_")]:
            value = fields.pop(name)
            target = name.removeprefix("batch_")
            if isinstance(value, list):
                getattr(batch, target)[:] = value
            else:
                setattr(batch, target, value)
        return await self.call(  # type: ignore[no-any-return]
            "Publish", event_pb2.PublishRequest(batch=batch, **fields)
        )

    async def call(self, method: str, request: Any) -> Any:
        """Make a unary call, which raises the typed error."""
        try:
            return await getattr(self.stub, method)(request)
        except grpc.aio.AioRpcError as error:
            raise typed(error) from error

    async def subscribe(self, *, credit: Any = MUCH, **fields: Any) -> "Subscription":
        """Open a subscription; it is open when this returns."""
        call = self.stub.Subscribe()
        self.calls.append(call)
        open_ = event_pb2.SubscribeOpen(codecs=self.core.codecs, credit=credit, **fields)
        await call.write(event_pb2.SubscribeRequest(open=open_))
        subscription = Subscription(call)
        opened = await subscription.next()
        assert "opened" == opened.WhichOneof("kind")
        return subscription

    async def live(self, *subjects: str, group: str = "", **fields: Any) -> "Subscription":
        """Subscribe to what is published from now on."""
        source = event_pb2.LiveSource(subjects=subjects, group=group)
        return await self.subscribe(live=source, **fields)

    async def ordered(
        self, stream: str, *subjects: str, start: event_pb2.StartPosition, **fields: Any
    ) -> "Subscription":
        """Subscribe to a stream in order."""
        source = event_pb2.OrderedSource(stream=stream, subjects=subjects, start=start)
        return await self.subscribe(ordered=source, **fields)

    async def consume(self, stream: str, consumer: str, **fields: Any) -> "Subscription":
        """Take a share of a durable consumer."""
        source = event_pb2.ConsumerSource(stream=stream, consumer=consumer)
        return await self.subscribe(consumer=source, **fields)

    async def consumer(self, stream: str, name: str) -> event_pb2.Consumer:
        """A consumer as the server shows it."""
        request = event_pb2.GetConsumerRequest(stream=stream, consumer=name)
        return (await self.call("GetConsumer", request)).consumer  # type: ignore[no-any-return]

    async def consumer_where(
        self, stream: str, name: str, holds: Callable[[event_pb2.Consumer], bool]
    ) -> event_pb2.Consumer:
        """A consumer as soon as something holds of it."""
        async with asyncio.timeout(WAIT_S):
            while not holds(consumer := await self.consumer(stream, name)):
                pass  # each look is a call: the server has its turn
        return consumer

    async def publisher(self, *, quiet: bool = False) -> "Publication":
        """Open a publishing stream."""
        call = self.stub.PublishStream()
        self.calls.append(call)
        open_ = event_pb2.PublishOpen(quiet=quiet)
        await call.write(event_pb2.PublishStreamRequest(open=open_))
        publication = Publication(call)
        publication.opened = (await publication.next()).opened
        return publication


@dataclass
class Subscription:
    """A subscription of a test."""

    call: Any
    ack_id: int = 0
    kept: list[event_pb2.SubscribeResponse] = field(default_factory=list)

    async def next(self) -> event_pb2.SubscribeResponse:
        """The next response; raises the call's error, and EOFError at a clean end."""
        return await read(self.call)  # type: ignore[no-any-return]

    async def of_kind(self, kind: str) -> event_pb2.SubscribeResponse:
        """The next response of a kind; what comes before it is kept for who asks for it."""
        for kept in self.kept:
            if kept.WhichOneof("kind") == kind:
                self.kept.remove(kept)
                return kept
        while True:
            response = await self.next()
            if response.WhichOneof("kind") == kind:
                return response
            self.kept.append(response)

    async def delivery(self) -> event_pb2.Delivery:
        """The next delivery."""
        return (await self.of_kind("delivery")).delivery

    async def sequences(self, count: int) -> list[int]:
        """Sequences of the next deliveries, until there are so many."""
        got: list[int] = []
        while len(got) < count:
            got += sequences(await self.delivery())
        return got

    async def grant(self, messages: int, body_bytes: int = 1 << 50) -> None:
        """Give credit: totals since the subscription was opened."""
        credit = common_pb2.Credit(messages_until=messages, bytes_until=body_bytes)
        await self.call.write(event_pb2.SubscribeRequest(credit=credit))

    async def settle(
        self,
        first: int,
        last: int,
        settlement: event_pb2.Settlement.ValueType = event_pb2.SETTLEMENT_DONE,
        **fields: Any,
    ) -> event_pb2.AckResult:
        """Settle a range and wait for the answer."""
        self.ack_id += 1
        item = event_pb2.AckItem(
            range=common_pb2.SequenceRange(first=first, last=last), settlement=settlement, **fields
        )
        ack = event_pb2.Ack(ack_id=self.ack_id, items=[item])
        await self.call.write(event_pb2.SubscribeRequest(ack=ack))
        result = (await self.of_kind("ack_result")).ack_result
        assert self.ack_id == result.ack_id
        return result

    def close(self) -> None:
        """Cancel the call."""
        self.call.cancel()


@dataclass
class Publication:
    """A publishing stream of a test."""

    call: Any
    opened: common_pb2.Opened = field(default_factory=common_pb2.Opened)
    skipped: list[event_pb2.PublishStreamResponse] = field(default_factory=list)

    async def next(self) -> event_pb2.PublishStreamResponse:
        """The next response; raises the call's error, and EOFError at a clean end."""
        return await read(self.call)  # type: ignore[no-any-return]

    async def publish(self, publish_id: int, batch: common_pb2.Batch, **fields: Any) -> None:
        """Send a batch."""
        request = event_pb2.PublishRequest(batch=batch, **fields)
        item = event_pb2.PublishItem(publish_id=publish_id, request=request)
        await self.call.write(event_pb2.PublishStreamRequest(publish=item))

    async def results(self, count: int) -> dict[int, event_pb2.PublishResult]:
        """The next outcomes, by publish_id."""
        got: dict[int, event_pb2.PublishResult] = {}
        while len(got) < count:
            response = await self.next()
            if response.WhichOneof("kind") != "results":
                self.skipped.append(response)
            got.update({result.publish_id: result for result in response.results.result})
        return got


async def read(call: Any) -> Any:
    """The next response of a call; raises its error, and EOFError at a clean end."""
    async with asyncio.timeout(WAIT_S):
        try:
            response = await call.read()
        except grpc.aio.AioRpcError as error:
            raise typed(error) from error
    if response is grpc.aio.EOF:
        if await call.code() is grpc.StatusCode.OK:
            raise EOFError
        raise typed(await call_error(call))
    return response


def sequences(delivery: event_pb2.Delivery) -> list[int]:
    """Sequences a delivery has."""
    if delivery.included:
        return [s for r in delivery.included for s in range(r.first, r.last + 1)]
    first = delivery.first_sequence
    count = sum(r.last - r.first + 1 for r in delivery.batch.selected) or delivery.batch.count
    return list(range(first, first + count))


def payloads(delivery: event_pb2.Delivery) -> list[bytes]:
    """Payloads a delivery has: of those selected, those included."""
    every = decode_payloads(delivery.batch)
    selected = delivery.batch.selected
    chosen = [every[i] for r in selected for i in range(r.first, r.last + 1)] or every
    return [chosen[s - delivery.first_sequence] for s in sequences(delivery)]


def typed(error: grpc.aio.AioRpcError) -> TidewireError:
    """The exception an RPC error stands for."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_TRAILER:
            assert isinstance(value, bytes)
            return from_status(status_pb2.Status.FromString(value))
    raise error


async def call_error(call: Any) -> grpc.aio.AioRpcError:
    """How a call ended, as an exception."""
    return grpc.aio.AioRpcError(
        await call.code(),
        await call.initial_metadata(),
        await call.trailing_metadata(),
        await call.details(),
    )


@asynccontextmanager
async def event_service(
    path: Path, *, limits: ServiceLimits | None = None
) -> AsyncIterator[Events]:
    """Run an Event service on the store in this directory."""
    engine = await open_engine(path)
    core = Core(engine, Members(), "server", "test", limits=limits or ServiceLimits())
    service = EventService(core)
    registration = (event_pb2_grpc.add_EventServiceServicer_to_server, service)
    try:
        async with serving(core, [registration]) as channel:
            events = Events(core, service, event_pb2_grpc.EventServiceStub(channel))
            try:
                yield events
            finally:
                for call in events.calls:
                    call.cancel()
    finally:
        await engine.close()
