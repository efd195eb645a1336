"""Publishing: one message, many, or a publisher for as many as there are."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Final

from tidewire.client.gathering import MESSAGE_COST_BYTES
from tidewire.client.lanes import PublishAck, read_ack
from tidewire.client.naming import Durability, durability_of
from tidewire.client.opening import Opening
from tidewire.client.publisher import PENDING_BYTES_MAX, Publisher
from tidewire.client.session import PRIORITY_EVENTS, Session
from tidewire.errors import DeadlineExceeded, InvalidArgument
from tidewire.v1 import common_pb2, event_pb2
from tidewire.v1.event_pb2_grpc import EventServiceStub
from tidewire.wire.batch import Headers, encode_messages, encode_payloads
from tidewire.wire.payload import Value, as_bytes
from tidewire.wire.subject import check_subject

LOSSY: Final = ("tidewire-lossy", "1")
"""Metadata of a call that may be lost."""
MANY_MESSAGES_MAX: Final = 4_096
"""Messages of one batch made by `publish_many`; ids count as fields of a request."""


class Publishing:
    """The half of `tidewire.client.events.Events` that publishes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stub = EventServiceStub(session.channel)
        self._shared: asyncio.Task[Publisher] | None = None

    async def publish(
        self,
        subject: str,
        data: Value,
        *,
        headers: Headers | None = None,
        message_id: str | None = None,
        durability: Durability | None = None,
        expected_last_sequence: int | None = None,
        stream: str | None = None,
        timeout_s: float | None = None,
    ) -> PublishAck:
        """
        Publish one message and wait for its acknowledgement.

        Publishes of one turn of the event loop share batches, unless one of the options below
        `headers` is used.

        Args:
            subject: Subject; no wildcards.
            data: Payload, at most the server's limit (10 MiB); text becomes UTF-8.
            headers: Pairs of key and bytes.
            message_id: A stream stores a message of this id once within its dedup window.
            durability: Level the acknowledgement must reach: "memory", "os", "fsync" or "quorum".
            expected_last_sequence: Store only when this is the stream's last sequence.
            stream: Name of the stream that must take it.
            timeout_s: Time to wait; by default the client's.

        Raises:
            TidewireError: NoStream, StreamFull, WrongLastSequence, MessageTooLarge and others;
                DeadlineExceeded when it may still be stored.
        """
        options = (message_id, durability, expected_last_sequence, stream)
        if all(option is None for option in options):
            publisher = await self._publisher()
            future = await publisher.submit(subject, data, headers)
            return await self._acknowledged(future, timeout_s)
        batch = self._batch_of(subject, data, headers)
        # Every publish carries an id, so that it can be sent again when the answer is lost.
        batch.message_ids.append(message_id or uuid.uuid4().hex)
        request = event_pb2.PublishRequest(
            batch=batch, durability=durability_of(durability), expected_stream=stream or ""
        )
        if expected_last_sequence is not None:
            request.expected_last_sequence = expected_last_sequence
        self._session.sign(request.batch)
        response = await self._session.unary(
            self._stub.Publish, request, timeout_s=timeout_s, metadata=PRIORITY_EVENTS
        )
        return read_ack(response, 0, 1)

    async def publish_lossy(
        self, subject: str, data: Value, *, headers: Headers | None = None
    ) -> None:
        """
        Publish one message that may be lost, and wait for nothing where the wire allows that.

        On ``udp://`` and ``dtls://`` it is one datagram, sent once. Every other wire is reliable,
        and acknowledges it.

        Args:
            subject: Subject; no wildcards.
            data: Payload; text becomes UTF-8.
            headers: Pairs of key and bytes.

        Raises:
            TidewireError: It cannot be sent; MessageTooLarge when it does not fit a datagram.
        """
        batch = self._batch_of(subject, data, headers)
        self._session.sign(batch)
        request = event_pb2.PublishRequest(batch=batch)
        await self._session.unary(
            self._stub.Publish,
            request,
            metadata=(*PRIORITY_EVENTS, LOSSY),
            repeatable=False,
        )

    async def publish_many(
        self,
        subject: str,
        data: Sequence[Value],
        *,
        message_ids: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> list[PublishAck]:
        """
        Publish messages on one subject, in order, and wait until all are acknowledged.

        Args:
            subject: Subject; no wildcards.
            data: Payloads.
            message_ids: One for each; a stream stores each id once within its dedup window.
            timeout_s: Time to wait; by default the client's.

        Raises:
            TidewireError: The first refusal; batches beside it may have been stored.
        """
        if message_ids is not None and len(message_ids) != len(data):
            raise InvalidArgument(f"{len(message_ids)} ids for {len(data)} messages")
        publisher = await self._publisher()
        waiting: list[tuple[asyncio.Future[PublishAck], int]] = []
        for begin, end in _cuts([as_bytes(value) for value in data], publisher.batch_bytes_max):
            payloads = [as_bytes(value) for value in data[begin:end]]
            batch = encode_payloads(subject, payloads, codec=self._session.codec)
            if message_ids is not None:
                batch.message_ids.extend(message_ids[begin:end])
            waiting.append((await publisher.submit_batch(batch), end - begin))
        acks: list[PublishAck] = []
        for future, count in waiting:
            first = await self._acknowledged(future, timeout_s)
            acks.extend(_following(first, count))
        return acks

    def publisher(
        self,
        *,
        acknowledge: bool = True,
        compression: str | bool | None = True,
        durability: Durability | None = None,
        stream: str = "",
        pending_bytes_max: int = PENDING_BYTES_MAX,
        bulk: bool = False,
    ) -> Opening[Publisher]:
        """
        Open a publisher for many messages: ``async with client.events.publisher() as publisher``.

        Args:
            acknowledge: Batches are acknowledged, and sent again after a break. Without, a break
                loses what was on its way, and only refusals are told.
            compression: Codec of the batches; by default the client's.
            durability: Level every acknowledgement must reach.
            stream: Name of the stream that must take all subjects.
            pending_bytes_max: Bytes on their way before `publish` waits.
            bulk: Give way to other events on the wire.
        """
        publisher = Publisher(
            self._session,
            acknowledge=acknowledge,
            codec=self._session.codec_for(compression),
            durability=durability_of(durability),
            stream=stream,
            pending_bytes_max=pending_bytes_max,
            bulk=bulk,
        )
        return Opening(lambda: _opened_publisher(publisher))

    async def _publisher(self) -> Publisher:
        """The publisher all `publish` calls share, opened at the first."""
        task = self._shared
        if task is not None and task.done():
            usable = not task.cancelled() and task.exception() is None and not task.result().ended
            task = task if usable else None
        if task is None:
            publisher = Publisher(self._session, codec=self._session.codec)
            task = self._shared = asyncio.create_task(_opened_publisher(publisher))
        if not task.done():
            await asyncio.wait([task])
        return task.result()

    async def _acknowledged(
        self, future: asyncio.Future[PublishAck], timeout_s: float | None
    ) -> PublishAck:
        limit_s = self._session.options.timeout_s if timeout_s is None else timeout_s
        # Cheaper than asyncio.timeout, which asks for the loop and the task.
        timer = self._session.loop.call_later(limit_s, _expire, future, limit_s)
        try:
            return await future
        finally:
            timer.cancel()

    def _batch_of(self, subject: str, data: Value, headers: Headers | None) -> common_pb2.Batch:
        """A batch of one message."""
        check_subject(subject)
        payload, codec = as_bytes(data), self._session.codec
        if headers:
            return encode_messages(subject, [(payload, headers)], codec=codec)
        return encode_payloads(subject, [payload], codec=codec)


def _expire(future: asyncio.Future[PublishAck], limit_s: float) -> None:
    if not future.done():
        future.set_exception(
            DeadlineExceeded(
                f"a publish was not acknowledged within {limit_s:g} s; it may still be stored"
            )
        )


async def _opened_publisher(publisher: Publisher) -> Publisher:
    await publisher.open()
    return publisher


def _cuts(payloads: Sequence[bytes], bytes_max: int) -> list[tuple[int, int]]:
    """Where to cut messages into batches: begin and end of each."""
    cuts: list[tuple[int, int]] = []
    begin = size = 0
    for index, payload in enumerate(payloads):
        if index > begin and (
            size + len(payload) + MESSAGE_COST_BYTES > bytes_max
            or index - begin >= MANY_MESSAGES_MAX
        ):
            cuts.append((begin, index))
            begin, size = index, 0
        size += len(payload) + MESSAGE_COST_BYTES
    if payloads:
        cuts.append((begin, len(payloads)))
    return cuts


def _following(first: PublishAck, count: int) -> list[PublishAck]:
    """Acks of a whole batch, given that of its first message."""
    return [
        PublishAck(
            stream=first.stream,
            sequence=first.sequence + index if first.sequence else 0,
            durability=first.durability,
            duplicate=first.duplicate,
            receivers=first.receivers,
        )
        for index in range(count)
    ]
