"""Streaming calls of a client: readers and writers with back-pressure over a core."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterable, Callable, Generator
from typing import Any

import grpc
import grpc.aio
from grpc.aio import EOF

from tidewire.errors import Internal, TidewireError
from tidewire.transport.client_call import (
    COLLECTED,
    LOCALLY_CANCELLED,
    CallCore,
    RpcMethods,
    UnaryCore,
)
from tidewire.wire.bodies import Ending
from tidewire.wire.spliced import Spliced

_LOGGER = logging.getLogger(__name__)

_FINISHED = "RPC already finished."
_HALF_CLOSED = 'RPC is half closed after calling "done_writing".'
_MIXED = "The iterator and read/write APIs may not be mixed on a single RPC."


class WriterCore(CallCore):
    """A call with many requests."""

    done_writing = False
    poller: "asyncio.Task[None] | None" = None
    _writer: "asyncio.Future[None] | None" = None

    def on_drained(self) -> None:
        """Let the writer go on."""
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def on_end(self, ending: Ending) -> None:
        """Stop the writer."""
        super().on_end(ending)
        self.on_drained()
        if self.poller is not None:
            self.poller.cancel()

    async def write(self, message: Any) -> None:
        """Send a request; wait while the server or the wire does not keep up."""
        if self.ending is not None:
            raise asyncio.InvalidStateError(_FINISHED)
        if self.done_writing:
            raise asyncio.InvalidStateError(_HALF_CLOSED)
        try:
            if not self.attached:
                await self.wait_attached()
            if self.send(message if type(message) is Spliced else self.encode(message)):
                return
            while not self.drained and self.ending is None:
                self._writer = self.channel.loop.create_future()
                await self._writer
        except asyncio.CancelledError:
            self.cancel_with(LOCALLY_CANCELLED)
            raise
        self.raise_for_status()

    def send(self, body: bytes | Spliced) -> bool:
        """Hand a request to the wire; False when it waits for credit or for its turn."""
        try:
            return self.send_message(body)
        except TidewireError as error:
            self.connection.cancel(self, Ending.of(error))
            self.raise_for_status()
            raise

    @property
    def clear(self) -> bool:
        """Whether a request would leave at once, with nothing before it."""
        return self.attached and self.ending is None and not self.outbox and not self.done_writing

    async def finish_writing(self) -> None:
        """Half-close the call."""
        if self.ending is not None or self.done_writing:
            return
        self.done_writing = True
        if not self.attached:
            await self.wait_attached()
        if self.ending is None:
            self.half_close()

    def consume(self, requests: Any) -> None:
        """Send the requests of an iterable from a task of its own."""
        self.poller = self.channel.loop.create_task(self._consume(requests))

    async def _consume(self, requests: Any) -> None:
        try:
            if isinstance(requests, AsyncIterable):
                async for request in requests:
                    await self.write(request)
            else:
                for request in requests:
                    await self.write(request)
            await self.finish_writing()
        except asyncio.CancelledError:
            self.cancel_with(LOCALLY_CANCELLED)
            raise
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The call ended while requests were left; its reader reports why.
            return
        except Exception:
            _LOGGER.exception("the iterator of requests failed; its call is cancelled")
            self.cancel_with(LOCALLY_CANCELLED)


class ReaderCore(CallCore):
    """A call with many responses."""

    inbox: "deque[tuple[int, bytes]]"
    receiver: "Callable[[Any], None] | None" = None
    """Takes responses as they come, instead of the inbox."""
    _reader: "asyncio.Future[None] | None" = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inbox = deque()

    def deliver_to(self, receiver: Callable[[Any], None]) -> None:
        """Hand over what is unread, and from now on each response in the turn that brings it."""
        while self.inbox:
            self._deliver(receiver, *self.inbox.popleft())
        if self.ending is None:
            self.receiver = receiver

    def _deliver(self, receiver: Callable[[Any], None], mark: int, body: bytes) -> None:
        self.take(mark)
        try:
            receiver(self.decode(body))
        except Exception as error:
            # The connection and its other calls must not suffer from a mistake in one.
            _LOGGER.exception("a response could not be taken; its call is ended")
            if self.ending is None:
                failure = Internal(f"a response could not be taken: {error!r}")
                self.connection.cancel(self, Ending.of(failure))

    async def wait_delivered(self) -> None:
        """Wait for the end of a call whose responses are handed over; raise for its status."""
        await self.wait_ended()
        self.raise_for_status()

    def on_message(self, body: bytes, mark: int, last: bool) -> None:
        """Keep a response until it is read, unless somebody takes it now."""
        if self.receiver is not None:
            self._deliver(self.receiver, mark, body)
            return
        self.inbox.append((mark, body))
        if not self.headers_seen and self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(None)
        self._wake_reader()

    def on_end(self, ending: Ending) -> None:
        """Let the reader see the end."""
        super().on_end(ending)
        self.receiver = None  # it holds the call in its turn: no work for the collector
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def read(self) -> Any:
        """Return the next response; at the end EOF, or raise for the status."""
        while not self.inbox or self.cancelled_here:
            if self.ending is not None:
                self.raise_for_status()
                return EOF
            self._reader = self.channel.loop.create_future()
            try:
                await self._reader
            except asyncio.CancelledError:
                self.cancel_with(LOCALLY_CANCELLED)
                raise
        mark, body = self.inbox.popleft()
        self.take(mark)
        return self.decode(body)

    def abandon(self) -> None:
        """Nobody holds the call any more: cancel it and give up what is unread."""
        self.cancel_with(COLLECTED)
        if self.inbox:
            self.inbox.clear()
            self.discard()


class StreamUnaryCore(WriterCore, UnaryCore):
    """Many requests, one response."""


class StreamStreamCore(WriterCore, ReaderCore):
    """Many requests, many responses."""


class _Reading(RpcMethods):
    """Reading of responses, by iteration or by ``read``."""

    _core: ReaderCore
    _style: str | None = None

    def _choose(self, style: str) -> None:
        if self._style is None or style == "delivery":
            self._style = style
        elif self._style != style:
            raise grpc.aio.UsageError(_MIXED)

    def __aiter__(self) -> Any:
        """Iterate over the responses."""
        self._choose("iterator")
        return self

    async def __anext__(self) -> Any:
        """Return the next response."""
        message = await self._core.read()
        if message is EOF:
            raise StopAsyncIteration
        return message

    async def read(self) -> Any:
        """Return the next response, or ``grpc.aio.EOF``."""
        self._choose("read")
        return await self._core.read()

    def deliver_to(self, receiver: Callable[[Any], None]) -> None:
        """
        Have each response handed to ``receiver`` in the turn that brings it, without a task.

        It must not block. What it raises ends the call with INTERNAL.
        """
        self._choose("delivery")
        self._core.deliver_to(receiver)

    async def wait_delivered(self) -> None:
        """Wait for the end of the call; raise, as ``read`` would, for all but OK."""
        await self._core.wait_delivered()

    def __del__(self) -> None:
        core = self.__dict__.get("_core")
        if core is not None and (core.ending is None or core.inbox):
            core.channel.collect(core)


class _Writing(RpcMethods):
    """Writing of requests, by an iterator or by ``write``."""

    _core: WriterCore

    def _begin(self, requests: Any) -> None:
        if requests is not None:
            self._core.consume(requests)

    def _direct(self) -> None:
        if self._core.poller is not None:
            raise grpc.aio.UsageError(_MIXED)

    @property
    def _done_writing_flag(self) -> bool:
        # grpc.aio's intercepted calls look at this name.
        return self._core.done_writing

    async def write(self, request: Any) -> None:
        """Send a request; wait while the server or the wire does not keep up."""
        self._direct()
        await self._core.write(request)

    @property
    def clear(self) -> bool:
        """Whether a request would leave at once, with nothing before it."""
        return self._core.clear

    def write_nowait(self, request: Any) -> bool:
        """
        Send a request when nothing is in its way; False when something is, and it was not taken.

        One that is taken may still wait for credit: until it is on its way, nothing more is taken.
        Raises as ``write`` does when the request is too large.
        """
        core = self._core
        if not core.clear:
            return False
        core.send(core.encode(request))
        return True

    async def done_writing(self) -> None:
        """Say that no request follows."""
        self._direct()
        await self._core.finish_writing()


class UnaryStreamCall(_Reading, grpc.aio.UnaryStreamCall[Any, Any]):
    """One request, many responses."""

    def __init__(self, core: ReaderCore) -> None:
        self._core = core


class StreamUnaryCall(_Writing, grpc.aio.StreamUnaryCall[Any, Any]):
    """Many requests, one response."""

    def __init__(self, core: StreamUnaryCore, requests: Any) -> None:
        self._core: StreamUnaryCore = core
        self._begin(requests)

    def __await__(self) -> Generator[Any, None, Any]:
        """Await the response."""
        # A generator of this object: whoever waits holds the call, so that it is not collected.
        return (yield from self._core.wait_result())

    def __del__(self) -> None:
        core = self.__dict__.get("_core")
        if core is not None and core.ending is None:
            core.channel.collect(core)


class StreamStreamCall(_Reading, _Writing, grpc.aio.StreamStreamCall[Any, Any]):
    """Many requests, many responses."""

    def __init__(self, core: StreamStreamCore, requests: Any) -> None:
        self._core: StreamStreamCore = core
        self._begin(requests)
