"""
Between deliveries and the verifier: what is refused never becomes a message.

A delivery is admitted before its body is decompressed or read. What the server may say of it
besides (which messages of the body it means) can only leave messages out, in the order they were
signed in; anything else is refused too.
"""

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

from tidewire.client.session import Session
from tidewire.errors import SignatureInvalid, TidewireError, reason_name
from tidewire.v1 import common_pb2, event_pb2

if TYPE_CHECKING:
    from tidewire.signing import ReplayMemory, Verifier


class Admission:
    """Lets deliveries of one reader pass, or refuses them."""

    def __init__(self, verifier: "Verifier", memory: "ReplayMemory") -> None:
        self._verifier = verifier
        self._memory = memory

    def admit(self, delivery: event_pb2.Delivery) -> str:
        """
        Verify a delivery.

        Returns:
            Key id of who signed it; empty for an unsigned one that may pass.

        Raises:
            Unauthenticated: One of its kinds; it has been counted and told.
        """
        batch = delivery.batch
        try:
            signed_by = self._check(delivery)
            if signed_by:
                _check_order(batch.selected, batch.count)
                _check_order(delivery.included)
        except TidewireError as error:
            self._tell(delivery, error)
            raise
        return signed_by

    def _check(self, delivery: event_pb2.Delivery) -> str:
        batch, first = delivery.batch, delivery.first_sequence
        if delivery.HasField("dead_letter"):
            # Proves who made it. Refused ones are among dead letters, and none is new.
            return self._verifier.check(batch, origin=delivery.dead_letter.origin_digest)
        time = delivery.time
        return self._verifier.check(
            batch,
            self._memory,
            location=(delivery.stream, first) if first else None,
            taken_s=time.seconds + time.nanos / 1e9 if delivery.HasField("time") else None,
        )

    def _tell(self, delivery: event_pb2.Delivery, error: TidewireError) -> None:
        from tidewire.signing import Refusal

        self._verifier.tell(
            Refusal(
                error=error,
                subject=delivery.batch.subject,
                key_id=delivery.batch.signature_key_id,
                stream=delivery.stream,
                sequence=delivery.first_sequence,
                messages=count_of(delivery),
            )
        )


def admission(session: Session, reader: Hashable | None) -> Admission | None:
    """
    How a reader admits deliveries; ``None`` for a client that verifies nothing.

    Args:
        session: Of the client.
        reader: Name of what the reader reads when others may read the same, each another part of
            it; ``None`` for one that gets everything itself.
    """
    verifier = session.options.verifier
    return None if verifier is None else Admission(verifier, verifier.memory(reader))


def reader_of(request: event_pb2.SubscribeOpen) -> Hashable | None:
    """Name of those who share what a subscription asks for; ``None`` when nobody shares it."""
    source = request.WhichOneof("source")
    if source == "consumer":
        return consumer_reader(request.consumer.stream, request.consumer.consumer)
    if source == "live" and request.live.group:
        return ("group", request.live.group)
    return None


def consumer_reader(stream: str, consumer: str) -> Hashable:
    """Name of those who share a durable consumer."""
    return ("consumer", stream, consumer)


def stream_reader(stream: str) -> Hashable:
    """Name of those who read parts of a stream by single calls."""
    return ("stream", stream)


def refusal_reason(error: TidewireError) -> str:
    """What a dead letter says of a delivery that was refused, or could not be read."""
    name = reason_name(error.reason)
    return f"{name}: {error.message}"


def count_of(delivery: event_pb2.Delivery) -> int:
    """Messages of a delivery that are for this reader."""
    if delivery.included:
        return sum(part.last - part.first + 1 for part in delivery.included)
    if delivery.batch.selected:
        return sum(part.last - part.first + 1 for part in delivery.batch.selected)
    return delivery.batch.count


def sequences_of(delivery: event_pb2.Delivery) -> Iterable[int]:
    """Sequences of a delivery from a stream that are for this reader."""
    if delivery.included:
        for part in delivery.included:
            yield from range(part.first, part.last + 1)
    else:
        yield from range(delivery.first_sequence, delivery.first_sequence + count_of(delivery))


def _check_order(
    parts: Iterable[common_pb2.IndexRange] | Iterable[common_pb2.SequenceRange],
    count: int | None = None,
) -> None:
    following = 0
    for part in parts:
        if part.first < following or part.last < part.first:
            raise SignatureInvalid("its messages are not in the order in which they were signed")
        following = part.last + 1
    if count is not None and following > count:
        raise SignatureInvalid("it names messages that are not in the signed body")
