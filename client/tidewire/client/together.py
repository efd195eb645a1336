"""
Small batches of a publisher travel in one request: one for each subject costs more than it carries.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from tidewire.v1 import event_pb2

TOGETHER_MAX: Final = 64
"""Batches of one request."""
TOGETHER_BYTES_MAX: Final = 32 * 1024
"""Bodies of one request, as far as they are known: it goes out in one frame."""
SMALL_BYTES: Final = 2 * 1024
"""Bodies above this travel alone."""


def together(requests: Iterable[tuple[int, Any]]) -> Iterator[Any]:
    """
    Put small publishes that follow each other into one request.

    Args:
        requests: Each with the bytes of its body, in order; what is no protobuf message, because it
            is serialized already, travels alone. All of them are taken before the last one is
            returned.
    """
    waiting: list[event_pb2.PublishStreamRequest] = []
    size = 0
    for body_bytes, request in requests:
        is_small = body_bytes <= SMALL_BYTES and type(request) is event_pb2.PublishStreamRequest
        if waiting and (
            not is_small or len(waiting) == TOGETHER_MAX or size + body_bytes > TOGETHER_BYTES_MAX
        ):
            yield _one(waiting)
            waiting, size = [], 0
        if is_small:
            waiting.append(request)
            size += body_bytes
        else:
            yield request
    if waiting:
        yield _one(waiting)


def _one(requests: list[event_pb2.PublishStreamRequest]) -> event_pb2.PublishStreamRequest:
    if len(requests) == 1:
        return requests[0]
    one = event_pb2.PublishStreamRequest()
    one.several.item.extend(request.publish for request in requests)
    return one
