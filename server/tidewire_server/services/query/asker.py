"""The stream of somebody who asks often: its questions in hand, and what waits to be written."""

import asyncio
import contextlib
from bisect import bisect_right, insort
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final

from tidewire import errors
from tidewire.v1 import query_pb2
from tidewire.wire.deadlines import FOREVER, Deadlines
from tidewire.wire.subject import check_subject
from tidewire_server.core import Context, Core
from tidewire_server.services.outbox import Outbox, OutboxClosed
from tidewire_server.services.payload import bad_field, check_payload, check_size
from tidewire_server.services.query.failures import (
    asker_too_slow,
    deadline_passed,
    no_reply,
    outcome_unknown,
)
from tidewire_server.services.query.flight import ITEM_OVERHEAD_BYTES
from tidewire_server.services.query.runs import Part

QUESTIONS_MAX: Final = 1_024
"""In one run."""
OUTSTANDING_MAX: Final = 65_536
"""Questions of one stream that are not answered."""
RUN_BYTES_MAX: Final = 1024 * 1024
"""Questions of more bytes are handed on in several messages: no receiver's limit is met."""
ANSWER_BYTES_MAX: Final = 1024 * 1024
"""Answers of more bytes are handed on one by one."""
RESPONSES_PENDING_MAX: Final = 10_000
REMAINING_DEFAULT_S: Final = 30.0
REMAINING_S_MAX: Final = 1e9
"""Longer than anybody waits; much more does not fit in what a responder is told."""
ASKER_STALL_S: Final = 2.0
"""A slow asker holds its responder's other replies up for at most this long."""
TIMER_S_MIN: Final = 0.001
NUMBER_MAX: Final = 2**63 - 1
SPARE_FIRSTS: Final = 64
RETRY_S: Final = 0.1

Dispatch = Callable[[Part], None]


class Asker:
    """
    One stream of QueryService.AskMany.

    Attributes:
        backlog: What waits to be written.
        request_prefix: The identifier of a question is this and its number.
        outstanding: Questions that are neither answered nor failed nor cancelled.
        write_at_once: Writes a response past the backlog when nothing is in the way, and says
            whether it did; ``None`` on wires that cannot.
    """

    def __init__(self, core: Core, dispatch: Dispatch, request_prefix: str, principal: str) -> None:
        self.request_prefix = request_prefix
        self.principal = principal
        self.backlog: Outbox[query_pb2.AskManyResponse] = Outbox(
            RESPONSES_PENDING_MAX, core.limits.subscriber_pending_bytes_max
        )
        self.outstanding = 0
        self.write_at_once: Callable[[query_pb2.AskManyResponse], bool] | None = None
        self._core = core
        self._dispatch = dispatch
        self._loop = asyncio.get_running_loop()
        self._run_bytes_max = min(RUN_BYTES_MAX, core.limits.payload_bytes_max)
        self._cut: asyncio.Timeout | None = None
        self._last_id = 0
        self._half_closed = False
        self._held_up = False
        """A request waits until there is room for what it leads to."""
        self._parts: dict[int, Part] = {}
        """In hand, by the number of the first question."""
        self._firsts: list[int] = []
        """The keys of ``_parts``, sorted, and some that were."""
        self._deadlines: Deadlines[Part] = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = FOREVER

    def request_id(self, number: int) -> str:
        """Identifier of a question."""
        return f"{self.request_prefix}{number}"

    # What the asker says.

    def take(self, request: query_pb2.AskManyRequest) -> None:
        """
        Take a request after the first.

        Raises:
            ProtocolOrder: It is none of those that may come now.
            InvalidArgument: Its numbers cannot be; what is wrong with one question fails that one.
        """
        kind = request.WhichOneof("kind")
        if kind == "questions":
            self._take_questions(request.questions)
        elif kind == "cancel":
            self._cancel(request.cancel.ids)
        else:
            raise errors.ProtocolOrder(
                f"after `open` come `questions` and `cancel`, not {kind or 'nothing'!r}"
            )

    def take_at_once(self, request: query_pb2.AskManyRequest) -> bool:
        """Take a request in the turn it comes in, unless answers have to be taken first."""
        if self._held_up or self.backlog.full:
            return False
        self._take_or_fail(request)
        return True

    async def read(self, requests: AsyncIterator[query_pb2.AskManyRequest]) -> None:
        """Read what was not taken at once, and the end."""
        try:
            async for request in requests:
                # What comes next waits behind this one: failures are answers too.
                self._held_up = True
                if not await self.backlog.wait_room(ASKER_STALL_S):
                    self.cut_off(ASKER_STALL_S)
                    return
                self._held_up = False
                self._take_or_fail(request)
        except Exception as error:  # noqa: BLE001 (ends the stream; the router judges it)
            self.backlog.fail(error)
        self.half_close()

    def _take_or_fail(self, request: query_pb2.AskManyRequest) -> None:
        if not self.backlog.closed:
            try:
                self.take(request)
            except Exception as error:  # noqa: BLE001 (ends the stream; the router judges it)
                self.backlog.fail(error)

    def half_close(self) -> None:
        """No more questions come; the stream ends when those in hand are over."""
        self._half_closed = True
        self._close_when_done()

    def _take_questions(self, questions: query_pb2.Questions) -> None:
        bare: Sequence[bytes] = questions.bare[:]
        bodies: Sequence[Any] = bare or questions.payloads[:]
        first, count = questions.first_id, len(bodies)
        self._check_numbers(first, count, both=bool(bare and len(questions.payloads)))
        self._last_id = first + count - 1
        self.outstanding += count
        self._core.counters.add("query_asks_total", count)
        left_s = REMAINING_DEFAULT_S
        if questions.HasField("remaining"):
            left_s = questions.remaining.seconds + questions.remaining.nanos / 1e9
            left_s = min(left_s, REMAINING_S_MAX)
        ids = range(first, first + count)
        refusal = self._refusal(questions.subject, left_s, ids)
        if refusal is not None:
            self.fail(ids, refusal)
            return
        deadline_s = self._core.clock() + left_s
        part = Part(self, questions.subject, first, bodies, bare=bool(bare), deadline_s=deadline_s)
        if self.outstanding > OUTSTANDING_MAX:
            part = self._refuse_surplus(part)
        size = len(bare[0]) if len(bare) == 1 else questions.ByteSize()
        if not bare or size > self._run_bytes_max:
            for piece in self._sound(part):
                self._dispatch(piece)
        elif part.count:
            self._dispatch(part)

    def _refusal(
        self, subject: str, left_s: float, ids: Sequence[int]
    ) -> errors.TidewireError | None:
        """Say why none of these questions is asked."""
        if self._core.drain.started.is_set():
            return self._core.drain.refusal()
        if left_s <= 0:
            return self._late(ids)
        try:
            check_subject(subject)
        except errors.TidewireError as error:
            return error
        return None

    def _check_numbers(self, first: int, count: int, *, both: bool) -> None:
        if both:
            raise bad_field("questions.bare", "comes with `payloads`; only one of them may be set")
        if not 1 <= count <= QUESTIONS_MAX:
            raise bad_field(
                "questions.bare", f"or `payloads` has {count} entries; 1 to {QUESTIONS_MAX} may be"
            )
        if not self._last_id < first <= NUMBER_MAX - count:
            raise bad_field(
                "questions.first_id", f"is {first} after {self._last_id}; numbers must increase"
            )

    def _refuse_surplus(self, part: Part) -> Part:
        kept = max(0, part.count - (self.outstanding - OUTSTANDING_MAX))
        refused = range(part.first_id + kept, part.first_id + part.count)
        self.fail(
            refused,
            errors.Overloaded(
                f"{OUTSTANDING_MAX} questions of the stream are not answered yet, which is the"
                " limit",
                metadata={"outstanding_max": OUTSTANDING_MAX},
                retry_after_s=RETRY_S,
            ),
        )
        return part.cut(0, kept)

    def _sound(self, part: Part) -> list[Part]:
        """Fail what breaks the limits, and cut the rest in pieces of so many bytes."""
        pieces: list[Part] = []
        start = size = 0
        for index, body in enumerate(part.bodies):
            try:
                body_bytes = self._measure(body)
            except errors.TidewireError as error:
                if start < index:
                    pieces.append(part.cut(start, index))
                start, size = index + 1, 0
                self.fail((part.first_id + index,), error)
                continue
            if start < index and size + body_bytes > self._run_bytes_max:
                pieces.append(part.cut(start, index))
                start, size = index, 0
            size += body_bytes
        if start < part.count:
            pieces.append(part.cut(start, part.count))
        return pieces

    def _measure(self, body: Any) -> int:
        if not isinstance(body, bytes):
            check_payload(body, "questions.payloads", self._core)
            return int(body.ByteSize())
        check_size(len(body), "questions.bare", self._core.limits.payload_bytes_max)
        return len(body)

    def _cancel(self, ids: Sequence[int]) -> None:
        if len(ids) > OUTSTANDING_MAX:
            raise bad_field("cancel.ids", f"has {len(ids)} entries; at most {OUTSTANDING_MAX}")
        wanted: dict[Part, dict[int, None]] = {}  # each number once, in their order
        for number in ids:
            part = self._part_of(number)
            if part is not None:
                wanted.setdefault(part, {})[number - part.offset] = None
        for part, numbers in wanted.items():
            self._drop(part, numbers)
        self._close_when_done()

    def _part_of(self, number: int) -> Part | None:
        place = bisect_right(self._firsts, number)
        part = self._parts.get(self._firsts[place - 1]) if place else None
        return part if part is not None and number < part.first_id + part.count else None

    def _drop(self, part: Part, numbers: Iterable[int]) -> list[int]:
        responder = part.responder
        if responder is None:
            return []
        offset = part.offset
        dropped = responder.drop_questions(part, numbers)
        self.outstanding -= len(dropped)
        return [number + offset for number in dropped]

    # What responders and the directory say.

    def hold(self, part: Part) -> None:
        """A responder has this part, or is about to get it."""
        first = part.first_id
        self._parts[first] = part
        firsts = self._firsts
        if not firsts or firsts[-1] < first:
            firsts.append(first)
        else:
            insort(firsts, first)
        if len(firsts) > 2 * len(self._parts) + SPARE_FIRSTS:
            self._firsts = sorted(self._parts)
        self._deadlines.add(part.deadline_s, part)
        if part.deadline_s < self._timer_s:
            self._arm(part.deadline_s)

    def release(self, part: Part) -> None:
        """Nothing is left of a part."""
        part.responder = None
        part.over = True
        if self._parts.get(part.first_id) is part:
            del self._parts[part.first_id]

    def answer(
        self, responder: str, ids: Sequence[int], bodies: Sequence[Any], *, bare: bool
    ) -> None:
        """Pass answers on, as they came; each that breaks the limits fails its question."""
        self.outstanding -= len(ids)
        response = query_pb2.AskManyResponse()
        answers = response.answers
        answers.ids.extend(ids)
        answers.responder = responder
        (answers.bare if bare else answers.payloads).extend(bodies)
        self._send(response)
        self._close_when_done()

    def fail(self, ids: Sequence[int], error: errors.TidewireError) -> None:
        """Tell that questions failed alike."""
        self.outstanding -= len(ids)
        self._core.counters.add("query_failures_total", len(ids))
        self._send(_failure(ids, error))
        self._close_when_done()

    def no_reply(self, responder: str, number: int) -> errors.TidewireError:
        """Make the error for a question that was ended without an answer."""
        return no_reply(responder, self.request_id(number))

    def lost(self, responder: str, part: Part, numbers: Sequence[int], why: str) -> None:
        """The responder of these questions went: what it never got goes to the next one."""
        if not part.written:
            for piece in part.pieces(numbers):
                self._dispatch(piece)
            return
        for number in numbers:
            asked = number + part.offset
            self.fail((asked,), outcome_unknown(responder, self.request_id(asked), why))

    # Time and the end.

    def drain(self) -> None:
        """Say that the server is going; what is asked from now on is refused."""
        self.backlog.put(query_pb2.AskManyResponse(draining=self._core.drain.message()))

    def end(self) -> None:
        """The server goes: what is in hand has an unknown outcome, then the stream ends."""
        for part in list(self._parts.values()):
            responder = part.responder.name if part.responder is not None else ""
            for number in self._drop(part, part.numbers):
                self.outstanding += 1  # `fail` counts it down
                why = "did not answer before the server went,"
                self.fail((number,), outcome_unknown(responder, self.request_id(number), why))
        self.backlog.close()

    def abandon(self) -> None:
        """Nobody waits for anything any more; may be repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for part in list(self._parts.values()):
            self._drop(part, part.numbers)

    def cut_off(self, stall_s: float) -> None:
        """End it: it took no answers for so long."""
        self.abandon()
        self.backlog.fail(asker_too_slow(f"{self.request_prefix}...", stall_s))
        if self._cut is not None:
            self._cut.reschedule(self._loop.time())  # a write that hangs ends too

    def _arm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_s = due_s
        if due_s < FOREVER:
            wait_s = max(TIMER_S_MIN, due_s - self._core.clock())
            self._timer = self._loop.call_later(wait_s, self._expire)

    def _expire(self) -> None:
        for part in self._deadlines.expired(self._core.clock()):
            late = self._drop(part, part.numbers)
            if late:
                self.outstanding += len(late)
                self.fail(late, self._late(late))
        self._timer = None
        self._arm(self._deadlines.next_s())

    def _late(self, ids: Sequence[int]) -> errors.TidewireError:
        first = self.request_id(ids[0])
        name = first if len(ids) == 1 else f"{first} and {len(ids) - 1} more"
        return deadline_passed(name, "the time it had")

    def _close_when_done(self) -> None:
        if self._half_closed and not self.outstanding:
            self.backlog.close()

    def _send(self, response: query_pb2.AskManyResponse) -> None:
        if self.write_at_once is not None and self.backlog.idle and self._write_now(response):
            return
        self.backlog.put(response, response.ByteSize() + ITEM_OVERHEAD_BYTES)

    def _write_now(self, response: query_pb2.AskManyResponse) -> bool:
        assert self.write_at_once is not None
        try:
            return self.write_at_once(response)
        except errors.MessageTooLarge as error:
            if response.HasField("answers"):
                return self._write_now(self._undeliverable(response, error))
            # It takes not even a failure: its own stream ends, not that of who answers.
            self.backlog.fail(error)
            return True

    async def write(self, context: Context) -> None:
        """
        Write what waits, until the stream ends.

        Raises:
            SlowConsumer: The asker took nothing for too long.
        """
        try:
            async with asyncio.timeout(None) as self._cut:
                await self._write_all(context)
        except TimeoutError:
            raise asker_too_slow(f"{self.request_prefix}...", ASKER_STALL_S) from None

    async def _write_all(self, context: Context) -> None:
        backlog = self.backlog
        with contextlib.suppress(OutboxClosed):
            while True:
                response = backlog.take_nowait() or await backlog.take()
                try:
                    await context.write(response)
                except errors.MessageTooLarge as error:
                    await context.write(self._undeliverable(response, error))

    def _undeliverable(
        self, response: query_pb2.AskManyResponse, error: errors.MessageTooLarge
    ) -> query_pb2.AskManyResponse:
        """Make the failure of questions whose answers are more than the asker takes."""
        ids = response.answers.ids
        self._core.counters.add("query_failures_total", len(ids))
        return _failure(ids, error)


def _failure(ids: Iterable[int], error: errors.TidewireError) -> query_pb2.AskManyResponse:
    response = query_pb2.AskManyResponse()
    response.failed.ids.extend(ids)
    response.failed.error.CopyFrom(error.to_status())
    return response
