"""
Publishing, pipelined: what is published in one turn of the event loop travels in one batch.

Nothing waits for a timer. While the wire pushes back, or the server's credit is used up, messages
gather in the open batch of their subject, up to the limits. What was sent and not answered when a
stream breaks is sent again; streams recognise it by producer id, epoch and sequence.
"""

import asyncio
import uuid
from collections import deque
from collections.abc import Iterator
from typing import Final

from tidewire.client.gathering import ApartItem, Group
from tidewire.client.intake import BATCH_BYTES_MAX, Intake, Request
from tidewire.client.lanes import Item, Lanes
from tidewire.client.polled_events import event_stub
from tidewire.client.session import PRIORITY_BULK, PRIORITY_EVENTS, Session, check_codec, log
from tidewire.client.together import SMALL_BYTES, together
from tidewire.errors import ConnectionLost, TidewireError
from tidewire.errors import from_status as error_of
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import PAYLOAD_BYTES_MAX
from tidewire.wire.codec import CodecName

PENDING_BYTES_MAX: Final = 16 * 1024 * 1024
"""Payload bytes published and not answered, before `publish` waits."""
LANES_MAX: Final = 4_096


class Publisher(Intake):
    """
    A pipelined publisher. Only one task of one event loop at a time may flush it; any may publish.

    Attributes, besides those of `Intake`:
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
        super().__init__(
            session,
            stub.PublishStream,
            metadata,
            acknowledge=acknowledge,
            codec=codec,
            durability=durability,
            stream=stream,
            pending_bytes_max=pending_bytes_max,
        )
        self.published = 0
        self.failed = 0
        self.resent = 0
        self._ready: deque[Item] = deque()
        self._sent: dict[int, Item] = {}
        self._lanes = Lanes(uuid.uuid4().hex[:16], LANES_MAX) if acknowledge else None
        self._signer = session.options.signer
        self._publish_id = 0
        self._credit: common_pb2.Credit | None = None
        self._takes_several = False
        self._messages_sent = 0
        self._bytes_sent = 0
        self._timers: set[asyncio.TimerHandle] = set()

    # What the application calls.

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
    def gathering(self) -> bool:
        """Messages wait for their batch to be sent."""
        return bool(self._groups or self._full or self._ready)

    @property
    def ended(self) -> bool:
        """It was closed, or failed for good."""
        return self._task is None or self._task.done()

    def _busy(self) -> bool:
        return bool(
            self._groups
            or self._full
            or self._ready
            or self._sent
            or (self._lanes is not None and self._lanes.held)
        )

    # Making batches of them.

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
        self._takes_several = opened.takes_several
        self._payload_bytes_max = opened.limits.payload_bytes_max or PAYLOAD_BYTES_MAX
        self.batch_bytes_max = min(BATCH_BYTES_MAX, self._payload_bytes_max)
        self._publish_id = self._messages_sent = self._bytes_sent = 0

    def _outgoing(self) -> Iterator[Request]:
        requests = self._requests()
        return together(requests) if self._takes_several else (one for _, one in requests)

    def _requests(self) -> Iterator[tuple[int, Request]]:
        """Take what is ready to be sent: what it weighs for `together`, and the request."""
        while not self._draining:
            if not self._ready:
                group = self._next_group()
                if group is None:
                    return
                self._enqueue(self._seal(group))
                continue
            item = self._ready[0]
            if not self._has_credit(item):
                return
            self._ready.popleft()
            # Each id is a field, of which a server takes so many in a request: they travel alone.
            alone = len(item.batch.message_ids) > 1
            yield (SMALL_BYTES + 1 if alone else item.body_bytes), self._send(item)

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

    def _send(self, item: Item) -> Request:
        self._publish_id += 1
        self._messages_sent += item.count
        self._bytes_sent += item.body_bytes
        if self._acknowledge:
            self._sent[self._publish_id] = item
        else:
            self.published += item.count
            self._release(item)
        item.message.publish.publish_id = self._publish_id
        if self._signer is not None:
            # Only now: its numbers in its lane are final, and what is sent again is signed anew.
            self._signer.sign(item.batch)
        return item.sealed() if isinstance(item, ApartItem) else item.message

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
        self._let_go()
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
