"""A blocking channel on any wire, for blocking generated stubs."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import tidewire.transport

# isort: split
import grpc

from tidewire.sync.calls import BlockingCall, error_of
from tidewire.sync.loop import LoopThread, shared_loop

if TYPE_CHECKING:
    from tidewire.transport import BalancePolicy, TlsConfig, TransportOptions


def channel(
    url: str | Sequence[str],
    *,
    tls: "TlsConfig | None" = None,
    options: "TransportOptions | None" = None,
    balance: "BalancePolicy" = "round_robin",
) -> "BlockingChannel":
    """
    Return a ``grpc.Channel`` for a URL such as ``tcp://localhost:7401``.

    Every blocking generated stub works on it: ``EchoStub(channel).Say(request, timeout=1.0)``.

    Args:
        url: Scheme, host and port; several are servers of the same data.
        tls: Certificates, on encrypted wires.
        options: Limits, waits and sockets.
        balance: How one of several servers is chosen for a call.

    Raises:
        InvalidArgument: The URL cannot be used.
    """
    loop = shared_loop()

    async def make() -> Any:
        return tidewire.transport.channel(url, tls=tls, options=options, balance=balance)

    return BlockingChannel(loop, loop.run(make()))


class BlockingChannel(grpc.Channel):
    """A ``grpc.Channel`` over an asyncio channel that lives on the shared event loop."""

    def __init__(self, loop: LoopThread, below: Any) -> None:
        self._loop = loop
        self._below = below
        self._watchers: dict[Callable[[grpc.ChannelConnectivity], None], Any] = {}

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """See ``grpc.Channel``."""
        made = self._below.unary_unary(method, request_serializer, response_deserializer)
        return UnaryUnary(self._loop, made)

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """See ``grpc.Channel``."""
        made = self._below.unary_stream(method, request_serializer, response_deserializer)
        return UnaryStream(self._loop, made)

    def stream_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """See ``grpc.Channel``."""
        made = self._below.stream_unary(method, request_serializer, response_deserializer)
        return StreamUnary(self._loop, made)

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """See ``grpc.Channel``."""
        made = self._below.stream_stream(method, request_serializer, response_deserializer)
        return StreamStream(self._loop, made)

    def subscribe(
        self,
        callback: Callable[[grpc.ChannelConnectivity], None],
        try_to_connect: bool | None = False,
    ) -> None:
        """Tell of the channel's state, now and whenever it changes."""
        watching = self._loop.submit(self._watch(callback, bool(try_to_connect)))
        self._watchers[callback] = watching

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Stop telling."""
        watching = self._watchers.pop(callback, None)
        if watching is not None:
            watching.cancel()

    def close(self) -> None:
        """Close the channel; calls under way are cancelled. May be repeated."""
        for callback in list(self._watchers):
            self.unsubscribe(callback)
        self._loop.run(self._below.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def _watch(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool
    ) -> None:
        state = self._below.get_state(try_to_connect=try_to_connect)
        while True:
            await self._loop.on_thread(callback, state)
            if state == grpc.ChannelConnectivity.SHUTDOWN:
                return
            await self._below.wait_for_state_change(state)
            state = self._below.get_state()


class _Method:
    """A method of a stub."""

    def __init__(self, loop: LoopThread, below: Any) -> None:
        self._loop = loop
        self._below = below

    def _start(
        self, request: Any, options: dict[str, Any], requests: Iterator[Any] | None = None
    ) -> BlockingCall:
        below = self._below
        if requests is not None:
            return BlockingCall(self._loop, lambda: below(**options), requests)
        return BlockingCall(self._loop, lambda: below(request, **options))


class UnaryUnary(_Method, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # plain at run time
    """One request, one response."""

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Make the call and return the response."""
        options = _options(timeout, metadata, credentials, wait_for_ready, compression)
        try:
            # One change of threads there and back, without a call object in between.
            return self._loop.run(_unary(self._below, request, options))
        except (grpc.RpcError, asyncio.CancelledError, grpc.aio.UsageError) as error:
            raise error_of(error) from None

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> tuple[Any, Any]:
        """Make the call and return the response and the call."""
        call = self.future(request, timeout, metadata, credentials, wait_for_ready, compression)
        return call.result(), call

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Start the call."""
        options = _options(timeout, metadata, credentials, wait_for_ready, compression)
        return self._start(request, options).expect_one()


class UnaryStream(_Method, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]  # plain at run time
    """One request, many responses."""

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Start the call; iterate over it."""
        options = _options(timeout, metadata, credentials, wait_for_ready, compression)
        return self._start(request, options)


class StreamUnary(_Method, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg]  # plain at run time
    """Many requests, one response."""

    def __call__(
        self,
        request_iterator: Iterator[Any],
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Make the call and return the response."""
        options = (timeout, metadata, credentials, wait_for_ready, compression)
        return self.with_call(request_iterator, *options)[0]

    def with_call(
        self,
        request_iterator: Iterator[Any],
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> tuple[Any, Any]:
        """Make the call and return the response and the call."""
        options = (timeout, metadata, credentials, wait_for_ready, compression)
        call = self.future(request_iterator, *options)
        return call.result(), call

    def future(
        self,
        request_iterator: Iterator[Any],
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Start the call."""
        options = _options(timeout, metadata, credentials, wait_for_ready, compression)
        return self._start(None, options, iter(request_iterator)).expect_one()


class StreamStream(_Method, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]  # plain at run time
    """Many requests, many responses."""

    def __call__(
        self,
        request_iterator: Iterator[Any],
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Start the call; iterate over it."""
        options = _options(timeout, metadata, credentials, wait_for_ready, compression)
        return self._start(None, options, iter(request_iterator))


async def _unary(below: Any, request: Any, options: dict[str, Any]) -> Any:
    return await below(request, **options)


def _options(
    timeout: float | None,
    metadata: Any,
    credentials: Any,
    wait_for_ready: bool | None,
    compression: Any,
) -> dict[str, Any]:
    return {
        "timeout": timeout,
        "metadata": None if metadata is None else tuple(metadata),
        "credentials": credentials,
        "wait_for_ready": wait_for_ready,
        "compression": compression,
    }
