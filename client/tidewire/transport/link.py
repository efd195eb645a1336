"""A server's connection with its shell: finds the handler of each call and runs it."""

import asyncio
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import grpc
import grpc.aio

from tidewire.errors import Cancelled, Internal, InvalidArgument, MethodNotFound, TidewireError
from tidewire.transport.context import Aborted, ServerCall, SyncContext
from tidewire.transport.direct import Direct
from tidewire.transport.shell import Shell
from tidewire.wire.bodies import ENDING_OK, Ending, Head, Hello, Metadata, Metadatum
from tidewire.wire.call import Call
from tidewire.wire.server_side import ServerConnection

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer

HANDLERS_CACHED_MAX = 1_024

_LOGGER = logging.getLogger(__name__)


class HandlerCallDetails(NamedTuple):
    """What a generic handler is asked with."""

    method: str
    invocation_metadata: Any


# What grpc.aio hands to routers and interceptors is of this class too; the stubs hide that.
cast("Any", grpc.HandlerCallDetails).register(HandlerCallDetails)


class ServerLink(ServerConnection):
    """One connection of a raw server."""

    __slots__ = ("identifier", "leaving", "loop", "peer", "prefix", "protocol", "server", "url")

    def __init__(
        self,
        server: "RawServer",
        protocol: Shell,
        now_s: float,
        *,
        identifier: int,
        url: str,
    ) -> None:
        options = server.options
        hello = Hello(agent=server.agent, codecs=server.codecs, node_id=options.node_id)
        super().__init__(hello, options.limits, now_s, server.heads)
        self.server = server
        self.protocol = protocol
        self.identifier = identifier
        self.url = url
        self.loop = server.loop
        self.peer = protocol.peer()
        self.prefix: Metadata = ()
        """Metadata every call of the connection begins with: agent and token of HELLO."""
        self.leaving: set[asyncio.Task[None]] | None = None
        """Handlers that were cancelled and have not ended; running ones hang on their calls."""

    # News -------------------------------------------------------------------------------------

    def on_ready(self) -> None:
        """Turn what HELLO says into metadata, as a gRPC client would send it with each call."""
        assert self.peer_hello is not None
        prefix: list[tuple[str, str | bytes]] = []
        agent, token = self.peer_hello.agent, self.peer_hello.token
        if agent and agent.isascii() and agent.isprintable():
            prefix.append(Metadatum("user-agent", agent))
        if token and self.peer.encrypted and token.isascii() and token.isprintable():
            prefix.append(Metadatum("authorization", f"Bearer {token}"))
        self.prefix = tuple(prefix)
        self.server.greeted(self)

    def on_closed(self, error: TidewireError) -> None:
        """Leave the server's list."""
        self.server.left(self)

    def on_refused(self, error: TidewireError) -> None:
        """Count a call that was refused before it began."""
        self.server.counters.calls_ended[error.code] += 1

    def on_call(self, head: Head) -> Call:
        """Make the context of a call."""
        return ServerCall(self, head)

    def ended(self, ending: Ending) -> None:
        """Count the end of a call."""
        counters = self.server.counters
        counters.calls_active -= 1
        counters.calls_ended[ending.code] += 1

    def forget(self, call: Call) -> None:
        """Take a call out; the last one of a draining connection ends it."""
        ServerConnection.forget(self, call)
        if self.draining and not self.calls:
            self.protocol.finish()

    def drain(self, grace_s: float) -> None:
        """Announce the end; close when the last call is done."""
        super().drain(grace_s)
        if not self.calls:
            self.protocol.finish()

    # Calls ------------------------------------------------------------------------------------

    def on_call_opened(self, call: Call, message: bytes | None, last: bool) -> None:
        """Find the handler and start it, or wait for the rest of a unary request."""
        assert isinstance(call, ServerCall)
        server = self.server
        server.counters.calls_active += 1
        if server.interceptors:
            call.task = self.loop.create_task(self._intercept(call, message, last))
            return
        handler = server.registered.get(call.head.method)
        if handler is None:
            handler = self._find(call)
            if handler is None:
                return
        self._begin(call, handler, message, last)

    def _find(self, call: ServerCall) -> Any:
        """Ask the generic handlers; when they have none, or fail, the call ends."""
        details = HandlerCallDetails(call.head.method, call.invocation_metadata())
        try:
            handler = self.server.find(details)
        except Exception as error:  # noqa: BLE001 (whatever a router raises ends its call)
            self.fail_call(call, error)
            return None
        if handler is None:
            self._unknown(call)
        return handler

    async def _intercept(self, call: ServerCall, message: bytes | None, last: bool) -> None:
        """Ask the interceptors for the handler first."""
        if message is not None:
            self._keep(call, message, last)
        details = HandlerCallDetails(call.head.method, call.invocation_metadata())
        try:
            handler = await _run_interceptors(self.server.interceptors, self.server.find, details)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever the interceptor raised ends its call)
            self.fail_call(call, error)
            return
        if handler is None:
            self._unknown(call)
            return
        call.handler = handler
        await self._serve(call, None)

    def _keep(self, call: ServerCall, message: bytes, last: bool) -> None:
        # OPEN's message has cost the call no credit, so its mark adds nothing.
        call.on_message(message, call.consumed, last)

    def _begin(self, call: ServerCall, handler: Any, message: bytes | None, last: bool) -> None:
        """Start the handler of a call in a task of its own."""
        call.handler = handler
        if message is not None and last and handler.unary_unary is not None:
            direct = getattr(handler.unary_unary, "direct", None)
            if direct is not None:
                self._start(call, direct, message)
            elif _is_async(handler.unary_unary):
                call.task = self.loop.create_task(self._answer(call, handler, message))
            else:
                call.task = self.loop.create_task(self._serve(call, message))
            return
        if message is not None:
            self._keep(call, message, last)
        call.task = self.loop.create_task(self._serve(call, None))

    def _start(self, call: ServerCall, direct: Direct, message: bytes) -> None:
        """Start a handler that needs no task: it answers now, or when it is told the answer."""
        try:
            direct(call.decode(message), call)
        except Exception as error:  # noqa: BLE001 (whatever a handler raises ends its call)
            self.fail_call(call, error)

    def leave(self, task: "asyncio.Task[None]") -> None:
        """Cancel a handler and hold it until it has ended."""
        if not task.done():
            if self.leaving is None:
                self.leaving = set()
            self.leaving.add(task)
            task.add_done_callback(self.leaving.discard)
            task.cancel()

    def running(self) -> "list[asyncio.Task[None]]":
        """Return the handlers that have not ended."""
        calls = [call for call in self.calls.values() if isinstance(call, ServerCall)]
        return [*(self.leaving or ()), *(call.task for call in calls if call.task is not None)]

    async def _answer(self, call: ServerCall, handler: Any, request: bytes) -> None:
        """Serve the usual call, one request and one response, without detours."""
        try:
            response = await handler.unary_unary(call.decode(request), call)
            self.respond(call, response)
        except asyncio.CancelledError:
            self._cancelled(call)
            raise
        except Exception as error:  # noqa: BLE001 (whatever a handler raises ends its call)
            self.fail_call(call, error)

    async def _serve(self, call: ServerCall, request: bytes | None) -> None:
        handler = call.handler
        try:
            argument = None
            if not handler.request_streaming:
                if request is None:
                    request = await call.read_raw()
                if request is None:
                    raise InvalidArgument("the call needs one request and has none")
                argument = call.decode(request)
            if handler.response_streaming:
                await self._stream(call, argument)
                self._finish(call)
            else:
                await self._unary(call, argument)
        except asyncio.CancelledError:
            self._cancelled(call)
            raise
        except Exception as error:  # noqa: BLE001 (whatever a handler raises ends its call)
            self.fail_call(call, error)

    async def _unary(self, call: ServerCall, request: Any) -> None:
        handler = call.handler
        streaming = handler.request_streaming
        function = handler.stream_unary if streaming else handler.unary_unary
        if _is_async(function):
            response = await function(call.requests() if streaming else request, call)
        else:
            response = await self._in_thread(function, call, request, streaming)
        self.respond(call, response)

    def respond(self, call: ServerCall, response: Any) -> None:
        """End a call with the one response of its handler."""
        if call.over:
            return
        if call.aborted or (call.has_result and response is None):
            self._finish(call)
            return
        serialize = call.handler.response_serializer
        self.respond_encoded(call, response if serialize is None else serialize(response))

    def respond_encoded(self, call: ServerCall, response: bytes) -> None:
        """End a call with the one response of its handler, which is serialized already."""
        if call.over:
            return
        if call.aborted or call.has_result:
            if not call.aborted:
                call.send_message(response)
            self._finish(call)
            return
        call.reply(response)
        call.conclude(ENDING_OK)

    async def _stream(self, call: ServerCall, request: Any) -> None:
        handler = call.handler
        streaming = handler.request_streaming
        function = handler.stream_stream if streaming else handler.unary_stream
        argument = call.requests() if streaming else request
        if not _is_async(function):
            responses = await self._in_thread(function, call, request, streaming)
            await self._send_from_thread(call, responses)
            return
        outcome = function(argument, call)
        if not hasattr(outcome, "__aiter__"):
            await outcome
            return
        try:
            async for response in outcome:
                await call.write(response)
        finally:
            if hasattr(outcome, "aclose"):
                await outcome.aclose()

    async def _in_thread(
        self, function: Any, call: ServerCall, request: Any, streaming: bool
    ) -> Any:
        argument = _requests_in_thread(call) if streaming else request
        pool = self.server.pool()
        return await self.loop.run_in_executor(pool, function, argument, SyncContext(call))

    async def _send_from_thread(self, call: ServerCall, responses: Iterator[Any]) -> None:
        pool = self.server.pool()
        end = object()
        while (response := await self.loop.run_in_executor(pool, next, responses, end)) is not end:
            await call.write(response)

    # Ends of handlers -------------------------------------------------------------------------

    def _finish(self, call: ServerCall) -> None:
        ending = call.result()
        if not call.over:
            call.finish(ending)
            call.conclude(ending)

    def _unknown(self, call: ServerCall) -> None:
        self.fail_call(call, MethodNotFound(f"there is no method {call.head.method}"))

    def _cancelled(self, call: ServerCall) -> None:
        """A handler ended by cancellation: by us when the call is over, else by itself."""
        if call.over:
            return
        ending = Ending.of(Cancelled("the handler was cancelled"))
        self.end(call, ending)
        call.conclude(ending)

    def fail_call(self, call: ServerCall, error: Exception) -> None:
        """End a call with what its handler raised."""
        if isinstance(error, Aborted) or call.aborted:
            self._finish(call)
            return
        if call.over:
            _LOGGER.debug("handler of %s failed after its call ended: %r", call.head.method, error)
            return
        if isinstance(error, TidewireError):
            ending = Ending.of(error)
        else:
            ending = self._conceal(call, error)
        call.finish(ending)
        call.conclude(ending)

    def _conceal(self, call: ServerCall, error: Exception) -> Ending:
        """Log what went wrong under an id, and tell the caller only the id."""
        identifier = secrets.token_hex(8)
        _LOGGER.error("handler of %s failed (%s)", call.head.method, identifier, exc_info=error)
        concealed = Internal(f"internal error {identifier}", metadata={"error_id": identifier})
        ending = Ending.of(concealed)
        return Ending(grpc.StatusCode.UNKNOWN.value[0], ending.message, ending.details)


async def _run_interceptors(
    interceptors: tuple[grpc.aio.ServerInterceptor, ...],
    find: Callable[[Any], Any],
    details: HandlerCallDetails,
) -> Any:
    if not interceptors:
        return find(details)

    async def proceed(next_details: Any) -> Any:
        return await _run_interceptors(interceptors[1:], find, next_details)

    first: Any = interceptors[0]
    return await first.intercept_service(proceed, details)


@lru_cache(maxsize=HANDLERS_CACHED_MAX)
def _is_async(function: Any) -> bool:
    """
    Whether a handler is a coroutine function or an async generator function, or an object with
    one.
    """
    called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    return (
        inspect.iscoroutinefunction(function)
        or inspect.isasyncgenfunction(function)
        or inspect.iscoroutinefunction(called)
        or inspect.isasyncgenfunction(called)
    )


def _requests_in_thread(call: ServerCall) -> Iterator[Any]:
    """Iterate over requests from a handler's thread."""
    while True:
        request = asyncio.run_coroutine_threadsafe(call.read(), call.link.loop).result()
        if request is grpc.aio.EOF:
            return
        yield request
