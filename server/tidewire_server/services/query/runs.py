"""Questions that came together and go to one responder together."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tidewire.v1 import query_pb2
from tidewire_server.services.query.flight import set_remaining

if TYPE_CHECKING:
    from tidewire_server.services.query.asker import Asker
    from tidewire_server.services.query.responder import Responder


class Part:
    """
    Consecutive questions of one asker that one responder has, or is about to get.

    One object for all of them, and none for each. Numbers are the asker's, or the responder's:
    adding ``offset`` to one of the responder's gives the asker's.

    Attributes:
        bodies: The questions: bytes when ``bare``, else payloads.
        deadline_s: When they are too late, on the service's clock.
        left: How many are not over.
        over: None is left.
        written: The responder has them, or may.
    """

    __slots__ = (
        "__weakref__",
        "asker",
        "bare",
        "bodies",
        "count",
        "deadline_s",
        "first_id",
        "left",
        "offset",
        "over",
        "query_id",
        "responder",
        "subject",
        "written",
    )

    def __init__(
        self,
        asker: "Asker",
        subject: str,
        first_id: int,
        bodies: Sequence[Any],
        *,
        bare: bool,
        deadline_s: float,
    ) -> None:
        self.asker = asker
        self.subject = subject
        self.first_id = first_id
        self.bodies = bodies
        self.bare = bare
        self.deadline_s = deadline_s
        self.count = self.left = len(bodies)
        self.query_id = 0
        self.offset = 0
        self.written = False
        self.over = False
        self.responder: Responder | None = None

    @property
    def numbers(self) -> range:
        """Numbers at the responder, of what is over too."""
        return range(self.query_id, self.query_id + self.count)

    @property
    def size(self) -> int:
        """Bytes of the questions."""
        if self.bare:
            return sum(map(len, self.bodies))
        return sum(body.ByteSize() for body in self.bodies)

    def cut(self, start: int, stop: int) -> "Part":
        """Make a part of those from the ``start``-th to before the ``stop``-th."""
        return Part(
            self.asker,
            self.subject,
            self.first_id + start,
            self.bodies[start:stop],
            bare=self.bare,
            deadline_s=self.deadline_s,
        )

    def pieces(self, alive: Sequence[int]) -> "Iterator[Part]":
        """Make parts of the questions that have these numbers at the responder, rising."""
        start = 0
        for index, number in enumerate(alive):
            if index + 1 == len(alive) or alive[index + 1] != number + 1:
                yield self.cut(alive[start] - self.query_id, number - self.query_id + 1)
                start = index + 1

    def to_response(self, now_s: float) -> query_pb2.ServeResponse:
        """Encode it for the responder."""
        responder = self.responder
        if responder is None or not responder.takes_questions:
            return self._to_query(now_s)
        response = query_pb2.ServeResponse()
        questions = response.questions
        questions.first_query_id = self.query_id
        questions.subject = self.subject
        if self.bare:
            questions.bare.extend(self.bodies)
        else:
            questions.payloads.extend(self.bodies)
        set_remaining(questions.remaining, self.deadline_s - now_s)
        questions.request_prefix = self.asker.request_prefix
        questions.first_request = self.first_id
        if self.asker.principal:
            questions.principal = self.asker.principal
        return response

    def _to_query(self, now_s: float) -> query_pb2.ServeResponse:
        """Encode the only question for a responder that takes them one by one."""
        response = query_pb2.ServeResponse()
        query = response.query
        query.query_id = self.query_id
        query.subject = self.subject
        (body,) = self.bodies
        if self.bare:
            query.payload.data = body
        else:
            query.payload.CopyFrom(body)
        query.request_id = self.asker.request_id(self.first_id)
        set_remaining(query.remaining, self.deadline_s - now_s)
        if self.asker.principal:
            query.principal = self.asker.principal
        return response
