"""The worker's side: a handler for every method that hands the call on, its bytes unread."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import grpc
import grpc.aio

from tidewire.transport import RawServer
from tidewire.transport.link import ServerLink
from tidewire.transport.shell import Shell
from tidewire_server.workers.identity import KEY, encode_peer

PRIORITY: Final = "tidewire-priority"
Shape = tuple[bool, bool]
"""Whether requests stream, and whether responses do."""


class ClientLink(ServerLink):
    """A client's connection at a worker."""

    told: bytes | None = None
    """Who it is, as every call of it tells the engine's process."""


class ClientServer(RawServer):
    """Takes clients' connections; tells ``count`` how many there are whenever that changes."""

    def __init__(self, *arguments: Any, count: Callable[[int], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._count = count
        self._open = 0

    def admit(
        self, shell: Shell, url: str, now_s: float, link_class: type[ServerLink] = ServerLink
    ) -> ServerLink:
        """Return a link that remembers who it is."""
        chosen = ClientLink if link_class is ServerLink else link_class
        self._open += 1
        self._count(self._open)
        shell.lost.add_done_callback(self._gone)
        return super().admit(shell, url, now_s, chosen)

    def _gone(self, _lost: Any) -> None:
        self._open -= 1
        self._count(self._open)


class Forwarder(grpc.GenericRpcHandler):
    """
    Hands calls on over a channel; requests and responses go as they came.

    Args:
        channel: To the engine's process.
        shapes: The methods there are; what is not among them is asked for as a stream, and answered
            by the engine's process.
    """

    def __init__(self, channel: grpc.aio.Channel, shapes: Mapping[str, Shape]) -> None:
        self._channel = channel
        self._handlers = {method: self._make(method, *shape) for method, shape in shapes.items()}

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method."""
        method = handler_call_details.method
        return self._handlers.get(method) or self._make(method, True, True)

    def _make(self, method: str, requests: bool, responses: bool) -> Any:
        if not requests and not responses:
            unary = _forward_unary(self._channel.unary_unary(method))
            return grpc.unary_unary_rpc_method_handler(unary)
        # The engine's process sees a stream as what it is by its own table of methods.
        stream = _forward_stream(self._channel.stream_stream(method))
        return grpc.stream_stream_rpc_method_handler(stream)


def _forward_unary(method: Any) -> Any:
    async def forward(request: bytes, context: Any) -> bytes | None:
        call = method(request, timeout=context.time_remaining(), metadata=metadata_of(context))
        try:
            response: bytes = await call
        except grpc.aio.AioRpcError as error:
            await _abort(context, error)
            return None
        if call.initial:
            await context.send_initial_metadata(call.initial)
        trailing = await call.trailing_metadata()
        if trailing:
            context.set_trailing_metadata(trailing)
        return response

    return forward


def _forward_stream(method: Any) -> Any:
    async def forward(requests: Any, context: Any) -> None:
        call = method(timeout=context.time_remaining(), metadata=metadata_of(context))
        sending = asyncio.create_task(_send(requests, call, context))
        try:
            initial = await call.initial_metadata()
            if initial or not call.done():
                # Even none at all: that they have come tells a caller that the handler is there.
                await context.send_initial_metadata(initial)
            async for response in call:
                await context.write(response)
            trailing = await call.trailing_metadata()
            if trailing:
                context.set_trailing_metadata(trailing)
        except grpc.aio.AioRpcError as error:
            await _abort(context, error)
        finally:
            call.cancel()
            sending.cancel()
            await asyncio.wait([sending])

    return forward


async def _send(requests: Any, call: Any, context: Any) -> None:
    # What goes wrong here ends the call, and the reader of its responses says so.
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
        async for request in requests:
            await call.write(request)
        if not context.done():  # a caller that went away has not finished in order
            await call.done_writing()


async def _abort(context: Any, error: grpc.aio.AioRpcError) -> None:
    initial = error.initial_metadata()
    if initial:
        with suppress(RuntimeError):  # it went out before the call failed
            await context.send_initial_metadata(initial)
    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))


def metadata_of(context: Any) -> tuple[tuple[str, str | bytes], ...]:
    """Metadata of a call that is handed on: the client's own, its place, and who it is."""
    link = context.link
    told = link.told
    if told is None:
        told = link.told = encode_peer(link.peer)
    kept = [
        (key, value)
        for key, value in context.invocation_metadata()
        if key not in (KEY, PRIORITY)  # nobody else says who somebody is
    ]
    return (*kept, (PRIORITY, str(context.priority)), (KEY, told))
