"""
Taking messages: what is published gathers in the open batch of its subject, bounded in bytes.

Most messages find room in an open batch, which was granted to it in pieces; only the others wait.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from tidewire.client.gathering import MESSAGE_COST_BYTES, Group, cost_of
from tidewire.client.lanes import Item, PublishAck
from tidewire.client.polled import carries_streams
from tidewire.client.quick import quick_publish
from tidewire.client.session import Metadata, Session
from tidewire.client.stream import ReopeningStream
from tidewire.client.turn import Turn
from tidewire.errors import DeadlineExceeded, InvalidArgument, MessageTooLarge, TidewireError
from tidewire.transport.intercepted import interceptors_of
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import PAYLOAD_BYTES_MAX, Headers, check_headers
from tidewire.wire.codec import CodecName
from tidewire.wire.payload import Value, as_bytes
from tidewire.wire.spliced import Spliced
from tidewire.wire.subject import check_subject

BATCH_BYTES_MAX: Final = 240 * 1024
"""A batch is closed before it passes this, unless one message is larger."""
GRANT_BYTES_LEAST: Final = 1_024

AckFuture = asyncio.Future[PublishAck]


Request: TypeAlias = event_pb2.PublishStreamRequest | Spliced


class Intake(ReopeningStream[Request, event_pb2.PublishStreamResponse]):
    """
    The application's side of a publisher.

    Attributes:
        batch_bytes_max: A batch is closed before it passes this, unless one message is larger.
    """

    def __init__(
        self,
        session: Session,
        method: Callable[..., Any],
        metadata: Metadata,
        *,
        acknowledge: bool,
        codec: CodecName,
        durability: common_pb2.Durability.ValueType,
        stream: str,
        pending_bytes_max: int,
    ) -> None:
        super().__init__(session, "a publisher", method, metadata)
        if pending_bytes_max < 1:
            raise InvalidArgument(f"pending_bytes_max is {pending_bytes_max}; it must be positive")
        self._acknowledge = acknowledge
        self._codec = codec
        self._durability = durability
        self._stream = stream
        self._pending_bytes_max = pending_bytes_max
        # A signer signs the whole batch, what is polled makes other requests of it, and
        # interceptors know requests as they are in the proto.
        self._apart = (
            session.options.signer is None
            and carries_streams(session.channel)
            and not interceptors_of(session.channel)
        )
        self._payload_bytes_max = PAYLOAD_BYTES_MAX
        self.batch_bytes_max = BATCH_BYTES_MAX
        self._pending_bytes = 0
        # Of a plain dict, which keeps the places of what was taken out, the first is found slowly.
        self._groups: OrderedDict[str, Group] = OrderedDict()
        self._full: deque[Group] = deque()
        self._failure: TidewireError | None = None
        self._unreached: TidewireError | None = None
        self._room = asyncio.Event()
        self._turn = Turn()
        done: asyncio.Future[None] = session.loop.create_future()
        done.set_result(None)
        quick, self._let_go = quick_publish(self._groups, done, self._publish)
        # The method below is what is documented; a closure in its place costs 60 ns less a call.
        self.publish = quick  # type: ignore[method-assign]

    def _enqueue(self, item: Item) -> None:
        """Take a batch that is to be sent."""
        raise NotImplementedError

    # What the application calls.

    def publish(self, subject: str, data: Value, headers: Headers | None = None) -> Awaitable[None]:
        """
        Publish one message; to be awaited. Done when it is in a batch, before it is acknowledged.

        Waits only while `pending_bytes_max` bytes are not answered, at most the client's timeout.

        Args:
            subject: Subject; no wildcards.
            data: Payload; text becomes UTF-8.
            headers: Application headers.

        Raises:
            TidewireError: This message cannot be sent, or one before it was refused (told once).
        """
        return self._publish(subject, data, headers)  # not reached: see `quick_publish`

    async def submit(self, subject: str, data: Value, headers: Headers | None = None) -> AckFuture:
        """Publish one message and return the future of its acknowledgement."""
        if not self._acknowledge:
            raise InvalidArgument("a publisher with acknowledge=False has no acknowledgements")
        future: AckFuture = self._session.loop.create_future()
        self._let_go()
        group = self._groups.get(subject)
        if group is not None and headers is None and type(data) is bytes:
            left = group.left - len(data) - MESSAGE_COST_BYTES
            if left >= 0 and group.headers is None:
                group.left = left
                group.waiters.append((len(group.payloads), future))
                group.append(data)
                return future
        await self._admit(subject, as_bytes(data), headers, future)
        return future

    async def submit_batch(self, batch: common_pb2.Batch) -> AckFuture:
        """Publish a batch of one's own making and return the future of its first message's ack."""
        check_subject(batch.subject)
        self._close_group(batch.subject)
        size = len(batch.body)
        await self._wait_for_room(size)
        self._pending_bytes += size
        future: AckFuture = self._session.loop.create_future()
        while self._full:  # what was published before goes before
            self._enqueue(self._seal(self._full.popleft()))
        message = self._message()
        message.publish.request.batch.CopyFrom(batch)
        self._enqueue(Item(message, size, size, [(0, future)]))
        self._wake.set()
        return future

    @property
    def pending_bytes(self) -> int:
        """Bytes published and not answered, as counted against `pending_bytes_max`."""
        return self._pending_bytes

    def raise_failure(self) -> None:
        """Raise what went wrong since the last call, once."""
        failure = self._failure
        if failure is not None:
            self._failure = None
            raise failure
        self._raise_if_ended()

    # Gathering.

    async def _publish(self, subject: str, data: Value, headers: Headers | None) -> None:
        self.raise_failure()
        await self._admit(subject, as_bytes(data), headers, None)

    async def _admit(
        self, subject: str, data: bytes, headers: Headers | None, future: AckFuture | None
    ) -> None:
        self._raise_if_ended()
        if future is not None:
            self._raise_if_unreached()
        if headers:
            check_headers(headers)
        size = cost_of(data, headers)
        if size > self._payload_bytes_max:
            raise MessageTooLarge(
                f"a message of {size} bytes does not fit the limit of {self._payload_bytes_max}",
                metadata={"bytes": size, "bytes_max": self._payload_bytes_max},
            )
        group = await self._group_for(subject, size, with_headers=bool(headers))
        if future is not None:
            group.waiters.append((len(group.payloads), future))
        group.left -= size
        group.append(data)
        if group.headers is not None:
            group.headers.append(headers or ())

    async def _group_for(self, subject: str, size: int, *, with_headers: bool) -> Group:
        """Return the open batch of a subject, with room for so many bytes."""
        while True:
            self._raise_if_ended()  # it may have, while others had the loop
            self._let_go()
            group = self._groups.get(subject)
            if group is not None and group.payloads:
                other_form = (group.headers is not None) != with_headers
                if other_form or group.used + size > self.batch_bytes_max:
                    self._close_group(subject)
                    self._wake.set()
                    await self._turn.end()  # the writer's: a busy publisher must not starve it
                    continue
            if group is None:
                check_subject(subject)
                grant = max(size, min(GRANT_BYTES_LEAST, self.batch_bytes_max))
            elif size <= group.left:
                return group
            else:
                grant = max(min(group.granted, self.batch_bytes_max - group.granted), size)
            if self._pending_bytes and self._pending_bytes + grant > self._pending_bytes_max:
                await self._wait_for_room(grant)
                self._turn.begin()
                continue
            if not self._groups:
                self._turn.begin()  # the writer has taken all, in a turn of its own
            elif self._turn.is_over:
                await self._turn.end()
                continue
            self._pending_bytes += grant
            if group is None:
                group = self._groups[subject] = Group(subject, with_headers=with_headers)
                self._wake.set()
            group.granted += grant
            group.left += grant

    async def _wait_for_room(self, size: int) -> None:
        limit_s = self._session.options.timeout_s
        await self._wait_while(
            lambda: (
                bool(self._pending_bytes) and self._pending_bytes + size > self._pending_bytes_max
            ),
            limit_s,
            lambda: (
                f"{self._pending_bytes} bytes are not answered, the limit is "
                f"{self._pending_bytes_max}; nothing moved for {limit_s:g} s"
            ),
        )

    async def _wait_while(
        self, holds: Callable[[], bool], limit_s: float, late: Callable[[], str]
    ) -> None:
        """Wait for the server as long as something holds; ``late`` says what took too long."""
        try:
            async with asyncio.timeout(limit_s):
                while holds():
                    self._raise_if_unreached()
                    self._raise_if_ended()
                    self._room.clear()
                    self._wake.set()
                    await self._room.wait()
        except TimeoutError:
            raise DeadlineExceeded(late()) from None

    def _close_group(self, subject: str) -> None:
        self._let_go()
        group = self._groups.pop(subject, None)
        if group is not None:
            self._full.append(group)

    def _seal(self, group: Group) -> Item:
        return group.seal(self._message(), self._codec, apart=self._apart)

    def _message(self) -> event_pb2.PublishStreamRequest:
        message = event_pb2.PublishStreamRequest()
        request = message.publish.request
        request.durability = self._durability
        request.expected_stream = self._stream
        return message

    def _release(self, item: Item) -> None:
        self._pending_bytes -= item.granted
        self._room.set()

    def _raise_if_unreached(self) -> None:
        if self._unreached is not None:
            raise self._unreached
