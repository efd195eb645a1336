"""A call as its handler sees it: ``grpc.aio.ServicerContext`` on a raw wire."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from tidewire.errors import MalformedRequest, TidewireError
from tidewire.transport.metadata import CODES, flat
from tidewire.wire.bodies import DETAILS_KEY, Ending, Head, Metadata
from tidewire.wire.call import Call
from tidewire.wire.server_side import ServerConnection
from tidewire.wire.spliced import Spliced

if TYPE_CHECKING:
    from tidewire.transport.link import ServerLink

Handler = grpc.RpcMethodHandler


class Aborted(Exception):
    """Leaves a handler after ``abort``."""


class ServerCall(Call, grpc.aio.ServicerContext):  # type: ignore[type-arg]  # any request, any response
    """One call at a server, and the context its handler gets."""

    connection: ServerConnection
    task: "asyncio.Task[None] | None" = None
    handler: Any = None
    abandoned: "Callable[[], None] | None" = None
    """Told instead of the task when the call ends without its answer; see :meth:`answer`."""
    taker: "Callable[[Any], bool] | None" = None
    """Offered requests in the reader's turn; see :meth:`take_by`."""
    ending: Ending | None = None
    aborted = False
    _code: grpc.StatusCode | None = None
    _details = ""
    _trailers: Metadata = ()
    _headers_sent = False
    _callbacks: "list[Callable[[Any], None]] | None" = None
    _inbox: "deque[tuple[int, bytes]] | None" = None
    _reader: "asyncio.Future[None] | None" = None
    _writer: "asyncio.Future[None] | None" = None

    def __init__(self, link: "ServerLink", head: Head) -> None:
        self.link = link
        self.head = head
        self.began_s = perf_counter()

    # News of the wire -------------------------------------------------------------------------

    def on_message(self, body: bytes, mark: int, last: bool) -> None:
        """Offer a message to whoever takes it at once, or keep it until the handler reads it."""
        if self.taker is not None and not self._inbox and self._offer(body):
            self.take(mark)
            if last:
                self._wake_reader()
            return
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.append((mark, body))
        self._wake_reader()

    def _offer(self, body: bytes) -> bool:
        assert self.taker is not None
        try:
            request = self.decode(body)
        except TidewireError:
            return False  # the reader meets it again, and can raise it
        return self.taker(request)

    def on_half_closed(self) -> None:
        """Let the reader see the end."""
        self._wake_reader()

    def on_end(self, ending: Ending) -> None:
        """Cancel the handler: the call ended without it."""
        abandoned = self.abandoned
        self.conclude(ending)
        if self.task is not None:
            self.link.leave(self.task)
        elif abandoned is not None:
            abandoned()

    def on_drained(self) -> None:
        """Let the writer go on."""
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def conclude(self, ending: Ending) -> None:
        """Note how the call ended and tell whoever asked to be told. Once."""
        if self.ending is not None:
            return
        self.ending = ending
        self.abandoned = self.taker = None  # what they hold may hold the call: no work for gc
        if self._inbox:
            self.discard()
            self._inbox = None
        self.link.ended(ending)
        if self.handler is not None and self.handler.unary_unary is not None:
            self.link.server.counters.latency.record(perf_counter() - self.began_s)
        if self._callbacks is not None:
            callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks:
                callback(self)

    # Messages ---------------------------------------------------------------------------------

    async def read_raw(self) -> bytes | None:
        """Take the next request as it came; ``None`` when there is no more."""
        while not self._inbox:
            if self.peer_done or self.over:
                return None
            self._reader = self.link.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        mark, body = self._inbox.popleft()
        self.take(mark)
        return body

    async def read(self) -> Any:
        """Return the next request, or ``grpc.aio.EOF``."""
        body = await self.read_raw()
        return grpc.aio.EOF if body is None else self.decode(body)

    def decode(self, body: bytes) -> Any:
        """Deserialize a request; raise :class:`MalformedRequest` when protobuf refuses it."""
        deserialize = self.handler.request_deserializer
        if deserialize is None:
            return body
        try:
            return deserialize(body)
        except DecodeError as error:
            raise MalformedRequest(
                f"the request of {self.head.method} is not a valid message: {error}"
            ) from error

    async def write(self, message: Any) -> None:
        """Send a response; wait while the caller or the wire does not keep up."""
        if self.over or self.aborted:
            raise asyncio.InvalidStateError("the call has ended")
        if self.send_message(self._serialized(message)):
            return
        await self.wait_drained()

    def write_nowait(self, message: Any) -> bool:
        """
        Send a response when nothing is in its way; False when something is, and it was not taken.

        One that is taken may still wait for credit: until it is on its way, nothing more is taken.
        """
        if self.over or self.aborted or self.outbox:
            return False
        self.send_message(self._serialized(message))
        return True

    def _serialized(self, message: Any) -> Any:
        """A response in bytes, of which there are some in pieces; headers go before it."""
        serialize = self.handler.response_serializer
        self._headers_sent = True
        if serialize is None or type(message) is Spliced:
            return message
        return serialize(message)

    async def wait_drained(self) -> None:
        """Wait until what was handed over is on its way."""
        while not self.drained and not self.over:
            self._writer = self.link.loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None

    def take_by(self, taker: "Callable[[Any], bool]") -> None:
        """
        Let ``taker`` have requests in the turn they come in, without waking the handler.

        It is called with the next request when no earlier one waits to be read, must not block or
        raise, and returns False for what the handler is to read after all. One that the handler is
        busy with is not waited for: the taker has to know, and return False then. The end of the
        requests comes to the handler's reader alone.
        """
        self.taker = taker

    async def requests(self) -> Any:
        """Iterate over the requests of the caller."""
        while (request := await self.read()) is not grpc.aio.EOF:
            yield request

    # Handlers without a task ------------------------------------------------------------------

    def answer(self, response: Any) -> None:
        """Send the one response and end the call with OK; nothing happens once it has ended."""
        self.link.respond(self, response)

    def answer_encoded(self, response: bytes) -> None:
        """As :meth:`answer`, with a response that is serialized already."""
        self.link.respond_encoded(self, response)

    def fail(self, error: Exception) -> None:
        """End the call with an error; nothing happens once it has ended."""
        self.link.fail_call(self, error)

    # Metadata and status ----------------------------------------------------------------------

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send initial metadata, once and before the first response."""
        if self._headers_sent:
            raise RuntimeError("Send initial metadata failed: already sent")
        self._headers_sent = True
        if not self.over:
            self.send_headers(flat(initial_metadata))

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set what goes with the status."""
        self._trailers = flat(trailing_metadata)

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status code."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Set the status message."""
        self._details = details

    def code(self) -> Any:
        """Return the status code set so far; 0 before, as in gRPC."""
        return self._code if self._code is not None else 0

    def details(self) -> str:
        """Return the status message set so far."""
        return self._details

    def trailing_metadata(self) -> Any:
        """Return the trailing metadata set so far."""
        return self._trailers

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()
    ) -> NoReturn:
        """End the call with a status; raises."""
        self.set_aborted(code, details, trailing_metadata)
        raise Aborted

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with a status and its details; raises."""
        self.set_aborted(status.code, status.details, status.trailing_metadata)
        raise Aborted

    def set_aborted(self, code: grpc.StatusCode, details: str, trailers: Any) -> None:
        """Note an abort: from now on nothing but its status is sent."""
        if self.aborted:
            raise RuntimeError("Abort already called!")
        if code is grpc.StatusCode.OK:
            code, details = grpc.StatusCode.UNKNOWN, "abort() called with StatusCode.OK"
        self._code, self._details = code, details
        if trailers:
            self._trailers = flat(trailers)
        self.aborted = True

    def result(self) -> Ending:
        """Return the ending that code, details and trailers amount to."""
        code = self._code.value[0] if self._code is not None else 0
        trailers, details = self._trailers, b""
        for key, value in trailers:
            if key == DETAILS_KEY and isinstance(value, bytes) and _is_status(value):
                details = value
        if details:
            trailers = tuple(entry for entry in trailers if entry[0] != DETAILS_KEY)
        return Ending(code, self._details, details, trailers)

    @property
    def has_result(self) -> bool:
        """Whether more than a plain OK is to be told at the end."""
        return self._code is not None or bool(self._trailers) or bool(self._details)

    # The peer ---------------------------------------------------------------------------------

    def invocation_metadata(self) -> Any:
        """Return the caller's metadata."""
        return self.link.prefix + self.head.metadata

    def peer(self) -> str:
        """Return the address of the peer."""
        return self.link.peer.name

    def peer_identities(self) -> Any:
        """Return what the certificate says the peer is."""
        return self.link.peer.identities

    def peer_identity_key(self) -> str | None:
        """Return which property of the certificate that is."""
        return self.link.peer.identity_key

    def auth_context(self) -> Mapping[str, Any]:
        """Return what TLS and the certificate say."""
        return self.link.peer.auth

    def time_remaining(self) -> Any:
        """Return the seconds until the deadline; ``None`` without one."""
        if self.deadline_s is None:
            return None
        return max(0.0, self.deadline_s - self.link.loop.time())

    # Life -------------------------------------------------------------------------------------

    def cancelled(self) -> bool:
        """
        Whether the call ended without its handler: by the caller, the connection or the deadline.
        """
        return self.ending is not None and self.ending.code in CODES.cancelling

    def done(self) -> bool:
        """Whether the call ended."""
        return self.ending is not None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call ``callback(context)`` when the call ends; at once when it has."""
        if self.ending is not None:
            callback(self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def set_compression(self, compression: grpc.Compression) -> None:
        """Accept and ignore: raw wires do not compress frames; bodies say their own codec."""

    def disable_next_message_compression(self) -> None:
        """Accept and ignore: see :meth:`set_compression`."""


def _is_status(value: bytes) -> bool:
    try:
        status_pb2.Status.FromString(value)
    except DecodeError:
        return False
    return True


class SyncContext:
    """
    The context of a handler that is not a coroutine and runs in a thread: ``abort`` raises at
    once.
    """

    def __init__(self, call: ServerCall) -> None:
        self._call = call

    def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """End the call with a status; raises."""
        self._call.set_aborted(code, details, trailing_metadata)
        raise Aborted

    def abort_with_status(self, status: grpc.Status) -> None:
        """End the call with a status and its details; raises."""
        self.abort(status.code, status.details, status.trailing_metadata)

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send initial metadata from the handler's thread."""
        loop = self._call.link.loop
        sending = self._call.send_initial_metadata(initial_metadata)
        asyncio.run_coroutine_threadsafe(sending, loop).result()

    def is_active(self) -> bool:
        """Whether somebody still waits for the answer."""
        return self._call.ending is None

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline; ``None`` without one."""
        deadline_s = self._call.deadline_s
        return None if deadline_s is None else max(0.0, deadline_s - self._call.link.loop.time())

    def __getattr__(self, name: str) -> Any:
        """Pass on everything else; the rest only reads, or sets what is read at the end."""
        return getattr(self._call, name)
