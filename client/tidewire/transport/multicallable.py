"""Methods of services as callables: what generated stubs call."""

from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from tidewire.errors import WireUnsuitable
from tidewire.transport import intercepted
from tidewire.transport.call_credentials import credentials_metadata
from tidewire.transport.client_call import CallCore, UnaryUnaryCall
from tidewire.transport.metadata import flat, priority_of
from tidewire.transport.stream_call import (
    ReaderCore,
    StreamStreamCall,
    StreamStreamCore,
    StreamUnaryCall,
    StreamUnaryCore,
    UnaryStreamCall,
)
from tidewire.wire.bodies import Metadata, encode_head
from tidewire.wire.frame import PRIORITY_DEFAULT

if TYPE_CHECKING:
    from tidewire.transport.channel import RawChannel

HEADS_CACHED_MAX: Final = 64
"""Encoded heads kept by a method, one for each set of metadata it was called with lately."""
HEAD_CACHED_BYTES_MAX: Final = 2_048
"""Longest head that is kept: metadata may be somebody else's, which a worker process hands on."""


class _Method:
    """A method of a channel, with the encoded heads of its calls."""

    interceptor: type[grpc.aio.ClientInterceptor]

    def __init__(
        self, channel: "RawChannel", method: str, serialize: Any, deserialize: Any
    ) -> None:
        self._channel = channel
        self._method = method
        self._serialize = serialize
        self._deserialize = deserialize
        self._head = encode_head(method)
        self._heads: dict[Metadata, tuple[bytes, int]] = {}
        self._interceptors = [
            given for given in channel.interceptors if isinstance(given, self.interceptor)
        ]

    def _encoded(self, metadata: Any) -> tuple[bytes, int]:
        """Return the call head and the priority for metadata."""
        if not metadata:
            return self._head, PRIORITY_DEFAULT
        pairs = flat(metadata)
        known = self._heads.get(pairs)
        if known is None:
            known = encode_head(self._method, pairs), priority_of(pairs)
            if len(known[0]) > HEAD_CACHED_BYTES_MAX:
                return known
            if len(self._heads) >= HEADS_CACHED_MAX:
                del self._heads[next(iter(self._heads))]
            self._heads[pairs] = known
        return known

    def _core(
        self,
        kind: type[Any],
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
    ) -> Any:
        """Make a call that is not started."""
        channel = self._channel
        if credentials is not None:
            metadata = (*flat(metadata), *self._signed(credentials))
        head, priority = self._encoded(metadata)
        deadline_s = None if timeout is None else channel.loop.time() + timeout
        call = kind(channel, head, priority, deadline_s, self._serialize, self._deserialize)
        if wait_for_ready:
            call.wait_for_ready = True
        return call

    def _signed(self, credentials: grpc.CallCredentials) -> Metadata:
        if not self._channel.encrypted:
            raise WireUnsuitable(
                f"{self._channel.url} is not encrypted: call credentials must not be sent over it"
            )
        return credentials_metadata(credentials, self._channel.url, self._method)

    def for_details(self, details: Any) -> Any:
        """Return this method, or the one an interceptor changed the call to."""
        method = details.method
        name = method.decode() if isinstance(method, bytes) else method
        if name == self._method:
            return self
        return type(self)(self._channel, name, self._serialize, self._deserialize)

    def _intercepted(self, kind: Any, argument: Any, options: tuple[Any, ...]) -> Any:
        timeout, metadata, credentials, wait_for_ready = options
        return kind(
            self._interceptors,
            argument,
            timeout,
            grpc.aio.Metadata(*flat(metadata)),
            credentials,
            wait_for_ready,
            self,
            self._method.encode(),
            self._serialize,
            self._deserialize,
            self._channel.loop,
        )


class UnaryUnary(_Method, grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    """One request, one response."""

    interceptor = grpc.aio.UnaryUnaryClientInterceptor

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """Start a call; await the result for the response."""
        if self._interceptors:
            options = (timeout, metadata, credentials, wait_for_ready)
            return self._intercepted(intercepted.UnaryUnary, request, options)
        return self.direct(request, timeout, metadata, credentials, wait_for_ready)

    def direct(
        self,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
    ) -> UnaryUnaryCall:
        """Start a call past the interceptors."""
        channel, serialize = self._channel, self._serialize
        call: UnaryUnaryCall
        if metadata is None and credentials is None and not wait_for_ready:
            deadline_s = None if timeout is None else channel.loop.time() + timeout
            call = UnaryUnaryCall(
                channel, self._head, PRIORITY_DEFAULT, deadline_s, serialize, self._deserialize
            )
        else:
            call = self._core(UnaryUnaryCall, timeout, metadata, credentials, wait_for_ready)
        channel.start(call, request if serialize is None else serialize(request), last=True)
        return call


class UnaryStream(_Method, grpc.aio.UnaryStreamMultiCallable[Any, Any]):
    """One request, many responses."""

    interceptor = grpc.aio.UnaryStreamClientInterceptor

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """Start a call; iterate over the result, or read from it."""
        if self._interceptors:
            options = (timeout, metadata, credentials, wait_for_ready)
            return self._intercepted(intercepted.UnaryStream, request, options)
        return self.direct(request, timeout, metadata, credentials, wait_for_ready)

    def direct(
        self,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
    ) -> UnaryStreamCall:
        """Start a call past the interceptors."""
        core: ReaderCore = self._core(ReaderCore, timeout, metadata, credentials, wait_for_ready)
        self._channel.start(core, core.encode(request), last=True)
        return UnaryStreamCall(core)


class StreamUnary(_Method, grpc.aio.StreamUnaryMultiCallable[Any, Any]):
    """Many requests, one response."""

    interceptor = grpc.aio.StreamUnaryClientInterceptor

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """Start a call; write to the result unless an iterator is given, and await it."""
        if self._interceptors:
            options = (timeout, metadata, credentials, wait_for_ready)
            return self._intercepted(intercepted.StreamUnary, request_iterator, options)
        return self.direct(request_iterator, timeout, metadata, credentials, wait_for_ready)

    def direct(
        self,
        requests: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
    ) -> StreamUnaryCall:
        """Start a call past the interceptors."""
        core = self._core(StreamUnaryCore, timeout, metadata, credentials, wait_for_ready)
        self._channel.start(core, None, last=False)
        return StreamUnaryCall(core, requests)


class StreamStream(_Method, grpc.aio.StreamStreamMultiCallable[Any, Any]):
    """Many requests, many responses."""

    interceptor = grpc.aio.StreamStreamClientInterceptor

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """Start a call; write to the result unless an iterator is given, and read from it."""
        if self._interceptors:
            options = (timeout, metadata, credentials, wait_for_ready)
            return self._intercepted(intercepted.StreamStream, request_iterator, options)
        return self.direct(request_iterator, timeout, metadata, credentials, wait_for_ready)

    def direct(
        self,
        requests: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
    ) -> StreamStreamCall:
        """Start a call past the interceptors."""
        core = self._core(StreamStreamCore, timeout, metadata, credentials, wait_for_ready)
        self._channel.start(core, None, last=False)
        return StreamStreamCall(core, requests)


__all__ = ["CallCore", "StreamStream", "StreamUnary", "UnaryStream", "UnaryUnary"]
