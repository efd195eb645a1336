"""
Publishing, pipelined: what is published in one turn of the event loop travels in one batch.

Nothing waits for a timer. While the wire pushes back, or the server's credit is used up, messages
gather in the open batch of their subject, up to the limits. What was sent and not answered when a
stream breaks is sent again; streams recognise it by producer id, epoch and sequence.
"""

import asyncio
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from tidewire.client.gathering import MESSAGE_COST_BYTES, Group, cost_of
from tidewire.client.lanes import Item, Lanes, PublishAck
from tidewire.client.polled_events import event_stub
from tidewire.client.session import PRIORITY_BULK, PRIORITY_EVENTS, Session, check_codec, log
from tidewire.client.stream import ReopeningStream
from tidewire.errors import (
    ConnectionLost,
    DeadlineExceeded,
    InvalidArgument,
    MessageTooLarge,
    TidewireError,
)
from tidewire.errors import from_status as error_of
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import PAYLOAD_BYTES_MAX, Headers, check_headers
from tidewire.wire.codec import CodecName
from tidewire.wire.payload import Value, as_bytes
from tidewire.wire.subject import check_subject

BATCH_BYTES_MAX: Final = 240 * 1024
"""A batch is closed before it passes this, unless one message is larger."""
PENDING_BYTES_MAX: Final = 16 * 1024 * 1024
"""Payload bytes published and not answered, before `publish` waits."""
GRANT_BYTES_LEAST: Final = 1_024
LANES_MAX: Final = 4_096

AckFuture = asyncio.Future[PublishAck]


class Publisher(ReopeningStream[event_pb2.PublishStreamRequest, event_pb2.PublishStreamResponse]):
    """
    A pipelined publisher. Only one task of one event loop at a time may flush it; any may publish.

    Attributes:
        batch_bytes_max: A batch is closed before it passes this, unless one message is larger.
        published: Messages acknowledged, or handed to the wire when nothing is acknowledged.
        failed: Messages that were refused or given up.
        resent: Messages sent again after a break.
    """

    def __init__(
        self,
        session: Session,
        *,
        acknowledge: bool = True,
        codec: CodecName = common_pb2.CODEC_NONE,
        durability: common_pb2.Durability.ValueType = common_pb2.DURABILITY_UNSPECIFIED,
        stream: str = "",
        pending_bytes_max: int = PENDING_BYTES_MAX,
        bulk: bool = False,
    ) -> None:
        stub = event_stub(session)
        metadata = PRIORITY_BULK if bulk else PRIORITY_EVENTS
        super().__init__(session, "a publisher", stub.PublishStream, metadata)
        if pending_bytes_max < 1:
            raise InvalidArgument(f"pending_bytes_max is {pending_bytes_max}; it must be positive")
        self.published = 0
        self.failed = 0
        self.resent = 0
        self._acknowledge = acknowledge
        self._codec = codec
        self._durability = durability
        self._stream = stream
        self._pending_bytes_max = pending_bytes_max
        self._payload_bytes_max = PAYLOAD_BYTES_MAX
        self.batch_bytes_max = BATCH_BYTES_MAX
        self._pending_bytes = 0
        self._groups: dict[str, Group] = {}
        self._full: deque[Group] = deque()
        self._ready: deque[Item] = deque()
        self._sent: dict[int, Item] = {}
        self._lanes = Lanes(uuid.uuid4().hex[:16], LANES_MAX) if acknowledge else None
        self._publish_id = 0
        self._credit: common_pb2.Credit | None = None
        self._messages_sent = 0
        self._bytes_sent = 0
        self._failure: TidewireError | None = None
        self._unreached: TidewireError | None = None
        self._room = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()
        self._done: asyncio.Future[None] = session.loop.create_future()
        self._done.set_result(None)

    # What the application calls.

    def publish(
        self, subject: str, data: Value, *, headers: Headers | None = None
    ) -> Awaitable[None]:
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
        # The short way costs half of a coroutine: most messages find room in an open batch.
        group = self._groups.get(subject)
        if group is not None and headers is None and type(data) is bytes:
            left = group.left - len(data) - MESSAGE_COST_BYTES
            if left >= 0 and group.headers is None:
                group.left = left
                group.append(data)
                return self._done
        return self._publish(subject, data, headers)

    async def submit(self, subject: str, data: Value, headers: Headers | None = None) -> AckFuture:
        """Publish one message and return the future of its acknowledgement."""
        if not self._acknowledge:
            raise InvalidArgument("a publisher with acknowledge=False has no acknowledgements")
        future: AckFuture = self._session.loop.create_future()
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
            self._enqueue(self._full.popleft().seal(self._message(), self._codec))
        message = self._message()
        message.publish.request.batch.CopyFrom(batch)
        self._enqueue(Item(message, size, size, [(0, future)]))
        self._wake.set()
        return future

    async def flush(self, *, timeout_s: float | None = None) -> None:
        """
        Wait until everything published so far is acknowledged, or sent where nothing is.

        Raises:
            DeadlineExceeded: It took longer than `timeout_s`, by default the client's.
            TidewireError: A message since the last call was refused.
        """
        limit_s = self._session.options.timeout_s if timeout_s is None else timeout_s
        await self._wait_while(
            self._busy,
            limit_s,
            lambda: (
                f"{len(self._sent)} batches were not acknowledged within {limit_s:g} s; they "
                f"are still being sent (connected: {self.connected})"
            ),
        )
        self.raise_failure()

    async def close(self) -> None:
        """Flush, then end; what cannot be sent within the client's timeout fails."""
        if not self._closing and self._task is not None and not self._task.done():
            try:
                await self.flush()
            except TidewireError as error:
                log.warning("closing %s: %s", self.what, error)
            # To cancel would drop what is on its way, which for a publisher without
            # acknowledgements nobody would notice.
            await self._end_requests()
        await super().close()

    @property
    def timeout_s(self) -> float:
        """How long a call waits when nothing moves."""
        return self._session.options.timeout_s

    @property
    def pending_bytes(self) -> int:
        """Bytes published and not answered, as counted against `pending_bytes_max`."""
        return self._pending_bytes

    @property
    def gathering(self) -> bool:
        """Messages wait for their batch to be sent."""
        return bool(self._groups or self._full or self._ready)

    @property
    def ended(self) -> bool:
        """It was closed, or failed for good."""
        return self._task is None or self._task.done()

    def raise_failure(self) -> None:
        """Raise what went wrong since the last call, once."""
        failure = self._failure
        if failure is not None:
            self._failure = None
            raise failure
        self._raise_if_ended()

    # Taking messages.

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
            group = self._groups.get(subject)
            if group is not None and group.payloads:
                other_form = (group.headers is not None) != with_headers
                if other_form or group.used + size > self.batch_bytes_max:
                    self._close_group(subject)
                    self._wake.set()
                    await asyncio.sleep(0)  # the writer's turn: a busy publisher must not starve it
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
        group = self._groups.pop(subject, None)
        if group is not None:
            self._full.append(group)

    def _busy(self) -> bool:
        return bool(
            self._groups
            or self._full
            or self._ready
            or self._sent
            or (self._lanes is not None and self._lanes.held)
        )

    # Making batches of them.

    def _message(self) -> event_pb2.PublishStreamRequest:
        message = event_pb2.PublishStreamRequest()
        request = message.publish.request
        request.durability = self._durability
        request.expected_stream = self._stream
        return message

    def _enqueue(self, item: Item) -> None:
        if self._lanes is None or self._lanes.enter(item):
            self._ready.append(item)

    # The stream.

    async def _first_request(self) -> event_pb2.PublishStreamRequest:
        options = self._session.options
        opening = event_pb2.PublishOpen(client_id=options.name, quiet=not self._acknowledge)
        return event_pb2.PublishStreamRequest(open=opening)

    def _opened(self, opened: common_pb2.Opened) -> None:
        check_codec(self._codec, opened)
        self._unreached = None
        self._credit = opened.credit if opened.HasField("credit") else None
        self._payload_bytes_max = opened.limits.payload_bytes_max or PAYLOAD_BYTES_MAX
        self.batch_bytes_max = min(BATCH_BYTES_MAX, self._payload_bytes_max)
        self._publish_id = self._messages_sent = self._bytes_sent = 0

    def _outgoing(self) -> Iterator[event_pb2.PublishStreamRequest]:
        while not self._draining:
            if not self._ready:
                group = self._next_group()
                if group is None:
                    return
                self._enqueue(group.seal(self._message(), self._codec))
                continue
            item = self._ready[0]
            if not self._has_credit(item):
                return
            self._ready.popleft()
            yield self._send(item)

    def _next_group(self) -> Group | None:
        """Messages for the next batch; without credit they go on gathering."""
        if not self._full and not self._groups:
            return None
        room = None if self._credit is None else self._credit.messages_until - self._messages_sent
        if room is not None and room <= 0:
            return None
        if not self._full:
            self._close_group(next(iter(self._groups)))
        group = self._full.popleft()
        if room is not None and len(group.payloads) > room:
            self._full.appendleft(group)
            return group.split(room)
        return group

    def _has_credit(self, item: Item) -> bool:
        credit = self._credit
        return credit is None or (
            self._messages_sent + item.count <= credit.messages_until
            and self._bytes_sent + item.body_bytes <= credit.bytes_until
        )

    def _send(self, item: Item) -> event_pb2.PublishStreamRequest:
        self._publish_id += 1
        self._messages_sent += item.count
        self._bytes_sent += item.body_bytes
        if self._acknowledge:
            self._sent[self._publish_id] = item
        else:
            self.published += item.count
            self._release(item)
        item.message.publish.publish_id = self._publish_id
        return item.message

    def _received(self, kind: str, response: event_pb2.PublishStreamResponse) -> None:
        if kind == "results":
            for result in response.results.result:
                self._settle(result)
        elif kind == "credit":
            self._credit = response.credit
            self._wake.set()

    def _settle(self, result: event_pb2.PublishResult) -> None:
        item = self._sent.pop(result.publish_id, None)
        if item is None:
            if result.WhichOneof("outcome") == "error":  # of a quiet publisher
                self.failed += 1
                self._failure = error_of(result.error)
            return
        if result.WhichOneof("outcome") == "error":
            self._refused(item, error_of(result.error))
        else:
            self.published += item.count
            if self._lanes is not None:
                self._lanes.succeeded(item)
            item.resolve(result.response)
            self._release(item)
        self._restart_lane(item)

    def _refused(self, item: Item, error: TidewireError) -> None:
        if self._lanes is not None and self._lanes.refused(item, error):
            return  # held, and tried again
        self._give_up(item, error)

    def _give_up(self, item: Item, error: TidewireError) -> None:
        self.failed += item.count
        if item.reject(error) < item.count:
            self._failure = error
        self._release(item)

    def _restart_lane(self, item: Item) -> None:
        if self._lanes is None:
            return
        delay_s = self._lanes.restart_after_s(item)
        if delay_s is None:
            return
        if delay_s == 0.0:
            self._restart(item)
            return
        timer = self._session.loop.call_later(delay_s, self._restart, item)
        self._timers.add(timer)

    def _restart(self, item: Item) -> None:
        now_s = self._session.loop.time()
        self._timers = {timer for timer in self._timers if timer.when() > now_s}
        if self._lanes is not None:
            self._ready.extend(self._lanes.restart(item))
            self._wake.set()

    def _release(self, item: Item) -> None:
        self._pending_bytes -= item.granted
        self._room.set()

    def _out_of_reach(self, error: TidewireError) -> None:
        """Who waits for an acknowledgement is told; what is published is still to be sent."""
        limit_s = self._session.options.connect_timeout_s
        self._unreached = problem = ConnectionLost(
            f"the server was not reached for {limit_s:g} s; what was published before may still be "
            f"stored when it comes back: {error.message}"
        )
        items = [*self._sent.values(), *self._ready]
        if self._lanes is not None:
            items.extend(self._lanes.held_items())
        for item in items:
            item.reject(problem)
        for group in (*self._full, *self._groups.values()):
            group.reject(problem)
        self._room.set()

    def _raise_if_unreached(self) -> None:
        if self._unreached is not None:
            raise self._unreached

    def _broken(self) -> None:
        """Everything that was sent and not answered goes again, in the order it was made."""
        again = list(self._sent.values())
        self._sent.clear()
        for item in again:
            item.sends += 1
            self.resent += item.count
        self._ready.extendleft(reversed(again))

    def _ended(self, error: TidewireError | None) -> None:
        for timer in self._timers:
            timer.cancel()
        problem = error or ConnectionLost(f"{self.what} was closed")
        self._full.extend(self._groups.values())
        self._groups.clear()
        items = [*self._sent.values(), *self._ready]
        items.extend(group.abandon() for group in self._full)
        if self._lanes is not None:
            items.extend(self._lanes.take_held())
        self._sent.clear()
        self._ready.clear()
        self._full.clear()
        for item in items:
            self._give_up(item, problem)
        self._room.set()
