"""Metadata and status codes between the wire's plain values and gRPC's classes."""

from collections.abc import Iterable
from typing import Any, Final

import grpc
import grpc.aio

from tidewire.errors import InvalidArgument
from tidewire.wire.bodies import DETAILS_KEY, Ending, Metadata
from tidewire.wire.frame import PRIORITY_DEFAULT, PRIORITY_LAST

PRIORITY_KEY: Final = "tidewire-priority"


class CODES:
    """Status codes by number."""

    by_number: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}
    cancelling: Final = frozenset({1, 4})
    """Codes of calls that end without their handler."""


def flat(metadata: Any) -> Metadata:
    """Return metadata of any of gRPC's shapes as a tuple of pairs."""
    if not metadata:
        return ()
    pairs: Iterable[Any] = metadata
    return tuple([(key, value) for key, value in pairs])


def priority_of(metadata: Metadata) -> int:
    """
    Return the priority that ``tidewire-priority`` asks for, 0 to 9; the default without it.

    Raises:
        InvalidArgument: The value is not one digit.
    """
    for key, value in metadata:
        if key == PRIORITY_KEY:
            if len(value) != 1 or not "0" <= str(value) <= str(PRIORITY_LAST):
                raise InvalidArgument(f"{PRIORITY_KEY} is {value!r}; it must be one digit, 0 to 9")
            return int(value)
    return PRIORITY_DEFAULT


def trailing(ending: Ending) -> Any:
    """Return the trailing metadata gRPC would show for an ending."""
    trailers = ending.trailers
    if ending.details:
        trailers = (*trailers, (DETAILS_KEY, ending.details))
    return grpc.aio.Metadata(*trailers)


def rpc_error(ending: Ending, initial: Metadata) -> grpc.aio.AioRpcError:
    """Return the exception gRPC would raise for an ending."""
    return grpc.aio.AioRpcError(
        CODES.by_number[ending.code],
        grpc.aio.Metadata(*initial),
        trailing(ending),
        details=ending.message,
        debug_error_string=f"tidewire: {ending.message}",
    )
