"""Deliveries as they go on the wire; a response is built once however many get it."""

from collections.abc import Iterable
from typing import Final, TypeAlias

from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.signed import origin_digest
from tidewire.wire.spliced import DELIVERY_BODY, Spliced, splice
from tidewire_server.engine.base import StoredBatch
from tidewire_server.services.event.runs import Run

NANOSECONDS: Final = 1_000_000_000

Response: TypeAlias = event_pb2.SubscribeResponse | Spliced
"""What a subscriber gets: a message, or one that is serialized already."""


def message_count(batch: common_pb2.Batch) -> int:
    """Messages a batch consists of: the selected ones."""
    if not batch.selected:
        return batch.count
    return sum(indexes.last - indexes.first + 1 for indexes in batch.selected)


def live_response(
    batch: common_pb2.Batch, time_ns: int, stream: str = "", body: memoryview | None = None
) -> Response:
    """A live delivery of a batch; serialized, once for all who get it, if its body is apart."""
    response = event_pb2.SubscribeResponse()
    delivery = response.delivery
    delivery.batch.CopyFrom(batch)
    delivery.stream = stream
    delivery.time.seconds, delivery.time.nanos = divmod(time_ns, NANOSECONDS)
    if body is not None:
        return splice(response.SerializeToString(), DELIVERY_BODY, body)
    return response


def fill_delivery(
    delivery: event_pb2.Delivery,
    stored: StoredBatch,
    included: Iterable[tuple[int, int]] = (),
    *,
    attempt: int = 0,
    pending: int = 0,
) -> None:
    """
    Write a delivery out of a stream.

    Args:
        delivery: Where to.
        stored: The batch.
        included: Sequences that are delivered; none means all of the batch.
        attempt: Which delivery this is; 0 where nothing is acknowledged.
        pending: Messages that are still to come.
    """
    delivery.batch.CopyFrom(stored.batch)
    delivery.stream = stored.stream
    delivery.first_sequence = stored.first_sequence
    delivery.attempt = attempt
    delivery.pending = max(0, pending)
    delivery.time.seconds, delivery.time.nanos = divmod(stored.time_ns, NANOSECONDS)
    for first, last in included:
        if (first, last) != (stored.first_sequence, stored.last_sequence):
            delivery.included.add(first=first, last=last)
    if stored.dead_letter is not None:
        delivery.dead_letter.CopyFrom(stored.dead_letter)


def narrowed(stored: StoredBatch, sequence: int) -> common_pb2.Batch:
    """
    The batch reduced to one of its messages.

    What identifies the publish is left out: the message is stored anew, and must neither be taken
    for a duplicate nor count for its producer.
    """
    batch = common_pb2.Batch()
    batch.CopyFrom(stored.batch)
    index = _index(stored.batch, sequence - stored.first_sequence)
    for name in ("selected", "message_ids", "producer_id", "producer_epoch", "producer_sequence"):
        batch.ClearField(name)
    batch.selected.add(first=index, last=index)
    return batch


def dead_letter(
    stored: StoredBatch, consumer: str, sequence: int, run: Run, time_ns: int
) -> event_pb2.DeadLetter:
    """Why a message was given up, as it is stored with it."""
    letter = event_pb2.DeadLetter(
        stream=stored.stream,
        consumer=consumer,
        sequence=sequence,
        attempts=run.attempt,
        reason=run.reason,
    )
    if stored.dead_letter is not None:
        letter.origin_digest = stored.dead_letter.origin_digest
    elif stored.batch.signature:
        # Of what `narrowed` leaves out and the signature is over.
        letter.origin_digest = origin_digest(stored.batch)
    letter.time.seconds, letter.time.nanos = divmod(time_ns, NANOSECONDS)
    return letter


def _index(batch: common_pb2.Batch, position: int) -> int:
    """Index in the body of the k-th selected message, k from 0."""
    for indexes in batch.selected:
        count = indexes.last - indexes.first + 1
        if position < count:
            return indexes.first + position
        position -= count
    return position
