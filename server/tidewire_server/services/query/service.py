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
from tidewire.wire.subject import check_name, check_pattern, check_subject
from tidewire_server.core import Context, Core, principal
from tidewire_server.members import Life
from tidewire_server.services.outbox import Outbox, OutboxClosed
from tidewire_server.services.payload import bad_field, check_payload
from tidewire_server.services.query.flight import (
    IN_FLIGHT_DEFAULT,
    Query,
    Responder,
    SingleQuery,
    StreamQuery,
)
from tidewire_server.services.query.gather import Gathering, Until
from tidewire_server.services.query.rounds import GatherRound
from tidewire_server.services.query.routing import Directory

DEADLINE_DEFAULT_S: Final = 30.0
RESPONDERS_MAX: Final = 10_000
SUBJECTS_MAX: Final = 64
IN_FLIGHT_MAX: Final = 10_000
REQUEST_ID_BYTES_MAX: Final = 64
CLIENT_ID_BYTES_MAX: Final = 64
REPLIES_PENDING_MAX: Final = 10_000
OPEN_WAIT_S: Final = 10.0
ASKER_STALL_S: Final = 2.0
"""A slow asker of a stream holds its responder's other replies up for at most this long."""
WATCH_INTERVAL_S: Final = 1.0
GRACE_SHARE: Final = 0.9
"""Part of the grace after which responder streams end also with queries in hand."""
SUMMARY_SHARE: Final = 0.1
SUMMARY_S_MIN: Final = 0.01
SUMMARY_S_MAX: Final = 0.25
"""A gather ends this much before the call's deadline, so that its summary arrives."""


class QueryService(query_pb2_grpc.QueryServiceServicer):
    """
    Serves queries; one instance for all wires. Metadata ``tidewire-priority: 3`` suits its calls.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._directory: Directory[Responder] = Directory()
        self._by_node: dict[str, dict[Responder, None]] = {}
        self._request_prefix = f"{secrets.token_hex(4)}-"
        self._requests = 0
        self._anonymous = 0
        # Asking for the running loop costs a system call on Python 3.11.
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []
        core.members.listen(self._on_life)

    async def start(self) -> None:
        """Watch for the drain and for responders that do not read."""
        self._tasks = [
            asyncio.create_task(self._watch_drain(), name="query-drain"),
            asyncio.create_task(self._watch_stalls(), name="query-stalls"),
        ]

    async def close(self) -> None:
        """End what is left."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for responder in list(self._directory.seats):
            responder.outbox.close()

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

        query = SingleQuery(
            request.subject,
            request.payload,
            request.request_id or self._new_id(),
            principal(context),
            tell,
            self._route,
        )
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

        query = SingleQuery(
            request.subject,
            request.payload,
            request.request_id or self._new_id(),
            principal(call),
            tell,
            self._route,
        )
        call.abandoned = query.abandon
        timer = self._set_deadline(query, call)
        if timer is not None:
            call.add_done_callback(lambda _: timer.cancel())
        self._give(query)

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
        responders = self._directory.everyone(request.subject)
        if not responders:
            self._directory.choose(request.subject)  # raises: nobody is there
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
        self._directory.choose(query.subject).give(query)

    def _route(self, query: Query) -> None:
        """Give a query to the next responder: the one it was for went before it was written."""
        try:
            self._directory.choose(query.subject).give(query)
        except errors.TidewireError as error:
            query.on_error(error)

    # Answering.

    async def Serve(  # type: ignore[override]  # writes to the context
        self, request_iterator: AsyncIterator[query_pb2.ServeRequest], context: Any
    ) -> None:
        """Serve as a responder until the client ends it, or drains."""
        responder = self._open(await _first(request_iterator))
        opened = query_pb2.ServeResponse(opened=self._core.opened())
        responder.outbox.put(opened)
        write_nowait: Callable[[Any], bool] | None = getattr(context, "write_nowait", None)
        if write_nowait is not None:
            clock = self._core.clock
            responder.write_at_once = lambda query: write_nowait(query.to_response(clock()))
        self._enter(responder)
        reader = asyncio.create_task(self._read(responder, request_iterator), name="query-serve")
        try:
            await self._write(responder, context)
        except TimeoutError:
            raise errors.SlowConsumer(
                f"responder {responder.name!r} took nothing for"
                f" {self._core.limits.subscriber_stall_s:g} s;"
                " what was not written to it goes to others",
                metadata={"responder": responder.name},
            ) from None
        finally:
            reader.cancel()
            self._leave(responder)

    def _open(self, request: query_pb2.ServeRequest) -> Responder:
        if request.WhichOneof("kind") != "open":
            raise errors.ProtocolOrder("the first request on Serve must be `open`")
        opening = request.open
        for field, text in (("client_id", opening.client_id), ("group", opening.group)):
            if len(text.encode()) > CLIENT_ID_BYTES_MAX:
                raise bad_field(f"open.{field}", f"is over {CLIENT_ID_BYTES_MAX} bytes")
        if opening.node_id:
            check_name(opening.node_id, "node_id")
        if not 1 <= len(opening.subjects) <= SUBJECTS_MAX:
            raise bad_field(
                "open.subjects",
                f"has {len(opening.subjects)} entries; 1 to {SUBJECTS_MAX} are taken",
            )
        for subject in opening.subjects:
            check_pattern(subject)
        if opening.in_flight_max > IN_FLIGHT_MAX:
            raise bad_field("open.in_flight_max", f"is over {IN_FLIGHT_MAX}")
        if len(self._directory) >= RESPONDERS_MAX:
            raise errors.Overloaded(
                f"{RESPONDERS_MAX} responders are served already, which is the limit",
                metadata={"responders_max": RESPONDERS_MAX},
            )
        return Responder(
            opening.node_id or opening.client_id or self._new_name(),
            opening.subjects,
            node_id=opening.node_id,
            group=opening.group,
            in_flight_max=opening.in_flight_max or IN_FLIGHT_DEFAULT,
        )

    def _new_name(self) -> str:
        """Name a responder that gave none: in a gather they must be told apart."""
        self._anonymous += 1
        return f"anonymous-{self._anonymous}"

    def _enter(self, responder: Responder) -> None:
        if responder.node_id:
            self._by_node.setdefault(responder.node_id, {})[responder] = None
            responder.set_alive(not self._core.members.is_gone(responder.node_id))
        self._directory.add(responder)

    def _leave(self, responder: Responder) -> None:
        self._directory.remove(responder)
        streams = self._by_node.get(responder.node_id, {})
        streams.pop(responder, None)
        if not streams:
            self._by_node.pop(responder.node_id, None)
        self._core.counters.add("query_late_replies_total", responder.late_replies)
        responder.lose("was lost")

    async def _write(self, responder: Responder, context: Context) -> None:
        outbox, clock = responder.outbox, self._core.clock
        try:
            async with asyncio.timeout(None) as responder.cut:
                while True:
                    item = outbox.take_nowait() or await outbox.take()
                    response = responder.next_response(item, clock())
                    if response is None:
                        continue
                    responder.writing_since_s = clock()
                    await context.write(response)
                    responder.writing_since_s = None
        except OutboxClosed:
            return

    async def _read(
        self, responder: Responder, requests: AsyncIterator[query_pb2.ServeRequest]
    ) -> None:
        try:
            async for request in requests:
                kind = request.WhichOneof("kind")
                if kind == "reply":
                    full = self._take_reply(responder, request.reply)
                    if full is not None:
                        await _wait_for_asker(full)
                elif kind == "drain":
                    responder.drain()
                else:
                    raise errors.ProtocolOrder(
                        f"after `open` come `reply` and `drain`, not {kind or 'nothing'!r}"
                    )
        except Exception as error:  # noqa: BLE001 (the stream ends with it, and the router judges it)
            responder.outbox.fail(error)
            return
        responder.outbox.close()

    def _take_reply(self, responder: Responder, reply: query_pb2.ServeReply) -> Query | None:
        """Hand a reply on; returns its query when there is no room for another reply to it."""
        query = responder.queries.get(reply.query_id)
        if reply.HasField("payload"):
            try:
                check_payload(reply.payload, "reply.payload", self._core)
            except errors.TidewireError as error:
                reply = query_pb2.ServeReply(
                    query_id=reply.query_id, error=error.to_status(), end=True
                )
        responder.take_reply(reply)
        if query is None or query.backlog is None or not query.backlog.full:
            return None
        return query

    # Who is there.

    def _on_life(self, node_id: str, life: Life, _token: int) -> None:
        """
        Follow a member's life. Its streams end when it is declared dead.

        Not every wire notices that a process was killed: its stream would be served queries again
        as soon as another process joins as the same node. Who only seemed dead opens a new one.
        """
        for responder in list(self._by_node.get(node_id, ())):
            responder.set_alive(life in (Life.ALIVE, Life.SUSPECT))
            if life is Life.DEAD:
                responder.lose("was declared dead", cancel=True)
                responder.drain()

    async def _watch_drain(self) -> None:
        drain = self._core.drain
        await drain.started.wait()
        announcement = query_pb2.ServeResponse(draining=drain.message())
        for responder in list(self._directory.seats):
            responder.drain(announcement)
        await asyncio.sleep(drain.grace_s * GRACE_SHARE)
        for responder in list(self._directory.seats):
            responder.outbox.close()

    async def _watch_stalls(self) -> None:
        """End the streams of responders that take nothing."""
        stall_s = self._core.limits.subscriber_stall_s
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            now_s = self._core.clock()
            for responder in self._directory.seats:
                since_s = responder.writing_since_s
                if since_s is not None and now_s - since_s >= stall_s and responder.cut is not None:
                    responder.cut.reschedule(loop.time())


async def _first(
    requests: AsyncIterator[query_pb2.ServeRequest],
) -> query_pb2.ServeRequest:
    try:
        async with asyncio.timeout(OPEN_WAIT_S):
            return await anext(requests)
    except StopAsyncIteration:
        raise errors.ProtocolOrder("Serve ended before its first request, `open`") from None
    except TimeoutError:
        raise errors.PeerTooSlow(f"`open` did not come within {OPEN_WAIT_S:g} s") from None


async def _wait_for_asker(query: Query) -> None:
    """Wait until there is room for more replies; a query whose asker takes none is ended."""
    backlog = query.backlog
    if backlog is None or await backlog.wait_room(ASKER_STALL_S):
        return
    query.abandon()
    backlog.fail(
        errors.SlowConsumer(
            f"the replies to {query.request_id!r} were not read for {ASKER_STALL_S:g} s",
            metadata={"request_id": query.request_id},
        )
    )


async def _write_all(outbox: Outbox[Any], context: Context) -> None:
    """Write until the outbox is closed."""
    with contextlib.suppress(OutboxClosed):
        while True:
            await context.write(outbox.take_nowait() or await outbox.take())


def _expire(query: Query) -> None:
    query.on_error(
        errors.DeadlineExceeded(
            f"query {query.request_id!r} was not answered within {DEADLINE_DEFAULT_S:g} s; set a"
            " deadline to wait longer",
            metadata={"request_id": query.request_id},
        )
    )
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
