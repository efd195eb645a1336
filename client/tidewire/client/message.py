"""Events as they reach the application: messages, and the batches they came in."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from tidewire.client.acks import EXTEND, RETRY, TERMINATE
from tidewire.client.times import to_datetime
from tidewire.errors import FailedPrecondition
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import PAYLOAD_BYTES_MAX, decode
from tidewire.wire.payload import headers_of


class Settler(Protocol):
    """Where acknowledgements go."""

    def settle_done(self, first: int, last: int, attempt: int) -> None:
        """Settle a range as processed."""

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

    async def settled(self, first: int, last: int) -> None:
        """Wait until the server has confirmed what was just settled of this range."""


class MessageBatch:
    """
    The messages of one delivery: one subject, in order.

    Attributes:
        subject: Subject of all of them.
        stream: Stream they are from; empty for live events that no stream keeps.
        attempt: Which delivery of these messages to this consumer this is, from 1; 0 where nothing
            is acknowledged.
        payloads: Payload of each.
        pending: Messages of the stream behind these that the subscriber is still to get.
        signed_by: Key that signed them, verified by this client; empty without a verifier, and for
            unsigned ones that it lets pass.
    """

    __slots__ = (
        "_entries",
        "_settler",
        "_time",
        "attempt",
        "dead_letter_",
        "first_sequence",
        "payloads",
        "pending",
        "sequences",
        "signed_by",
        "stream",
        "subject",
        "traceparent",
    )

    def __init__(
        self,
        delivery: event_pb2.Delivery,
        settler: Settler | None = None,
        bytes_max: int = PAYLOAD_BYTES_MAX,
        after_sequence: int = 0,
        signed_by: str = "",
        body: memoryview | None = None,
    ) -> None:
        batch = delivery.batch
        entries = decode(batch, bytes_max, body)
        if batch.selected:
            entries = _selected(entries, batch.selected)
        first = delivery.first_sequence
        self.sequences: Sequence[int] | None = None
        if delivery.included or after_sequence >= first > 0:
            sequences = _included(delivery, len(entries), after_sequence)
            entries = [entries[sequence - first] for sequence in sequences]  # type: ignore[assignment]
            self.sequences = sequences
        self.subject: str = batch.subject
        self.stream: str = delivery.stream
        self.attempt: int = delivery.attempt
        self.pending: int = delivery.pending
        self.first_sequence: int = first
        self.traceparent: str = batch.traceparent
        self.signed_by = signed_by
        self._time: Timestamp | None = delivery.time if delivery.HasField("time") else None
        self.dead_letter_ = delivery.dead_letter if delivery.HasField("dead_letter") else None
        self._settler = settler
        self._entries: Sequence[common_pb2.Message] | None = None
        if batch.form == common_pb2.BODY_FORM_MESSAGES:
            self._entries = entries  # type: ignore[assignment]  # decode returns what form says
            self.payloads: Sequence[bytes] = [entry.payload for entry in self._entries or ()]
        else:
            self.payloads = entries  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.payloads)

    def __iter__(self) -> Iterator["Message"]:
        message = Message
        for index, payload in enumerate(self.payloads):
            yield message(self, index, payload)

    def __repr__(self) -> str:
        return f"<MessageBatch {self.subject!r} of {len(self.payloads)}>"

    @property
    def time(self) -> datetime | None:
        """When the server took the batch, UTC; ``None`` when it did not say."""
        return None if self._time is None else to_datetime(self._time)

    def sequence_of(self, index: int) -> int:
        """Sequence in the stream of the message at `index`; 0 for live events."""
        if self.sequences is not None:
            return self.sequences[index]
        return self.first_sequence + index if self.first_sequence else 0

    @property
    def last_sequence(self) -> int:
        """Sequence of the last message; 0 for live events."""
        return self.sequence_of(len(self.payloads) - 1) if self.payloads else 0

    def headers_at(self, index: int) -> Sequence[tuple[str, bytes]]:
        """Headers of the message at `index`."""
        return () if self._entries is None else headers_of(self._entries[index])

    async def ack(self, *, confirm: bool = False) -> None:
        """Settle all messages of this batch as processed; see `Message.ack`."""
        if not self.payloads:
            return
        settler = self.settler()
        if self.sequences is None:
            settler.settle_done(self.first_sequence, self.last_sequence, self.attempt)
        else:
            for sequence in self.sequences:
                settler.settle_done(sequence, sequence, self.attempt)
        if confirm:
            await settler.settled(self.sequence_of(0), self.last_sequence)

    def settler(self) -> Settler:
        """Where acknowledgements of this batch go; an error where there are none."""
        if self._settler is None:
            raise FailedPrecondition(
                "only messages of a durable consumer are acknowledged; read them by consume()"
            )
        return self._settler


class Message:
    """
    One event.

    Attributes:
        payload: The payload, decompressed.
        batch: The delivery it came in.
        index: Its place in the delivery.
    """

    __slots__ = ("batch", "index", "payload")

    def __init__(self, batch: MessageBatch, index: int, payload: bytes) -> None:
        self.batch = batch
        self.index = index
        self.payload = payload

    def __repr__(self) -> str:
        return f"<Message {self.subject!r} of {len(self.payload)} bytes, sequence {self.sequence}>"

    @property
    def data(self) -> bytes:
        """Same as `payload`."""
        return self.payload

    @property
    def subject(self) -> str:
        """Subject it was published on."""
        return self.batch.subject

    @property
    def headers(self) -> Sequence[tuple[str, bytes]]:
        """Headers, in order; keys may repeat."""
        return self.batch.headers_at(self.index)

    @property
    def sequence(self) -> int:
        """Sequence in its stream; 0 for live events."""
        return self.batch.sequence_of(self.index)

    @property
    def stream(self) -> str:
        """Stream it is from; empty for live events that no stream keeps."""
        return self.batch.stream

    @property
    def attempt(self) -> int:
        """Which delivery to this consumer this is, from 1; 0 where nothing is acknowledged."""
        return self.batch.attempt

    @property
    def time(self) -> datetime | None:
        """When the server took it, UTC."""
        return self.batch.time

    @property
    def signed_by(self) -> str:
        """Key that signed it, verified by this client; see `MessageBatch`."""
        return self.batch.signed_by

    @property
    def dead_letter(self) -> event_pb2.DeadLetter | None:
        """Why it is in a dead-letter stream; ``None`` elsewhere."""
        return self.batch.dead_letter_

    async def ack(self, *, confirm: bool = False) -> None:
        """
        Settle it as processed. Acks of one loop turn travel together.

        Args:
            confirm: Wait until the server has stored it; without, a refusal is only counted
                (``acks_failed`` of the subscription).

        Raises:
            StaleAck, NotDelivered: With `confirm`: it was delivered again, or settled before.
        """
        settler = self.batch.settler()
        sequence = self.sequence
        settler.settle_done(sequence, sequence, self.batch.attempt)
        if confirm:
            await settler.settled(sequence, sequence)

    async def retry(self, delay_s: float | None = None, *, reason: str = "") -> None:
        """Have it delivered again, after `delay_s` seconds or the consumer's back-off."""
        self._settle(RETRY, delay_s, reason)

    async def extend(self) -> None:
        """Say that it is still being processed: its ack wait starts anew."""
        self._settle(EXTEND, None, "")

    async def terminate(self, reason: str = "") -> None:
        """Never have it delivered again: it goes to the dead-letter stream where there is one."""
        self._settle(TERMINATE, None, reason)

    def done(self) -> None:
        """Settle it as processed, from code that cannot await; same as `ack`."""
        sequence = self.sequence
        self.batch.settler().settle_done(sequence, sequence, self.batch.attempt)

    def _settle(
        self, settlement: event_pb2.Settlement.ValueType, delay_s: float | None, reason: str
    ) -> None:
        self.batch.settler().settle_other(
            self.sequence, self.batch.attempt, settlement, delay_s=delay_s, reason=reason
        )


def _selected(
    entries: Sequence[bytes] | Sequence[common_pb2.Message],
    selected: Sequence[common_pb2.IndexRange],
) -> list[bytes] | list[common_pb2.Message]:
    kept: list[object] = []
    for part in selected:
        kept.extend(entries[part.first : part.last + 1])
    return kept  # type: ignore[return-value]  # the same kind as it was


def _included(delivery: event_pb2.Delivery, count: int, after_sequence: int) -> list[int]:
    """Sequences of a delivery that are for this reader, beyond what it has seen."""
    first = delivery.first_sequence
    end = first + count
    if not delivery.included:
        return list(range(max(first, after_sequence + 1), end))
    sequences: list[int] = []
    for part in delivery.included:
        begin = max(part.first, first, after_sequence + 1)
        sequences.extend(range(begin, min(part.last + 1, end)))
    return sequences
