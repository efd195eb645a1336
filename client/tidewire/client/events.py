"""Events: publish, subscribe, streams and durable consumers."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from tidewire.client.durable import StreamHandle
from tidewire.client.fetching import UnarySettler, messages_of
from tidewire.client.lanes import PublishAck
from tidewire.client.message import Message
from tidewire.client.naming import Start, start_of
from tidewire.client.opening import Opening
from tidewire.client.polled import fit_fetch
from tidewire.client.publisher import Publisher
from tidewire.client.publishing import Publishing
from tidewire.client.session import PRIORITY_EVENTS
from tidewire.client.signing import consumer_reader, stream_reader
from tidewire.client.subscription import (
    CONSUMER_WINDOW_MESSAGES,
    WINDOW_BYTES,
    WINDOW_MESSAGES,
    Handler,
    Source,
    Subscription,
)
from tidewire.client.times import to_duration
from tidewire.v1 import event_pb2
from tidewire.wire.subject import check_pattern

FETCH_WAIT_SLACK_S: Final = 5.0


class Events(Publishing):
    """The event part of a client; see `tidewire.connect`."""

    # Receiving.

    def subscribe(
        self,
        subjects: str | Sequence[str],
        *,
        group: str = "",
        handler: Handler | None = None,
        on_lost: Callable[[int], None] | None = None,
        window_messages: int = WINDOW_MESSAGES,
        window_bytes: int = WINDOW_BYTES,
    ) -> Opening[Subscription]:
        """
        Subscribe to what is published from now on.

        Args:
            subjects: One or more subjects; "*" stands for a token, a last ">" for the rest.
            group: Queue group: each batch goes to one member of it.
            handler: Called with each message; without, iterate over the subscription.
            on_lost: Called with the number of messages lost when this reader is too slow.
            window_messages: Messages waiting in this client at most.
            window_bytes: Bytes waiting in this client at most.
        """
        patterns = [subjects] if isinstance(subjects, str) else list(subjects)
        for pattern in patterns:
            check_pattern(pattern)
        live = event_pb2.LiveSource(subjects=patterns, group=group)
        source = self._source(event_pb2.SubscribeOpen(live=live, takes_several=True))
        subscription = Subscription(
            self._session,
            source,
            handler=handler,
            on_lost=on_lost,
            window_messages=window_messages,
            window_bytes=window_bytes,
        )
        return Opening(lambda: _opened(subscription))

    def read(
        self,
        stream: str,
        *,
        start: Start = "all",
        subjects: str | Sequence[str] = (),
        handler: Handler | None = None,
        window_messages: int = WINDOW_MESSAGES,
        window_bytes: int = WINDOW_BYTES,
    ) -> Opening[Subscription]:
        """
        Read a stream in order, then follow it; nothing is acknowledged.

        After a break reading goes on behind the last message taken, without a gap.

        Args:
            stream: Stream.
            start: "all", "new", "last", a sequence, or a time with its zone.
            subjects: Only these; wildcards allowed.
            handler: Called with each message; without, iterate over the subscription.
            window_messages: Messages waiting in this client at most.
            window_bytes: Bytes waiting in this client at most.
        """
        ordered = event_pb2.OrderedSource(
            stream=stream,
            start=start_of(start),
            subjects=[subjects] if isinstance(subjects, str) else subjects,
        )
        source = self._source(event_pb2.SubscribeOpen(ordered=ordered))

        async def open_() -> Subscription:
            if start == "new":
                # Pinned now: a break before the first message must not move it.
                state = (await self.stream(stream).info()).state
                source.next_sequence = state.last_sequence + 1
            subscription = Subscription(
                self._session,
                source,
                handler=handler,
                window_messages=window_messages,
                window_bytes=window_bytes,
            )
            return await _opened(subscription)

        return Opening(open_)

    def consume(
        self,
        stream: str,
        consumer: str,
        *,
        handler: Handler | None = None,
        auto_ack: bool = True,
        window_messages: int = CONSUMER_WINDOW_MESSAGES,
        window_bytes: int = WINDOW_BYTES,
    ) -> Opening[Subscription]:
        """
        Take a share of a durable consumer; messages must be acknowledged.

        Args:
            stream: Stream.
            consumer: Durable consumer, made before by ``stream(...).consumer(...).create()``.
            handler: Called with each message; without, iterate over the subscription.
            auto_ack: Acknowledge what the handler took, and have delivered again what it raised
                an exception on.
            window_messages: Messages waiting in this client at most.
            window_bytes: Bytes waiting in this client at most.
        """
        share = event_pb2.ConsumerSource(stream=stream, consumer=consumer)
        subscription = Subscription(
            self._session,
            self._source(event_pb2.SubscribeOpen(consumer=share)),
            handler=handler,
            window_messages=window_messages,
            window_bytes=window_bytes,
            auto_ack=auto_ack,
        )
        return Opening(lambda: _opened(subscription))

    async def fetch(
        self,
        stream: str,
        consumer: str,
        *,
        messages_max: int = 100,
        bytes_max: int = 0,
        wait_s: float = 0.0,
    ) -> list[Message]:
        """
        Take the next messages of a durable consumer by one call; they must be acknowledged.

        Args:
            stream: Stream.
            consumer: Durable consumer.
            messages_max: About so many, 1 to 10,000; a batch is never cut.
            bytes_max: Most body bytes; 0 means 1 MiB. At least one batch comes.
            wait_s: How long to wait for the first message, at most 30.
        """
        source = event_pb2.ConsumerSource(stream=stream, consumer=consumer)
        request = event_pb2.FetchRequest(
            consumer=source, messages_max=messages_max, bytes_max=bytes_max
        )
        settler = UnarySettler(self._session, source)
        reader = consumer_reader(stream, consumer)
        ends_s = self._session.clock() + wait_s
        while True:
            left_s = max(0.0, ends_s - self._session.clock())
            response = await self._fetch(request, left_s, repeatable=False)
            messages = messages_of(self._session, response, reader, settler)
            # No message means that there is none, not that what came was refused.
            if messages or not response.deliveries:
                return messages

    async def fetch_from(
        self,
        stream: str,
        *,
        start: Start = "all",
        subjects: Sequence[str] = (),
        messages_max: int = 100,
        bytes_max: int = 0,
        wait_s: float = 0.0,
    ) -> tuple[list[Message], int]:
        """
        Read a part of a stream by one call.

        Returns:
            The messages, and the sequence to read on from.
        """
        ordered = event_pb2.OrderedSource(stream=stream, start=start_of(start), subjects=subjects)
        request = event_pb2.FetchRequest(
            ordered=ordered, messages_max=messages_max, bytes_max=bytes_max
        )
        ends_s = self._session.clock() + wait_s
        while True:
            left_s = max(0.0, ends_s - self._session.clock())
            response = await self._fetch(request, left_s, repeatable=True)
            messages = messages_of(self._session, response, stream_reader(stream))
            if messages or not response.deliveries:
                return messages, int(response.next_sequence)
            request.ordered.start.sequence = response.next_sequence

    async def _fetch(
        self, request: event_pb2.FetchRequest, wait_s: float, *, repeatable: bool
    ) -> event_pb2.FetchResponse:
        request.node_id = self._session.options.node_id
        fit_fetch(self._session.channel, request)
        request.ClearField("wait")
        if wait_s:
            request.wait.CopyFrom(to_duration(wait_s))
        response: event_pb2.FetchResponse = await self._session.unary(
            self._stub.Fetch,
            request,
            timeout_s=max(self._session.options.timeout_s, wait_s + FETCH_WAIT_SLACK_S),
            metadata=PRIORITY_EVENTS,
            repeatable=repeatable,
        )
        return response

    # Streams.

    def stream(self, name: str) -> StreamHandle:
        """A stream, by name, to make, look at, change or delete it."""
        return StreamHandle(self._session, name)

    async def streams(self) -> AsyncIterator[event_pb2.Stream]:
        """All streams, by name."""
        token = ""
        while True:
            request = event_pb2.ListStreamsRequest(page_token=token)
            page = await self._session.unary(self._stub.ListStreams, request)
            for stream in page.streams:
                yield stream
            token = page.next_page_token
            if not token:
                return

    def _source(self, request: event_pb2.SubscribeOpen) -> Source:
        options = self._session.options
        request.client_id = options.name
        request.node_id = options.node_id
        request.codecs.extend(self._session.codecs_readable)
        return Source(request)


async def _opened(subscription: Subscription) -> Subscription:
    await subscription.open()
    return subscription


__all__ = ("Events", "Message", "PublishAck", "Publisher", "Subscription")
