"""
Serving queries: the streams of responders, from the first request to the last.

On raw wires what a responder answers is handed on in the turn it comes in; no task is woken for it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from tidewire import errors
from tidewire.v1 import common_pb2, query_pb2
from tidewire.wire.subject import check_name, check_pattern
from tidewire_server.core import Context, Core
from tidewire_server.members import Life
from tidewire_server.services.outbox import OutboxClosed
from tidewire_server.services.payload import bad_field, check_payload, check_size
from tidewire_server.services.query.asker import ANSWER_BYTES_MAX, ASKER_STALL_S, Asker
from tidewire_server.services.query.responder import (
    IN_FLIGHT_DEFAULT,
    Backlog,
    Responder,
    numbers_of,
)
from tidewire_server.services.query.routing import Directory

RESPONDERS_MAX: Final = 10_000
SUBJECTS_MAX: Final = 64
IN_FLIGHT_MAX: Final = 10_000
CLIENT_ID_BYTES_MAX: Final = 64
OPEN_WAIT_S: Final = 10.0
WATCH_INTERVAL_S: Final = 1.0
GRACE_SHARE: Final = 0.9
"""Part of the grace after which streams end also with queries in hand."""

Request = TypeVar("Request")


class Serving:
    """
    The responders of a server.

    Attributes:
        directory: Who serves what.
    """

    def __init__(self, core: Core) -> None:
        self.directory: Directory[Responder] = Directory()
        self._askers: dict[Asker, None] = {}
        self._core = core
        self._by_node: dict[str, dict[Responder, None]] = {}
        self._anonymous = 0
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
        self._end_streams()

    def add_asker(self, asker: Asker) -> None:
        """Let the stream of an asker hear of the end of the server."""
        self._askers[asker] = None
        if self._core.drain.started.is_set():
            asker.drain()

    def remove_asker(self, asker: Asker) -> None:
        """The stream is over."""
        del self._askers[asker]

    async def serve(self, requests: AsyncIterator[query_pb2.ServeRequest], context: Any) -> None:
        """Serve as a responder until the client ends it, or drains."""
        responder = self._open(await first_of(requests, "Serve"))
        opened = query_pb2.ServeResponse(opened=self._core.opened())
        responder.outbox.put(opened)
        write_nowait: Callable[[Any], bool] | None = getattr(context, "write_nowait", None)
        if write_nowait is not None:
            clock = self._core.clock
            responder.write_at_once = lambda query: write_nowait(query.to_response(clock()))
        self._enter(responder)
        stream = _Stream(self._core, responder)
        if hasattr(context, "take_by"):
            context.take_by(stream.take)
        reader = asyncio.create_task(stream.read(requests), name="query-serve")
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
        check_text(opening.client_id, "open.client_id", CLIENT_ID_BYTES_MAX)
        check_text(opening.group, "open.group", CLIENT_ID_BYTES_MAX)
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
        if len(self.directory) >= RESPONDERS_MAX:
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
            takes_questions=opening.takes_questions,
        )

    def _new_name(self) -> str:
        """Name a responder that gave none: in a gather they must be told apart."""
        self._anonymous += 1
        return f"anonymous-{self._anonymous}"

    def _enter(self, responder: Responder) -> None:
        if responder.node_id:
            self._by_node.setdefault(responder.node_id, {})[responder] = None
            responder.set_alive(not self._core.members.is_gone(responder.node_id))
        self.directory.add(responder)

    def _leave(self, responder: Responder) -> None:
        self.directory.remove(responder)
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
                    for response in responder.next_responses(item, clock()):
                        responder.writing_since_s = clock()
                        await self._write_what_fits(responder, response, context)
                        responder.writing_since_s = None
        except OutboxClosed:
            return

    async def _write_what_fits(
        self, responder: Responder, response: query_pb2.ServeResponse, context: Context
    ) -> None:
        """Write; questions that are over the responder's limit only together, one by one."""
        try:
            await context.write(response)
        except errors.MessageTooLarge as error:
            numbers = numbers_of(response)
            if not numbers:
                raise
            if len(numbers) == 1:
                responder.fail_unsent(numbers[0], error)
                return
            for one in responder.singly(numbers, self._core.clock()):
                await self._write_what_fits(responder, one, context)

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
        for responder in list(self.directory.seats):
            responder.drain(announcement)
        for asker in list(self._askers):
            asker.drain()
        await asyncio.sleep(drain.grace_s * GRACE_SHARE)
        self._end_streams()

    def _end_streams(self) -> None:
        for asker in list(self._askers):
            asker.end()
        for responder in list(self.directory.seats):
            responder.outbox.close()

    async def _watch_stalls(self) -> None:
        """End the streams of responders that take nothing."""
        stall_s = self._core.limits.subscriber_stall_s
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            now_s = self._core.clock()
            for responder in self.directory.seats:
                since_s = responder.writing_since_s
                if since_s is not None and now_s - since_s >= stall_s and responder.cut is not None:
                    responder.cut.reschedule(loop.time())


class _Stream:
    """
    What comes on the stream of a responder.

    It is taken in the turn it comes in where the wire offers that, and read by a task otherwise,
    and while an asker does not keep up.
    """

    def __init__(self, core: Core, responder: Responder) -> None:
        self._core = core
        self._responder = responder
        self._full: list[Backlog] = []
        """Those whose answers are to be waited for before more are taken."""

    def take(self, request: query_pb2.ServeRequest) -> bool:
        """Take a request at once, unless an asker has to take its answers first."""
        if self._full:
            return False
        if not self._responder.outbox.closed:
            try:
                self._take(request)
            except Exception as error:  # noqa: BLE001 (ends the stream; the router judges it)
                self._responder.outbox.fail(error)
        return True

    async def read(self, requests: AsyncIterator[query_pb2.ServeRequest]) -> None:
        """Read what was not taken at once."""
        outbox = self._responder.outbox
        try:
            async for request in requests:
                # What comes next waits behind this one, as long as somebody is waited for.
                await self._wait_for_askers()
                self._take(request)
                await self._wait_for_askers()
        except Exception as error:  # noqa: BLE001 (the stream ends with it, and the router judges it)
            outbox.fail(error)
            return
        outbox.close()

    def _take(self, request: query_pb2.ServeRequest) -> None:
        kind = request.WhichOneof("kind")
        if kind == "answers":
            backlogs = self._take_answers(request.answers)
        elif kind == "reply":
            backlogs = self._take_reply(request.reply)
        elif kind == "drain":
            self._responder.drain()
            return
        else:
            raise errors.ProtocolOrder(
                f"after `open` come `reply`, `answers` and `drain`, not {kind or 'nothing'!r}"
            )
        for each in backlogs:
            if each.backlog is not None and each.backlog.full:
                self._full.append(each)

    def _take_reply(self, reply: query_pb2.ServeReply) -> Iterable[Backlog]:
        if reply.HasField("payload"):
            try:
                check_payload(reply.payload, "reply.payload", self._core)
            except errors.TidewireError as error:
                reply = _failing(reply.query_id, error)
        backlog = self._responder.take_reply(reply)
        return () if backlog is None else (backlog,)

    def _take_answers(self, answers: query_pb2.ServeAnswers) -> Iterable[Backlog]:
        numbers: Sequence[int] = answers.query_ids[:]
        bare: Sequence[bytes] = answers.bare[:]
        bodies: Sequence[Any] = bare or answers.payloads[:]
        if len(numbers) != len(bodies) or (bare and len(answers.payloads)):
            raise bad_field(
                "answers.query_ids",
                f"has {len(numbers)} entries for {len(bare)} `bare` and {len(answers.payloads)}"
                " `payloads`; each needs one answer, all of one kind",
            )
        responder = self._responder
        bytes_max = min(ANSWER_BYTES_MAX, self._core.limits.payload_bytes_max)
        size = len(bare[0]) if len(bare) == 1 else answers.ByteSize()
        if bare and size <= bytes_max:
            return responder.take_answers(numbers, bare, bare=True)
        backlogs: dict[Backlog, None] = {}
        for number, body in zip(numbers, bodies, strict=True):
            # One at a time: together they might be more than an asker takes in one message.
            error = self._judge(body)
            if error is None:
                taken: Iterable[Backlog]
                taken = responder.take_answers((number,), (body,), bare=bool(bare))
            else:
                backlog = responder.take_reply(_failing(number, error))
                taken = () if backlog is None else (backlog,)
            backlogs.update(dict.fromkeys(taken))
        return backlogs

    def _judge(self, body: bytes | common_pb2.Payload) -> errors.TidewireError | None:
        try:
            if isinstance(body, bytes):
                check_size(len(body), "answers.bare", self._core.limits.payload_bytes_max)
            else:
                check_payload(body, "answers.payloads", self._core)
        except errors.TidewireError as error:
            return error
        return None

    async def _wait_for_askers(self) -> None:
        """Wait until there is room for more answers; an asker that takes none is ended."""
        for each in self._full:
            backlog = each.backlog
            if backlog is not None and not await backlog.wait_room(ASKER_STALL_S):
                each.cut_off(ASKER_STALL_S)
        self._full.clear()


def _failing(number: int, error: errors.TidewireError) -> query_pb2.ServeReply:
    return query_pb2.ServeReply(query_id=number, error=error.to_status(), end=True)


async def first_of(requests: AsyncIterator[Request], method: str) -> Request:
    """
    Return the first request of a stream.

    Raises:
        ProtocolOrder: There is none.
        PeerTooSlow: It did not come in time.
    """
    try:
        async with asyncio.timeout(OPEN_WAIT_S):
            return await anext(requests)
    except StopAsyncIteration:
        raise errors.ProtocolOrder(f"{method} ended before its first request, `open`") from None
    except TimeoutError:
        raise errors.PeerTooSlow(f"`open` did not come within {OPEN_WAIT_S:g} s") from None


def check_text(text: str, field: str, bytes_max: int) -> None:
    """
    Refuse a text that is too long.

    Raises:
        InvalidArgument: It is.
    """
    if len(text.encode()) > bytes_max:
        raise bad_field(field, f"is over {bytes_max} bytes")
