"""Calls of blocking stubs that run on the shared event loop."""

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
import grpc.aio

from tidewire.sync.loop import LoopThread

Metadata = tuple[tuple[str, str | bytes], ...]

log = logging.getLogger("tidewire.sync")

_OK: Final = grpc.StatusCode.OK


class BlockingRpcError(grpc.RpcError, grpc.Call):
    """How a call failed; also the call itself, as grpcio has it."""

    def __init__(
        self, code: grpc.StatusCode, details: str, initial: Metadata = (), trailing: Metadata = ()
    ) -> None:
        super().__init__(f"{code.name}: {details}")
        self._code = code
        self._details = details
        self._initial = initial
        self._trailing = trailing

    def code(self) -> grpc.StatusCode:
        """Status code."""
        return self._code

    def details(self) -> str:
        """What the server said."""
        return self._details

    def initial_metadata(self) -> Metadata:
        """Metadata before the first response."""
        return self._initial

    def trailing_metadata(self) -> Any:
        """Metadata with the status, pairs of key and value."""
        return self._trailing

    def debug_error_string(self) -> str:
        """Same as the text of the error."""
        return str(self)

    def is_active(self) -> bool:
        """A failed call is over."""
        return False

    def time_remaining(self) -> Any:
        """A failed call has no deadline."""
        return None

    def cancel(self) -> bool:
        """A failed call cannot be cancelled."""
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """A failed call calls nobody back."""
        return False


def error_of(error: BaseException) -> BaseException:
    """What blocking callers get for what an asyncio call raised."""
    if isinstance(error, grpc.aio.AioRpcError):
        return BlockingRpcError(
            error.code(),
            error.details() or "",
            tuple(error.initial_metadata() or ()),
            tuple(error.trailing_metadata() or ()),
        )
    if isinstance(error, asyncio.CancelledError | concurrent.futures.CancelledError):
        return BlockingRpcError(grpc.StatusCode.CANCELLED, "the call was cancelled")
    if isinstance(error, grpc.aio.UsageError):
        return ValueError(str(error))
    return error


class BlockingCall(grpc.Call, grpc.Future):  # type: ignore[type-arg]  # plain at run time
    """
    A call under way: its metadata and status, blocking; its responses by iteration, or its one
    response by `result`.
    """

    def __init__(
        self, loop: LoopThread, start: Callable[[], Any], requests: Iterator[Any] | None = None
    ) -> None:
        self._loop = loop
        self._call: Any = loop.run(_start(start))
        self._outcome: concurrent.futures.Future[Any] | None = None
        self._cancelled = False
        if requests is not None:
            feeder = threading.Thread(
                target=self._feed, args=(requests,), name="tidewire-requests", daemon=True
            )
            feeder.start()

    def expect_one(self) -> "BlockingCall":
        """Begin to wait for the one response of this call."""
        self._outcome = self._loop.submit(_response(self._call))
        return self

    # Of grpc.Call and grpc.RpcContext.

    def code(self) -> grpc.StatusCode:
        """Status code; waits for the end of the call."""
        code: grpc.StatusCode = self._ask(self._call.code)
        return code

    def details(self) -> str:
        """What the server said; waits for the end of the call."""
        return str(self._ask(self._call.details) or "")

    def initial_metadata(self) -> Metadata:
        """Metadata before the first response; waits for it."""
        return tuple(self._ask(self._call.initial_metadata) or ())

    def trailing_metadata(self) -> Metadata:
        """Metadata with the status; waits for the end of the call."""
        return tuple(self._ask(self._call.trailing_metadata) or ())

    def is_active(self) -> bool:
        """The call is not over."""
        return not self._call.done()

    def time_remaining(self) -> Any:
        """Time to the deadline, in seconds; ``None`` when there is none."""
        return self._call.time_remaining()

    def cancel(self) -> bool:
        """Cancel the call; false when it was over."""
        if self._call.done():
            return False
        self._cancelled = True
        return bool(self._loop.run(_start(self._call.cancel)))

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call back at the end of the call; false when it is over already."""
        if self._call.done():
            return False
        self._loop.run(_start(lambda: self._call.add_done_callback(lambda _: callback())))
        return True

    # Of grpc.Future.

    def cancelled(self) -> bool:
        """It was cancelled here."""
        return self._cancelled

    def running(self) -> bool:
        """The call is not over."""
        return not self.done()

    def done(self) -> bool:
        """The call is over."""
        return bool(self._call.done()) if self._outcome is None else self._outcome.done()

    def result(self, timeout: float | None = None) -> Any:
        """Return the one response; raise how the call failed."""
        if self._cancelled:
            raise grpc.FutureCancelledError
        try:
            return self._waiting().result(timeout)
        except concurrent.futures.TimeoutError:
            raise grpc.FutureTimeoutError from None
        except (asyncio.CancelledError, concurrent.futures.CancelledError) as error:
            if self._cancelled:
                raise grpc.FutureCancelledError from None
            raise error_of(error) from None
        except (grpc.RpcError, grpc.aio.UsageError) as error:
            raise error_of(error) from None

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Return how the call failed; ``None`` when it did not."""
        try:
            self.result(timeout)
        except grpc.RpcError as error:
            return error
        return None

    def traceback(self, timeout: float | None = None) -> Any:
        """Return the traceback of `exception`."""
        error = self.exception(timeout)
        return None if error is None else error.__traceback__

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """Call back with this future when the call is over."""
        self._waiting().add_done_callback(lambda _: fn(self))

    # Of the iterator of responses.

    def __iter__(self) -> "BlockingCall":
        return self

    def __next__(self) -> Any:
        try:
            response = self._loop.run(_read(self._call))
        except BaseException as error:
            translated = error_of(error)
            if translated is error:
                self.cancel()
                raise
            raise translated from None
        if response is grpc.aio.EOF:
            raise StopIteration
        return response

    def _waiting(self) -> "concurrent.futures.Future[Any]":
        if self._outcome is None:
            self._outcome = self._loop.submit(_code(self._call))
        return self._outcome

    def _ask(self, question: Callable[[], Any]) -> Any:
        return self._loop.run(_ask(question))

    def _feed(self, requests: Iterator[Any]) -> None:
        """Write what the application's iterator gives, as fast as the wire takes it."""
        try:
            for request in requests:
                if self._call.done():
                    return
                self._loop.run(_write(self._call, request))
            self._loop.run(_ask(self._call.done_writing))
        except (grpc.RpcError, asyncio.InvalidStateError, concurrent.futures.CancelledError):
            return  # who reads the call is told how it ended
        except Exception:
            # Of the application's iterator; there is nobody on this thread to raise it to.
            log.exception("the iterator of requests failed; the call is cancelled")
            self.cancel()


async def _start(start: Callable[[], Any]) -> Any:
    return start()


async def _response(call: Any) -> Any:
    return await call


async def _read(call: Any) -> Any:
    return await call.read()


async def _write(call: Any, request: Any) -> None:
    await call.write(request)


async def _ask(question: Callable[[], Any]) -> Any:
    return await question()


async def _code(call: Any) -> None:
    """Wait for the end of a call with a stream of responses, without reading them."""
    code = await call.code()
    if code != _OK:
        raise grpc.aio.AioRpcError(
            code,
            await call.initial_metadata(),
            await call.trailing_metadata(),
            await call.details(),
        )
