"""One publishing stream: batches in, outcomes out, as far as there is credit."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from tidewire.errors import (
    CreditExceeded,
    InvalidArgument,
    PeerTooSlow,
    ProtocolOrder,
    SlowConsumer,
    TidewireError,
)
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.spliced import Apart
from tidewire_server.core import Context
from tidewire_server.services.event.checks import CLIENT_ID_BYTES_MAX, check_text
from tidewire_server.services.event.exchange import Exchange
from tidewire_server.services.event.publish import CommitPool, Outcome, Publisher, live_answer
from tidewire_server.services.event.signal import Signal

OPEN_WAIT_S: Final = 10.0
RESULTS_MAX: Final = 4096
"""Most outcomes in one response."""

Request = event_pb2.PublishStreamRequest | Apart[event_pb2.PublishStreamRequest]
Requests = AsyncIterator[Request]
Result = tuple[int, event_pb2.PublishResponse | TidewireError]


class PublishSession:
    """
    Serves one call of ``PublishStream``.

    The handler itself reads; one task beside it writes. Outcomes of one turn of the event loop go
    in one response. Credit is given back when an outcome is written, so a client that reads none
    cannot go on publishing.
    """

    def __init__(
        self,
        exchange: Exchange,
        publisher: Publisher,
        commits: CommitPool,
        requests: Requests,
        context: Context,
    ) -> None:
        self._exchange = exchange
        self._core = exchange.core
        self._publisher = publisher
        self._commits = commits
        self._requests = requests
        self._context = context
        self._signal = Signal()
        self._results: list[Result] = []
        self._control: list[event_pb2.PublishStreamResponse] = []
        self._is_quiet = False
        self._last_id = 0
        limits = self._core.limits
        self._window = (limits.publish_pending_messages_max, limits.publish_pending_bytes_max)
        self._granted = self._window
        self._taken_messages = self._taken_bytes = 0
        self._settled_messages = self._settled_bytes = 0
        self._in_flight = 0
        self._is_over = False
        self._is_ended = False
        self._is_taking = False
        self._reading = asyncio.timeout(None)

    async def run(self) -> None:
        """Serve until the client has published all, goes, or does something wrong."""
        await self._read_open()
        opened = self._core.opened(_credit(self._granted))
        opened.takes_several = True
        await self._context.write(event_pb2.PublishStreamResponse(opened=opened))
        writer = asyncio.create_task(self._write())
        self._exchange.publisher_opened()
        self._exchange.add_session(self)
        try:
            await self._serve(writer)
        finally:
            self._exchange.remove_session(self)
            self._exchange.publisher_closed()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    # Hearing of the end of the server.

    def drain(self) -> None:
        """
        Say that the server is going; the client should end the stream when it has its outcomes.
        """
        draining = self._core.drain.message()
        self._control.append(event_pb2.PublishStreamResponse(draining=draining))
        self._signal.set()

    def end(self) -> None:
        """Read no more; what was read gets its outcome."""
        if not self._is_over and not self._is_ended:
            self._is_ended = True
            if not self._is_taking:
                self._reading.reschedule(asyncio.get_running_loop().time())

    def wake(self) -> None:
        """Nothing to look at."""

    # Reading.

    async def _serve(self, writer: asyncio.Task[None]) -> None:
        # A writer that ends early (the client reads nothing, or is gone) ends the reading.
        writer.add_done_callback(lambda _: self.end())
        try:
            async with self._reading:
                async for request in self._requests:
                    self._is_taking = True
                    await self._take(request)
                    self._is_taking = False
                    if self._is_ended:
                        break
        except TimeoutError:
            if not self._reading.expired():
                raise
        finally:
            self._is_over = True
        self._signal.set()
        await writer

    async def _read_open(self) -> None:
        try:
            async with asyncio.timeout(OPEN_WAIT_S):
                request = await anext(self._requests, None)
        except TimeoutError:
            raise PeerTooSlow(f"no `open` within {OPEN_WAIT_S:g} s") from None
        if isinstance(request, Apart) or request is None or request.WhichOneof("kind") != "open":
            raise ProtocolOrder("the first request of a publishing stream must be `open`")
        check_text(request.open.client_id, "open.client_id", CLIENT_ID_BYTES_MAX)
        self._is_quiet = request.open.quiet

    async def _take(self, request: Request) -> None:
        body: memoryview | None = None
        if isinstance(request, Apart):
            request, body = request
        kind = request.WhichOneof("kind")
        if kind == "several":
            for item in request.several.item:
                await self._take_item(item, None)
        elif kind == "publish":
            await self._take_item(request.publish, body)
        else:
            raise ProtocolOrder("`open` comes once, and then only `publish` or `several`")

    async def _take_item(self, item: event_pb2.PublishItem, body: memoryview | None) -> None:
        publish_id, publish = item.publish_id, item.request
        if publish_id <= self._last_id:
            raise InvalidArgument(
                f"publish_id {publish_id} follows {self._last_id}; it must increase from 1",
                fields={"publish.publish_id": "must increase"},
            )
        self._last_id = publish_id
        batch = publish.batch
        messages, body_bytes = batch.count, len(batch.body if body is None else body)
        self._count_in(messages, body_bytes)
        try:
            transaction = self._publisher.plan(publish, body)
        except TidewireError as error:
            self._finish(publish_id, messages, body_bytes, error)
            return
        live = self._exchange.live
        if transaction is None:
            await self._hold_back(batch.subject)
            fanout = self._publisher.fan_out(batch, body)
            self._finish(publish_id, messages, body_bytes, live_answer(fanout))
            return
        coming = live.expect(batch)

        def done(outcome: Outcome) -> None:
            self._in_flight -= 1
            if coming is not None:
                coming.arrived()
            if isinstance(outcome, TidewireError):
                self._finish(publish_id, messages, body_bytes, outcome)
            else:
                self._publisher.count(batch)
                self._finish(publish_id, messages, body_bytes, outcome.appends[0])

        self._in_flight += 1
        self._commits.submit(transaction, done)
        if coming is not None:
            await self._hold_back(batch.subject)

    async def _hold_back(self, subject: str) -> None:
        """Wait for who listens live, unless nothing is read after what is in hand."""
        if not self._is_ended:
            await self._publisher.hold_back(subject)

    def _count_in(self, messages: int, body_bytes: int) -> None:
        granted_messages, granted_bytes = self._granted
        if self._taken_messages >= granted_messages or self._taken_bytes >= granted_bytes:
            raise CreditExceeded(
                f"{self._taken_messages} messages and {self._taken_bytes} bytes were published on "
                f"a credit of {granted_messages} and {granted_bytes}; wait for `credit`"
            )
        self._taken_messages += messages
        self._taken_bytes += body_bytes

    def _finish(
        self,
        publish_id: int,
        messages: int,
        body_bytes: int,
        outcome: event_pb2.PublishResponse | TidewireError,
    ) -> None:
        self._settled_messages += messages
        self._settled_bytes += body_bytes
        if not self._is_quiet or isinstance(outcome, TidewireError):
            self._results.append((publish_id, outcome))
        self._signal.set()

    # Writing.

    async def _write(self) -> None:
        while True:
            for response in self._take_responses():
                await self._write_one(response)
            if self._is_over and not self._in_flight and not self._results:
                return
            if not self._results and not self._control:
                await self._signal.wait()

    async def _write_one(self, response: event_pb2.PublishStreamResponse) -> None:
        stall_s = self._core.limits.subscriber_stall_s
        try:
            async with asyncio.timeout(stall_s):
                await self._context.write(response)
        except TimeoutError:
            raise SlowConsumer(f"outcomes were not read for {stall_s:g} s") from None

    def _take_responses(self) -> list[event_pb2.PublishStreamResponse]:
        responses, self._control = self._control, []
        settled = (self._settled_messages, self._settled_bytes)
        results, self._results = self._results[:RESULTS_MAX], self._results[RESULTS_MAX:]
        if results:
            responses.append(_results(results))
        if not self._results and self._is_credit_due(settled):
            self._granted = (settled[0] + self._window[0], settled[1] + self._window[1])
            credit = _credit(self._granted)
            responses.append(event_pb2.PublishStreamResponse(credit=credit))
        return responses

    def _is_credit_due(self, settled: tuple[int, int]) -> bool:
        """Whether half of a window was used up."""
        return any(
            granted - done <= window // 2
            for granted, done, window in zip(self._granted, settled, self._window, strict=True)
        )


def _results(results: list[Result]) -> event_pb2.PublishStreamResponse:
    response = event_pb2.PublishStreamResponse()
    add = response.results.result.add
    for publish_id, outcome in results:
        if isinstance(outcome, TidewireError):
            add(publish_id=publish_id, error=outcome.to_status())
        else:
            add(publish_id=publish_id, response=outcome)
    return response


def _credit(totals: tuple[int, int]) -> common_pb2.Credit:
    return common_pb2.Credit(messages_until=totals[0], bytes_until=totals[1])
