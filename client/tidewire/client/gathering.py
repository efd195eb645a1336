"""The open batch of a subject: where messages gather until the wire takes them. No I/O."""

from typing import Final

from tidewire.client.lanes import Item, Waiter
from tidewire.errors import TidewireError
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import Headers, encode_messages, encode_payloads, seal_apart
from tidewire.wire.codec import CodecName
from tidewire.wire.spliced import PUBLISH_BODY, SPLICED_BYTES_MIN, Spliced, splice

MESSAGE_COST_BYTES: Final = 24
"""Counted for each message beside its payload; it bounds the messages of a batch too."""
HEADER_COST_BYTES: Final = 8


class ApartItem(Item):
    """A batch whose body is not in its request."""

    __slots__ = ("before", "tail")

    def __init__(
        self,
        message: event_pb2.PublishStreamRequest,
        before: bytes,
        tail: bytes,
        granted: int,
        waiters: list[Waiter],
    ) -> None:
        super().__init__(message, len(before) + len(tail), granted, waiters)
        self.before = before
        self.tail = tail

    def sealed(self) -> Spliced:
        """The request with its body, serialized."""
        return splice(self.message.SerializeToString(), PUBLISH_BODY, self.tail, self.before)


class Group:
    """
    Messages of one subject, in order.

    Attributes:
        granted: Bytes of the publisher's allowance it holds.
        left: How many of them its messages have not used.
        append: Adds a payload; who uses it takes its cost from `left` too.
    """

    __slots__ = ("append", "granted", "headers", "left", "payloads", "subject", "waiters")

    def __init__(self, subject: str, *, with_headers: bool) -> None:
        self.subject = subject
        self.payloads: list[bytes] = []
        self.append = self.payloads.append
        self.headers: list[Headers] | None = [] if with_headers else None
        self.granted = 0
        self.left = 0
        self.waiters: list[Waiter] = []

    @property
    def used(self) -> int:
        """Bytes its messages cost."""
        return self.granted - self.left

    def split(self, count: int) -> "Group":
        """Take the first `count` messages out into a group of their own."""
        front = Group(self.subject, with_headers=self.headers is not None)
        front.payloads[:] = self.payloads[:count]
        del self.payloads[:count]
        if self.headers is not None and front.headers is not None:
            front.headers[:] = self.headers[:count]
            del self.headers[:count]
        front.waiters = [waiter for waiter in self.waiters if waiter[0] < count]
        self.waiters = [(index - count, w) for index, w in self.waiters if index >= count]
        front.granted = sum(
            cost_of(payload, front.headers[index] if front.headers is not None else None)
            for index, payload in enumerate(front.payloads)
        )
        self.granted -= front.granted
        return front

    def seal(
        self, message: event_pb2.PublishStreamRequest, codec: CodecName, *, apart: bool = False
    ) -> Item:
        """Make a batch of it, inside of a request; with ``apart`` a long body stays out of it."""
        batch = message.publish.request.batch
        if apart and self.headers is None and self.used >= SPLICED_BYTES_MIN:
            before, tail = seal_apart(batch, self.subject, self.payloads, codec)
            return ApartItem(message, before, tail, self.granted, self.waiters)
        if self.headers is None:
            encode_payloads(self.subject, self.payloads, codec=codec, into=batch)
        else:
            pairs = zip(self.payloads, self.headers, strict=True)
            encode_messages(self.subject, pairs, codec=codec, into=batch)
        return Item(message, len(batch.body), self.granted, self.waiters)

    def reject(self, error: TidewireError) -> None:
        """Tell who waits that it may take long; the messages stay."""
        for _, future in self.waiters:
            if not future.done():
                future.set_exception(error)

    def abandon(self) -> Item:
        """Stand-in of a batch that is never sent."""
        message = event_pb2.PublishStreamRequest()
        message.publish.request.batch.CopyFrom(
            common_pb2.Batch(subject=self.subject, count=len(self.payloads))
        )
        return Item(message, 0, self.granted, self.waiters)


def cost_of(payload: bytes, headers: Headers | None) -> int:
    """What a message counts against limits of bytes."""
    cost = len(payload) + MESSAGE_COST_BYTES
    for key, value in headers or ():
        cost += len(key) + len(value) + HEADER_COST_BYTES
    return cost
