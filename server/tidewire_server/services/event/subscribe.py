"""
One subscription: a call that takes credit and acknowledgements and gives events.

The handler itself writes; one task beside it reads. Nothing is queued here but answers to
acknowledgements, which are bounded; events wait in the source, by its rules.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from tidewire.errors import (
    Internal,
    InvalidArgument,
    PeerTooSlow,
    ProtocolOrder,
    SlowConsumer,
    StreamNotFound,
    TidewireError,
)
from tidewire.v1 import event_pb2
from tidewire.wire.spliced import Spliced
from tidewire_server.core import Context
from tidewire_server.services.event.allowance import Allowance
from tidewire_server.services.event.checks import (
    CLIENT_ID_BYTES_MAX,
    IDLE_BOOKMARK_S_DEFAULT,
    IDLE_BOOKMARK_S_MIN,
    check_ack,
    check_codecs,
    check_start,
    check_text,
    named,
    patterns,
    seconds,
)
from tidewire_server.services.event.consumer import ConsumerSubscriber
from tidewire_server.services.event.delivery import Response
from tidewire_server.services.event.exchange import Exchange
from tidewire_server.services.event.follow import StreamFollower
from tidewire_server.services.event.signal import Signal
from tidewire_server.services.event.sources import (
    ConsumerEvents,
    LiveEvents,
    OrderedEvents,
    Source,
    bookmark,
    first_position,
)

log = logging.getLogger(__name__)

OPEN_WAIT_S: Final = 10.0
"""The first request must be there within this time."""
ANSWERS_MAX: Final = 1024
"""Unanswered acknowledgements from which on no more are read."""
WRITE_BYTES_PER_S_MIN: Final = 256 * 1024
"""A response may take this much longer than a stall by its size."""
STALL_LOOKS: Final = 4
"""How often the stall of a subscriber is looked for within the time it may take."""

Requests = AsyncIterator[event_pb2.SubscribeRequest]


class SubscribeSession:
    """Serves one call of ``Subscribe``."""

    def __init__(self, exchange: Exchange, requests: Requests, context: Context) -> None:
        self._exchange = exchange
        self._core = exchange.core
        self._requests = requests
        self._context = context
        self._source: Source
        self._allowance = Allowance()
        self._control: deque[event_pb2.SubscribeResponse] = deque()
        self._unanswered = 0
        self._answered = Signal()
        self._error: TidewireError | None = None
        self._is_half_closed = False
        self._is_draining = False
        self._is_ended = False
        self._idle_s = IDLE_BOOKMARK_S_DEFAULT
        self._written_at = self._core.clock()
        self._writing: Response | None = None
        self._bookmark_due = False
        self._mark: float | None = None
        self._mark_at = self._written_at
        self._stalled_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._scope = asyncio.timeout(None)

    async def run(self) -> None:
        """Serve until the client goes, the server goes, or something is wrong."""
        open_ = await self._read_open()
        self._source = await self._open(open_)
        try:
            opened = event_pb2.SubscribeResponse(opened=self._core.opened())
            await self._context.write(opened)
            self._exchange.add_session(self)
            self._look()
            await self._serve()
        finally:
            self._exchange.remove_session(self)
            self._source.close()

    # Hearing of the end of the server.

    def drain(self) -> None:
        """Say that the server is going, and end when nothing is left undone."""
        self._is_draining = True
        self._control.append(event_pb2.SubscribeResponse(draining=self._core.drain.message()))
        self._source.drain()
        self.wake()

    def end(self) -> None:
        """End now, cleanly."""
        self._is_ended = True
        self.wake()

    def wake(self) -> None:
        """Look again for something to write, or whether to end."""
        self._source.signal.set()

    # Opening.

    async def _read_open(self) -> event_pb2.SubscribeOpen:
        try:
            async with asyncio.timeout(OPEN_WAIT_S):
                request = await anext(self._requests, None)
        except TimeoutError:
            raise PeerTooSlow(f"no `open` within {OPEN_WAIT_S:g} s") from None
        if request is None or request.WhichOneof("kind") != "open":
            raise ProtocolOrder("the first request of a subscription must be `open`")
        open_ = request.open
        check_text(open_.client_id, "open.client_id", CLIENT_ID_BYTES_MAX)
        if open_.node_id:
            named(open_.node_id, "open.node_id")
        check_codecs(open_.codecs, self._core.codecs)
        if open_.HasField("idle_bookmark"):
            self._idle_s = seconds(
                open_.idle_bookmark, "open.idle_bookmark", at_least=IDLE_BOOKMARK_S_MIN
            )
        self._allowance.grow(open_.credit)
        return open_

    async def _open(self, open_: event_pb2.SubscribeOpen) -> Source:
        kind = open_.WhichOneof("source")
        if kind == "live":
            patterns(open_.live.subjects, "open.live.subjects", at_least=1)
            if open_.live.group:
                named(open_.live.group, "open.live.group")
            return LiveEvents(
                self._exchange, open_.live, self._allowance, takes_several=open_.takes_several
            )
        if kind == "ordered":
            return await self._open_ordered(open_.ordered)
        if kind == "consumer":
            named(open_.consumer.stream, "open.consumer.stream")
            named(open_.consumer.consumer, "open.consumer.consumer")
            subscriber = ConsumerSubscriber(self._allowance, open_.node_id)
            runner = await self._exchange.runner(open_.consumer.stream, open_.consumer.consumer)
            return ConsumerEvents(runner, subscriber)
        raise InvalidArgument(
            "a subscription needs a source", fields={"open.source": "live, ordered or consumer"}
        )

    async def _open_ordered(self, ordered: event_pb2.OrderedSource) -> Source:
        follower = await open_follower(self._exchange, ordered, "open.ordered")
        source = OrderedEvents(self._exchange, follower, self._allowance)
        try:
            await follower.count()
        except BaseException:
            source.close()
            raise
        return source

    # Serving.

    async def _serve(self) -> None:
        reader = asyncio.create_task(self._read())
        try:
            async with self._scope:
                await self._write()
        except TimeoutError:
            if not self._stalled_s:
                raise
            self._core.counters.add("subscribers_cut")
            raise SlowConsumer(
                f"events waited {self._stalled_s:.1f} s and none was taken; read faster, give "
                "credit earlier, or use a durable consumer",
                metadata={"stall_s": f"{self._stalled_s:.1f}"},
            ) from None
        finally:
            if self._timer is not None:
                self._timer.cancel()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _write(self) -> None:
        write, pull, signal = self._context.write, self._source.pull, self._source.signal
        while True:
            if self._error is not None:
                raise self._error
            response = self._next_control() or await pull() or self._next_bookmark()
            if response is None:
                if self._is_over():
                    return
                await signal.wait()
                continue
            self._written_at = self._core.clock()
            self._writing = response
            await write(response)
            self._writing = None

    def _next_control(self) -> event_pb2.SubscribeResponse | None:
        if not self._control:
            return None
        response = self._control.popleft()
        if response.WhichOneof("kind") == "ack_result":
            self._unanswered -= 1
            self._answered.set()
        return response

    def _next_bookmark(self) -> event_pb2.SubscribeResponse | None:
        if not self._bookmark_due:
            return None
        self._bookmark_due = False
        if isinstance(self._source, LiveEvents):
            lost = self._source.buffer.take_lost()
            if lost is not None:
                return lost
        return bookmark(self._source, self._core.engine.epoch)

    def _is_over(self) -> bool:
        """Whether to end the call: nobody can settle anything any more, or the server goes."""
        if self._is_ended:
            return True
        if self._unanswered:
            return False
        if self._is_half_closed and isinstance(self._source, ConsumerEvents):
            return True
        return self._is_draining and self._source.is_drained

    def _look(self) -> None:
        """See from time to time whether the client stalls, or waits for a sign of life."""
        now = self._core.clock()
        stall_s = self._core.limits.subscriber_stall_s
        mark = self._source.mark
        if self._writing is not None:  # a large one takes its time on a slow wire
            mark = self._written_at
            stall_s += _size_of(self._writing) / WRITE_BYTES_PER_S_MIN
        if mark is None or mark != self._mark:
            self._mark, self._mark_at = mark, now
        elif now - self._mark_at >= stall_s:
            self._stalled_s = now - self._mark_at
            self._scope.reschedule(asyncio.get_running_loop().time())
            return
        if now - self._written_at >= self._idle_s:
            self._bookmark_due = True
            self._source.signal.set()
        period_s = min(self._idle_s, self._core.limits.subscriber_stall_s / STALL_LOOKS)
        self._timer = asyncio.get_running_loop().call_later(period_s, self._look)

    # Reading.

    async def _read(self) -> None:
        try:
            async for request in self._requests:
                kind = request.WhichOneof("kind")
                if kind == "credit":
                    self._allowance.grow(request.credit)
                    self._grown()
                elif kind == "ack":
                    await self._take_ack(request.ack)
                elif kind == "open":
                    raise ProtocolOrder("`open` came twice; one call carries one subscription")
                else:
                    raise InvalidArgument("a request must have a kind", fields={"kind": "not set"})
        except TidewireError as error:
            self._error = error
        except Exception:
            log.exception("reading the requests of a subscription failed")
            self._error = Internal("the server made a mistake with this stream; it is in its log")
        finally:
            self._is_half_closed = True
            if isinstance(self._source, ConsumerEvents):
                self._source.drain()
            self.wake()

    def _grown(self) -> None:
        if isinstance(self._source, ConsumerEvents):
            self._source.runner.signal.set()
        else:
            self._source.signal.set()

    async def _take_ack(self, ack: event_pb2.Ack) -> None:
        source = self._source
        if not isinstance(source, ConsumerEvents):
            raise InvalidArgument(
                "only deliveries of a durable consumer are acknowledged", fields={"ack": "not here"}
            )
        check_ack(ack)
        while self._unanswered >= ANSWERS_MAX:
            await self._answered.wait()
        if ack.ack_id:
            self._unanswered += 1
            source.runner.settle(ack, self._answer)
        else:
            source.runner.settle(ack, None)
        if self._is_draining:
            self.wake()

    def _answer(self, result: event_pb2.AckResult) -> None:
        self._control.append(event_pb2.SubscribeResponse(ack_result=result))
        self.wake()


def _size_of(response: Response) -> int:
    return len(response) if isinstance(response, Spliced) else response.ByteSize()


async def open_follower(
    exchange: Exchange, ordered: event_pb2.OrderedSource, field: str
) -> StreamFollower:
    """
    A position in a stream as a request describes it.

    Raises:
        StreamNotFound: No such stream.
        InvalidArgument: The position or a subject cannot be.
    """
    named(ordered.stream, f"{field}.stream")
    if exchange.core.engine.stream_config(ordered.stream) is None:
        raise StreamNotFound(
            f"there is no stream {ordered.stream!r}; make it with CreateStream",
            metadata={"subject": ordered.stream},
        )
    subjects = patterns(ordered.subjects, f"{field}.subjects", at_least=0)
    check_start(ordered.start, f"{field}.start")
    position = await first_position(exchange, ordered.stream, ordered.start)
    return StreamFollower(exchange.core.engine, ordered.stream, position, subjects)
