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
from tidewire.errors import DeadlineExceeded, InvalidArgument, TidewireError, Unknown
from tidewire.v1 import common_pb2, query_pb2
from tidewire.v1.query_pb2_grpc import QueryServiceStub
from tidewire.wire.codec import CodecName
from tidewire.wire.payload import Value, encode_payload

IN_FLIGHT_MAX: Final = 100
REMAINING_S_MAX: Final = 3_600.0
LATE_S: Final = 0.25
"""
A query's time is over here this much later: who asked gives up by itself, and is to be told that
its time was over, not that the responder failed. This ends what the server did not take back.
"""


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

    __slots__ = (
        "principal",
        "query_id",
        "remaining_s",
        "request_id",
        "streaming",
        "subject",
    )

    def __init__(self, query: query_pb2.ServeQuery) -> None:
        super().__init__(query.payload)
        self.query_id: int = query.query_id
        self.subject: str = query.subject
        self.request_id: str = query.request_id
        self.remaining_s = to_seconds(query.remaining) if query.HasField("remaining") else 0.0
        self.streaming: bool = query.streaming
        self.principal: str = query.principal


Answer = Value | common_pb2.Payload | None
QueryHandler = Callable[[Query], Any]


class Responder(ReopeningStream[query_pb2.ServeRequest, query_pb2.ServeResponse]):
    """
    Answers queries until it is closed.

    Attributes:
        answered: Queries answered, failures included.
        failures: Exceptions raised by the handler.
    """

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
        self._replies: deque[query_pb2.ServeRequest] = deque()
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
        )
        return query_pb2.ServeRequest(open=opening)

    def _opened(self, opened: common_pb2.Opened) -> None:
        check_codec(self._codec, opened)

    def _outgoing(self) -> Iterator[query_pb2.ServeRequest]:
        while self._replies:
            yield self._replies.popleft()

    def _received(self, kind: str, response: query_pb2.ServeResponse) -> Awaitable[None] | None:
        if kind == "query":
            self._take(Query(response.query))
        elif kind == "cancel":
            task = self._tasks.get(response.cancel.query_id)
            if task is not None:
                task.cancel()
        return None

    def _broken(self) -> None:
        self._drop_queries()
        self._replies.clear()

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
        except Exception as error:  # noqa: BLE001 (the application's; told to who asked)
            self._fail(query, error)
            return
        if inspect.isawaitable(answer):
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
        return not self._tasks

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
            self._wake.set()

    def _answer(self, query: Query, value: Answer) -> None:
        try:
            payload = self._payload(value)
        except (TypeError, ValueError, TidewireError) as error:
            self._fail(query, error)
            return
        self.answered += 1
        self._send(query, payload, end=True)

    def _payload(self, value: Answer) -> common_pb2.Payload:
        if isinstance(value, common_pb2.Payload):
            return value
        return encode_payload(b"" if value is None else value, codec=self._codec)

    def _send(self, query: Query, payload: common_pb2.Payload, *, end: bool) -> None:
        request = query_pb2.ServeRequest()
        reply = request.reply
        reply.query_id = query.query_id
        reply.payload.CopyFrom(payload)
        reply.end = end
        self._replies.append(request)
        self._wake.set()

    def _fail(self, query: Query, error: Exception) -> None:
        self.answered += 1
        self.failures += 1
        log.info("a query on %r failed: %r", query.subject, error)
        reply = query_pb2.ServeReply(query_id=query.query_id, error=status_of(error), end=True)
        self._replies.append(query_pb2.ServeRequest(reply=reply))
        self._wake.set()


def status_of(error: Exception) -> status_pb2.Status:
    """How an application's exception travels: an error of ours as it is, any other by its text."""
    if isinstance(error, TidewireError):
        return error.to_status()
    return Unknown(f"{type(error).__name__}: {error}").to_status()


def _limit_s(query: Query) -> float | None:
    return min(query.remaining_s, REMAINING_S_MAX) + LATE_S if query.remaining_s else None
