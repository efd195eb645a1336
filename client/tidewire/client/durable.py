"""Streams and durable consumers, by name: made, looked at, changed, deleted."""

from collections.abc import AsyncIterator, Sequence

from tidewire.client.naming import Durability, Start, discard_of, durability_of, start_of
from tidewire.client.session import Session
from tidewire.client.times import to_duration
from tidewire.errors import InvalidArgument
from tidewire.v1 import event_pb2
from tidewire.v1.event_pb2_grpc import EventServiceStub


class ConsumerHandle:
    """A durable consumer of a stream, by name; nothing is asked of the server before a call."""

    def __init__(self, session: Session, stream: str, name: str) -> None:
        self.stream = stream
        self.name = name
        self._session = session
        self._stub = EventServiceStub(session.channel)

    async def create(
        self,
        *,
        subjects: Sequence[str] = (),
        start: Start = "all",
        ack_wait_s: float | None = None,
        backoff_s: Sequence[float] = (),
        deliveries_max: int = 0,
        dead_letter_stream: str = "",
        ack_pending_max: int = 0,
        description: str = "",
    ) -> event_pb2.Consumer:
        """
        Make it; making the same one again succeeds.

        Args:
            subjects: Which messages, wildcards allowed; none means all of the stream.
            start: Where it starts, once: "new", "all", "last", a sequence or a time.
            ack_wait_s: Time in which a delivery must be settled; by default 30 s.
            backoff_s: Waits before the second, third, ... delivery; the last one repeats.
            deliveries_max: Deliveries before a message is given up; 0 means no limit.
            dead_letter_stream: Where messages go that are given up; empty: they are dropped.
            ack_pending_max: Most unsettled messages; 0 means 1,000.
            description: For people.

        Raises:
            StreamNotFound, ConsumerExists, InvalidArgument: It cannot be made.
        """
        config = event_pb2.ConsumerConfig(
            name=self.name,
            subjects=subjects,
            start=start_of(start),
            backoff=[to_duration(wait) for wait in backoff_s],
            deliveries_max=deliveries_max,
            dead_letter_stream=dead_letter_stream,
            ack_pending_max=ack_pending_max,
            description=description,
        )
        if ack_wait_s is not None:
            config.ack_wait.CopyFrom(to_duration(ack_wait_s))
        request = event_pb2.CreateConsumerRequest(stream=self.stream, config=config)
        response = await self._session.unary(self._stub.CreateConsumer, request)
        consumer: event_pb2.Consumer = response.consumer
        return consumer

    async def info(self) -> event_pb2.Consumer:
        """Configuration and state. Error: ConsumerNotFound."""
        request = event_pb2.GetConsumerRequest(stream=self.stream, consumer=self.name)
        response = await self._session.unary(self._stub.GetConsumer, request)
        consumer: event_pb2.Consumer = response.consumer
        return consumer

    async def delete(self) -> None:
        """Delete it. Error: ConsumerNotFound."""
        request = event_pb2.DeleteConsumerRequest(stream=self.stream, consumer=self.name)
        await self._session.unary(self._stub.DeleteConsumer, request, repeatable=False)


class StreamHandle:
    """A durable stream, by name; nothing is asked of the server before a call."""

    def __init__(self, session: Session, name: str) -> None:
        self.name = name
        self._session = session
        self._stub = EventServiceStub(session.channel)

    async def create(
        self,
        subjects: Sequence[str] | str,
        *,
        messages_max: int = 0,
        bytes_max: int = 0,
        age_max_s: float | None = None,
        discard: str = "old",
        dedup_window_s: float | None = None,
        durability: Durability | None = None,
        description: str = "",
    ) -> event_pb2.Stream:
        """
        Make it; making the same one again succeeds.

        Args:
            subjects: Subjects it takes, wildcards allowed; of no other stream.
            messages_max: Most messages kept; 0 means no limit.
            bytes_max: Most bytes kept; 0 means no limit.
            age_max_s: Oldest age kept; ``None`` means no limit.
            discard: At a limit "old" messages go, or "new" ones are refused.
            dedup_window_s: Time in which a message id is stored once; by default 120 s.
            durability: Level of acknowledgements when the publisher does not say; FSYNC.
            description: For people.

        Raises:
            StreamExists, SubjectOverlap, InvalidSubject, InvalidArgument: It cannot be made.
        """
        config = event_pb2.StreamConfig(
            name=self.name,
            subjects=[subjects] if isinstance(subjects, str) else subjects,
            messages_max=messages_max,
            bytes_max=bytes_max,
            discard=discard_of(discard),
            durability=durability_of(durability),
            description=description,
        )
        if age_max_s is not None:
            config.age_max.CopyFrom(to_duration(age_max_s))
        if dedup_window_s is not None:
            config.dedup_window.CopyFrom(to_duration(dedup_window_s))
        request = event_pb2.CreateStreamRequest(config=config)
        response = await self._session.unary(self._stub.CreateStream, request)
        stream: event_pb2.Stream = response.stream
        return stream

    async def info(self) -> event_pb2.Stream:
        """Configuration and state. Error: StreamNotFound."""
        request = event_pb2.GetStreamRequest(name=self.name)
        response = await self._session.unary(self._stub.GetStream, request)
        stream: event_pb2.Stream = response.stream
        return stream

    async def update(
        self,
        *,
        subjects: Sequence[str] | None = None,
        messages_max: int | None = None,
        bytes_max: int | None = None,
        age_max_s: float | None = None,
        discard: str | None = None,
        paused: bool | None = None,
        description: str | None = None,
    ) -> event_pb2.Stream:
        """
        Change what is given and leave the rest as it is.

        An `age_max_s` of 0 takes the limit away. Errors: StreamNotFound, SubjectOverlap.
        """
        config = (await self.info()).config
        if subjects is not None:
            del config.subjects[:]
            config.subjects.extend(subjects)
        if messages_max is not None:
            config.messages_max = messages_max
        if bytes_max is not None:
            config.bytes_max = bytes_max
        if age_max_s is not None:
            config.ClearField("age_max")
            if age_max_s:
                config.age_max.CopyFrom(to_duration(age_max_s))
        if discard is not None:
            config.discard = discard_of(discard)
        if paused is not None:
            config.paused = paused
        if description is not None:
            config.description = description
        request = event_pb2.UpdateStreamRequest(config=config)
        response = await self._session.unary(self._stub.UpdateStream, request)
        stream: event_pb2.Stream = response.stream
        return stream

    async def delete(self) -> int:
        """Delete it with its messages and consumers; returns how many messages went."""
        request = event_pb2.DeleteStreamRequest(name=self.name)
        response = await self._session.unary(self._stub.DeleteStream, request, repeatable=False)
        return int(response.messages)

    async def purge(self, through: int = 0) -> int:
        """Delete messages up to a sequence, 0 for all; returns how many went."""
        if through < 0:
            raise InvalidArgument(f"a sequence is not negative, this one is {through}")
        request = event_pb2.PurgeStreamRequest(name=self.name, through=through)
        response = await self._session.unary(self._stub.PurgeStream, request, repeatable=False)
        return int(response.messages)

    def consumer(self, name: str) -> ConsumerHandle:
        """A consumer of this stream."""
        return ConsumerHandle(self._session, self.name, name)

    async def consumers(self) -> AsyncIterator[event_pb2.Consumer]:
        """All consumers of this stream, by name."""
        token = ""
        while True:
            request = event_pb2.ListConsumersRequest(stream=self.name, page_token=token)
            page = await self._session.unary(self._stub.ListConsumers, request)
            for consumer in page.consumers:
                yield consumer
            token = page.next_page_token
            if not token:
                return
