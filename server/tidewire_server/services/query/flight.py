"""
A query under way.

A query is in one of three states: it waits to be written, it is written, it is over. What happens
when its responder is lost depends on which: the next responder, or "outcome unknown".
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from google.protobuf import duration_pb2

from tidewire import errors
from tidewire.v1 import common_pb2, query_pb2
from tidewire_server.services.outbox import Outbox
from tidewire_server.services.query.failures import asker_too_slow, no_reply

if TYPE_CHECKING:
    from tidewire_server.services.query.responder import Responder

ITEM_OVERHEAD_BYTES: Final = 256
"""What an item of an outbox is counted for beside its payload."""

Payload = common_pb2.Payload


class Query:
    """
    What somebody asked one responder. Subclasses know what to do with what comes back.

    Attributes:
        deadline_s: When it is too late, on the service's clock.
        backlog: Where replies wait for a slow asker; ``None`` when there is at most one.
    """

    __slots__ = (
        "backlog",
        "deadline_s",
        "payload",
        "principal",
        "query_id",
        "request_id",
        "responder",
        "streaming",
        "subject",
        "written",
    )

    def __init__(self, subject: str, payload: Payload, request_id: str, principal: str) -> None:
        self.subject = subject
        self.payload = payload
        self.request_id = request_id
        self.principal = principal
        self.deadline_s = 0.0
        self.streaming = False
        self.written = False
        self.query_id = 0
        self.responder: Responder | None = None
        self.backlog: Outbox[Any] | None = None

    def on_reply(self, responder: str, payload: Payload | None, *, end: bool) -> None:
        """Take a reply; ``payload`` is ``None`` when the query ends without one more."""
        raise NotImplementedError

    def on_error(self, error: errors.TidewireError) -> None:
        """Take the news that nothing more comes."""
        raise NotImplementedError

    def on_unwritten(self, responder: str) -> None:
        """The responder went before the query was written to it."""
        raise NotImplementedError

    def cut_off(self, stall_s: float) -> None:
        """End it: whoever asked did not take replies for so long."""
        self.abandon()
        if self.backlog is not None:
            self.backlog.fail(asker_too_slow(self.request_id, stall_s))

    def abandon(self) -> None:
        """Nobody waits for it any more; may be repeated."""
        responder, self.responder = self.responder, None
        if responder is not None:
            responder.drop(self)

    def to_response(self, now_s: float) -> query_pb2.ServeResponse:
        """Encode it for the responder."""
        response = query_pb2.ServeResponse()
        query = response.query
        query.query_id = self.query_id
        query.subject = self.subject
        query.payload.CopyFrom(self.payload)
        query.request_id = self.request_id
        set_remaining(query.remaining, self.deadline_s - now_s)
        if self.streaming:
            query.streaming = True
        if self.principal:
            query.principal = self.principal
        return response


def set_remaining(remaining: duration_pb2.Duration, seconds: float) -> None:
    """Write the time a query has left; one that is late has the least there is."""
    remaining_us = max(1, int(seconds * 1e6))
    remaining.seconds = remaining_us // 1_000_000
    remaining.nanos = remaining_us % 1_000_000 * 1000


class SingleQuery(Query):
    """A query with one reply, or one error: whoever asked is told it once."""

    __slots__ = ("over", "reroute", "tell")

    def __init__(
        self,
        subject: str,
        payload: Payload,
        request_id: str,
        principal: str,
        tell: "Callable[[query_pb2.AskResponse | errors.TidewireError], None]",
        reroute: "Reroute",
    ) -> None:
        super().__init__(subject, payload, request_id, principal)
        self.tell = tell
        self.over = False
        self.reroute = reroute

    def on_reply(self, responder: str, payload: Payload | None, *, end: bool) -> None:
        """Answer."""
        if payload is None:
            self.on_error(no_reply(responder, self.request_id))
            return
        if not self.over:
            self.over = True
            response = query_pb2.AskResponse()
            response.responder = responder
            response.request_id = self.request_id
            response.payload.CopyFrom(payload)
            self.tell(response)

    def on_error(self, error: errors.TidewireError) -> None:
        """Answer with an error."""
        if not self.over:
            self.over = True
            self.tell(error)

    def on_unwritten(self, responder: str) -> None:
        """Ask the next one."""
        if not self.over:
            self.reroute(self)

    def abandon(self) -> None:
        """Nobody waits for it any more: whoever asked is told nothing. May be repeated."""
        self.over = True
        super().abandon()


class StreamQuery(Query):
    """A query with a stream of replies."""

    __slots__ = ("replies", "reroute")

    def __init__(
        self,
        subject: str,
        payload: Payload,
        request_id: str,
        principal: str,
        replies: Outbox[query_pb2.AskStreamResponse],
        reroute: "Reroute",
    ) -> None:
        super().__init__(subject, payload, request_id, principal)
        self.streaming = True
        self.replies = replies
        self.backlog = replies
        self.reroute = reroute

    def on_reply(self, responder: str, payload: Payload | None, *, end: bool) -> None:
        """Pass a reply on."""
        if payload is not None:
            response = query_pb2.AskStreamResponse(responder=responder, request_id=self.request_id)
            response.payload.CopyFrom(payload)
            self.replies.put(response, len(payload.data) + ITEM_OVERHEAD_BYTES)
        if end:
            self.replies.close()

    def on_error(self, error: errors.TidewireError) -> None:
        """End with an error after the replies that came."""
        self.replies.close(error)

    def on_unwritten(self, responder: str) -> None:
        """Ask the next one."""
        self.reroute(self)


class Reroute(Protocol):
    """Gives a query to another responder, or the error that there is none to the query."""

    def __call__(self, query: Query) -> None:
        """Do so."""
        ...
