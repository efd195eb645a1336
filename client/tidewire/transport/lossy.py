"""Methods whose streams may be lossy on wires of datagrams: ``proto/WIRE.md`` section 9.6."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from tidewire.errors import MalformedRequest, WireUnsuitable
from tidewire.v1 import event_pb2
from tidewire.wire.spliced import Spliced

ONEWAY_KEY: Final = "tidewire-lossy"
"""Metadata of a unary call that may be lost: on a wire of datagrams nobody answers it."""
ONEWAY_MARK: Final = ONEWAY_KEY.encode()


class LossyMethod(NamedTuple):
    """What both ends need to know of such a method."""

    check: Callable[[bytes], None]
    """Raise :class:`WireUnsuitable` for a first message that asks for what cannot be lossy."""
    weigh: Callable[[Any], int]
    """Return how many messages a response stands for."""
    lost: Callable[[int], bytes]
    """Return the response that tells the application of so many lost messages."""


def _check_live(request: bytes) -> None:
    try:
        parsed = event_pb2.SubscribeRequest.FromString(request)
    except DecodeError as error:
        raise MalformedRequest(f"the request is not a valid message: {error}") from error
    if parsed.open.WhichOneof("source") != "live":
        raise WireUnsuitable(
            "only live events can be subscribed to over datagrams; a stream is read by Fetch and "
            "Acknowledge there, or by Subscribe over tcp:// or quic://"
        )


def _weigh(response: event_pb2.SubscribeResponse | Spliced) -> int:
    if isinstance(response, Spliced):  # too long for a datagram, and still to be told as lost
        response = event_pb2.SubscribeResponse.FromString(bytes(response))
    if response.WhichOneof("kind") != "delivery":
        return 0
    batch = response.delivery.batch
    if batch.selected:
        return sum(each.last - each.first + 1 for each in batch.selected)
    return batch.count


def _lost(messages: int) -> bytes:
    response = event_pb2.SubscribeResponse()
    response.lost.messages = messages
    return response.SerializeToString()


LOSSY_METHODS: Final = {
    "/tidewire.v1.EventService/Subscribe": LossyMethod(_check_live, _weigh, _lost)
}
