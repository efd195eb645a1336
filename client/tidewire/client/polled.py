"""
Streams of the services by unary calls, for channels that carry no streams (``udp://``, ``dtls://``).

Each class here stands in for a streaming call of a generated stub, so that subscriptions, watches
and publishers are the same on every wire. What comes is asked for by long polls; what a datagram
cannot carry ends with the typed error of the wire.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

import grpc.aio

from tidewire.client.session import Metadata, Session, log
from tidewire.errors import Internal, MessageTooLarge, TidewireError
from tidewire.v1 import common_pb2, event_pb2, server_pb2
from tidewire.v1.server_pb2_grpc import ServerServiceStub
from tidewire.wire.datagram_limits import DATAGRAM_BYTES

POLL_WAIT_S: Final = 10.0
"""How long one long poll waits at the server."""
POLL_SLACK_S: Final = 5.0
IDLE_PAUSE_S: Final = 0.1
"""Pause after a poll that came back empty and early: the server is about to go."""
RESPONSES_WAITING_MAX: Final = 8
"""Responses of a watch that wait for the application before no more are asked for."""
OVERHEAD_BYTES: Final = 360
"""What a datagram holds beside payloads: headers, method, subject, ids, at most about this."""
_ENTRY_BYTES: Final = 200
"""About what one entry of a list takes; more is found out by asking for less."""
_DELIVERY_BYTES: Final = 300
"""The same for a delivery without its body, and some to spare."""
_CLOSING: set[asyncio.Task[None]] = set()
"""Last words of calls that were dropped; held here until they are said."""

ResponseT = TypeVar("ResponseT")


def carries_streams(channel: grpc.aio.Channel) -> bool:
    """Whether calls with many requests or responses can be made on a channel."""
    return bool(getattr(channel, "carries_streams", True))


def datagram_bytes(channel: grpc.aio.Channel) -> int:
    """Return the largest datagram of a channel that carries no streams."""
    return int(getattr(channel, "datagram_bytes", DATAGRAM_BYTES))


def fit_fetch(channel: grpc.aio.Channel, request: event_pb2.FetchRequest) -> None:
    """
    Let a fetch ask for no more than a datagram is likely to carry.

    What is delivered and does not fit is lost until its ack wait is over, so this stays below.
    """
    if not carries_streams(channel):
        size = datagram_bytes(channel)
        request.messages_max = max(1, min(request.messages_max or size, size // _DELIVERY_BYTES))
        request.bytes_max = max(1, min(request.bytes_max or size, size // 3))


class Sizing:
    """How many entries to ask for at once: as many as fit a datagram, found out by trying."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.count = max(1, datagram_bytes(channel) // _ENTRY_BYTES)

    async def ask(self, call: Callable[[int], Awaitable[Any]]) -> Any:
        """
        Make a call with a count, and again with half of it when the answer does not fit.

        Raises:
            MessageTooLarge: A single entry does not fit.
        """
        while True:
            try:
                return await call(self.count)
            except MessageTooLarge:
                if self.count == 1:
                    raise
                self.count = max(1, self.count // 2)


class Pages:
    """Asks for pages of a list: of the size asked for, or of what fits a datagram."""

    def __init__(self, session: Session, page_size: int) -> None:
        self._page_size = page_size
        fits_any = page_size or carries_streams(session.channel)
        self._sizing = None if fits_any else Sizing(session.channel)

    async def ask(self, call: Callable[[int], Awaitable[Any]]) -> Any:
        """Make a call with the size of a page; MessageTooLarge: a single entry does not fit."""
        if self._sizing is None:
            return await call(self._page_size)
        return await self._sizing.ask(call)


class PolledCall(Generic[ResponseT]):
    """What streaming calls made of unary ones share: a queue of responses, tasks, an end."""

    def __init__(self, session: Session, metadata: Metadata) -> None:
        self.session = session
        self.metadata = metadata
        self._responses: deque[ResponseT] = deque()
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = False
        self._error: TidewireError | None = None

    # As a call --------------------------------------------------------------------------------

    async def read(self) -> Any:
        """Return the next response, ``EOF`` at the end; raise what ended it."""
        while not self._responses:
            if self._error is not None:
                raise self._error
            if self._over:
                return grpc.aio.EOF
            self._changed.clear()
            await self._changed.wait()
        self._taken.set()
        return self._responses.popleft()

    def cancel(self) -> bool:
        """End it; return False when it had ended."""
        if self._over:
            return False
        self.finish(None)
        self._responses.clear()
        for task in self._tasks:
            task.cancel()
        return True

    # For subclasses ---------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._over

    def put(self, response: ResponseT) -> None:
        """Give a response to the reader."""
        self._responses.append(response)
        self._changed.set()

    async def wait_taken(self) -> None:
        """Wait while many responses are unread."""
        while len(self._responses) >= RESPONSES_WAITING_MAX:
            self._taken.clear()
            await self._taken.wait()

    def finish(self, error: TidewireError | None) -> None:
        """End it, once; the reader still gets what came before."""
        if not self._over:
            self._over = True
            self._error = error
            self._changed.set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Do work beside; when it fails the call ends with that."""
        task = self.session.loop.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except TidewireError as error:
            self.finish(error)
        except Exception as error:  # noqa: BLE001 (nobody must wait for ever)
            log.exception("polling failed")
            self.finish(Internal(f"polling failed by a mistake of the client: {error!r}"))

    async def unary(
        self, method: Callable[..., Any], request: Any, wait_s: float = 0.0, **more: Any
    ) -> Any:
        """Make a call that may wait so long at the server."""
        return await self.session.unary(
            method,
            request,
            timeout_s=max(self.session.options.timeout_s, wait_s + POLL_SLACK_S),
            metadata=self.metadata,
            **more,
        )

    async def greeting(self, **limits: int) -> common_pb2.Opened:
        """Return what a stream would be greeted with; ``limits`` replace those of the server."""
        stub = ServerServiceStub(self.session.channel)
        info = await self.unary(stub.GetInfo, server_pb2.GetInfoRequest())
        opened = common_pb2.Opened(
            node_id=info.node_id, epoch=info.epoch, limits=info.limits, codecs=info.codecs
        )
        for name, value in limits.items():
            setattr(opened.limits, name, min(value, getattr(opened.limits, name) or value))
        return opened


def last_words(work: Coroutine[Any, Any, None]) -> None:
    """Do something for a call that was dropped; nobody waits for it."""
    task = asyncio.get_running_loop().create_task(work)
    _CLOSING.add(task)
    task.add_done_callback(_CLOSING.discard)
