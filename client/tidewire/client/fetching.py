"""
Reading what was fetched by single calls, and acknowledging it: acks of one loop turn share a call.
"""

import asyncio
from collections.abc import Hashable

from tidewire.client.message import Message, MessageBatch
from tidewire.client.session import PRIORITY_EVENTS, Session, log
from tidewire.client.settling import Settlements
from tidewire.client.signing import admission, refusal_reason, sequences_of
from tidewire.errors import TidewireError
from tidewire.v1 import event_pb2
from tidewire.v1.event_pb2_grpc import EventServiceStub


class UnarySettler:
    """Where messages of one `fetch` are settled; see `message.Settler`."""

    def __init__(self, session: Session, source: event_pb2.ConsumerSource) -> None:
        self._session = session
        self._source = source
        self._stub = EventServiceStub(session.channel)
        self._acks = Settlements()
        self._task: asyncio.Task[None] | None = None

    def settle_done(self, first: int, last: int, attempt: int) -> None:
        """Settle a range as processed."""
        self._acks.buffer.done(first, last, attempt)
        self._start()

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
        self._start()

    async def settled(self, first: int, last: int) -> None:
        """Wait for the server's answer."""
        future = self._acks.confirm(first, last)
        self._start()
        await future

    async def close(self) -> None:
        """Wait until what was settled is sent."""
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._session.track(self)
            self._task = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while (ack := self._acks.take()) is not None:
                request = event_pb2.AcknowledgeRequest(consumer=self._source, ack=ack)
                response = await self._session.unary(
                    self._stub.Acknowledge, request, metadata=PRIORITY_EVENTS
                )
                result: event_pb2.AckResult = response.result
                result.ack_id = ack.ack_id  # the service leaves it out of unary answers
                self._acks.answered(result)
        except TidewireError as error:
            log.warning("acknowledging by a call failed: %s", error)
            self._acks.give_up(error)
        finally:
            self._session.untrack(self)


def messages_of(
    session: Session,
    response: event_pb2.FetchResponse,
    reader: Hashable,
    settler: UnarySettler | None = None,
) -> list[Message]:
    """
    Return the messages that were fetched, without those the client's verifier refuses.

    Args:
        session: Of the client.
        response: What was fetched.
        reader: Name of those who share what is fetched.
        settler: Settles them, and what was refused as never to be delivered again; ``None`` where
            nothing is acknowledged.
    """
    gate = admission(session, reader)
    messages: list[Message] = []
    for delivery in response.deliveries:
        signed_by = ""
        if gate is not None:
            try:
                signed_by = gate.admit(delivery)
            except TidewireError as error:
                if settler is not None:
                    reason = refusal_reason(error)
                    for sequence in sequences_of(delivery):
                        settler.settle_other(
                            sequence,
                            delivery.attempt,
                            event_pb2.SETTLEMENT_TERMINATE,
                            reason=reason,
                        )
                continue
        messages.extend(MessageBatch(delivery, settler, signed_by=signed_by))
    return messages
