"""
Bidirectional streams that stay open: when one breaks it is opened again, visibly.

A stream has one task that opens, reads and opens again, and one that writes while a call is open.
Subclasses say what to send first, what is ready to be sent, and what to do with what comes.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Generic

import grpc.aio

from tidewire.client.retry import is_out_of_reach, may_reopen
from tidewire.client.session import Metadata, RequestT, ResponseT, Session, log, notify
from tidewire.client.translate import RPC_ERRORS, is_own_cancellation, translate
from tidewire.errors import (
    ConnectionLost,
    DeadlineExceeded,
    Internal,
    ProtocolViolation,
    TidewireError,
)
from tidewire.v1 import common_pb2

END_TIMEOUT_S: Final = 5.0
"""Time for the server to end a call that this side has ended."""

Call = Any  # grpc.aio.StreamStreamCall of the stub at hand


class ReopeningStream(Generic[RequestT, ResponseT]):
    """
    One stream of calls, of which at most one is open.

    Attributes:
        what: What this is, for logs and errors.
        reopened: Times it was opened again after a break.
        connected: A call is open and was greeted.
        on_connection: Called with True and False as calls are opened and break.
    """

    def __init__(
        self, session: Session, what: str, method: Callable[..., Call], metadata: Metadata
    ) -> None:
        self.what = what
        self.reopened = 0
        self.connected = False
        self.on_connection: Callable[[bool], None] | None = None
        self._session = session
        self._method = method
        self._metadata = metadata
        self._wake = asyncio.Event()
        self._greeted: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._error: TidewireError | None = None
        self._closing = False
        self._draining = False
        self._write_nowait: Callable[[RequestT], bool] | None = None
        """Sends past the writer on the open call, where `_directly` and its wire allow it."""

    _directly = False
    """Subclasses whose `_received` never waits take responses in the turn that brings them."""

    # What subclasses say.

    async def _first_request(self) -> RequestT:
        """Request that opens a call; asked for each call anew."""
        raise NotImplementedError

    def _outgoing(self) -> Iterator[RequestT]:
        """Take what is ready to be sent, until nothing is."""
        raise NotImplementedError

    def _received(self, kind: str, response: ResponseT) -> Awaitable[None] | None:
        """Take a response that is neither `opened` nor `draining`."""
        raise NotImplementedError

    def _opened(self, opened: common_pb2.Opened) -> None:
        """Take the greeting of a call."""

    def _may_leave(self) -> bool:
        """Whether nothing more will be sent on a call that the server wants to end."""
        return True

    def _broken(self) -> None:
        """Take note that the call is over; another one follows."""

    def _out_of_reach(self, error: TidewireError) -> None:
        """Tell those who wait that the server is not there; it is tried on."""

    def _ended(self, error: TidewireError | None) -> None:
        """Take note that no other call follows."""

    # The life of the stream.

    async def open(self) -> None:
        """
        Open the stream and wait for the greeting.

        Raises:
            TidewireError: The server refused it, or was not reached within the connect timeout.
        """
        self._session.track(self)
        loop = asyncio.get_running_loop()
        self._greeted = loop.create_future()
        self._task = loop.create_task(self._run(), name=f"tidewire {self.what}")
        try:
            async with asyncio.timeout(self._session.options.timeout_s):
                await asyncio.shield(self._greeted)
        except TimeoutError:
            await self.close()
            raise DeadlineExceeded(
                f"{self.what} was not opened within {self._session.options.timeout_s:g} s; last "
                f"problem: {self._error or 'none'}"
            ) from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the stream at once; what subclasses hold for sending they flush before."""
        self._closing = True
        self._session.untrack(self)
        task = self._task
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])
        self._finish(self._error)

    async def _end_requests(self) -> None:
        """Send what is ready, end this side of the call, and let the server finish it."""
        task = self._task
        if task is None or task.done():
            return
        self._closing = self._draining = True
        self._wake.set()
        limit_s = min(END_TIMEOUT_S, self._session.options.timeout_s)
        await asyncio.wait([task], timeout=limit_s)

    def _is_closing(self) -> bool:
        return self._closing

    def _raise_if_ended(self) -> None:
        if self._error is not None and self._task is not None and self._task.done():
            raise self._error
        if self._closing:
            raise ConnectionLost(f"{self.what} is closed")

    async def _run(self) -> None:
        try:
            await self._keep_open()
        except asyncio.CancelledError as error:
            # The task keeps its exception, and its frames would keep the call: with gRPC's library
            # that is a connection which stays open for as long as somebody holds this object.
            raise error.with_traceback(None) from None
        except Exception as error:  # noqa: BLE001 (the last line of defence)
            # A mistake of this library must not leave anybody waiting for ever.
            log.exception("%s failed", self.what)
            self._set_connected(False)
            self._error = Internal(f"{self.what} failed by a mistake of the client: {error!r}")
        self._session.untrack(self)
        self._finish(self._error)

    async def _keep_open(self) -> None:
        attempt = 0
        lost_s = self._session.clock()
        while not self._closing:
            try:
                await self._one_call()
                problem: TidewireError = ConnectionLost(f"the server ended {self.what}")
            except asyncio.CancelledError as error:
                if is_own_cancellation():
                    raise
                problem = translate(error)
            except (*RPC_ERRORS, TidewireError) as error:
                problem = translate(error)
            was_connected = self.connected
            self._set_connected(False)
            self._error = problem
            self._broken()
            if not may_reopen(problem) or self._is_closing():
                break
            attempt = 1 if was_connected else attempt + 1
            if was_connected:
                lost_s = self._session.clock()
            elif self._gives_up(problem, self._session.clock() - lost_s):
                break
            delay_s = self._session.options.retry.delay_s(attempt, self._session.random)
            left_s = lost_s + self._session.options.connect_timeout_s - self._session.clock()
            if left_s > 0.0:  # the next try is not later than those who wait are to be told
                delay_s = min(delay_s, left_s)
            delay_s = max(delay_s, problem.retry_after_s or 0.0)
            log.warning("%s broke, opened again in %.3f s: %s", self.what, delay_s, problem)
            await self._session.sleep(delay_s)

    def _gives_up(self, problem: TidewireError, lost_for_s: float) -> bool:
        """
        After the connect timeout say that the server is not there; who opens then gives up.
        """
        if lost_for_s < self._session.options.connect_timeout_s or not is_out_of_reach(problem):
            return False
        self._out_of_reach(problem)
        return self._greeted is not None and not self._greeted.done()

    def _finish(self, error: TidewireError | None) -> None:
        greeted = self._greeted
        if greeted is not None and not greeted.done():
            greeted.set_exception(error or ConnectionLost(f"{self.what} was closed"))
            greeted.exception()  # seen: the opener may have gone
        self._ended(error)

    def _set_connected(self, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            if self.on_connection is not None:
                notify(self.on_connection, connected)

    async def _one_call(self) -> None:
        first = await self._first_request()
        call = self._method(metadata=self._metadata)
        writer: asyncio.Task[None] | None = None
        try:
            await self._greet(call, first)
            writer = asyncio.create_task(self._write(call))
            # A writer that fails by a mistake of ours must not leave the reader waiting.
            writer.add_done_callback(
                lambda task: call.cancel() if _failure_of(task) is not None else None
            )
            await self._read(call)
        except asyncio.CancelledError:
            failure = None if writer is None else _failure_of(writer)
            if is_own_cancellation() or failure is None:
                raise
            raise failure from None
        finally:
            if writer is not None:
                writer.cancel()
                await asyncio.wait([writer])
            call.cancel()

    async def _greet(self, call: Call, first: RequestT) -> None:
        limit_s = self._session.options.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await call.write(first)
                response = await call.read()
        except TimeoutError:
            raise ConnectionLost(f"{self.what} got no greeting within {limit_s:g} s") from None
        if response is grpc.aio.EOF:
            return
        kind = response.WhichOneof("kind")
        if kind == "draining":
            raise ConnectionLost("the server is draining")
        if kind != "opened":
            raise ProtocolViolation(f"{self.what}: the first response is {kind}, not opened")
        self._draining = self._closing  # closed while it was opened: nothing more is sent
        self._opened(response.opened)
        self._wake.set()
        self._set_connected(True)
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(None)
        else:
            self.reopened += 1
            log.info("%s is open again", self.what)

    async def _read(self, call: Call) -> None:
        if not self.connected:
            return
        if self._directly and hasattr(call, "deliver_to"):
            await self._read_directly(call)
            return
        read = call.read
        while (response := await read()) is not grpc.aio.EOF:
            kind = response.WhichOneof("kind")
            if kind == "draining":
                await self._leave(call, read, response.draining)
                return
            waiting = self._received(kind, response)
            if waiting is not None:
                await waiting

    async def _read_directly(self, call: Call) -> None:
        """Have responses handed over as they come, and wait for the end of the call."""
        cut: asyncio.TimerHandle | None = None

        def take(response: ResponseT) -> None:
            nonlocal cut
            kind: str = response.WhichOneof("kind")  # type: ignore[attr-defined]
            if kind == "draining":
                grace_s = self._announced(response.draining)  # type: ignore[attr-defined]
                cut = cut or self._session.loop.call_later(grace_s, call.cancel)
            else:
                self._received(kind, response)

        # What is called by this runs as if the stream's task called it.
        context = contextvars.copy_context()
        self._write_nowait = call.write_nowait
        try:
            call.deliver_to(lambda response: context.run(take, response))
            await call.wait_delivered()
        except asyncio.CancelledError:
            if cut is None or is_own_cancellation():
                raise
            log.info("%s: the server did not end the call within its grace", self.what)
        finally:
            self._write_nowait = None
            if cut is not None:
                cut.cancel()

    def _announced(self, draining: common_pb2.Draining) -> float:
        """Send what is ready and no more; returns the time what is in hand still has."""
        grace_s = max(draining.grace.ToNanoseconds() / 1e9, 0.1)
        log.info("%s: the server is draining and cuts in %.1f s", self.what, grace_s)
        self._draining = True
        self._wake.set()
        return min(grace_s, self._session.options.timeout_s)

    async def _leave(
        self, call: Call, read: Callable[[], Awaitable[Any]], draining: common_pb2.Draining
    ) -> None:
        """Send what is ready, take what still comes within the grace, then let the call go."""
        try:
            async with asyncio.timeout(self._announced(draining)):
                while (response := await read()) is not grpc.aio.EOF:
                    waiting = self._received(response.WhichOneof("kind"), response)
                    if waiting is not None:
                        await waiting
        except TimeoutError:
            log.info("%s: the server did not end the call within its grace", self.what)

    async def _write(self, call: Call) -> None:
        wake, write = self._wake, call.write
        while True:
            await wake.wait()
            wake.clear()
            for request in self._outgoing():
                await write(request)
            if self._draining and not wake.is_set() and self._may_leave():
                await call.done_writing()
                return


def _failure_of(writer: asyncio.Task[None]) -> BaseException | None:
    """How a writer failed by itself; what the call reports reaches its reader too."""
    if not writer.done() or writer.cancelled():
        return None
    failure = writer.exception()
    return None if isinstance(failure, RPC_ERRORS) else failure
