"""
One table of methods for every wire, and what is done around each call.

Servicers are registered here once, by the generated ``add_*Servicer_to_server(servicer, router)``.
The gRPC server and the raw listeners then look methods up here, so a call is judged, counted and
answered in the same way wherever it came from: requests are bounded before they are parsed, errors
of `tidewire.errors` become statuses with their details, mistakes of ours become INTERNAL with an id
that is in the log.
"""

import asyncio
import inspect
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, Protocol, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from tidewire import errors
from tidewire.transport.context import ServerCall
from tidewire.transport.direct import Direct, direct_of
from tidewire.wire.scan import check_request_size
from tidewire.wire.spliced import Path, Spliced, may_splice, parse_apart, path_of
from tidewire_server.core import Context, Drain, principal

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX: Final = 2048
"""An error text is cut to this, so that a status always fits into the metadata of every wire."""

Handler = Any  # grpc.RpcMethodHandler: its attributes are not typed by grpc
Behaviour = Callable[..., Any]
Authorize = Callable[[str, str], None]
"""Called with the principal and the full method; raises `errors.PermissionDenied`."""

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class CallMetrics(Protocol):
    """Counts calls."""

    def started(self, method: str) -> None:
        """Count a call that begins."""
        ...

    def finished(self, method: str, code: int, seconds: float) -> None:
        """Count a call that ended with this status code."""
        ...


class NoMetrics:
    """Counts nothing."""

    def started(self, method: str) -> None:
        """Do nothing."""

    def finished(self, method: str, code: int, seconds: float) -> None:
        """Do nothing."""


class _Malformed:
    """A request that could not be taken, in the place of the request."""

    __slots__ = ("error",)

    def __init__(self, error: errors.TidewireError) -> None:
        self.error = error


class Router(grpc.GenericRpcHandler):
    """
    Methods by name, wrapped.

    Attributes:
        methods: Full names of the registered methods.
    """

    def __init__(
        self,
        *,
        drain: Drain | None = None,
        metrics: CallMetrics | None = None,
        authorize: Authorize | None = None,
        overhead_bytes_max: int = 256 * 1024,
    ) -> None:
        self._drain = drain
        self._metrics = metrics or NoMetrics()
        self._authorize = authorize
        self._overhead_bytes_max = overhead_bytes_max
        self._handlers: dict[str, Handler] = {}
        self._generic: list[grpc.GenericRpcHandler] = []

    @property
    def methods(self) -> Sequence[str]:
        """Full names of the registered methods, sorted."""
        return sorted(self._handlers)

    @property
    def by_method(self) -> Mapping[str, Handler]:
        """Registered handlers; servers may keep them, and need not ask `service` for these."""
        return self._handlers

    @property
    def shapes(self) -> dict[str, tuple[bool, bool]]:
        """Whether requests and responses of each method stream."""
        return {
            method: (handler.request_streaming, handler.response_streaming)
            for method, handler in self._handlers.items()
        }

    # What generated code calls.

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: dict[str, Handler]
    ) -> None:
        """Register a servicer's methods."""
        for name, handler in method_handlers.items():
            method = f"/{service_name}/{name}"
            self._handlers[method] = self._wrap(method, handler)

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]
    ) -> None:
        """
        Register handlers that find their methods themselves; asked for what is not registered by
        name.
        """
        self._generic.extend(generic_rpc_handlers)

    # What servers call.

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """Return the wrapped handler; one that answers METHOD_NOT_FOUND when there is none."""
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is not None:
            return handler
        for generic in self._generic:
            found = generic.service(handler_call_details)
            if found is not None:
                return self._wrap(method, found)
        return _NotFound(method)

    def _wrap(self, method: str, handler: Handler) -> Handler:
        if handler.request_streaming:
            deserializer = self._deserializer(
                handler.request_deserializer, path_of(handler.stream_stream)
            )
            if handler.response_streaming:
                behaviour = self._around(method, _to_writer(handler.stream_stream), streaming=True)
                make = grpc.stream_stream_rpc_method_handler
            else:
                behaviour = self._around(method, handler.stream_unary, streaming=True)
                make = grpc.stream_unary_rpc_method_handler
        else:
            deserializer = _holding(self._deserializer(handler.request_deserializer))
            if handler.response_streaming:
                behaviour = self._around(method, _to_writer(handler.unary_stream), streaming=True)
                make = grpc.unary_stream_rpc_method_handler
            else:
                behaviour = self._around(method, handler.unary_unary, streaming=False)
                direct = direct_of(handler.unary_unary)
                if direct is not None:
                    cast("Any", behaviour).direct = self._directly(
                        method, direct, handler.unary_unary
                    )
                make = grpc.unary_unary_rpc_method_handler
        return make(behaviour, deserializer, _serializer(handler))

    def _around(self, method: str, behaviour: Behaviour, *, streaming: bool) -> Behaviour:
        """Wrap a behaviour with what happens around every call."""
        metrics, drain, authorize = self._metrics, self._drain, self._authorize

        async def call(request: Any, context: Context) -> Any:
            began = time.monotonic()
            metrics.started(method)
            code = 0
            try:
                if type(request) is _Malformed:
                    raise request.error
                if authorize is not None:
                    authorize(principal(context), method)
                if streaming and drain is not None and drain.started.is_set():
                    raise drain.refusal()
                return await behaviour(request, context)
            except errors.TidewireError as error:
                code = error.code
                await abort(context, error)
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED.value[0]
                raise
            except grpc.aio.AbortError:
                code = _code_of(context)
                raise
            except NotImplementedError:  # of the generated base class: registered, not written
                code = grpc.StatusCode.UNIMPLEMENTED.value[0]
                await abort(context, _unknown_method(method))
            except Exception as error:  # noqa: BLE001 (the last line of defence: logged, answered)
                code = grpc.StatusCode.INTERNAL.value[0]
                await abort(context, _mistake(method, error))
            finally:
                metrics.finished(method, code, time.monotonic() - began)

        return call

    def _directly(self, method: str, direct: Direct, behaviour: Behaviour) -> Direct:
        """Wrap a handler that needs no task with the same; ``behaviour`` serves what needs one."""
        metrics, authorize = self._metrics, self._authorize

        def finished(call: ServerCall) -> None:
            ending = call.ending
            assert ending is not None
            metrics.finished(method, ending.code, time.perf_counter() - call.began_s)

        def start(request: Any, call: ServerCall) -> None:
            metrics.started(method)
            call.add_done_callback(finished)
            try:
                if type(request) is _Malformed:
                    raise request.error
                if authorize is not None:
                    authorize(principal(call), method)
                if direct(request, call):
                    work = _answer(method, behaviour, request, call)
                    call.task = call.link.loop.create_task(work)
            except errors.TidewireError as error:
                call.fail(error)
            except Exception as error:  # noqa: BLE001 (the last line of defence: logged, answered)
                call.fail(_mistake(method, error))

        return start

    def _deserializer(
        self, parse: Callable[[bytes], Any] | None, path: Path = ()
    ) -> Callable[[bytes], Any]:
        """Bound and parse, with the field of ``path`` apart; raises typed errors only."""
        overhead_bytes_max = self._overhead_bytes_max
        # Generated code registers `Message.FromString`: the type says which fields are payload.
        kind: Any = getattr(parse, "__self__", None)
        descriptor = getattr(kind, "DESCRIPTOR", None)

        def deserialize(data: bytes) -> Any:
            if len(data) > overhead_bytes_max:
                check_request_size(data, overhead_bytes_max, descriptor)
            try:
                if path:
                    return parse_apart(kind, data, path)
                return parse(data) if parse is not None else data
            except DecodeError:
                raise errors.MalformedRequest(
                    f"the request of {len(data)} bytes is not a valid message of its type"
                ) from None

        return deserialize


async def _answer(method: str, behaviour: Behaviour, request: Any, call: ServerCall) -> None:
    """Serve a call by a coroutine that could not be served at once."""
    try:
        call.answer(await behaviour(request, call))
    except errors.TidewireError as error:
        call.fail(error)
    except asyncio.CancelledError:
        call.fail(errors.Cancelled("the handler was cancelled"))
        raise
    except Exception as error:  # noqa: BLE001 (the last line of defence: logged, answered)
        call.fail(_mistake(method, error))


async def abort(context: Context, error: errors.TidewireError) -> None:
    """End a call with an error and its details, on any wire."""
    status = error.to_status()
    if len(status.message) > MESSAGE_BYTES_MAX:
        status.message = status.message[: MESSAGE_BYTES_MAX - 3] + "..."
    await context.abort(
        _CODES[error.code],
        status.message,
        ((errors.STATUS_TRAILER, status.SerializeToString()),),
    )


def _serializer(handler: Handler) -> Callable[[Any], bytes] | None:
    """Let what is serialized already pass, where the wire takes one piece only."""
    serialize: Callable[[Any], bytes] | None = handler.response_serializer
    if serialize is None or not may_splice(handler.stream_stream):
        return serialize

    def write(response: Any) -> bytes:
        return bytes(response) if isinstance(response, Spliced) else serialize(response)

    return write


def _to_writer(behaviour: Behaviour) -> Behaviour:
    """Give both styles of streaming handlers one shape: a coroutine that writes to the context."""
    if not inspect.isasyncgenfunction(behaviour):
        return behaviour

    async def write_all(request: Any, context: Context) -> None:
        responses: AsyncIterator[Any] = behaviour(request, context)
        async with aclosing(responses) as stream:  # type: ignore[type-var]  # an async generator
            async for response in stream:
                await context.write(response)

    return write_all


def _holding(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """
    Keep the error in the place of a unary request: servers parse those before any code of ours can
    answer.
    """

    def hold(data: bytes) -> Any:
        try:
            return deserialize(data)
        except errors.TidewireError as error:
            return _Malformed(error)

    return hold


class _NotFound(grpc.RpcMethodHandler):  # type: ignore[type-arg]  # no generic when it runs
    """
    Refuses a method there is none of, whatever shape the client takes it for.

    Servers that go by the flags take it for a stream, which is answered before its first message;
    those that cannot carry a stream take it for unary.
    """

    def __init__(self, method: str) -> None:
        async def answer(_request: Any, context: Context) -> None:
            await abort(context, _unknown_method(method))

        answer_any: Any = answer  # the types of grpc know no coroutines here
        self.request_streaming = self.response_streaming = True
        self.request_deserializer = self.response_serializer = None
        self.unary_unary = self.stream_stream = answer_any
        self.unary_stream = self.stream_unary = None


def _unknown_method(method: str) -> errors.MethodNotFound:
    return errors.MethodNotFound(
        f"this server has no method {method[:256]!r}; check its package and service, and the"
        " server's version"
    )


def _mistake(method: str, error: Exception) -> errors.Internal:
    identifier = uuid.uuid4().hex[:12]
    log.error("handler failed", extra={"method": method, "error_id": identifier}, exc_info=error)
    return errors.Internal(
        f"the server made a mistake in {method}; its log has it under {identifier}",
        metadata={"error_id": identifier},
    )


def _code_of(context: Context) -> int:
    code: Any = context.code()  # a StatusCode on some servers, its number on others
    return int(code.value[0] if isinstance(code, grpc.StatusCode) else code or 0)
