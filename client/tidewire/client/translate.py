"""From what gRPC raises to ``tidewire.errors``: the one place where the client does it."""

import asyncio
from typing import Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2

from tidewire.errors import (
    STATUS_TRAILER,
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    MethodNotFound,
    TidewireError,
    from_status,
)
from tidewire.v1.error_pb2 import Reason

RPC_ERRORS: Final = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError)
"""What a call of a channel may raise, beside `asyncio.CancelledError`."""

SENT: Final = "sent"
NOT_SENT: Final = "no"
"""Metadata of a `ConnectionLost` that says that nothing was sent; every raw wire gives it."""
_NEVER_SENT_BY_GRPC: Final = "failed to connect to "
"""How grpcio, which gives no reason, says it; anything else of it may have been sent."""


def translate(error: BaseException) -> TidewireError:
    """Return the exception of ours for one that a call raised."""
    if isinstance(error, TidewireError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        return _of_rpc(error)
    if isinstance(error, asyncio.CancelledError):
        return Cancelled("the server ended the call")
    return ConnectionLost(f"the channel is closed: {error}")


def is_own_cancellation() -> bool:
    """
    Whether a `CancelledError` just caught is for the running task.

    gRPC raises the same class when the *server* ends a call with CANCELLED; that one is news to be
    told, not an order to stop.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def was_never_sent(error: TidewireError) -> bool:
    """Whether a request certainly did not reach a server, as there was no connection."""
    return error.metadata.get(SENT) == NOT_SENT


def _of_rpc(error: grpc.aio.AioRpcError) -> TidewireError:
    number: int = error.code().value[0]
    text = error.details() or error.code().name
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_TRAILER and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            # The call's own code and text win over what the details repeat.
            status.code = number
            status.message = status.message or text
            return from_status(status)
    translated = from_status(status_pb2.Status(code=number, message=text))
    return _of_wire(number, text, translated)


def _of_wire(number: int, text: str, translated: TidewireError) -> TidewireError:
    """Give a reason to what the wire itself reports, which comes without details."""
    if translated.reason != Reason.REASON_UNSPECIFIED:
        return translated
    if number == code_pb2.UNAVAILABLE:
        never = text.startswith(_NEVER_SENT_BY_GRPC)
        return ConnectionLost(text, metadata={SENT: NOT_SENT} if never else None)
    if number == code_pb2.DEADLINE_EXCEEDED:
        return DeadlineExceeded(text)
    if number == code_pb2.UNIMPLEMENTED:
        return MethodNotFound(text)
    return translated
