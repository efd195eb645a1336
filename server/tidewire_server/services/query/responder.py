"""The stream of a responder: the queries it has in hand, and what waits to be written to it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, Final, Protocol

from tidewire import errors
from tidewire.v1 import common_pb2, query_pb2
from tidewire_server.services.outbox import Outbox
from tidewire_server.services.query.failures import outcome_unknown, responder_failed
from tidewire_server.services.query.flight import ITEM_OVERHEAD_BYTES, Query
from tidewire_server.services.query.routing import Seat
from tidewire_server.services.query.runs import Part

UNWRITTEN_BYTES_MAX: Final = 16 * 1024 * 1024
"""From here on a responder that does not read counts as busy."""
IN_FLIGHT_DEFAULT: Final = 100

Item = Query | Part | query_pb2.ServeResponse


class Cut(Protocol):
    """What can end a stream that hangs: `asyncio.Timeout`."""

    def reschedule(self, when: float | None) -> None:
        """Raise `TimeoutError` in the stream's handler at this time of the loop."""
        ...


class Backlog(Protocol):
    """Somebody who may not take answers as fast as they come."""

    @property
    def backlog(self) -> Outbox[Any] | None:
        """What waits for it; ``None`` when that is little by nature."""
        ...

    def cut_off(self, stall_s: float) -> None:
        """End it: it took nothing for so long."""
        ...


class Responder(Seat):
    """
    One stream of QueryService.Serve.

    Attributes:
        queries: Queries in hand by number; the questions of a part all lead to it.
        outbox: What waits to be written.
        late_replies: Replies nobody waited for any more.
        takes_questions: Several queries may go to it in one response.
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
        takes_questions: bool = False,
    ) -> None:
        super().__init__(name, subjects, node_id=node_id, group=group, in_flight_max=in_flight_max)
        self.queries: dict[int, Query | Part] = {}
        self.outbox: Outbox[Item] = Outbox(2 * in_flight_max + 16, UNWRITTEN_BYTES_MAX)
        self.draining = False
        self.late_replies = 0
        self.takes_questions = takes_questions
        self.writing_since_s: float | None = None
        self.cut: Cut | None = None
        self.write_at_once: Callable[[Query | Part], bool] | None = None
        self._last_id = 0

    # Giving.

    def give(self, query: Query) -> None:
        """Hand it a query: written at once when its stream is idle and its wire takes it."""
        self._last_id += 1
        query.query_id = self._last_id
        query.responder = self
        self.queries[self._last_id] = query
        query.written = self._write_now(query)
        if not query.written:
            self._put(query, len(query.payload.data))
        self.take()

    def give_part(self, part: Part) -> None:
        """Hand it questions in the same way; one at a time unless it takes several."""
        first = self._last_id + 1
        self._last_id += part.count
        part.query_id = first
        part.offset = part.first_id - first
        part.responder = self
        # Written first: the responder works while the books are kept, and cannot answer before.
        part.written = self._write_now(part)
        if part.count == 1:
            self.queries[first] = part
        else:
            self.queries.update(zip(part.numbers, repeat(part)))
        part.asker.hold(part)
        if not part.written:
            self._put(part, part.size)
        self.take(part.count)

    def _write_now(self, query: Query | Part) -> bool:
        if self.write_at_once is None or not self.outbox.idle or self.writing_since_s is not None:
            return False
        try:
            return self.write_at_once(query)
        except errors.TidewireError:
            return False  # the stream's writer meets it too

    def _put(self, query: Query | Part, size: int) -> None:
        self.outbox.put(query, size + ITEM_OVERHEAD_BYTES)
        if self.outbox.full:
            self.clogged = True

    def next_responses(self, item: Item, now_s: float) -> Sequence[query_pb2.ServeResponse]:
        """What to write for an item of the outbox; nothing for a query nobody waits for."""
        if self.clogged and not self.outbox.full:
            self.clogged = False
            self.place()
        if isinstance(item, query_pb2.ServeResponse):
            return (item,)
        if item.responder is not self:
            return ()
        item.written = True
        if isinstance(item, Query) or item.left == item.count:
            return (item.to_response(now_s),)
        return [self._rest(piece, item, now_s) for piece in item.pieces(self._alive(item))]

    def _rest(self, piece: Part, whole: Part, now_s: float) -> query_pb2.ServeResponse:
        """Encode what is left of a part as if it had been one."""
        piece.responder = self
        piece.query_id = piece.first_id - whole.offset
        return piece.to_response(now_s)

    def singly(self, numbers: Iterable[int], now_s: float) -> Iterator[query_pb2.ServeResponse]:
        """Encode questions that went together, each by itself, without those that are over."""
        for number in numbers:
            whole = self.queries.get(number)
            if isinstance(whole, Part):
                (piece,) = whole.pieces((number,))
                yield self._rest(piece, whole, now_s)

    # Taking answers.

    def take_reply(self, reply: query_pb2.ServeReply) -> Backlog | None:
        """
        Take an answer and hand it on.

        Returns:
            Whose backlog may have grown too long; ``None`` for a query with one reply.

        Raises:
            InvalidArgument: The number was never given.
        """
        number = reply.query_id
        query = self.queries.get(number)
        if query is None or not query.written:
            self._judge(number, query)
            return None
        if isinstance(query, Part):
            self._take_reply_to_part(query, reply)
            return query.asker
        outcome = reply.WhichOneof("outcome")
        waited_for = None if query.backlog is None else query
        if outcome == "error":
            self._settle(query)
            query.on_error(self._failure(query.request_id, reply))
            return waited_for
        payload = reply.payload if outcome == "payload" else None
        if query.streaming and not reply.end:
            if payload is not None:
                query.on_reply(self.name, payload, end=False)
            return waited_for
        self._settle(query)
        query.on_reply(self.name, payload, end=True)
        return waited_for

    def _take_reply_to_part(self, part: Part, reply: query_pb2.ServeReply) -> None:
        number = reply.query_id
        asked = number + part.offset
        outcome = reply.WhichOneof("outcome")
        self._settle_numbers(part, (number,))
        if outcome == "payload":
            part.asker.answer(self.name, (asked,), (reply.payload,), bare=False)
        elif outcome == "error":
            error = self._failure(part.asker.request_id(asked), reply)
            part.asker.fail((asked,), error)
        else:
            part.asker.fail((asked,), part.asker.no_reply(self.name, asked))

    def take_answers(
        self,
        numbers: Sequence[int],
        bodies: Sequence[Any],
        *,
        bare: bool,
    ) -> list[Backlog]:
        """
        Take the only replies to several queries, and hand on together what one asker gets.

        Returns:
            Those whose backlog may have grown too long.

        Raises:
            InvalidArgument: One of the numbers was never given; those before it are taken.
        """
        batches: dict[Any, tuple[list[int], list[Any]]] = {}
        batch: tuple[list[int], list[Any]] = ([], [])
        asker: Any = None
        queries, settled = self.queries, 0
        try:
            for number, body in zip(numbers, bodies, strict=True):
                part = queries.get(number)
                if part is None or not part.written:
                    self._judge(number, part)
                    continue
                if isinstance(part, Query):
                    self._answer_query(part, body)
                    continue
                del queries[number]
                settled += 1
                part.left -= 1
                if not part.left:
                    part.asker.release(part)
                if part.asker is not asker:
                    asker = part.asker
                    batch = batches.setdefault(asker, ([], []))
                batch[0].append(number + part.offset)
                batch[1].append(body)
        finally:
            for asker, (asked, answers) in batches.items():
                asker.answer(self.name, asked, answers, bare=bare)
            if settled:
                self.give_back(settled)
                self._close_when_done()
        return list(batches)

    def _answer_query(self, query: Query, body: bytes | common_pb2.Payload) -> None:
        payload = common_pb2.Payload(data=body) if isinstance(body, bytes) else body
        self._settle(query)
        query.on_reply(self.name, payload, end=True)

    def _judge(self, number: int, query: Query | Part | None) -> None:
        """Count a reply that comes late, and refuse one to what the responder cannot know of."""
        if not 0 < number <= self._last_id or query is not None:
            raise errors.InvalidArgument(
                f"reply to query {number}, which was not asked on this stream; the last"
                f" one was {self._last_id}",
                fields={"reply.query_id": "a number of a query on this stream"},
            )
        self.late_replies += 1

    def _failure(self, request_id: str, reply: query_pb2.ServeReply) -> errors.ResponderFailed:
        return responder_failed(self.name, request_id, errors.from_status(reply.error))

    # Giving up.

    def fail_unsent(self, number: int, error: errors.TidewireError) -> None:
        """A query cannot be sent to this responder: whoever asked is told why."""
        query = self.queries.get(number)
        if isinstance(query, Part):
            self._settle_numbers(query, (number,))
            query.asker.fail((number + query.offset,), error)
        elif query is not None:
            self._settle(query)
            query.on_error(error)

    def drop(self, query: Query) -> None:
        """Forget a query nobody waits for, and tell the responder if it has it."""
        if self.queries.get(query.query_id) is not query:
            return
        if query.written:
            self._cancel(query.query_id)
        self._settle(query)

    def drop_questions(self, part: Part, numbers: Iterable[int]) -> list[int]:
        """
        Forget questions of a part nobody waits for, and tell the responder if it has them.

        Returns:
            Those of the numbers that were not over before.
        """
        alive = [number for number in numbers if self.queries.get(number) is part]
        if part.written:
            for number in alive:
                self._cancel(number)
        self._settle_numbers(part, alive)
        return alive

    def _cancel(self, number: int) -> None:
        cancel = query_pb2.ServeResponse()
        cancel.cancel.query_id = number
        self.outbox.put(cancel, ITEM_OVERHEAD_BYTES)

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
        held = [
            (query, self._alive(query) if isinstance(query, Part) else ())
            for query in dict.fromkeys(self.queries.values())
        ]
        for query, numbers in held:
            if isinstance(query, Part):
                self._give_up_part(query, numbers, cancel=cancel)
            elif cancel:
                self.drop(query)
            else:
                self._settle(query)
        for query, numbers in held:
            if isinstance(query, Part):
                query.asker.lost(self.name, query, numbers, why)
            elif query.written:
                query.on_error(outcome_unknown(self.name, query.request_id, why))
            else:
                query.on_unwritten(self.name)

    def _give_up_part(self, part: Part, numbers: Sequence[int], *, cancel: bool) -> None:
        if cancel:
            self.drop_questions(part, numbers)
        else:
            self._settle_numbers(part, numbers)

    def _alive(self, part: Part) -> Sequence[int]:
        """Numbers of a part's questions that are not over, rising."""
        if part.left == part.count:
            return part.numbers
        return [number for number in part.numbers if self.queries.get(number) is part]

    def _settle(self, query: Query) -> None:
        del self.queries[query.query_id]
        query.responder = None
        self.give_back()
        self._close_when_done()

    def _settle_numbers(self, part: Part, numbers: Sequence[int]) -> None:
        for number in numbers:
            del self.queries[number]
        part.left -= len(numbers)
        if not part.left:
            part.asker.release(part)
        self.give_back(len(numbers))
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self.draining and not self.queries:
            self.outbox.close()


def numbers_of(response: query_pb2.ServeResponse) -> Sequence[int]:
    """Numbers of the queries that a response carries."""
    kind = response.WhichOneof("kind")
    if kind == "query":
        return (response.query.query_id,)
    if kind == "questions":
        questions = response.questions
        first = questions.first_query_id
        return range(first, first + len(questions.bare) + len(questions.payloads))
    return ()
