"""
EventFlux events as batches, and batches as EventFlux events.

A message is published as a batch of one, with its headers. What TransportMessage has fields for
goes in headers too, so that every subscriber sees it; two of them are ours alone and leave no trace
in what EventFlux readers get.
"""

import asyncio
import base64
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

from tidewire.eventflux import transport_pb2
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import decode, encode_messages
from tidewire_server.services.eventflux.messages import (
    INLINE_BYTES_MAX,
    MILLISECOND_NS,
    PRIORITY_DEFAULT,
    PRIORITY_MAX,
    Incoming,
    TransportMessage,
)

TIME_HEADER: Final = "eventflux-timestamp"
TYPE_HEADER: Final = "eventflux-message-type"
METADATA: Final = "METADATA"
TIME_DIGITS_MAX: Final = 15


async def to_batch(message: Incoming, into: common_pb2.Batch) -> None:
    """
    Write an EVENT or METADATA into an empty batch, compressed as the client had compressed it.

    Raises:
        InvalidSubject: Its subject cannot be.
        InvalidArgument: A header is too long.
    """
    subject = message.subject
    fields = {
        "source_node": message.source_node,
        "target_node": message.target_node,
        "priority": str(message.priority),
        TIME_HEADER: str(message.time_ms),
    }
    if message.kind == transport_pb2.MESSAGE_TYPE_METADATA:
        fields[TYPE_HEADER] = METADATA
    texts = {**message.headers, **{key: text for key, text in fields.items() if text}}
    headers = [(key, text.encode()) for key, text in texts.items()]
    if len(message.payload) > INLINE_BYTES_MAX:
        await asyncio.to_thread(_encode, subject, message, headers, into)
    else:
        _encode(subject, message, headers, into)
    if message.is_named:
        into.message_ids.append(message.id)


def _encode(
    subject: str, message: Incoming, headers: list[tuple[str, bytes]], into: common_pb2.Batch
) -> None:
    encode_messages(subject, [(message.payload, headers)], codec=message.codec, into=into)


async def from_delivery(delivery: event_pb2.Delivery, bytes_max: int) -> Iterator[TransportMessage]:
    """
    Messages of a delivery, made one by one as they are taken.

    Raises:
        TidewireError: The body is not what its batch says: nobody looked into it before.
    """
    batch = delivery.batch
    if max(len(batch.body), batch.raw_size) > INLINE_BYTES_MAX:
        entries = await asyncio.to_thread(decode, batch, bytes_max)
    else:
        entries = decode(batch, bytes_max)
    return _messages(delivery, entries)


def _messages(
    delivery: event_pb2.Delivery, entries: Sequence[bytes | common_pb2.Message]
) -> Iterator[TransportMessage]:
    batch, stream = delivery.batch, delivery.stream
    stored_ms = delivery.time.ToNanoseconds() // MILLISECOND_NS
    for index, sequence in _places(delivery):
        if not index < len(entries):
            return  # a selection of what is not there; the body is whole
        if index < len(batch.message_ids):
            identifier = batch.message_ids[index]
        else:
            identifier = f"{stream}/{sequence}" if stream else uuid.uuid4().hex
        message = TransportMessage(
            id=identifier,
            message_type=transport_pb2.MESSAGE_TYPE_EVENT,
            timestamp=stored_ms,
            priority=PRIORITY_DEFAULT,
        )
        entry = entries[index]
        if isinstance(entry, bytes):
            message.payload = entry
        else:
            message.payload = entry.payload
            _fill(message, entry)
        message.headers.setdefault("stream", batch.subject)
        yield message


def _places(delivery: event_pb2.Delivery) -> Iterator[tuple[int, int]]:
    """Index in the body and sequence of every message that is delivered; no sequence live."""
    batch = delivery.batch
    count = batch.count
    ranges = [(part.first, min(part.last + 1, count)) for part in batch.selected] or [(0, count)]
    included = [(part.first, part.last) for part in delivery.included]
    sequence = delivery.first_sequence
    for first, end in ranges:
        for index in range(first, end):
            if not included or any(low <= sequence <= high for low, high in included):
                yield index, sequence
            sequence += 1


def _fill(message: TransportMessage, entry: common_pb2.Message) -> None:
    """Set headers, and the fields that have one."""
    headers = message.headers
    for header in entry.header:
        try:
            headers[header.key] = header.value.decode()
        except UnicodeDecodeError:
            headers[f"{header.key}-bin"] = base64.b64encode(header.value).decode()
    time = headers.pop(TIME_HEADER, "")
    if time.isascii() and time.isdigit() and len(time) <= TIME_DIGITS_MAX:
        message.timestamp = int(time)
    if headers.pop(TYPE_HEADER, "") == METADATA:
        message.message_type = transport_pb2.MESSAGE_TYPE_METADATA
    message.source_node = headers.get("source_node", "")
    message.target_node = headers.get("target_node", "")
    priority = headers.get("priority", "")
    if priority.isascii() and priority.isdigit() and len(priority) == 1:
        message.priority = min(int(priority), PRIORITY_MAX)
