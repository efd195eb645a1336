"""Calls as their caller sees them: the core of every call, and the unary-unary call itself."""

import asyncio
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from tidewire.errors import Internal
from tidewire.transport.metadata import CODES, rpc_error, trailing
from tidewire.wire.bodies import ENDING_OK, STATUS_OK, Ending, Metadata
from tidewire.wire.client_side import ClientCall, ClientConnection
from tidewire.wire.frame import END

if TYPE_CHECKING:
    from tidewire.transport.channel import RawChannel

LOCALLY_CANCELLED: Final = Ending(
    grpc.StatusCode.CANCELLED.value[0], "Locally cancelled by application!"
)
COLLECTED: Final = Ending(grpc.StatusCode.CANCELLED.value[0], "Cancelled upon garbage collection!")


class CallCore(ClientCall):
    """What calls of all four shapes share: status, metadata, cancellation, callbacks."""

    connection: ClientConnection
    ending: Ending | None = None
    initial: Metadata = ()
    cancelled_here = False
    _callbacks: "list[Callable[[], None]] | None" = None
    _ended: "asyncio.Future[None] | None" = None
    _greeted: "asyncio.Future[None] | None" = None
    _attached: "asyncio.Future[None] | None" = None
    attached = False
    """Whether the call has a connection."""
    moves = 0
    """How often it lost its connection before its OPEN had left."""
    wait_for_ready = False
    pending: tuple[bytes | None, bool] = (None, False)
    """First message, and whether it is the last, while the call waits for a connection."""
    waiting_timer: "asyncio.TimerHandle | None" = None
    """Ends the call while it waits for a connection."""

    def __init__(
        self,
        channel: "RawChannel",
        head: bytes,
        priority: int,
        deadline_s: float | None,
        serialize: Callable[[Any], bytes] | None,
        deserialize: Callable[[bytes], Any] | None,
    ) -> None:
        self.channel = channel
        self.head = head
        self.priority = priority
        self.deadline_s = deadline_s
        self.serialize = serialize
        self.deserialize = deserialize

    # News of the wire -------------------------------------------------------------------------

    def on_headers(self, metadata: Metadata) -> None:
        """Keep the initial metadata."""
        self.initial = metadata
        _resolve(self._greeted)

    def on_end(self, ending: Ending) -> None:
        """Keep the status and tell everyone who waits for it. Once."""
        if self.ending is not None:
            return
        self.ending = ending
        self.channel.ended(self, ending)
        for waiter in (self._ended, self._greeted, self._attached):
            if waiter is not None:
                _resolve(waiter)
        if self._callbacks is not None:
            callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks:
                callback()

    def on_attached(self) -> None:
        """The call has a connection."""
        if self._attached is not None:
            _resolve(self._attached)

    # Waiting ----------------------------------------------------------------------------------

    async def wait_ended(self) -> Ending:
        """Wait for the status; cancelling the waiter does not cancel the call."""
        if self.ending is None:
            if self._ended is None:
                self._ended = self.channel.loop.create_future()
            await asyncio.shield(self._ended)
        assert self.ending is not None
        return self.ending

    async def wait_greeted(self) -> Metadata:
        """Wait for the initial metadata, or for the end."""
        if self.ending is None and not self.headers_seen and not self.received:
            if self._greeted is None:
                self._greeted = self.channel.loop.create_future()
            await asyncio.shield(self._greeted)
        return self.initial

    async def wait_attached(self) -> None:
        """Wait for a connection."""
        if self.ending is None and not self.attached:
            if self._attached is None:
                self._attached = self.channel.loop.create_future()
            await asyncio.shield(self._attached)
        if self.ending is not None:
            self.raise_for_status()

    def detach(self) -> tuple[bytes | None, bool]:
        """Leave a connection on which OPEN has not gone out; return what OPEN was to carry."""
        first, last = self.first, bool(self.open_flags & END)
        self.first = None
        self.open_flags = 0
        self.attached = False
        self._scheduled = False
        return first, last

    # Ends -------------------------------------------------------------------------------------

    def cancel_with(self, ending: Ending) -> bool:
        """End the call from this side; return False when it has ended."""
        if self.ending is not None:
            return False
        self.cancelled_here = True
        if self.attached:
            self.connection.cancel(self, ending)
        else:
            self.over = True
            self.channel.drop_waiting(self)
            self.on_end(ending)
        return True

    def abandon(self) -> None:
        """Nobody holds the call any more: cancel it."""
        self.cancel_with(COLLECTED)

    def raise_for_status(self) -> None:
        """
        Raise what gRPC would, if the call has ended so.

        ``CancelledError`` for our own cancellation, an ``AioRpcError`` for all but OK.
        """
        if self.cancelled_here:
            raise asyncio.CancelledError
        ending = self.ending
        if ending is not None and ending.code != STATUS_OK:
            raise rpc_error(ending, self.initial)

    def decode(self, body: bytes) -> Any:
        """Deserialize a response."""
        return body if self.deserialize is None else self.deserialize(body)

    def encode(self, message: Any) -> bytes:
        """Serialize a request."""
        if self.serialize is None:
            raw: bytes = message
            return raw
        return self.serialize(message)

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` at the end; at once when the call has ended."""
        if self.ending is not None:
            callback()
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def seconds_left(self) -> float | None:
        """Return the seconds until the deadline; ``None`` without one."""
        if self.deadline_s is None:
            return None
        return max(0.0, self.deadline_s - self.channel.loop.time())


class UnaryCore(CallCore):
    """A call with one response."""

    response: bytes | None = None
    _waiter: "asyncio.Future[None] | None" = None

    def on_message(self, body: bytes, mark: int, last: bool) -> None:
        """Keep the response; a second one breaks the shape of the call."""
        self.take(mark)
        if self.response is not None:
            error = Internal("the server sent two responses on a call that has one")
            self.connection.cancel(self, Ending.of(error))
            return
        self.response = body

    def on_last(self, body: bytes) -> None:
        """Take the response with which the call ended."""
        if self.response is not None:
            self.on_end(Ending.of(Internal("the server sent two responses on a call that has one")))
            return
        self.response = body
        self.on_end(ENDING_OK)

    def on_end(self, ending: Ending) -> None:
        """Turn OK without a response into an error: the server broke the shape of the call."""
        if ending.code == STATUS_OK and self.response is None:
            ending = Ending.of(Internal("the server ended the call with OK and no response"))
        super().on_end(ending)
        if self._waiter is not None:
            _resolve(self._waiter)

    def result(self) -> Any:
        """Return the response, or raise for the status."""
        if self.cancelled_here or self.ending is None or self.ending.code != STATUS_OK:
            self.raise_for_status()
        response = self.response
        assert response is not None
        return response if self.deserialize is None else self.deserialize(response)

    def wait_result(self) -> Generator[Any, None, Any]:
        """Await the response; cancelling the waiter cancels the call."""
        if self.ending is None:
            # Apart from ``_ended``: cancelling the waiter cancels this future too.
            if self._waiter is None:
                self._waiter = self.channel.loop.create_future()
            try:
                yield from self._waiter
            except asyncio.CancelledError:
                self.cancel_with(LOCALLY_CANCELLED)
                raise
        return self.result()


class RpcMethods:
    """
    The methods of ``grpc.aio.Call`` over a core.

    ``_core`` is the object itself for unary-unary calls, where a second object would cost time,
    and another one for streams, so that a stream nobody holds any more is noticed and cancelled.
    """

    _core: CallCore

    def cancel(self) -> bool:
        """Cancel the call; return False when it has ended."""
        return self._core.cancel_with(LOCALLY_CANCELLED)

    def cancelled(self) -> bool:
        """Whether the call ended with CANCELLED."""
        ending = self._core.ending
        return ending is not None and ending.code == LOCALLY_CANCELLED.code

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._core.ending is not None

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline; ``None`` without one."""
        return self._core.seconds_left()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call ``callback(call)`` when the call ends; at once when it has."""
        self._core.add_callback(lambda: callback(self))

    async def initial_metadata(self) -> Any:
        """Wait for the server's initial metadata."""
        return grpc.aio.Metadata(*await self._core.wait_greeted())

    async def trailing_metadata(self) -> Any:
        """Wait for the server's trailing metadata."""
        return trailing(await self._core.wait_ended())

    async def code(self) -> grpc.StatusCode:
        """Wait for the status code."""
        return CODES.by_number[(await self._core.wait_ended()).code]

    async def details(self) -> str:
        """Wait for the status message."""
        return (await self._core.wait_ended()).message

    async def debug_error_string(self) -> str:
        """Wait for the status message, under the name gRPC has for its own account of it."""
        return f"tidewire: {(await self._core.wait_ended()).message}"

    async def wait_for_connection(self) -> None:
        """Wait until the call has a connection; raise when it ended before."""
        await self._core.wait_attached()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._core.ending or 'in flight'}>"


class UnaryUnaryCall(RpcMethods, UnaryCore, grpc.aio.UnaryUnaryCall[Any, Any]):
    """One request, one response."""

    @property
    def _core(self) -> CallCore:  # type: ignore[override]
        return self

    def __await__(self) -> Generator[Any, None, Any]:
        """Await the response."""
        return self.wait_result()


def _resolve(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)
