"""One gather under way: its queries, and the answers that wait for the asker."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from tidewire import errors
from tidewire.v1 import query_pb2
from tidewire_server.services.outbox import Outbox
from tidewire_server.services.query.failures import no_reply
from tidewire_server.services.query.flight import ITEM_OVERHEAD_BYTES, Payload, Query
from tidewire_server.services.query.gather import Gathering
from tidewire_server.services.query.responder import Responder

ANSWERS_PENDING_MAX: Final = 10_000


class GatherQuery(Query):
    """The part of a gather that one responder has."""

    __slots__ = ("index", "round")

    def __init__(self, whole: "GatherRound", index: int) -> None:
        super().__init__(whole.subject, whole.payload, whole.request_id, whole.principal)
        self.deadline_s = whole.deadline_s
        self.round = whole
        self.index = index
        self.backlog = whole.outbox

    def on_reply(self, responder: str, payload: Payload | None, *, end: bool) -> None:
        """Count a reply."""
        if payload is None:
            self.on_error(no_reply(responder, self.request_id))
        else:
            self.round.succeed(self.index, responder, payload)

    def on_error(self, error: errors.TidewireError) -> None:
        """Count a failure."""
        self.round.fail(self.index, error)

    def on_unwritten(self, responder: str) -> None:
        """Count a failure: a gather asks each responder once."""
        self.round.fail(self.index, _went(responder))


class GatherRound:
    """
    Asks, counts, and fills the outbox of the asker; `finish` ends it.

    Attributes:
        outbox: What the asker is still to be told; closed when nothing more can come.
        summary: How it ended; ``None`` while it goes on.
    """

    def __init__(
        self,
        request: query_pb2.GatherRequest,
        *,
        request_id: str,
        principal: str,
        deadline_s: float,
        responders: Sequence[Responder],
        gathering: Gathering,
        bytes_max: int,
    ) -> None:
        self.subject = request.subject
        self.payload = request.payload
        self.request_id = request_id
        self.principal = principal
        self.deadline_s = deadline_s
        self.outbox: Outbox[query_pb2.GatherResponse] = Outbox(ANSWERS_PENDING_MAX, bytes_max)
        self.summary: query_pb2.GatherResponse | None = None
        self._responders = responders
        self._gathering = gathering
        self._queries: dict[int, GatherQuery] = {}

    def start(self) -> None:
        """Say whom it asks, and ask."""
        started = query_pb2.GatherResponse()
        started.started.request_id = self.request_id
        started.started.responders.extend(responder.name for responder in self._responders)
        self.outbox.put(started)
        self._ask(self._gathering.start())

    def succeed(self, index: int, responder: str, payload: Payload) -> None:
        """Take a good reply."""
        self._queries.pop(index, None)
        if self.summary is None and self._gathering.succeed(index):
            response = query_pb2.GatherResponse()
            response.reply.responder = responder
            response.reply.payload.CopyFrom(payload)
            self.outbox.put(response, len(payload.data) + ITEM_OVERHEAD_BYTES)
            self._finish_when_over()

    def fail(self, index: int, error: errors.TidewireError) -> None:
        """Take a failure, and ask somebody else where the rule wants it."""
        self._queries.pop(index, None)
        if self.summary is None:
            self._ask(self._fail(index, error))

    def finish(self) -> None:
        """Ask nobody any more; what has come is still told, then the summary. May be repeated."""
        if self.summary is None:
            gathering = self._gathering
            self.summary = query_pb2.GatherResponse()
            summary = self.summary.summary
            summary.complete = gathering.complete
            summary.replies = gathering.replies
            summary.failures = gathering.failures
            summary.missing.extend(self._responders[index].name for index in gathering.missing)
            for query in self._queries.values():
                query.abandon()
            self._queries.clear()
        self.outbox.close()

    def _ask(self, indexes: Sequence[int]) -> None:
        waiting = deque(indexes)
        while waiting and not self._gathering.over:
            index = waiting.popleft()
            responder = self._responders[index]
            refusal = _refusal(responder)
            if refusal is not None:
                waiting.extend(self._fail(index, refusal))
                continue
            query = self._queries[index] = GatherQuery(self, index)
            responder.give(query)
        self._finish_when_over()

    def _fail(self, index: int, error: errors.TidewireError) -> Sequence[int]:
        response = query_pb2.GatherResponse()
        response.reply.responder = self._responders[index].name
        response.reply.error.CopyFrom(error.to_status())
        self.outbox.put(response, ITEM_OVERHEAD_BYTES)
        return self._gathering.fail(index)

    def _finish_when_over(self) -> None:
        if self._gathering.over:
            self.finish()


def _refusal(responder: Responder) -> errors.TidewireError | None:
    """Why this responder cannot be asked now."""
    if not responder.serving:
        return _went(responder.name)
    if not responder.ready:
        return errors.RespondersBusy(
            f"responder {responder.name!r} has its hands full ({responder.in_hand} queries)",
            metadata={"responder": responder.name, "in_hand": responder.in_hand},
        )
    return None


def _went(responder: str) -> errors.NoResponders:
    return errors.NoResponders(
        f"responder {responder!r} went before it got the query; it has not done it",
        metadata={"responder": responder},
    )
