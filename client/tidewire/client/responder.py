"""Answering queries."""

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Final

from google.rpc import status_pb2

from tidewire.client.content import Content
from tidewire.client.session import PRIORITY_QUERY, Session, check_codec, log
from tidewire.client.stream import ReopeningStream
from tidewire.client.times import to_seconds
from tidewire.client.translate import RPC_ERRORS
from tidewire.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MessageTooLarge,
    TidewireError,
    Unknown,
)
from tidewire.v1 import common_pb2, query_pb2
from tidewire.v1.query_pb2_grpc import QueryServiceStub
from tidewire.wire.batch import PAYLOAD_BYTES_MAX
from tidewire.wire.codec import CodecName
from tidewire.wire.payload import Value, as_bytes, encode_payload

IN_FLIGHT_MAX: Final = 100
REMAINING_S_MAX: Final = 3_600.0
LATE_S: Final = 0.25
"""
A query's time is over here this much later: who asked gives up by itself, and is to be told that
its time was over, not that the responder failed. This ends what the server did not take back.
"""
ANSWERS_BYTES_MAX: Final = 240 * 1024
"""Answers are sent when they pass this, also within a turn."""
ANSWER_OVERHEAD_BYTES: Final = 64
HEADER_COST_BYTES: Final = 200
ERROR_TEXT_MAX: Final = 4_096
"""Characters of an application's exception that travel."""


class _Asking:
    """What queries that came together have in common."""

    __slots__ = ("prefix", "principal", "remaining_s", "request", "streaming", "subject")

    def __init__(self, query: query_pb2.ServeQuery | query_pb2.ServeQuestions) -> None:
        self.subject: str = query.subject
        self.principal: str = query.principal
        self.remaining_s = to_seconds(query.remaining) if query.HasField("remaining") else 0.0
        if isinstance(query, query_pb2.ServeQuery):
            self.streaming: bool = query.streaming
            self.prefix: str = query.request_id
            self.request: int | None = None
        else:
            self.streaming = False
            self.prefix = query.request_prefix
            self.request = query.first_request - query.first_query_id


class Query(Content):
    """
    A query to answer.

    Attributes:
        subject: Subject it was asked on.
        request_id: Identifier of the query.
        remaining_s: Time left when the server sent it; 0 when it did not say.
        streaming: Several replies may be sent.
        principal: Who asks, as the server authenticated it; empty when it did not.
    """

    __slots__ = ("_asking", "query_id")

    def __init__(self, query: query_pb2.ServeQuery) -> None:
        super().__init__(query.payload)
        self.query_id: int = query.query_id
        self._asking = _Asking(query)

    @property
    def subject(self) -> str:
        """Subject it was asked on."""
        return self._asking.subject

    @property
    def request_id(self) -> str:
        """Identifier of the query."""
        asking = self._asking
        if asking.request is None:
            return asking.prefix
        return f"{asking.prefix}{asking.request + self.query_id}"

    @property
    def remaining_s(self) -> float:
        """Time left when the server sent it; 0 when it did not say."""
        return self._asking.remaining_s

    @property
    def streaming(self) -> bool:
        """Several replies may be sent."""
        return self._asking.streaming

    @property
    def principal(self) -> str:
        """Who asks, as the server authenticated it; empty when it did not."""
        return self._asking.principal


Answer = Value | common_pb2.Payload | None
QueryHandler = Callable[[Query], Any]


class _Answers:
    """
    Answers on their way to the server, of one turn.

    Attributes:
        size: Bytes of them, about; 0 when there are none.
    """

    __slots__ = ("_bare", "_bare_ids", "_ids", "_payloads", "size")

    def __init__(self) -> None:
        self.size = 0
        self._bare_ids: list[int] = []
        self._bare: list[bytes] = []
        self._ids: list[int] = []
        self._payloads: list[common_pb2.Payload] = []

    def add_bare(self, query_id: int, body: bytes) -> int:
        """Take an answer of bytes and nothing else; returns the size."""
        self._bare_ids.append(query_id)
        self._bare.append(body)
        self.size += len(body) + ANSWER_OVERHEAD_BYTES
        return self.size

    def add(self, query_id: int, payload: common_pb2.Payload) -> None:
        """Take an answer."""
        self._ids.append(query_id)
        self._payloads.append(payload)
        # Fields of a request count too: there may not be too many.
        self.size += payload.ByteSize() + (1 + len(payload.header)) * HEADER_COST_BYTES

    def requests(self) -> Iterator[query_pb2.ServeRequest]:
        """Encode them."""
        for ids, bare, payloads in (
            (self._bare_ids, self._bare, ()),
            (self._ids, (), self._payloads),
        ):
            if ids:
                request = query_pb2.ServeRequest()
                answers = request.answers
                answers.query_ids.extend(ids)
                answers.bare.extend(bare)
                answers.payloads.extend(payloads)
                yield request


class Responder(ReopeningStream[query_pb2.ServeRequest, query_pb2.ServeResponse]):
    """
    Answers queries until it is closed.

    Attributes:
        answered: Queries answered, failures included.
        failures: Exceptions raised by the handler.
    """

    _directly = True

    def __init__(
        self,
        session: Session,
        subjects: Sequence[str],
        handler: QueryHandler,
        *,
        group: str,
        in_flight_max: int,
        codec: CodecName,
    ) -> None:
        stub = QueryServiceStub(session.channel)
        super().__init__(session, "a responder", stub.Serve, PRIORITY_QUERY)
        if not 1 <= in_flight_max <= 10_000:
            raise InvalidArgument(f"in_flight_max is {in_flight_max}; it must be 1 to 10,000")
        self.answered = 0
        self.failures = 0
        self._subjects = subjects
        self._handler = handler
        self._generates = inspect.isasyncgenfunction(handler)
        self._group = group
        self._in_flight_max = in_flight_max
        self._codec = codec
        self._plain = codec == common_pb2.CODEC_NONE
        self._payload_bytes_max = PAYLOAD_BYTES_MAX
        self._replies: deque[query_pb2.ServeRequest] = deque()
        self._answers = _Answers()
        self._gathering = False
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._idle = asyncio.Event()

    async def join(self) -> None:
        """Wait until the responder ends: it was closed, or failed, which raises why."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._error is not None and not self._closing:
            raise self._error

    async def close(self) -> None:
        """Take no more queries, answer those in hand within the client's timeout, then end."""
        task = self._task
        if self.connected and not self._closing and task is not None:
            self._closing = True
            self._replies.append(query_pb2.ServeRequest(drain=True))
            self._wake.set()
            await asyncio.wait([task], timeout=self._session.options.timeout_s)
        self._drop_queries()
        await super().close()

    async def _first_request(self) -> query_pb2.ServeRequest:
        options = self._session.options
        opening = query_pb2.ServeOpen(
            client_id=options.name,
            node_id=options.node_id,
            subjects=self._subjects,
            group=self._group,
            in_flight_max=self._in_flight_max,
            takes_questions=True,
        )
        return query_pb2.ServeRequest(open=opening)

    def _opened(self, opened: common_pb2.Opened) -> None:
        check_codec(self._codec, opened)
        self._payload_bytes_max = opened.limits.payload_bytes_max or PAYLOAD_BYTES_MAX

    def _outgoing(self) -> Iterator[query_pb2.ServeRequest]:
        self._close_answers()
        while self._replies:
            yield self._replies.popleft()

    def _received(self, kind: str, response: query_pb2.ServeResponse) -> Awaitable[None] | None:
        self._gathering = True
        if kind == "questions":
            self._take_questions(response.questions)
        elif kind == "query":
            self._take(Query(response.query))
        elif kind == "cancel":
            task = self._tasks.get(response.cancel.query_id)
            if task is not None:
                task.cancel()
        self._flush()
        return None

    def _take_questions(self, questions: query_pb2.ServeQuestions) -> None:
        asking, query_id = _Asking(questions), questions.first_query_id
        bodies: Sequence[Any] = questions.bare or questions.payloads
        handler, quick = self._handler, self._plain and not self._generates
        for body in bodies:
            query = Query.__new__(Query)
            query._payload = body
            query.query_id = query_id
            query._asking = asking
            query_id += 1
            if not quick:
                self._take(query)
                continue
            # What `_take` and `_answer` do with bytes, which is what most answers are.
            try:
                answer = handler(query)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (as in `_take`)
                self._fail(query, error)
                continue
            if type(answer) is not bytes or len(answer) > self._payload_bytes_max:
                self._judge(query, answer)
                continue
            self.answered += 1
            if self._answers.add_bare(query.query_id, answer) >= ANSWERS_BYTES_MAX:
                self._close_answers()

    def _flush_soon(self) -> None:
        """Send when this turn is over what was answered in it."""
        if not self._gathering:
            self._gathering = True
            self._session.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what was answered: at once where the wire takes it, else by the writer."""
        self._gathering = False
        self._close_answers()
        nowait, replies = self._write_nowait, self._replies
        if nowait is not None:
            try:
                while replies and nowait(replies[0]):
                    replies.popleft()
            except RPC_ERRORS:
                return  # the call is over; its reader is told why
        if replies or self._draining:
            self._wake.set()

    def _close_answers(self) -> None:
        if self._answers.size:
            answers, self._answers = self._answers, _Answers()
            self._replies.extend(answers.requests())

    def _broken(self) -> None:
        self._drop_queries()
        self._replies.clear()
        self._answers = _Answers()
        self._gathering = False

    def _ended(self, error: TidewireError | None) -> None:
        self._drop_queries()

    def _drop_queries(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def _take(self, query: Query) -> None:
        if self._generates:
            self._start(query, self._generate(query))
            return
        try:
            answer = self._handler(query)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (the application's)
            self._fail(query, error)
            return
        self._judge(query, answer)

    def _judge(self, query: Query, answer: Any) -> None:
        """Answer with what a handler returned, or wait for it."""
        if type(answer) is not bytes and inspect.isawaitable(answer):
            self._start(query, self._wait(query, answer))
        else:
            self._answer(query, answer)

    def _start(self, query: Query, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks[query.query_id] = task
        task.add_done_callback(lambda done: self._forget(query.query_id, done))

    def _forget(self, query_id: int, done: asyncio.Task[None]) -> None:
        if self._tasks.get(query_id) is done:
            del self._tasks[query_id]
        if self._draining:
            self._wake.set()

    def _may_leave(self) -> bool:
        return not self._tasks and not self._answers.size and not self._replies

    async def _wait(self, query: Query, answer: Awaitable[Answer]) -> None:
        try:
            async with asyncio.timeout(_limit_s(query)):
                value = await answer
        except TimeoutError:
            self._fail(query, DeadlineExceeded("the query's time was over before its answer"))
        except Exception as error:  # noqa: BLE001 (the application's; told to who asked)
            self._fail(query, error)
        else:
            self._answer(query, value)

    async def _generate(self, query: Query) -> None:
        try:
            async with asyncio.timeout(_limit_s(query)), aclosing(self._handler(query)) as answers:
                async for value in answers:
                    self._send(query, self._payload(value), end=False)
        except TimeoutError:
            self._fail(query, DeadlineExceeded("the query's time was over before its answers"))
        except Exception as error:  # noqa: BLE001 (the application's; told to who asked)
            self._fail(query, error)
        else:
            self.answered += 1
            reply = query_pb2.ServeReply(query_id=query.query_id, end=True)
            self._replies.append(query_pb2.ServeRequest(reply=reply))
            self._flush_soon()

    def _answer(self, query: Query, value: Answer) -> None:
        try:
            body: bytes | common_pb2.Payload
            if type(value) is bytes and self._plain:
                body = value
            elif isinstance(value, common_pb2.Payload) or not self._plain:
                body = self._payload(value)
            else:
                body = b"" if value is None else as_bytes(value)
            if isinstance(body, bytes):
                self._check_size(len(body))
        except (TypeError, ValueError, TidewireError) as error:
            self._fail(query, error)
            return
        self.answered += 1
        if query._asking.request is not None:
            answers = self._answers
            if isinstance(body, bytes):
                answers.add_bare(query.query_id, body)
            else:
                answers.add(query.query_id, body)
            if answers.size >= ANSWERS_BYTES_MAX:
                self._close_answers()
            self._flush_soon()
            return
        self._send(query, self._payload(body), end=True)

    def _payload(self, value: Answer) -> common_pb2.Payload:
        payload = value
        if not isinstance(payload, common_pb2.Payload):
            payload = encode_payload(b"" if payload is None else payload, codec=self._codec)
        self._check_size(len(payload.data))
        return payload

    def _check_size(self, size: int) -> None:
        """Refuse an answer that would end the stream, and with it the other queries in hand."""
        if size > self._payload_bytes_max:
            raise MessageTooLarge(
                f"the answer has {size} bytes; the server takes {self._payload_bytes_max}",
                metadata={"bytes": size, "bytes_max": self._payload_bytes_max},
            )

    def _send(self, query: Query, payload: common_pb2.Payload, *, end: bool) -> None:
        request = query_pb2.ServeRequest()
        reply = request.reply
        reply.query_id = query.query_id
        reply.payload.CopyFrom(payload)
        reply.end = end
        self._replies.append(request)
        self._flush_soon()

    def _fail(self, query: Query, error: BaseException) -> None:
        self.answered += 1
        self.failures += 1
        log.info("a query on %r failed: %r", query.subject, error)
        reply = query_pb2.ServeReply(query_id=query.query_id, error=status_of(error), end=True)
        self._replies.append(query_pb2.ServeRequest(reply=reply))
        self._flush_soon()


def status_of(error: BaseException) -> status_pb2.Status:
    """How an application's exception travels: an error of ours as it is, any other by its text."""
    if isinstance(error, TidewireError):
        return error.to_status()
    text = f"{type(error).__name__}: {error}"[:ERROR_TEXT_MAX]
    # Names of files may hold surrogates, which no message carries.
    return Unknown(text.encode(errors="backslashreplace").decode()).to_status()


def _limit_s(query: Query) -> float | None:
    return min(query.remaining_s, REMAINING_S_MAX) + LATE_S if query.remaining_s else None
