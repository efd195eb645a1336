"""
Receiving events: live ones, a stream in order, or a share of a durable consumer.

A subscription is read by ``async for`` or driven by a handler. What waits in the client is bounded
by the credit given to the server; a handler is called straight from the reader, with no queue and
no task for each message.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tidewire.client.message import Message, MessageBatch
from tidewire.client.polled_events import event_stub
from tidewire.client.reuse import count_references
from tidewire.client.session import PRIORITY_EVENTS, Session, log, notify
from tidewire.client.settling import Settlements
from tidewire.client.signing import admission, count_of, reader_of, refusal_reason, sequences_of
from tidewire.client.stream import END_TIMEOUT_S, ReopeningStream
from tidewire.client.turn import Turn
from tidewire.errors import ConnectionLost, DeadlineExceeded, TidewireError
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import PAYLOAD_BYTES_MAX
from tidewire.wire.spliced import Apart

Handler = Callable[[Message], Any]
"""Called with each message: a function, or a coroutine function, which is awaited."""

WINDOW_MESSAGES: Final = 65_536
WINDOW_BYTES: Final = 8 * 1024 * 1024
CONSUMER_WINDOW_MESSAGES: Final = 1_000
TURN_DELIVERIES: Final = 16
"""After so many deliveries it is looked whether the turn is over."""


@dataclass(slots=True)
class Source:
    """
    Where a subscription's events come from; its position moves as they come.

    Attributes:
        request: ``open`` without credit.
        next_sequence: For a stream in order: the first sequence not seen; 0 when not known.
    """

    request: event_pb2.SubscribeOpen
    next_sequence: int = 0

    @property
    def ordered(self) -> bool:
        """It is a stream in order."""
        return self.request.WhichOneof("source") == "ordered"

    @property
    def settled(self) -> bool:
        """Its messages are acknowledged."""
        return self.request.WhichOneof("source") == "consumer"

    def opening(self) -> event_pb2.SubscribeOpen:
        """Request that opens it where it left off."""
        request = event_pb2.SubscribeOpen()
        request.CopyFrom(self.request)
        if self.ordered and self.next_sequence:
            request.ordered.start.sequence = self.next_sequence
        return request


Response: TypeAlias = event_pb2.SubscribeResponse | Apart[event_pb2.SubscribeResponse]


class Subscription(ReopeningStream[event_pb2.SubscribeRequest, Response]):
    """
    An open subscription. It is opened again by itself after a break, from where it was: a stream in
    order goes on without a gap, a consumer's unsettled messages come again, and live events that
    were published meanwhile are not seen (`reopened` counts the breaks).

    Attributes:
        lost: Live messages the server dropped because this reader was slow.
        received: Messages received.
        handler_failures: Exceptions raised by the handler.
        corrupt: Deliveries whose body could not be read; they are skipped, and told to the log.
        refused: Messages the client's verifier refused; they reach nobody.
        last_refusal: Why the latest of them was refused.
    """

    def __init__(
        self,
        session: Session,
        source: Source,
        *,
        handler: Handler | None = None,
        on_lost: Callable[[int], None] | None = None,
        window_messages: int = WINDOW_MESSAGES,
        window_bytes: int = WINDOW_BYTES,
        auto_ack: bool = True,
    ) -> None:
        stub = event_stub(session)
        super().__init__(session, "a subscription", stub.Subscribe, PRIORITY_EVENTS)
        self.lost = 0
        self.received = 0
        self.handler_failures = 0
        self.corrupt = 0
        self.refused = 0
        self.last_refusal: TidewireError | None = None
        self._admission = admission(session, reader_of(source.request))
        self._source = source
        self._handler = handler
        self._handler_waits = handler is not None and _is_async(handler)
        self._on_lost = on_lost
        self._window_messages = window_messages
        self._window_bytes = window_bytes
        self._auto_ack = auto_ack and handler is not None and source.settled
        self._acks = Settlements()
        self._settler = self if source.settled else None
        self._queue: deque[tuple[int, event_pb2.Delivery, memoryview | None]] = deque()
        self._arrived = asyncio.Event()
        self._over = False
        self._current: Iterator[Message] = iter(())
        self._payload_bytes_max = PAYLOAD_BYTES_MAX
        self._call = 0
        self._turn = Turn()
        self._handled_deliveries = 0
        # Of the current call: what the application has taken, and what it was granted.
        self._messages_taken = self._bytes_taken = 0
        self._messages_granted = self._bytes_granted = 0

    # What the application calls.

    async def __aiter__(self) -> AsyncIterator[Message]:
        # A generator costs half of what `__anext__` does. Leaving it loses nothing.
        while True:
            for message in self._current:
                yield message
            try:
                self._current = iter(await self._take())
            except StopAsyncIteration:
                return

    async def __anext__(self) -> Message:
        message = next(self._current, None)
        while message is None:
            self._current = iter(await self._take())
            message = next(self._current, None)
        return message

    async def next(self, *, timeout_s: float | None = None) -> Message:
        """
        Return the next message.

        Raises:
            DeadlineExceeded: None came within `timeout_s`; ``None`` means to wait for ever.
            ConnectionLost: The subscription is closed.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self.__anext__()
        except TimeoutError:
            raise DeadlineExceeded(f"no message came within {timeout_s} s") from None
        except StopAsyncIteration:
            raise ConnectionLost("the subscription is closed") from None

    async def batches(self) -> AsyncIterator[MessageBatch]:
        """Iterate over whole deliveries: cheaper than single messages."""
        while True:
            try:
                batch = await self._take()
            except StopAsyncIteration:
                return
            yield batch

    @property
    def waiting(self) -> int:
        """Deliveries that came and were not taken yet."""
        return len(self._queue)

    @property
    def acks_failed(self) -> int:
        """Acknowledgements the server refused: the message was delivered again, or settled."""
        return self._acks.failed

    async def join(self) -> None:
        """Wait until the subscription ends: it was closed, or failed, which raises why."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._error is not None and not self._closing:
            raise self._error

    async def close(self) -> None:
        """Send what is acknowledged, then end; messages not taken are others' when this returns."""
        if self._source.settled and self.connected and not self._closing:
            if self._handler_waits:
                await self._confirm_acks()  # and stop the handler where it waits
            else:
                await self._end_requests()
            if self._acks.busy:
                log.warning("%s was closed before all acknowledgements were confirmed", self.what)
        await super().close()

    async def _confirm_acks(self) -> None:
        try:
            async with asyncio.timeout(min(END_TIMEOUT_S, self._session.options.timeout_s)):
                self._wake.set()
                await self._acks.confirm(0, 0)
        except (TimeoutError, TidewireError) as error:
            log.warning("closing %s: no answer to an acknowledgement: %r", self.what, error)

    # Acknowledging (see `message.Settler`).

    def settle_done(self, first: int, last: int, attempt: int) -> None:
        """Settle a range as processed."""
        self._acks.buffer.done(first, last, attempt)
        self._wake.set()

    def settle_other(
        self,
        sequence: int,
        attempt: int,
        settlement: event_pb2.Settlement.ValueType,
        *,
        delay_s: float | None = None,
        reason: str = "",
    ) -> None:
        """Settle one message otherwise."""
        self._acks.buffer.other(sequence, attempt, settlement, delay_s=delay_s, reason=reason)
        self._wake.set()

    async def settled(self, first: int, last: int) -> None:
        """Wait for the server's answer, at most the client's timeout."""
        self._raise_if_ended()
        limit_s = self._session.options.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._acks.confirm(first, last)
        except TimeoutError:
            raise DeadlineExceeded(f"an acknowledgement had no answer for {limit_s:g} s") from None

    # The stream.

    async def _first_request(self) -> event_pb2.SubscribeRequest:
        opening = self._source.opening()
        self._messages_granted = opening.credit.messages_until = self._window_messages
        self._bytes_granted = opening.credit.bytes_until = self._window_bytes
        self._messages_taken = self._bytes_taken = 0
        self._call += 1
        return event_pb2.SubscribeRequest(open=opening)

    def _opened(self, opened: common_pb2.Opened) -> None:
        self._payload_bytes_max = opened.limits.payload_bytes_max or PAYLOAD_BYTES_MAX

    def _outgoing(self) -> Iterator[event_pb2.SubscribeRequest]:
        while (ack := self._acks.take()) is not None:
            yield event_pb2.SubscribeRequest(ack=ack)
        messages_until = self._messages_taken + self._window_messages
        bytes_until = self._bytes_taken + self._window_bytes
        if (
            messages_until - self._messages_granted >= self._window_messages // 2
            or bytes_until - self._bytes_granted >= self._window_bytes // 2
        ):
            self._messages_granted, self._bytes_granted = messages_until, bytes_until
            credit = common_pb2.Credit(messages_until=messages_until, bytes_until=bytes_until)
            yield event_pb2.SubscribeRequest(credit=credit)

    def _received(self, kind: str, response: Response) -> Awaitable[None] | None:
        if isinstance(response, Apart):
            return self._deliver(response.message.delivery, response.body)
        if kind == "delivery":
            return self._deliver(response.delivery, None)
        if kind == "several":
            return self._deliver_several(response.several.delivery)
        if kind == "ack_result":
            self._acks.answered(response.ack_result)
            if self._acks.buffer:
                self._wake.set()
        elif kind == "bookmark":
            if self._source.ordered and not self._queue:
                following = response.bookmark.sequence + 1
                self._source.next_sequence = max(self._source.next_sequence, following)
        elif kind == "lost":
            self._tell_lost(response.lost.messages)
        return None

    async def _deliver_several(self, deliveries: Sequence[event_pb2.Delivery]) -> None:
        for delivery in deliveries:
            waiting = self._deliver(delivery, None)
            if waiting is not None:
                await waiting

    def _deliver(
        self, delivery: event_pb2.Delivery, body: memoryview | None
    ) -> Awaitable[None] | None:
        if self._closing:
            return None  # it comes again, to others
        if self._handler is None:
            self._queue.append((self._call, delivery, body))
            self._arrived.set()
            return None
        batch = self._open_delivery(self._call, delivery, body)
        if batch is None:
            return None
        if self._handler_waits:
            return self._handle_waiting(batch)
        self._handle(batch)
        self._handled_deliveries += 1
        if self._handled_deliveries % TURN_DELIVERIES == 0 and self._turn.is_over:
            return self._turn.end()
        return None

    def _handle(self, batch: MessageBatch) -> None:
        handler = self._handler
        index = 0
        assert handler is not None
        while index < len(batch.payloads):
            begun = index
            message = Message(batch, index, b"")
            alone = count_references(message)
            try:
                for payload in batch.payloads[index:] if index else batch.payloads:
                    message.index = index
                    message.payload = payload
                    handler(message)
                    index += 1
                    if count_references(message) != alone:
                        message = Message(batch, index, b"")  # the handler has kept that one
            except Exception as error:  # noqa: BLE001 (the application's; told to it and counted)
                self._handled(batch, begun, index)
                self._handler_failed(Message(batch, index, batch.payloads[index]), error)
                index += 1
            else:
                self._handled(batch, begun, index)

    async def _handle_waiting(self, batch: MessageBatch) -> None:
        handler = self._handler
        for index, payload in enumerate(batch.payloads):
            message = Message(batch, index, payload)
            try:
                await handler(message)  # type: ignore[misc]  # not None here
            except Exception as error:  # noqa: BLE001 (the application's; told to it and counted)
                self._handler_failed(message, error)
            else:
                self._handled(batch, index, index + 1)
        if self._turn.is_over:
            await self._turn.end()

    def _handled(self, batch: MessageBatch, begin: int, end: int) -> None:
        """Settle what a handler has taken without an exception."""
        if not self._auto_ack or begin >= end:
            return
        if batch.sequences is None:
            first = batch.first_sequence
            self.settle_done(first + begin, first + end - 1, batch.attempt)
        else:
            for sequence in batch.sequences[begin:end]:
                self.settle_done(sequence, sequence, batch.attempt)

    def _handler_failed(self, message: Message, error: Exception) -> None:
        self.handler_failures += 1
        log.error("a handler failed on %r", message, exc_info=error)
        if self._auto_ack:
            reason = f"{type(error).__name__}: {error}"
            self.settle_other(
                message.sequence, message.attempt, event_pb2.SETTLEMENT_RETRY, reason=reason
            )

    async def _take(self) -> MessageBatch:
        while True:
            while self._queue:
                batch = self._open_delivery(*self._queue.popleft())
                if batch is not None:
                    return batch
            if self._over:
                if self._error is not None and not self._closing:
                    raise self._error
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()

    def _open_delivery(
        self, call: int, delivery: event_pb2.Delivery, body: memoryview | None
    ) -> MessageBatch | None:
        """Read a delivery, move the position behind it and count it as taken."""
        source = self._source
        seen = source.next_sequence - 1 if source.ordered else 0
        if call == self._call:
            self._count(delivery, len(delivery.batch.body if body is None else body))
        signed_by = ""
        if self._admission is not None:
            if body is not None:  # what is verified is the whole batch
                delivery.batch.body, body = bytes(body), None
            try:
                signed_by = self._admission.admit(delivery)
            except TidewireError as error:
                self._refused(delivery, error)
                return None
        try:
            batch = MessageBatch(
                delivery, self._settler, self._payload_bytes_max, seen, signed_by, body
            )
        except TidewireError as error:
            self.corrupt += 1
            log.error("a delivery on %r cannot be read: %s", delivery.batch.subject, error)
            if self._settler is not None:
                self._terminate(delivery, f"unreadable: {error.message}")
            return None
        self.received += len(batch)
        if source.ordered and batch.payloads:
            source.next_sequence = batch.last_sequence + 1
        return batch if batch.payloads else None

    def _refused(self, delivery: event_pb2.Delivery, error: TidewireError) -> None:
        """Take note of what the verifier has counted and told; it is not delivered again."""
        self.refused += count_of(delivery)
        self.last_refusal = error
        if self._settler is not None:
            self._terminate(delivery, refusal_reason(error))
        if self._source.ordered:
            last = max(sequences_of(delivery), default=0)
            self._source.next_sequence = max(self._source.next_sequence, last + 1)

    def _terminate(self, delivery: event_pb2.Delivery, reason: str) -> None:
        """What can never be used is not delivered again."""
        for sequence in sequences_of(delivery):
            self.settle_other(
                sequence, delivery.attempt, event_pb2.SETTLEMENT_TERMINATE, reason=reason
            )

    def _count(self, delivery: event_pb2.Delivery, body_bytes: int) -> None:
        self._messages_taken += count_of(delivery)
        self._bytes_taken += body_bytes
        ungranted = self._messages_taken + self._window_messages - self._messages_granted
        ungranted_bytes = self._bytes_taken + self._window_bytes - self._bytes_granted
        if ungranted * 2 >= self._window_messages or ungranted_bytes * 2 >= self._window_bytes:
            self._wake.set()

    def _tell_lost(self, messages: int) -> None:
        self.lost += messages
        log.warning("%s was too slow: %d messages were lost", self.what, messages)
        if self._on_lost is not None:
            notify(self._on_lost, messages)

    def _may_leave(self) -> bool:
        # What the application has in hand can still be acknowledged, until the server cuts.
        return not self._source.settled or (self._closing and not self._acks.buffer)

    def _broken(self) -> None:
        self._acks.broken()
        if self._source.settled:
            self._queue.clear()  # they come again, to whoever is there

    def _ended(self, error: TidewireError | None) -> None:
        self._over = True
        self._arrived.set()
        self._acks.give_up(error or ConnectionLost(f"{self.what} was closed"))


def _is_async(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 (an object with an async __call__)
    )
