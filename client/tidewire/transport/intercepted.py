"""
Client interceptors of ``grpc.aio`` on raw wires.

The chain of interceptors is grpc.aio's own; only its last link, which opens the call, is ours.
The classes are private in
part: the tests run interceptors of all four shapes, so a change in grpcio shows there.
"""

from typing import Any

import grpc.aio
from grpc.aio import _interceptor as chain


class UnaryUnary(chain.InterceptedUnaryUnaryCall):
    """One request, one response, through interceptors."""

    async def _run_interceptor(
        self,
        interceptors: Any,
        method: Any,
        serialize: Any,
        deserialize: Any,
        details: Any,
        request: Any,
    ) -> Any:
        if interceptors:
            return await super()._run_interceptor(
                interceptors, method, serialize, deserialize, details, request
            )
        return _open(self._channel, details, request)


class UnaryStream(chain.InterceptedUnaryStreamCall):
    """One request, many responses, through interceptors."""

    async def _run_interceptor(
        self,
        interceptors: Any,
        method: Any,
        serialize: Any,
        deserialize: Any,
        details: Any,
        request: Any,
    ) -> Any:
        if interceptors:
            return await super()._run_interceptor(
                interceptors, method, serialize, deserialize, details, request
            )
        self._last_returned_call_from_interceptors = _open(self._channel, details, request)
        return self._last_returned_call_from_interceptors


class StreamUnary(chain.InterceptedStreamUnaryCall):
    """Many requests, one response, through interceptors."""

    async def _run_interceptor(
        self,
        interceptors: Any,
        method: Any,
        serialize: Any,
        deserialize: Any,
        details: Any,
        request: Any,
    ) -> Any:
        if interceptors:
            return await super()._run_interceptor(
                interceptors, method, serialize, deserialize, details, request
            )
        return _open(self._channel, details, request)


class StreamStream(chain.InterceptedStreamStreamCall):
    """Many requests, many responses, through interceptors."""

    async def _run_interceptor(
        self,
        interceptors: Any,
        method: Any,
        serialize: Any,
        deserialize: Any,
        details: Any,
        request: Any,
    ) -> Any:
        if interceptors:
            return await super()._run_interceptor(
                interceptors, method, serialize, deserialize, details, request
            )
        self._last_returned_call_from_interceptors = _open(self._channel, details, request)
        return self._last_returned_call_from_interceptors


def _open(callable_: Any, details: Any, request: Any) -> Any:
    """Open the call an interceptor chain ends with."""
    return callable_.for_details(details).direct(
        request, details.timeout, details.metadata, details.credentials, details.wait_for_ready
    )


def interceptors_of(channel: grpc.aio.Channel) -> tuple[Any, ...]:
    """Return who sees the messages of a channel's streams, and knows those of the proto only."""
    ours = getattr(channel, "interceptors", ())
    # A channel of gRPC's library keeps them by the shape of the call, and under no public name.
    return tuple(ours or getattr(channel, "_stream_stream_interceptors", ()))
