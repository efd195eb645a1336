"""
A query under way, and the stream of the responder that has it.

A query is in one of three states: it waits to be written, it is written, it is over. What happens
when its responder is lost depends on which: the next responder, or "outcome unknown".
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from tidewire import errors
from tidewire.v1 import common_pb2, query_pb2
from tidewire_server.services.outbox import Outbox
from tidewire_server.services.query.failures import no_reply, outcome_unknown, responder_failed
from tidewire_server.services.query.routing import Seat

UNWRITTEN_BYTES_MAX: Final = 16 * 1024 * 1024
"""From here on a responder that does not read counts as busy."""
ITEM_OVERHEAD_BYTES: Final = 256
IN_FLIGHT_DEFAULT: Final = 100

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
        remaining_us = max(1, int((self.deadline_s - now_s) * 1e6))
        remaining = query.remaining
        remaining.seconds = remaining_us // 1_000_000
        remaining.nanos = remaining_us % 1_000_000 * 1000
        if self.streaming:
            query.streaming = True
        if self.principal:
            query.principal = self.principal
        return response


class Cut(Protocol):
    """What can end a stream that hangs: `asyncio.Timeout`."""

    def reschedule(self, when: float | None) -> None:
        """Raise `TimeoutError` in the stream's handler at this time of the loop."""
        ...


class Responder(Seat):
    """
    One stream of QueryService.Serve.

    Attributes:
        queries: Queries in hand by number.
        outbox: What waits to be written.
        late_replies: Replies nobody waited for any more.
        writing_since_s: When the write began that has not ended.
        write_at_once: Writes a query past the outbox when nothing is in the way, and says whether
            it did; ``None`` on wires that cannot.
    """

    def __init__(
        self,
        name: str,
        subjects: Sequence[str],
        *,
        node_id: str = "",
        group: str = "",
        in_flight_max: int = IN_FLIGHT_DEFAULT,
    ) -> None:
        super().__init__(name, subjects, node_id=node_id, group=group, in_flight_max=in_flight_max)
        self.queries: dict[int, Query] = {}
        self.outbox: Outbox[Query | query_pb2.ServeResponse] = Outbox(
            2 * in_flight_max + 16, UNWRITTEN_BYTES_MAX
        )
        self.draining = False
        self.late_replies = 0
        self.writing_since_s: float | None = None
        self.cut: Cut | None = None
        self.write_at_once: Callable[[Query], bool] | None = None
        self._last_id = 0

    def give(self, query: Query) -> None:
        """Hand it a query: written at once when its stream is idle and its wire takes it."""
        self._last_id += 1
        query.query_id = self._last_id
        query.responder = self
        self.queries[self._last_id] = query
        outbox = self.outbox
        query.written = outbox.idle and self.writing_since_s is None and self._write_now(query)
        if not query.written:
            outbox.put(query, len(query.payload.data) + ITEM_OVERHEAD_BYTES)
            if outbox.full:
                self.clogged = True
        self.take()

    def _write_now(self, query: Query) -> bool:
        if self.write_at_once is None:
            return False
        try:
            return self.write_at_once(query)
        except errors.TidewireError:
            return False  # the stream's writer meets it too, and the stream ends with it

    def next_response(
        self, item: Query | query_pb2.ServeResponse, now_s: float
    ) -> query_pb2.ServeResponse | None:
        """What to write for an item of the outbox; ``None`` for a query nobody waits for."""
        if self.clogged and not self.outbox.full:
            self.clogged = False
            self.place()
        if isinstance(item, query_pb2.ServeResponse):
            return item
        if item.responder is not self:
            return None
        item.written = True
        return item.to_response(now_s)

    def take_reply(self, reply: query_pb2.ServeReply) -> Query | None:
        """
        Take an answer and hand it on.

        Returns:
            The query when more replies may follow.

        Raises:
            InvalidArgument: The number was never given.
        """
        query = self.queries.get(reply.query_id)
        if query is None or not query.written:
            if not 0 < reply.query_id <= self._last_id or query is not None:
                raise errors.InvalidArgument(
                    f"reply to query {reply.query_id}, which was not asked on this stream; the last"
                    f" one was {self._last_id}",
                    fields={"reply.query_id": "a number of a query on this stream"},
                )
            self.late_replies += 1
            return None
        outcome = reply.WhichOneof("outcome")
        if outcome == "error":
            self._settle(query)
            query.on_error(
                responder_failed(self.name, query.request_id, errors.from_status(reply.error))
            )
            return None
        payload = reply.payload if outcome == "payload" else None
        if query.streaming and not reply.end:
            if payload is not None:
                query.on_reply(self.name, payload, end=False)
            return query
        self._settle(query)
        query.on_reply(self.name, payload, end=True)
        return None

    def drop(self, query: Query) -> None:
        """Forget a query nobody waits for, and tell the responder if it has it."""
        if self.queries.get(query.query_id) is not query:
            return
        if query.written:
            cancel = query_pb2.ServeResponse()
            cancel.cancel.query_id = query.query_id
            self.outbox.put(cancel, ITEM_OVERHEAD_BYTES)
        self._settle(query)

    def drain(self, announcement: query_pb2.ServeResponse | None = None) -> None:
        """Take no more queries; the stream ends when those in hand are answered."""
        self.draining = True
        self.serving = False
        self.place()
        if announcement is not None:
            self.outbox.put(announcement)
        self._close_when_done()

    def set_alive(self, alive: bool) -> None:
        """Follow the life of the member this responder hangs on."""
        self.serving = alive and not self.draining
        self.place()

    def lose(self, why: str, *, cancel: bool = False) -> None:
        """Give up what it has in hand. ``cancel``: the stream still stands, and is told."""
        queries = list(self.queries.values())
        for query in queries:
            if cancel:
                self.drop(query)
            else:
                self._settle(query)
        for query in queries:
            if query.written:
                query.on_error(outcome_unknown(self.name, query.request_id, why))
            else:
                query.on_unwritten(self.name)

    def _settle(self, query: Query) -> None:
        del self.queries[query.query_id]
        query.responder = None
        self.give_back()
        if self.draining:
            self._close_when_done()

    def _close_when_done(self) -> None:
        if self.draining and not self.queries:
            self.outbox.close()


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
