"""
Fetch and Acknowledge: what subscriptions do, by unary calls, for wires and clients without streams.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from tidewire.errors import InvalidArgument
from tidewire.v1 import common_pb2, event_pb2
from tidewire_server.services.event.allowance import Allowance
from tidewire_server.services.event.checks import check_ack, invalid, named, seconds
from tidewire_server.services.event.consumer import ConsumerRunner, ConsumerSubscriber
from tidewire_server.services.event.delivery import fill_delivery, message_count
from tidewire_server.services.event.exchange import Exchange
from tidewire_server.services.event.runs import Run
from tidewire_server.services.event.subscribe import open_follower

MESSAGES_MAX: Final = 10_000
MESSAGES_DEFAULT: Final = 100
BYTES_DEFAULT: Final = 1024 * 1024


class Fetcher:
    """Answers the unary calls that take and settle events."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._core = exchange.core

    async def fetch(self, request: event_pb2.FetchRequest) -> event_pb2.FetchResponse:
        """Take the next events of a consumer, or read a stream from a position."""
        limits = self._core.limits
        if request.messages_max > MESSAGES_MAX:
            raise invalid("messages_max", f"it is {request.messages_max}, at most {MESSAGES_MAX}")
        credit = common_pb2.Credit(
            messages_until=request.messages_max or MESSAGES_DEFAULT,
            bytes_until=min(request.bytes_max or BYTES_DEFAULT, limits.response_bytes_max),
        )
        wait_s = seconds(request.wait, "wait", at_most=limits.unary_wait_s_max)
        if request.node_id:
            named(request.node_id, "node_id")
        kind = request.WhichOneof("source")
        if kind == "consumer":
            return await self._fetch_consumer(request, credit, wait_s)
        if kind == "ordered":
            return await self._fetch_ordered(request.ordered, credit, wait_s)
        raise InvalidArgument("a fetch needs a source", fields={"source": "consumer or ordered"})

    async def acknowledge(
        self, request: event_pb2.AcknowledgeRequest
    ) -> event_pb2.AcknowledgeResponse:
        """Settle deliveries; answered when that is stored."""
        check_source(request.consumer, "consumer")
        check_ack(request.ack)
        runner = await self._exchange.runner(request.consumer.stream, request.consumer.consumer)
        result: asyncio.Future[event_pb2.AckResult] = asyncio.get_running_loop().create_future()

        def answer(settled: event_pb2.AckResult) -> None:
            if not result.done():
                result.set_result(settled)

        runner.settle(request.ack, answer)
        return event_pb2.AcknowledgeResponse(result=await result)

    async def _fetch_consumer(
        self, request: event_pb2.FetchRequest, credit: common_pb2.Credit, wait_s: float
    ) -> event_pb2.FetchResponse:
        source = request.consumer
        check_source(source, "consumer")
        runner = await self._exchange.runner(source.stream, source.consumer)
        subscriber = _FetchSubscriber(Allowance(credit), request.node_id, credit.bytes_until)
        subscriber.owner = runner.node_owner(request.node_id)
        response = event_pb2.FetchResponse()
        runner.add(subscriber)
        try:
            await self._collect(runner, subscriber, response, wait_s)
        except asyncio.CancelledError:
            self._give_back(runner, response)
            raise
        finally:
            runner.remove(subscriber)
        return response

    async def _collect(
        self,
        runner: ConsumerRunner,
        subscriber: "_FetchSubscriber",
        response: event_pb2.FetchResponse,
        wait_s: float,
    ) -> None:
        clock = self._core.clock
        until = clock() + wait_s
        while True:
            delivered = subscriber.pop()
            if delivered is not None:
                response.deliveries.append(delivered.delivery)
                runner.signal.set()
                continue
            if subscriber.error is not None:
                raise subscriber.error
            if not subscriber.allowance.is_open or self._is_draining:
                return
            if subscriber.is_at_rest and (response.deliveries or clock() >= until):
                return
            # The consumer looks within one turn; until it has, the time that is over does not
            # count.
            await subscriber.signal.wait_until(until if subscriber.is_at_rest else None, clock())

    @property
    def _is_draining(self) -> bool:
        return self._core.drain.started.is_set()

    def _give_back(self, runner: ConsumerRunner, response: event_pb2.FetchResponse) -> None:
        """The caller went away before it got anything: others may have it at once."""
        items = [
            event_pb2.AckItem(
                range=part,
                settlement=event_pb2.SETTLEMENT_RETRY,
                attempt=delivery.attempt,
                reason="fetch was cancelled",
            )
            for delivery in response.deliveries
            for part in (delivery.included or [_whole(delivery)])
        ]
        if items:
            runner.settle(event_pb2.Ack(items=items), None)

    async def _fetch_ordered(
        self, ordered: event_pb2.OrderedSource, credit: common_pb2.Credit, wait_s: float
    ) -> event_pb2.FetchResponse:
        follower = await open_follower(self._exchange, ordered, "ordered")
        await follower.count()
        allowance = Allowance(credit)
        response = event_pb2.FetchResponse()
        clock = self._core.clock
        until = clock() + wait_s
        body_bytes = 0
        self._exchange.follow(follower)
        try:
            while allowance.is_open:
                # Nobody follows on: what is read beyond the answer would be read for nothing.
                wanted = allowance.messages_left, credit.bytes_until - body_bytes
                if follower.head is None and not await follower.fill(*wanted):
                    if not follower.is_caught_up:
                        continue
                    if response.deliveries or clock() >= until or self._is_draining:
                        break
                    await follower.signal.wait_until(until, clock())
                    continue
                stored = follower.head
                if stored is None:
                    continue
                body_bytes += len(stored.batch.body)
                if response.deliveries and body_bytes > credit.bytes_until:
                    break
                first = max(follower.position, stored.first_sequence)
                follower.advance(stored.last_sequence)
                allowance.take(stored.last_sequence + 1 - first, len(stored.batch.body))
                fill_delivery(
                    response.deliveries.add(),
                    stored,
                    [(first, stored.last_sequence)],
                    pending=follower.pending,
                )
        finally:
            self._exchange.unfollow(follower)
        response.next_sequence = follower.position
        return response


def check_source(source: event_pb2.ConsumerSource, field: str) -> None:
    """Raise `InvalidSubject` when the names of a consumer cannot be."""
    named(source.stream, f"{field}.stream")
    named(source.consumer, f"{field}.consumer")


class _FetchSubscriber(ConsumerSubscriber):
    """A subscriber for one fetch, which ends when the consumer has nothing more for it."""

    def __init__(self, allowance: Allowance, node_id: str, bytes_max: int) -> None:
        super().__init__(allowance, node_id)
        self.is_at_rest = False
        self._bytes_left = bytes_max
        self._has_any = False

    def accepts(self, body_bytes: int) -> bool:
        """Take the first batch whatever its size, and others as long as they fit the answer."""
        if self._has_any and body_bytes > self._bytes_left:
            self.is_resting = True
            self.rest()
            return False
        return True

    def put(self, response: event_pb2.SubscribeResponse, runs: Sequence[Run]) -> None:
        """Take a delivery; there may be more."""
        self._has_any = True
        self._bytes_left -= len(response.delivery.batch.body)
        self.is_at_rest = False
        super().put(response, runs)

    def rest(self) -> None:
        """There is nothing more at the moment."""
        if not self.is_at_rest:
            self.is_at_rest = True
            self.signal.set()


def _whole(delivery: event_pb2.Delivery) -> common_pb2.SequenceRange:
    last = delivery.first_sequence + message_count(delivery.batch) - 1
    return common_pb2.SequenceRange(first=delivery.first_sequence, last=last)
