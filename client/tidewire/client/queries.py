"""Queries: request and reply through the service."""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from tidewire.client.asker import Asker
from tidewire.client.asking import QUESTION_COST_BYTES, Body, Numbers, Reply, Waiting, unknown
from tidewire.client.opening import Opening
from tidewire.client.responder import IN_FLIGHT_MAX, QueryHandler, Responder
from tidewire.client.responses import responses
from tidewire.client.session import DOUBTFUL, PRIORITY_QUERY, Session, notify
from tidewire.client.translate import was_never_sent
from tidewire.errors import (
    ConnectionLost,
    Draining,
    InvalidArgument,
    PeerVanished,
    TidewireError,
    TooFewResponders,
)
from tidewire.errors import from_status as error_of
from tidewire.v1 import common_pb2, query_pb2
from tidewire.v1.query_pb2_grpc import QueryServiceStub
from tidewire.wire.batch import Headers
from tidewire.wire.payload import Value, as_bytes, encode_payload
from tidewire.wire.subject import check_pattern, check_subject

QUESTION_BYTES_MAX: Final = 64 * 1024
"""A larger question goes by a call of its own, so that small ones do not wait for it."""
LIMIT_S_LEAST: Final = 0.001
LIMIT_S_MAX: Final = 86_400.0
LIMIT_STEPS: Final = 256


@dataclass(frozen=True, slots=True)
class Gathered:
    """
    What several responders answered.

    Attributes:
        replies: Good replies, as they came.
        errors: Failures, by responder.
        missing: Responders that had not answered when it ended.
        complete: The rule of the request was met.
        responders: Who was asked, or ready to be asked.
    """

    replies: tuple[Reply, ...]
    errors: dict[str, TidewireError]
    missing: tuple[str, ...]
    complete: bool
    responders: tuple[str, ...]


class Queries:
    """The query part of a client; see `tidewire.connect`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stub = QueryServiceStub(session.channel)
        self._numbers = Numbers(f"{uuid.uuid4().hex[:12]}-")
        self._asker = Asker(session, self._stub.AskMany, self._numbers)
        self._loop = session.loop
        self._limit_s = session.options.timeout_s
        self._plain = session.codec == common_pb2.CODEC_NONE
        self._checked = ""
        """Subject that was checked last; most queries are on the same one."""

    async def ask(
        self,
        subject: str,
        data: Value = b"",
        *,
        headers: Headers = (),
        content_type: str = "",
        timeout_s: float | None = None,
    ) -> Reply:
        """
        Ask one responder. At most once: it is never asked again by itself.

        Args:
            subject: Subject; no wildcards.
            data: The question; text becomes UTF-8.
            headers: Application headers.
            content_type: Media type, for people and tools.
            timeout_s: Time the whole query may take; the responder gets what is left of it.

        Raises:
            NoResponders: At once, when nobody serves the subject.
            RespondersBusy: All have their hands full.
            ResponderFailed: The responder's own error.
            OutcomeUnknown: It was asked and got lost; the request id is in the error.
            DeadlineExceeded: Nothing came in time; it may have been done.
        """
        limit_s = self._limit_s if timeout_s is None else timeout_s
        stream = self._asker.stream
        if stream is None or stream.full:
            began_s = self._session.clock()
            stream = await self._asker.enter(limit_s)
            # In steps: what waited together is to travel together.
            left = 1.0 - (self._session.clock() - began_s) / max(limit_s, LIMIT_S_LEAST)
            limit_s *= round(left * LIMIT_STEPS) / LIMIT_STEPS
        body: Body
        if self._plain and not headers and not content_type:
            body = data if type(data) is bytes else as_bytes(data)
            size = len(body)
        else:
            body = self._question(data, headers, content_type)
            size = body.ByteSize()
            if _is_bare(body):
                body = body.data
        if (
            stream is None
            or size > QUESTION_BYTES_MAX
            or not LIMIT_S_LEAST <= limit_s <= LIMIT_S_MAX
        ):
            return await self._ask_by_call(subject, body, limit_s)
        future: Waiting = self._loop.create_future()
        run = stream.last
        if (
            run is not None
            and run.limit_s == limit_s
            and run.bare
            and run.room >= size + QUESTION_COST_BYTES
            and run.subject == subject
            and isinstance(body, bytes)
        ):
            # What `Questioning.ask` does for all but the first of a run; it is most of its work.
            run.room -= size + QUESTION_COST_BYTES
            run.futures.append(future)
            run.bodies.append(body)
        else:
            if subject != self._checked:
                check_subject(subject)
                self._checked = subject
            run = stream.ask(subject, limit_s, body, size, future)
        try:
            outcome = await future
        except BaseException:
            stream.give_up(run, future)
            raise
        if isinstance(outcome, Reply):
            return outcome
        return await self._ask_again(outcome, subject, body, run.deadline_s)

    async def _ask_again(
        self, problem: TidewireError, subject: str, body: Body, ends_s: float
    ) -> Reply:
        """Send a query by a call when it failed in a way that allows it; else raise how it did."""
        session = self._session
        if not _was_turned_away(problem):
            delay_s = session.retry_delay_s(problem, 1, repeatable=False)
            if delay_s is None or session.clock() + delay_s >= ends_s:
                if problem.code in DOUBTFUL:
                    session.suspect()
                raise problem
            await session.sleep(delay_s)
        return await self._ask_by_call(subject, body, ends_s - session.clock())

    async def _ask_by_call(self, subject: str, body: Body, limit_s: float) -> Reply:
        request = query_pb2.AskRequest()
        request.subject = subject
        if isinstance(body, bytes):
            request.payload.codec = common_pb2.CODEC_NONE
            request.payload.data = body
        else:
            request.payload.CopyFrom(body)
        request.request_id = self._request_id()
        try:
            response = await self._session.unary(
                self._stub.Ask,
                request,
                timeout_s=limit_s,
                metadata=PRIORITY_QUERY,
                repeatable=False,
            )
        except (ConnectionLost, PeerVanished) as error:
            raise _unknown(error, request.request_id) from error
        return Reply(response.payload, response.responder, response.request_id)

    async def ask_stream(
        self,
        subject: str,
        data: Value = b"",
        *,
        headers: Headers = (),
        timeout_s: float | None = None,
    ) -> AsyncIterator[Reply]:
        """Ask one responder that answers with several replies; iterate over them. Errors: `ask`."""
        check_subject(subject)
        request = query_pb2.AskStreamRequest(
            subject=subject,
            payload=self._question(data, headers, ""),
            request_id=self._request_id(),
        )
        try:
            async with aclosing(self._responses(self._stub.AskStream, request, timeout_s)) as all_:
                async for response in all_:
                    yield Reply(response.payload, response.responder, response.request_id)
        except (ConnectionLost, PeerVanished) as error:
            raise _unknown(error, request.request_id) from error

    async def gather(
        self,
        subject: str,
        data: Value = b"",
        *,
        first: int | None = None,
        quorum: int | None = None,
        headers: Headers = (),
        timeout_s: float | None = None,
        on_reply: Callable[[Reply], None] | None = None,
        strict: bool = False,
    ) -> Gathered:
        """
        Ask several responders at once.

        Args:
            subject: Subject; no wildcards.
            data: The question.
            first: Complete with so many good replies; all are asked.
            quorum: Complete with so many good replies; only as many are asked as are needed.
                Neither: complete when all responders known at the start have replied or failed.
            headers: Application headers.
            timeout_s: Time the whole query may take.
            on_reply: Called with each good reply as it comes.
            strict: Raise when the rule was not met, instead of returning what there is.

        Raises:
            TooFewResponders: There are fewer responders than asked for, or, with `strict`, fewer
                good replies.
            NoResponders: There are none.
        """
        if first is not None and quorum is not None:
            raise InvalidArgument("a gather is complete by `first` or by `quorum`, not by both")
        request = query_pb2.GatherRequest(
            subject=subject,
            payload=self._question(data, headers, ""),
            request_id=self._request_id(),
        )
        if first is not None:
            request.first = first
        elif quorum is not None:
            request.quorum = quorum
        else:
            request.all = True
        gathering = _Gathering(request.request_id, on_reply)
        async with aclosing(self._responses(self._stub.Gather, request, timeout_s)) as all_:
            async for response in all_:
                gathering.take(response)
        result = gathering.result()
        if strict and not result.complete:
            raise TooFewResponders(
                f"{len(result.replies)} good replies came; {len(result.errors)} responders failed, "
                f"{len(result.missing)} did not answer",
                metadata={"request_id": request.request_id, "replies": len(result.replies)},
            )
        return result

    def serve(
        self,
        subjects: str | Sequence[str],
        handler: QueryHandler,
        *,
        group: str = "",
        in_flight_max: int = IN_FLIGHT_MAX,
        compression: str | bool | None = True,
    ) -> Opening[Responder]:
        """
        Answer queries: ``async with client.queries.serve("prices.*", handler)``.

        Args:
            subjects: Subjects served; wildcards allowed.
            handler: Called with each `Query`; returns the answer (bytes, text, `None` for an empty
                one). A coroutine function, or, for several replies, an async generator function.
                An exception it raises is the querier's ResponderFailed.
            group: A query goes to one responder of one group.
            in_flight_max: Queries taken at the same time, 1 to 10,000.
            compression: Codec of the answers; by default the client's.
        """
        patterns = [subjects] if isinstance(subjects, str) else list(subjects)
        for pattern in patterns:
            check_pattern(pattern)
        responder = Responder(
            self._session,
            patterns,
            handler,
            group=group,
            in_flight_max=in_flight_max,
            codec=self._session.codec_for(compression),
        )

        async def open_() -> Responder:
            await responder.open()
            return responder

        return Opening(open_)

    def _question(self, data: Value, headers: Headers, content_type: str) -> common_pb2.Payload:
        return encode_payload(
            data, codec=self._session.codec, headers=headers, content_type=content_type
        )

    def _request_id(self) -> str:
        return f"{self._numbers.prefix}{self._numbers.take(1)}"

    def _responses(
        self, method: Callable[..., Any], request: Any, timeout_s: float | None
    ) -> AsyncGenerator[Any, None]:
        limit_s = self._session.options.timeout_s if timeout_s is None else timeout_s
        return responses(method(request, timeout=limit_s, metadata=PRIORITY_QUERY))


class _Gathering:
    """The answers to one gather, as they come."""

    def __init__(self, request_id: str, on_reply: Callable[[Reply], None] | None) -> None:
        self._request_id = request_id
        self._on_reply = on_reply
        self._replies: list[Reply] = []
        self._errors: dict[str, TidewireError] = {}
        self._responders: tuple[str, ...] = ()
        self._summary: query_pb2.GatherSummary | None = None

    def take(self, response: query_pb2.GatherResponse) -> None:
        """Take a response."""
        kind = response.WhichOneof("kind")
        if kind == "started":
            self._responders = tuple(response.started.responders)
        elif kind == "summary":
            self._summary = response.summary
        elif kind == "reply":
            self._take_reply(response.reply)

    def _take_reply(self, answer: query_pb2.GatherReply) -> None:
        if answer.WhichOneof("outcome") == "error":
            self._errors[answer.responder] = error_of(answer.error)
            return
        reply = Reply(answer.payload, answer.responder, self._request_id)
        self._replies.append(reply)
        if self._on_reply is not None:
            notify(self._on_reply, reply)

    def result(self) -> Gathered:
        """What came."""
        summary = self._summary
        return Gathered(
            replies=tuple(self._replies),
            errors=self._errors,
            missing=() if summary is None else tuple(summary.missing),
            complete=summary is not None and summary.complete,
            responders=self._responders,
        )


def _is_bare(payload: common_pb2.Payload) -> bool:
    """Whether a payload is its bytes and nothing else."""
    return (
        payload.codec <= common_pb2.CODEC_NONE and not payload.header and not payload.content_type
    )


def _was_turned_away(problem: TidewireError) -> bool:
    """Whether a query only has to go another way: its server goes, or its stream went before it."""
    return isinstance(problem, Draining) or (
        isinstance(problem, ConnectionLost) and was_never_sent(problem)
    )


def _unknown(error: TidewireError, request_id: str) -> TidewireError:
    """A query whose connection was lost may have been answered; one never sent was not."""
    return error if was_never_sent(error) else unknown(error, request_id)
