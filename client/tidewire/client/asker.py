"""
The stream of queries of a client: opened when somebody asks, and again after it broke.

Whatever keeps queries off the stream sends them by calls of their own, which every server answers
and every wire carries: a server that knows no stream or does not allow it, a stream that is being
opened, several servers to choose from. So the stream is never waited for without need.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import grpc.aio

from tidewire.client.asking import Numbers, Questioning
from tidewire.client.polled import carries_streams
from tidewire.client.session import PRIORITY_QUERY, Session, log
from tidewire.client.translate import RPC_ERRORS, is_own_cancellation, translate
from tidewire.errors import (
    ConnectionLost,
    Internal,
    PermissionDenied,
    ProtocolViolation,
    TidewireError,
    Unimplemented,
    WireUnsuitable,
)
from tidewire.v1 import common_pb2, query_pb2

OPEN_WAIT_S: Final = 1.0
"""
How long queries wait for a stream that is being opened; then they, and those that follow until it
is there, go by calls.
"""
GRACE_S_LEAST: Final = 0.1


class Asker:
    """
    Keeps a stream of queries open.

    Attributes:
        stream: What to ask on; ``None`` while there is none.
        opened: Streams that were opened.
    """

    def __init__(self, session: Session, method: Callable[..., Any], numbers: Numbers) -> None:
        self.stream: Questioning | None = None
        self.opened = 0
        self._session = session
        self._method = method
        self._numbers = numbers
        self._opening: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._slow = False
        """The stream that is being opened is not waited for."""
        self._failures = 0
        self._next_try_s = 0.0
        # Several servers: queries are spread one by one, which a stream to one of them is not.
        self._by_calls = (
            not carries_streams(session.channel)
            or len(getattr(session.channel, "backends", ())) > 1
        )

    async def enter(self, limit_s: float) -> Questioning | None:
        """
        Return what to ask on; ``None``: this query is to go by a call of its own.

        Raises:
            DeadlineExceeded: So many queries were in hand that there was no room in time.
        """
        ends_s = self._session.clock() + limit_s
        if self.stream is None:
            opening = self._opening
            if opening is None:
                # Who asks first does not wait: a client that asks once makes one call.
                self._open()
                return None
            if self._slow:
                return None
            await asyncio.wait([opening], timeout=min(OPEN_WAIT_S, limit_s))
            self._slow = not opening.done()
        while self.stream is not None and self.stream.full:
            await self.stream.wait_room(max(ends_s - self._session.clock(), 0.0))
        return self.stream

    async def close(self) -> None:
        """End the stream; of what is in hand nobody knows whether it was done."""
        self._by_calls = True
        self._session.untrack(self)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _open(self) -> None:
        if self._by_calls or self._session.closed or self._session.clock() < self._next_try_s:
            return
        self._session.track(self)
        self._opening = self._session.loop.create_future()
        self._spawn(self._live(self._opening))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._session.loop.create_task(work, name="tidewire queries")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, opening: "asyncio.Future[None]") -> None:
        """Open a stream, and be there until it is over."""
        stream: Questioning | None = None
        problem: TidewireError = ConnectionLost("the client was closed")
        call: Any = None
        try:
            call = self._method(metadata=PRIORITY_QUERY)
            await self._greet(call)
            stream = self.stream = Questioning(self._session, call, self._numbers)
            self.opened += 1
            self._failures = 0
            self._settle(opening)
            await self._read(call, stream)
            problem = ConnectionLost("the server ended the stream of queries")
        except asyncio.CancelledError as error:
            if is_own_cancellation():
                raise
            problem = translate(error)
        except (*RPC_ERRORS, TidewireError) as error:
            problem = translate(error)
        except Exception as error:  # noqa: BLE001 (the last line of defence)
            # A mistake of this library must not leave anybody waiting for ever.
            log.exception("a stream of queries failed")
            problem = Internal(f"a stream of queries failed by a mistake of the client: {error!r}")
        finally:
            if self.stream is stream:
                self.stream = None
            if call is not None:
                call.cancel()
            if stream is not None:
                stream.end(problem)
            else:
                self._not_opened(problem)
            self._settle(opening)

    def _settle(self, opening: "asyncio.Future[None]") -> None:
        """Let those who wait for the stream go on, with it or without."""
        if not opening.done():
            opening.set_result(None)
        if self._opening is opening:
            self._opening = None
            self._slow = False

    def _not_opened(self, problem: TidewireError) -> None:
        if isinstance(problem, Unimplemented | PermissionDenied | WireUnsuitable):
            log.info("queries go by calls of their own: %s", problem)
            self._by_calls = True
            return
        session = self._session
        self._failures += 1
        delay_s = session.options.retry.delay_s(self._failures, session.random)
        delay_s = max(delay_s, problem.retry_after_s or 0.0)
        self._next_try_s = session.clock() + delay_s
        log.info("queries go by calls of their own for %.3f s: %s", delay_s, problem)

    async def _greet(self, call: Any) -> None:
        request = query_pb2.AskManyRequest()
        request.open.client_id = self._session.options.name
        request.open.request_prefix = self._numbers.prefix
        limit_s = self._session.options.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                try:
                    await call.write(request)
                except asyncio.InvalidStateError as error:
                    log.debug("a stream of queries was refused at once: %s", error)
                response = await call.read()  # which says why
        except TimeoutError:
            raise ConnectionLost(
                f"a stream of queries got no greeting within {limit_s:g} s"
            ) from None
        if response is grpc.aio.EOF:
            raise ConnectionLost("the server ended the stream of queries at once")
        kind = response.WhichOneof("kind")
        if kind == "draining":
            raise ConnectionLost("the server is draining")
        if kind != "opened":
            raise ProtocolViolation(f"a stream of queries began with {kind}, not with opened")

    async def _read(self, call: Any, stream: Questioning) -> None:
        """Take what comes until the call is over."""

        def take(response: query_pb2.AskManyResponse) -> None:
            draining = stream.take(response)
            if draining is not None:
                self._leave(call, stream, draining)

        deliver_to = getattr(call, "deliver_to", None)
        if deliver_to is not None:
            deliver_to(take)
            await call.wait_delivered()
            return
        while (response := await call.read()) is not grpc.aio.EOF:
            take(response)

    def _leave(self, call: Any, stream: Questioning, draining: common_pb2.Draining) -> None:
        """Ask elsewhere from now on; what was asked here is answered within the grace."""
        if self.stream is stream:
            self.stream = None
        stream.leave()
        self._spawn(stream.end_requests())
        session = self._session
        grace_s = max(draining.grace.ToNanoseconds() / 1e9, GRACE_S_LEAST)
        session.loop.call_later(min(grace_s, session.options.timeout_s), call.cancel)
