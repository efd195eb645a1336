"""Server streams that are read as they are asked for, and opened again where they left off."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, Self, TypeVar

import grpc.aio

from tidewire.client.retry import is_out_of_reach, may_reopen
from tidewire.client.session import Metadata, Session, log
from tidewire.client.translate import RPC_ERRORS, is_own_cancellation, translate
from tidewire.errors import ConnectionLost, DeadlineExceeded, TidewireError

EventT = TypeVar("EventT")


class PullStream(Generic[EventT]):
    """
    An endless series of events; nothing is read ahead, so the wire's flow control holds the server.

    One task at a time may take events. One that is cancelled while it waits, or whose time is over,
    loses nothing: what it waited for is the next one's.

    Attributes:
        reopened: Times the stream was opened again after a break.
    """

    def __init__(
        self, session: Session, what: str, method: Callable[..., Any], metadata: Metadata
    ) -> None:
        self.what = what
        self.reopened = 0
        self._session = session
        self._method = method
        self._metadata = metadata
        self._call: Any = None
        self._reading: asyncio.Task[Any] | None = None
        self._events: deque[EventT] = deque()
        self._closed = False
        self._attempt = 0
        self._opening_by_s: float | None = None

    # What subclasses say.

    async def _request(self) -> Any:
        """Request that opens the stream where it left off."""
        raise NotImplementedError

    def _read(self, kind: str, response: Any) -> Iterable[EventT]:
        """Events of a response."""
        raise NotImplementedError

    def _recovers(self, problem: TidewireError) -> Iterable[EventT] | None:
        """Events that stand for a problem one can go on from; ``None``: not this one."""
        return None

    # The life of the stream.

    async def open(self) -> Self:
        """Open the stream now, so that what cannot be opened is told at once."""
        self._session.track(self)
        options = self._session.options
        self._opening_by_s = self._session.clock() + options.connect_timeout_s
        try:
            async with asyncio.timeout(options.timeout_s):
                while self._call is None:
                    await self._pull()
        except TimeoutError:
            await self.close()
            raise DeadlineExceeded(f"{self.what} was not opened in time") from None
        except BaseException:
            await self.close()
            raise
        self._opening_by_s = None
        return self

    async def close(self) -> None:
        """End it."""
        self._closed = True
        self._session.untrack(self)
        self._drop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EventT:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            await self._pull()
        return self._events.popleft()

    async def next(self, *, timeout_s: float | None = None) -> EventT:
        """
        Return the next event.

        Raises:
            DeadlineExceeded: None came within `timeout_s`; the stream stays open.
            ConnectionLost: The stream is closed.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self.__anext__()
        except TimeoutError:
            raise DeadlineExceeded(f"{self.what}: nothing came within {timeout_s} s") from None
        except StopAsyncIteration:
            raise ConnectionLost(f"{self.what} is closed") from None

    async def _pull(self) -> None:
        """Read one response, or open the stream again."""
        try:
            if self._call is None:
                self._call = self._method(await self._request(), metadata=self._metadata)
            response = await self._next_response()
        except asyncio.CancelledError as error:
            if is_own_cancellation():
                raise
            self._drop()
            if self._closed:
                return
            await self._recover(translate(error))
            return
        except (*RPC_ERRORS, TidewireError) as error:
            self._drop()
            if self._closed:
                return
            await self._recover(translate(error))
            return
        if response is grpc.aio.EOF:
            self._drop()
            await self._recover(ConnectionLost(f"the server ended {self.what}"))
            return
        kind = response.WhichOneof("kind")
        if kind == "opened":
            self.reopened += self._attempt > 0
            self._attempt = 0
        elif kind == "draining":
            log.info("%s: the server is draining", self.what)
        else:
            self._events.extend(self._read(kind, response))

    async def _next_response(self) -> Any:
        """Wait for a response; who is cancelled meanwhile leaves the reading to the next one."""
        reading = self._reading
        if reading is None:
            reading = self._reading = asyncio.ensure_future(self._call.read())
        await asyncio.wait([reading])
        self._reading = None
        return reading.result()

    async def _recover(self, problem: TidewireError) -> None:
        events = self._recovers(problem)
        if events is not None:
            self._events.extend(events)
        elif not may_reopen(problem):
            await self.close()
            raise problem
        late_s = self._opening_by_s
        if late_s is not None and self._session.clock() >= late_s and is_out_of_reach(problem):
            raise problem
        self._attempt += 1
        delay_s = self._session.options.retry.delay_s(self._attempt, self._session.random)
        if late_s is not None:
            delay_s = min(delay_s, max(late_s - self._session.clock(), 0.0))
        delay_s = max(delay_s, problem.retry_after_s or 0.0)
        log.warning("%s broke, opened again in %.3f s: %s", self.what, delay_s, problem)
        await self._session.sleep(delay_s)

    def _drop(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            reading.add_done_callback(_look_at)


def _look_at(reading: asyncio.Task[Any]) -> None:
    """What became of a reading that nobody waits for does not matter."""
    if not reading.cancelled():
        reading.exception()
