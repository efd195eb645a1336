"""
Queries on one stream: what is asked in one turn of the event loop travels together.

A call for each query cost a client 14 microseconds and the server twice that. Here a query is one
future and its place in a run, which is all questions of one turn on one subject with one timeout;
answers come in any order, several at a time. Where the wire lets them, questions leave in the turn
that asks and answers are taken in the turn that brings them, without a task between.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Final, TypeAlias

from google.protobuf.duration_pb2 import Duration

from tidewire.client.content import Content
from tidewire.client.session import Session, log
from tidewire.client.times import to_duration
from tidewire.client.translate import NOT_SENT, RPC_ERRORS, SENT
from tidewire.errors import (
    ConnectionLost,
    DeadlineExceeded,
    OutcomeUnknown,
    ProtocolViolation,
    TidewireError,
)
from tidewire.errors import from_status as error_of
from tidewire.v1 import common_pb2, query_pb2

RUN_BYTES_MAX: Final = 240 * 1024
"""Room of one run."""
QUESTION_COST_BYTES: Final = 240
"""
What a question takes of it beside its bytes, and each header too: a run has at most 1,024
questions, and a request of very many fields would be refused.
"""
ASKED_MAX: Final = 32_768
"""Queries of one client that are not answered, before those that follow wait for room."""
QUEUED_BYTES_MAX: Final = 16 * 1024 * 1024
"""Bytes of questions that the wire has not taken, before those that follow wait for room."""
CANCELLED_MAX: Final = 4_096
"""Numbers in one request that takes queries back."""
SCANS_SHARE: Final = 2e-6
"""
Seconds for each query in hand between two looks for those whose time is over. A look takes a tenth
of a microsecond for each, so that looking takes at most a twentieth of the time.
"""
FRESH_SHARE: Final = 0.999
"""Time left that is told as if all were left: that one is made only once."""
DURATIONS_MAX: Final = 64

Body: TypeAlias = bytes | common_pb2.Payload


class Reply(Content):
    """
    An answer to a query.

    Attributes:
        responder: Node id the responder gave, or its name.
        request_id: Identifier of the query.
    """

    __slots__ = ("_number", "_prefix", "responder")

    def __init__(self, payload: Body, responder: str, request_id: str, number: int = 0) -> None:
        # Not by super(): that alone would be a fifth of the time it takes to make one.
        self._payload = payload
        self.responder = responder
        self._prefix = request_id
        self._number = number

    @property
    def request_id(self) -> str:
        """Identifier of the query."""
        return f"{self._prefix}{self._number}" if self._number else self._prefix

    def __repr__(self) -> str:
        return f"<Reply of {self.responder!r} to {self.request_id}>"


Outcome: TypeAlias = Reply | TidewireError
Waiting: TypeAlias = "asyncio.Future[Outcome]"


class Numbers:
    """Identifiers of a client's queries: a prefix, and numbers that only rise."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._last = 0

    def take(self, count: int) -> int:
        """Take so many numbers; returns the first."""
        first = self._last + 1
        self._last += count
        return first


class Run:
    """
    Questions of one turn on one subject, with one timeout.

    Attributes:
        futures: Who waits, by place; ``None`` where nobody does any more.
        bodies: The questions, until they are sent.
        first_number: Number of the first question; 0 until they are sent.
        room: Bytes that still fit; see `RUN_BYTES_MAX`.
    """

    __slots__ = (
        "bare",
        "bodies",
        "deadline_s",
        "first_number",
        "futures",
        "limit_s",
        "room",
        "subject",
    )

    def __init__(self, subject: str, limit_s: float, bare: bool, deadline_s: float) -> None:
        self.subject = subject
        self.limit_s = limit_s
        self.bare = bare
        self.deadline_s = deadline_s
        self.futures: list[Waiting | None] = []
        self.bodies: list[Any] = []
        self.first_number = 0
        self.room = RUN_BYTES_MAX

    def tell(self, place: int, outcome: Outcome) -> None:
        """Tell who waits at a place what came; what is told is not held here."""
        future = self.futures[place]
        self.futures[place] = None
        # An error is a result too: an exception nobody fetches would be a noise in the log.
        if future is not None and not future.done():
            future.set_result(outcome)


class Questioning:
    """
    One call of QueryService.AskMany that was greeted, and the queries on it.

    Attributes:
        last: The open run that was used last; most queries are like the one before, and whoever
            asks may put them there himself.
        full: So many queries are in hand that no more are taken now; see `wait_room`.
        over: No more queries are taken.
    """

    def __init__(self, session: Session, call: Any, numbers: Numbers) -> None:
        self.last: Run | None = None
        self.full = False
        self.over = False
        self._loop = session.loop
        self._clock = session.clock
        self._budget = session.budget
        self._call = call
        self._numbers = numbers
        self._nowait: Callable[[Any], bool] | None = getattr(call, "write_nowait", None)
        self._asked: dict[int, Run] = {}
        """Runs of what is sent and not answered, by the number of the question."""
        self._open: dict[tuple[str, float, bool], Run] = {}
        self._closed: deque[Run] = deque()
        self._queued = 0
        self._queued_bytes = 0
        self._cancelled: list[int] = []
        self._turn = False
        self._writer: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = float("inf")
        self._room = asyncio.Event()
        self._durations: dict[float, Duration] = {}

    # Asking.

    def ask(self, subject: str, limit_s: float, body: Body, size: int, future: Waiting) -> Run:
        """
        Take a query; the outcome is the future's result.

        Args:
            subject: Subject, as it is to be checked by the caller.
            limit_s: Time the query may take.
            body: Bytes when they are all there is, else the payload.
            size: Bytes of the question, about.
            future: Who waits.
        """
        cost = size + QUESTION_COST_BYTES
        bare = isinstance(body, bytes)
        if not isinstance(body, bytes):
            cost += len(body.header) * QUESTION_COST_BYTES
        run = self._run_of(subject, limit_s, bare, cost)
        run.room -= cost
        run.futures.append(future)
        run.bodies.append(body)
        if not self._turn:
            self._turn = True
            # Not the first one at once: with 64 in flight that made all three processes work a
            # third more for two messages a turn, and with one in flight it was not faster.
            self._loop.call_soon(self._end_turn)
        return run

    def _run_of(self, subject: str, limit_s: float, bare: bool, cost: int) -> Run:
        """Return the open run for a question, with room for it."""
        key = (subject, limit_s, bare)
        run = self._open.get(key)
        if run is not None and run.room < cost:
            self._close_run(run)
            run = None
        if run is None:
            deadline_s = self._clock() + limit_s
            run = self._open[key] = Run(subject, limit_s, bare, deadline_s)
            self._judge_room()
            if deadline_s < self._timer_s:
                self._set_timer(deadline_s)
        self.last = run
        return run

    def _close_run(self, run: Run) -> None:
        """Take no more questions into a run."""
        if self.last is run:
            self.last = None
        del self._open[run.subject, run.limit_s, run.bare]
        self._closed.append(run)
        self._queued += len(run.bodies)
        self._queued_bytes += RUN_BYTES_MAX - run.room

    def give_up(self, run: Run, future: Waiting) -> None:
        """Nobody waits for this query any more."""
        if future not in run.futures:
            return  # it is over
        place = run.futures.index(future)
        if run.first_number:
            run.futures[place] = None
            if self._asked.pop(run.first_number + place, None) is not None:
                self._cancel([run.first_number + place])
            return
        # Not sent: nobody need ever know.
        del run.futures[place]
        del run.bodies[place]
        if run in self._closed:
            self._queued -= 1
        if not run.bodies:
            self._withdraw(run)
        self._judge_room()

    async def wait_room(self, limit_s: float) -> None:
        """
        Wait until queries are taken, or the call is over.

        Raises:
            DeadlineExceeded: It took too long; the query was not sent.
        """
        try:
            async with asyncio.timeout(limit_s):
                while self.full and not self.over:
                    await self._room.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"{len(self._asked)} queries of this client are not answered; there was no room "
                f"for another within {limit_s:g} s",
                metadata={SENT: NOT_SENT},
            ) from None

    def _judge_room(self) -> None:
        in_hand = len(self._asked) + self._queued
        if self.full:
            # Not one by one: each that is let in costs a look of all others that wait.
            if in_hand <= ASKED_MAX // 2 and self._queued_bytes <= QUEUED_BYTES_MAX // 2:
                self.full = False
                self._room.set()
        elif in_hand >= ASKED_MAX or self._queued_bytes >= QUEUED_BYTES_MAX:
            self.full = True
            self._room.clear()

    # Sending.

    def _end_turn(self) -> None:
        self._turn = False
        self._flush()

    def _flush(self) -> None:
        """Send what was asked so far, as far as the wire takes it."""
        if self.over:
            return
        for run in list(self._open.values()):
            self._close_run(run)
        if self._writer is not None:
            return  # it goes on with these
        nowait, call = self._nowait, self._call
        if nowait is not None:
            try:
                while (self._closed or self._cancelled) and call.clear:
                    nowait(self._next_request())
            except RPC_ERRORS:
                return  # the call is over; who reads from it is told why
        if self._closed or self._cancelled:
            self._writer = self._loop.create_task(self._write(), name="tidewire queries")

    async def _write(self) -> None:
        """Send what the wire did not take at once."""
        try:
            while (self._closed or self._cancelled) and not self.over:
                await self._call.write(self._next_request())
        except RPC_ERRORS:
            return  # the call is over; who reads from it is told why
        finally:
            self._writer = None

    def _next_request(self) -> query_pb2.AskManyRequest:
        request = query_pb2.AskManyRequest()
        if not self._closed:
            request.cancel.ids.extend(self._cancelled[:CANCELLED_MAX])
            del self._cancelled[:CANCELLED_MAX]
            return request
        run = self._closed.popleft()
        count = len(run.bodies)
        self._queued -= count
        self._queued_bytes -= RUN_BYTES_MAX - run.room
        run.first_number = first = self._numbers.take(count)
        self._asked.update(zip(range(first, first + count), repeat(run), strict=False))
        self._budget.request_made()
        questions = request.questions
        questions.subject = run.subject
        questions.first_id = first
        left_s = run.deadline_s - self._clock()
        if left_s > run.limit_s * FRESH_SHARE:
            questions.remaining.CopyFrom(self._duration(run.limit_s))
        else:
            questions.remaining.CopyFrom(to_duration(max(left_s, 0.0)))
        (questions.bare if run.bare else questions.payloads).extend(run.bodies)
        run.bodies = []
        return request

    def _duration(self, limit_s: float) -> Duration:
        duration = self._durations.get(limit_s)
        if duration is None:
            if len(self._durations) >= DURATIONS_MAX:
                self._durations.clear()
            duration = self._durations[limit_s] = to_duration(limit_s)
        return duration

    def _cancel(self, numbers: Sequence[int]) -> None:
        self._cancelled.extend(numbers)
        self._judge_room()
        if not self._turn and not self.over:
            self._turn = True
            self._loop.call_soon(self._end_turn)

    # What comes.

    def take(self, response: query_pb2.AskManyResponse) -> common_pb2.Draining | None:
        """
        Take a response; returns the announcement that the server is going.

        Raises:
            ProtocolViolation: It is none that may come here.
        """
        kind = response.WhichOneof("kind")
        if kind == "answers":
            self._answered(response.answers)
        elif kind == "failed":
            self._failed(response.failed)
        elif kind == "draining":
            return response.draining
        else:
            raise ProtocolViolation(f"a stream of queries got {kind or 'nothing'!r}")
        if self.full:
            self._judge_room()
        return None

    def _answered(self, answers: query_pb2.Answers) -> None:
        asked, prefix, responder = self._asked, self._numbers.prefix, answers.responder
        bodies: Sequence[Body] = answers.bare or answers.payloads
        if len(bodies) != len(answers.ids):
            raise ProtocolViolation(f"{len(answers.ids)} queries got {len(bodies)} answers")
        for number, body in zip(answers.ids, bodies, strict=True):
            run = asked.pop(number, None)
            if run is None:
                continue  # given up before
            place = number - run.first_number
            future = run.futures[place]
            run.futures[place] = None
            if future is not None and not future.done():
                future.set_result(Reply(body, responder, prefix, number))

    def _failed(self, failure: query_pb2.AskManyFailure) -> None:
        for number in failure.ids:
            run = self._asked.pop(number, None)
            if run is not None:
                # One for each: what is raised carries the traceback of who raises it.
                run.tell(number - run.first_number, error_of(failure.error))

    # Time.

    def _set_timer(self, when_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = when_s
        self._timer = self._loop.call_later(max(when_s - self._clock(), 0.0), self._expire)

    def _expire(self) -> None:
        """End the queries whose time is over."""
        self._timer, self._timer_s = None, float("inf")
        now_s = self._clock()
        asked = self._asked
        late = [number for number, run in asked.items() if run.deadline_s <= now_s]
        for number in late:
            run = asked.pop(number)
            run.tell(number - run.first_number, self._too_late(run, number))
        for run in [run for run in self._waiting() if run.deadline_s <= now_s]:
            self._withdraw(run)
            for place in range(len(run.futures)):
                run.tell(place, self._too_late(run, 0))
        if late:
            self._cancel(late)
        next_s = min((run.deadline_s for run in self._in_hand()), default=None)
        if next_s is not None:
            self._set_timer(max(next_s, now_s + len(asked) * SCANS_SHARE))

    def _too_late(self, run: Run, number: int) -> DeadlineExceeded:
        if number == 0:
            return DeadlineExceeded(
                f"the query was not sent within {run.limit_s:g} s", metadata={SENT: NOT_SENT}
            )
        return DeadlineExceeded(
            f"no answer came within {run.limit_s:g} s",
            metadata={"request_id": f"{self._numbers.prefix}{number}"},
        )

    def _waiting(self) -> list[Run]:
        """Runs that are not sent."""
        return [*self._closed, *self._open.values()]

    def _in_hand(self) -> list[Run]:
        return [*self._asked.values(), *self._waiting()]

    def _withdraw(self, run: Run) -> None:
        """Take back a run that is not sent."""
        if self._open.get((run.subject, run.limit_s, run.bare)) is run:
            self._close_run(run)
        self._closed.remove(run)
        self._queued -= len(run.bodies)
        self._queued_bytes -= RUN_BYTES_MAX - run.room
        run.bodies = []

    # The end.

    def leave(self) -> None:
        """Take no more queries; those that are not sent are told so, the others go on."""
        if self.over:
            return
        for run in self._waiting():
            self._withdraw(run)
            problem = ConnectionLost("the server is going", metadata={SENT: NOT_SENT})
            for place in range(len(run.futures)):
                run.tell(place, problem)
        self.over = True
        self._room.set()

    async def end_requests(self) -> None:
        """Say that nothing more is asked."""
        try:
            await self._call.done_writing()
        except RPC_ERRORS as error:
            log.debug("a stream of queries was over before its requests were: %s", error)

    def end(self, problem: TidewireError) -> None:
        """The call is over: nobody knows of what is in hand whether it was done."""
        self.leave()
        if self._writer is not None:
            self._writer.cancel()
        if self._timer is not None:
            self._timer.cancel()
        asked, self._asked = self._asked, {}
        for number, run in asked.items():
            run.tell(number - run.first_number, self._unknown(problem, number))

    def _unknown(self, problem: TidewireError, number: int) -> OutcomeUnknown:
        return unknown(problem, f"{self._numbers.prefix}{number}")


def unknown(problem: TidewireError, request_id: str) -> OutcomeUnknown:
    """Make the error for a query that was sent and whose answer cannot come any more."""
    return OutcomeUnknown(
        f"the connection was lost before the answer came: {problem.message}",
        metadata={**problem.metadata, "request_id": request_id},
    )
