"""Subscribe and PublishStream by unary calls; see `tidewire.client.polled`."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

from tidewire.client.polled import (
    IDLE_PAUSE_S,
    OVERHEAD_BYTES,
    POLL_WAIT_S,
    PolledCall,
    Sizing,
    carries_streams,
    datagram_bytes,
    fit_fetch,
    last_words,
)
from tidewire.client.session import Metadata, Session, log
from tidewire.client.times import to_duration
from tidewire.errors import ProtocolOrder, TidewireError
from tidewire.transport.intercepted import interceptors_of
from tidewire.v1 import common_pb2, event_pb2
from tidewire.v1.event_pb2_grpc import EventServiceStub
from tidewire.wire.spliced import DELIVERY_BODY, Apart, Spliced, parse_apart

UNLIMITED: Final = 1 << 62
"""Credit of a lossy subscription: nothing holds back who may lose anyhow."""
_ACK_ITEM_BYTES: Final = 40
_SERVICE: Final = "/tidewire.v1.EventService"


def event_stub(session: Session) -> Any:
    """Return a stub of the event service whose streams work on the session's channel."""
    stub: Any = EventServiceStub(session.channel)
    if not carries_streams(session.channel):
        return _PolledStub(session, stub)
    if interceptors_of(session.channel):
        return stub
    # What the generated stub has, but that long bodies are not copied.
    stub.PublishStream = session.channel.stream_stream(
        f"{_SERVICE}/PublishStream",
        request_serializer=_write_publish,
        response_deserializer=event_pb2.PublishStreamResponse.FromString,
    )
    stub.Subscribe = session.channel.stream_stream(
        f"{_SERVICE}/Subscribe",
        request_serializer=event_pb2.SubscribeRequest.SerializeToString,
        response_deserializer=_read_delivery,
    )
    return stub


def _write_publish(request: event_pb2.PublishStreamRequest | Spliced) -> bytes:
    return bytes(request) if isinstance(request, Spliced) else request.SerializeToString()


def _read_delivery(data: bytes) -> event_pb2.SubscribeResponse | Apart[event_pb2.SubscribeResponse]:
    return parse_apart(event_pb2.SubscribeResponse, data, DELIVERY_BODY)


class _PolledStub:
    """The event service with its streams made of unary calls."""

    def __init__(self, session: Session, stub: Any) -> None:
        self._session = session
        self._stub = stub

    def Subscribe(self, *, metadata: Metadata = ()) -> "PolledSubscription":
        """Subscribe by Fetch and Acknowledge, or lossy to live events."""
        return PolledSubscription(self._session, self._stub, metadata)

    def PublishStream(self, *, metadata: Metadata = ()) -> "PolledPublisher":
        """Publish by one call for each batch."""
        return PolledPublisher(self._session, self._stub, metadata)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)


class PolledSubscription(PolledCall[event_pb2.SubscribeResponse]):
    """
    A subscription made of long polls, or, to live events, a lossy stream.

    What was delivered and not settled when it ends is given back, so that others have it at once.
    """

    def __init__(self, session: Session, stub: Any, metadata: Metadata) -> None:
        super().__init__(session, metadata)
        self._stub = stub
        self._live: Any = None
        self._open: event_pb2.SubscribeOpen | None = None
        self._messages_until = self._bytes_until = 0
        self._messages = self._bytes = 0
        self._credited = asyncio.Event()
        self._acks: deque[event_pb2.Ack] = deque()
        self._acked = asyncio.Event()
        self._ending = False
        self._unsettled: dict[int, int] = {}
        """Attempts of what was delivered, by sequence."""
        self._polling: asyncio.Task[None] | None = None

    async def write(self, request: event_pb2.SubscribeRequest) -> None:
        """Take a request of the subscription."""
        kind = request.WhichOneof("kind")
        if kind == "open":
            await self._begin(request.open)
        elif kind == "credit":
            self._grow(request.credit)
        elif kind == "ack":
            self._acks.append(request.ack)
            self._acked.set()

    async def read(self) -> Any:
        """Return the next response."""
        if self._live is not None:
            return await self._live.read()
        return await super().read()

    async def done_writing(self) -> None:
        """Let acknowledgements on their way be answered, then end."""
        if self._live is not None:
            await self._live.done_writing()
            return
        self._ending = True
        if self._polling is not None:
            self._polling.cancel()
        self._acked.set()

    def cancel(self) -> bool:
        """End at once; what is not settled is given back by itself."""
        if self._live is not None:
            return bool(self._live.cancel())
        ended = super().cancel()
        if self._unsettled and not self.session.closed:
            last_words(self._give_back())
        return ended

    async def _begin(self, opening: event_pb2.SubscribeOpen) -> None:
        if self._open is not None:
            raise ProtocolOrder("a subscription is opened once")
        self._open = opening
        if opening.WhichOneof("source") == "live":
            opening.credit.messages_until = opening.credit.bytes_until = UNLIMITED
            self._live = self._stub.Subscribe(metadata=self.metadata)
            await self._live.write(event_pb2.SubscribeRequest(open=opening))
            return
        self._grow(opening.credit)
        self._polling = self.spawn(self._poll(opening))
        if opening.WhichOneof("source") == "consumer":
            self.spawn(self._acknowledge(opening.consumer))

    def _grow(self, credit: common_pb2.Credit) -> None:
        self._messages_until = max(self._messages_until, credit.messages_until)
        self._bytes_until = max(self._bytes_until, credit.bytes_until)
        self._credited.set()

    # Taking -----------------------------------------------------------------------------------

    async def _poll(self, opening: event_pb2.SubscribeOpen) -> None:
        request = event_pb2.FetchRequest(node_id=opening.node_id)
        ordered = opening.WhichOneof("source") == "ordered"
        if ordered:
            request.ordered.CopyFrom(opening.ordered)
        else:
            request.consumer.CopyFrom(opening.consumer)
        sizing = Sizing(self.session.channel)
        first = await self._fetch(request, sizing, 0.0)
        self.put(event_pb2.SubscribeResponse(opened=await self.greeting()))
        self._take(request, first, ordered=ordered)
        while True:
            while self._messages >= self._messages_until or self._bytes >= self._bytes_until:
                self._credited.clear()
                await self._credited.wait()
            begun_s = self.session.clock()
            response = await self._fetch(request, sizing, POLL_WAIT_S)
            self._take(request, response, ordered=ordered)
            if not response.deliveries and self.session.clock() - begun_s < IDLE_PAUSE_S:
                await asyncio.sleep(IDLE_PAUSE_S)

    async def _fetch(
        self, request: event_pb2.FetchRequest, sizing: Sizing, wait_s: float
    ) -> event_pb2.FetchResponse:
        if wait_s:
            request.wait.CopyFrom(to_duration(wait_s))

        async def ask(count: int) -> Any:
            request.messages_max = max(1, min(count, self._messages_until - self._messages))
            fit_fetch(self.session.channel, request)
            repeatable = request.WhichOneof("source") == "ordered"
            return await self.unary(self._stub.Fetch, request, wait_s, repeatable=repeatable)

        response: event_pb2.FetchResponse = await sizing.ask(ask)
        return response

    def _take(
        self, request: event_pb2.FetchRequest, response: event_pb2.FetchResponse, *, ordered: bool
    ) -> None:
        for delivery in response.deliveries:
            count = 0
            for first, last in _ranges(delivery):
                count += last - first + 1
                if not ordered:
                    self._unsettled.update(dict.fromkeys(range(first, last + 1), delivery.attempt))
            self._messages += count
            self._bytes += len(delivery.batch.body)
            self.put(event_pb2.SubscribeResponse(delivery=delivery))
        if ordered:
            request.ordered.start.sequence = response.next_sequence
            if not response.deliveries:
                bookmark = event_pb2.Bookmark(sequence=response.next_sequence - 1)
                self.put(event_pb2.SubscribeResponse(bookmark=bookmark))

    # Settling ---------------------------------------------------------------------------------

    async def _acknowledge(self, consumer: event_pb2.ConsumerSource) -> None:
        while True:
            while not self._acks:
                if self._ending:
                    await self._give_back()
                    self.finish(None)
                    return
                self._acked.clear()
                await self._acked.wait()
            ack = self._acks[0]
            result = await self._send(consumer, ack.items)
            self._acks.popleft()
            result.ack_id = ack.ack_id
            self.put(event_pb2.SubscribeResponse(ack_result=result))

    async def _send(
        self, consumer: event_pb2.ConsumerSource, items: Iterable[event_pb2.AckItem]
    ) -> event_pb2.AckResult:
        """Settle items, in as many calls as they need; return one answer for all."""
        total = event_pb2.AckResult()
        sent = 0
        for part in _cut(list(items), datagram_bytes(self.session.channel) - OVERHEAD_BYTES):
            request = event_pb2.AcknowledgeRequest(consumer=consumer, ack=event_pb2.Ack(items=part))
            response = await self.unary(self._stub.Acknowledge, request)
            result: event_pb2.AckResult = response.result
            for failure in result.failed:
                failure.index += sent
                total.failed.append(failure)
            total.durability = result.durability
            sent += len(part)
            for item in part:
                for sequence in range(item.range.first, item.range.last + 1):
                    self._unsettled.pop(sequence, None)
        return total

    async def _give_back(self) -> None:
        """Have others get at once what was delivered here and not settled."""
        unsettled, self._unsettled = self._unsettled, {}
        if not unsettled or self._open is None:
            return
        items = []
        for first, last, attempt in _runs(unsettled):
            item = event_pb2.AckItem(
                range=common_pb2.SequenceRange(first=first, last=last),
                settlement=event_pb2.SETTLEMENT_RETRY,
                attempt=attempt,
                reason="the subscription ended",
            )
            item.delay.SetInParent()
            items.append(item)
        try:
            await self._send(self._open.consumer, items)
        except TidewireError as error:
            log.info("messages come again only after their ack wait: %s", error)


class PolledPublisher(PolledCall[event_pb2.PublishStreamResponse]):
    """A publisher that sends each batch in a call of its own, in order, one at a time."""

    def __init__(self, session: Session, stub: Any, metadata: Metadata) -> None:
        super().__init__(session, metadata)
        self._stub = stub
        self._quiet = False
        self._batches: deque[event_pb2.PublishItem] = deque()
        self._arrived = asyncio.Event()
        self._sent = asyncio.Event()
        self._ending = False

    async def write(self, request: event_pb2.PublishStreamRequest) -> None:
        """Take a request of the publisher; wait while the one before is on its way."""
        if request.WhichOneof("kind") == "open":
            self._quiet = request.open.quiet
            self.spawn(self._publish())
            return
        batch = event_pb2.PublishItem()
        batch.CopyFrom(request.publish)
        self._batches.append(batch)
        self._arrived.set()
        while self._batches and not self.over:
            self._sent.clear()
            await self._sent.wait()

    async def done_writing(self) -> None:
        """End when all is answered."""
        self._ending = True
        self._arrived.set()

    def finish(self, error: TidewireError | None) -> None:
        """End it; nobody waits for its turn any more."""
        super().finish(error)
        self._sent.set()

    async def _publish(self) -> None:
        payload_bytes_max = datagram_bytes(self.session.channel) - OVERHEAD_BYTES
        if self.session.options.signer is not None:
            payload_bytes_max -= self.session.options.signer.overhead_bytes
        opened = await self.greeting(payload_bytes_max=payload_bytes_max)
        self.put(event_pb2.PublishStreamResponse(opened=opened))
        while True:
            while not self._batches:
                if self._ending:
                    self.finish(None)
                    return
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._batches[0]
            result = event_pb2.PublishResult(publish_id=batch.publish_id)
            try:
                # Producer id and sequence make it safe to send again.
                response = await self.unary(self._stub.Publish, batch.request)
            except TidewireError as error:
                if error.retry_safe:
                    raise  # the connection: the publisher opens again, and sends again
                result.error.CopyFrom(error.to_status())
            else:
                result.response.CopyFrom(response)
            self._batches.popleft()
            self._sent.set()
            if not self._quiet or result.WhichOneof("outcome") == "error":
                results = event_pb2.PublishResults(result=[result])
                self.put(event_pb2.PublishStreamResponse(results=results))


def _ranges(delivery: event_pb2.Delivery) -> list[tuple[int, int]]:
    """Sequences of a delivery."""
    if delivery.included:
        return [(part.first, part.last) for part in delivery.included]
    batch = delivery.batch
    count = sum(part.last - part.first + 1 for part in batch.selected) or batch.count
    return [(delivery.first_sequence, delivery.first_sequence + count - 1)]


def _runs(unsettled: dict[int, int]) -> Iterator[tuple[int, int, int]]:
    """First, last and attempt of what lies together."""
    first = last = attempt = -1
    for sequence in sorted(unsettled):
        if sequence != last + 1 or unsettled[sequence] != attempt:
            if first >= 0:
                yield first, last, attempt
            first, attempt = sequence, unsettled[sequence]
        last = sequence
    if first >= 0:
        yield first, last, attempt


def _cut(items: list[event_pb2.AckItem], bytes_max: int) -> Iterator[list[event_pb2.AckItem]]:
    """Cut items into parts that fit a datagram."""
    part: list[event_pb2.AckItem] = []
    size = 0
    for item in items:
        cost = item.ByteSize() + _ACK_ITEM_BYTES
        if part and size + cost > bytes_max:
            yield part
            part, size = [], 0
        part.append(item)
        size += cost
    if part:
        yield part
