"""
QueryService: request and reply through the server.

An Ask costs one future, or on raw wires a call that is told. The query goes into the outbox of a
responder, whose stream's writer sends all that has gathered there; the reply answers it. Nothing is
stored, nothing is done twice.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from tidewire import errors
from tidewire.transport.context import ServerCall
from tidewire.transport.direct import served_directly_by
from tidewire.v1 import query_pb2, query_pb2_grpc
from tidewire.wire.subject import check_subject
from tidewire_server.core import Context, Core, principal
from tidewire_server.services.outbox import Outbox, OutboxClosed
from tidewire_server.services.payload import bad_field, check_payload
from tidewire_server.services.query.asker import Asker
from tidewire_server.services.query.failures import deadline_passed
from tidewire_server.services.query.flight import Query, SingleQuery, StreamQuery
from tidewire_server.services.query.gather import Gathering, Until
from tidewire_server.services.query.rounds import GatherRound
from tidewire_server.services.query.runs import Part
from tidewire_server.services.query.serving import (
    CLIENT_ID_BYTES_MAX,
    Serving,
    check_text,
    first_of,
)

DEADLINE_DEFAULT_S: Final = 30.0
REQUEST_ID_BYTES_MAX: Final = 64
REQUEST_PREFIX_BYTES_MAX: Final = 40
REPLIES_PENDING_MAX: Final = 10_000
Tell = Callable[[query_pb2.AskResponse | errors.TidewireError], None]
SUMMARY_SHARE: Final = 0.1
SUMMARY_S_MIN: Final = 0.01
SUMMARY_S_MAX: Final = 0.25
"""A gather ends this much before the call's deadline, so that its summary arrives."""


class QueryService(query_pb2_grpc.QueryServiceServicer):
    """
    Serves queries; one instance for all wires. Metadata ``tidewire-priority: 3`` suits its calls.

    Attributes:
        directory: Who serves what.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._serving = Serving(core)
        self.directory = self._serving.directory
        self._request_prefix = f"{secrets.token_hex(4)}-"
        self._requests = 0
        self._streams = 0
        # Asking for the running loop costs a system call on Python 3.11.
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Watch for the drain and for responders that do not read."""
        await self._serving.start()

    async def close(self) -> None:
        """End what is left."""
        await self._serving.close()

    async def Serve(  # type: ignore[override]  # writes to the context
        self, request_iterator: AsyncIterator[query_pb2.ServeRequest], context: Any
    ) -> None:
        """Serve as a responder until the client ends it, or drains."""
        await self._serving.serve(request_iterator, context)

    # Asking.

    @served_directly_by("ask_directly")
    async def Ask(self, request: query_pb2.AskRequest, context: Any) -> query_pb2.AskResponse:
        """Ask one responder for one reply."""
        self._check(request)
        future: asyncio.Future[query_pb2.AskResponse | errors.TidewireError]
        future = self._loop.create_future()

        def tell(outcome: query_pb2.AskResponse | errors.TidewireError) -> None:
            # An error is a result too: an exception nobody fetches would be a noise in the log.
            if not future.done():
                future.set_result(outcome)

        query = self._single(request, context, tell)
        timer = self._set_deadline(query, context)
        try:
            self._give(query)
            outcome = await future
        finally:
            query.abandon()
            if timer is not None:
                timer.cancel()
        if isinstance(outcome, errors.TidewireError):
            self._core.counters.add("query_failures_total")
            raise outcome
        return outcome

    def ask_directly(self, request: query_pb2.AskRequest, call: ServerCall) -> None:
        """Do what `Ask` does without a task; the call is told when the reply comes."""
        self._check(request)

        def tell(outcome: query_pb2.AskResponse | errors.TidewireError) -> None:
            if isinstance(outcome, errors.TidewireError):
                self._core.counters.add("query_failures_total")
                call.fail(outcome)
            else:
                call.answer(outcome)

        query = self._single(request, call, tell)
        call.abandoned = query.abandon
        timer = self._set_deadline(query, call)
        if timer is not None:
            call.add_done_callback(lambda _: timer.cancel())
        self._give(query)

    def _single(self, request: query_pb2.AskRequest, context: Any, tell: Tell) -> SingleQuery:
        return SingleQuery(
            request.subject,
            request.payload,
            request.request_id or self._new_id(),
            principal(context),
            tell,
            self._route,
        )

    async def AskMany(  # type: ignore[override]  # writes to the context
        self, request_iterator: AsyncIterator[query_pb2.AskManyRequest], context: Any
    ) -> None:
        """Ask many queries on one stream."""
        prefix = self._open(await first_of(request_iterator, "AskMany"))
        asker = Asker(self._core, self.dispatch, prefix, principal(context))
        asker.backlog.put(query_pb2.AskManyResponse(opened=self._core.opened()))
        asker.write_at_once = getattr(context, "write_nowait", None)
        if hasattr(context, "take_by"):
            context.take_by(asker.take_at_once)
        self._serving.add_asker(asker)
        reader = asyncio.create_task(asker.read(request_iterator), name="query-asker")
        try:
            await asker.write(context)
        finally:
            reader.cancel()
            self._serving.remove_asker(asker)
            asker.abandon()

    def _open(self, request: query_pb2.AskManyRequest) -> str:
        """Judge the first request of AskMany; returns what identifiers begin with."""
        if request.WhichOneof("kind") != "open":
            raise errors.ProtocolOrder("the first request on AskMany must be `open`")
        opening = request.open
        check_text(opening.client_id, "open.client_id", CLIENT_ID_BYTES_MAX)
        check_text(opening.request_prefix, "open.request_prefix", REQUEST_PREFIX_BYTES_MAX)
        self._streams += 1
        return opening.request_prefix or f"{self._request_prefix}{self._streams:x}-"

    def dispatch(self, part: Part) -> None:
        """Give questions to responders; those nobody takes fail."""
        try:
            shares = self.directory.share(part.subject, part.count)
        except errors.TidewireError as error:
            part.asker.fail(range(part.first_id, part.first_id + part.count), error)
            return
        given = 0
        for responder, count in shares:
            step = count if responder.takes_questions else 1
            for start in range(given, given + count, step):
                whole = step == part.count
                responder.give_part(part if whole else part.cut(start, start + step))
            given += count
        if given < part.count:
            surplus = range(part.first_id + given, part.first_id + part.count)
            part.asker.fail(surplus, self.directory.refusal(part.subject))

    async def AskStream(  # type: ignore[override]  # writes to the context
        self, request: query_pb2.AskStreamRequest, context: Any
    ) -> None:
        """Ask one responder for a stream of replies."""
        self._check(request)
        replies: Outbox[query_pb2.AskStreamResponse] = Outbox(
            REPLIES_PENDING_MAX, self._core.limits.subscriber_pending_bytes_max
        )
        query = StreamQuery(
            request.subject,
            request.payload,
            request.request_id or self._new_id(),
            principal(context),
            replies,
            self._route,
        )
        timer = self._set_deadline(query, context)
        try:
            self._give(query)
            await _write_all(replies, context)
        finally:
            query.abandon()
            if timer is not None:
                timer.cancel()

    async def Gather(  # type: ignore[override]  # writes to the context
        self, request: query_pb2.GatherRequest, context: Any
    ) -> None:
        """Ask several responders."""
        self._check(request)
        until, wanted = _rule(request)
        responders = self.directory.everyone(request.subject)
        if not responders:
            self.directory.choose(request.subject)  # raises: nobody is there
        now_s = self._core.clock()
        remaining_s = _remaining_s(context)
        remaining_s -= min(max(remaining_s * SUMMARY_SHARE, SUMMARY_S_MIN), SUMMARY_S_MAX)
        gather = GatherRound(
            request,
            request_id=request.request_id or self._new_id(),
            principal=principal(context),
            deadline_s=now_s + remaining_s,
            responders=responders,
            gathering=Gathering(until, wanted, len(responders)),
            bytes_max=self._core.limits.subscriber_pending_bytes_max,
        )
        timer = asyncio.get_running_loop().call_later(remaining_s, gather.finish)
        try:
            self._core.counters.add("query_gathers_total")
            gather.start()
            await _write_all(gather.outbox, context)
            assert gather.summary is not None
            await context.write(gather.summary)
        finally:
            timer.cancel()
            gather.finish()

    def _check(
        self,
        request: query_pb2.AskRequest | query_pb2.AskStreamRequest | query_pb2.GatherRequest,
    ) -> None:
        check_subject(request.subject)
        check_payload(request.payload, "payload", self._core)
        if request.request_id and len(request.request_id.encode()) > REQUEST_ID_BYTES_MAX:
            raise bad_field("request_id", f"is over {REQUEST_ID_BYTES_MAX} bytes")

    def _new_id(self) -> str:
        self._requests += 1
        return f"{self._request_prefix}{self._requests:x}"

    def _set_deadline(
        self, query: SingleQuery | StreamQuery, context: Any
    ) -> asyncio.TimerHandle | None:
        """
        Set when the query is too late. A call with a deadline is ended by its wire; another one
        needs a timer.
        """
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            query.deadline_s = self._core.clock() + remaining_s
            return None
        query.deadline_s = self._core.clock() + DEADLINE_DEFAULT_S
        return asyncio.get_running_loop().call_later(DEADLINE_DEFAULT_S, _expire, query)

    def _give(self, query: Query) -> None:
        self._core.counters.add("query_asks_total")
        self.directory.choose(query.subject).give(query)

    def _route(self, query: Query) -> None:
        """Give a query to the next responder: the one it was for went before it was written."""
        try:
            self.directory.choose(query.subject).give(query)
        except errors.TidewireError as error:
            query.on_error(error)


async def _write_all(outbox: Outbox[Any], context: Context) -> None:
    """Write until the outbox is closed."""
    with contextlib.suppress(OutboxClosed):
        while True:
            await context.write(outbox.take_nowait() or await outbox.take())


def _expire(query: Query) -> None:
    limit = f"{DEADLINE_DEFAULT_S:g} s; set a deadline to wait longer"
    query.on_error(deadline_passed(query.request_id, limit))
    query.abandon()


def _remaining_s(context: Any) -> float:
    remaining_s = context.time_remaining()
    return DEADLINE_DEFAULT_S if remaining_s is None else max(0.0, float(remaining_s))


def _rule(request: query_pb2.GatherRequest) -> tuple[Until, int]:
    kind = request.WhichOneof("until")
    if kind is None:
        raise bad_field("until", "is needed: first, all or quorum")
    if kind == "all":
        return Until.ALL, 0
    wanted = request.first if kind == "first" else request.quorum
    if wanted < 1:
        raise bad_field(kind, "must be at least 1")
    return Until(kind), wanted
