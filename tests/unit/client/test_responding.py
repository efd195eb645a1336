"""Responders that get many queries at a time: what they see, and how their answers travel."""

import asyncio
import contextvars
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from support.querying import SCHEMES, ScriptedQueries, client_on, requests_of
from support.scripted import Conversation, eventually
from tidewire import errors
from tidewire.client.responder import Query
from tidewire.v1 import common_pb2, query_pb2

both_kinds_of_wire = pytest.mark.parametrize("scheme", SCHEMES)


def questions(bodies: list[bytes], first: int = 1, **fields: Any) -> query_pb2.ServeQuestions:
    """A run as a server sends it."""
    return query_pb2.ServeQuestions(
        first_query_id=first,
        subject="s.t",
        bare=bodies,
        remaining=Duration(seconds=9),
        request_prefix="r-",
        first_request=41,
        principal="alice",
        **fields,
    )


class Asking:
    """Script that sends runs and takes answers."""

    def __init__(self, *runs: query_pb2.ServeQuestions | query_pb2.ServeQuery) -> None:
        self.runs = runs
        self.opening: Any = None
        self.call: Conversation | None = None

    async def __call__(self, call: Conversation) -> None:
        """Handle the call."""
        self.call = call
        self.opening = await call.greet()
        for run in self.runs:
            if isinstance(run, query_pb2.ServeQuery):
                await call.write(query=run)
            else:
                await call.write(questions=run)
        while (request := await call.read()) is not None:
            if request.WhichOneof("kind") == "drain":
                return

    def answers(self) -> list[query_pb2.ServeAnswers]:
        """What came of several answers."""
        return [] if self.call is None else requests_of(self.call, "answers")

    def replies(self) -> list[query_pb2.ServeReply]:
        """What came of single ones."""
        return [] if self.call is None else requests_of(self.call, "reply")


@both_kinds_of_wire
async def test_what_came_together_is_answered_together(scheme: str) -> None:
    """The handler is called for each, sees all that a single query has, and one request answers."""
    asking = Asking(questions([b"a", b"b", b"c"], first=7))
    seen: list[tuple[Any, ...]] = []

    def answer(query: Query) -> bytes:
        seen.append((query.subject, query.request_id, query.remaining_s, query.principal))
        assert ((), "", False) == (query.headers, query.content_type, query.streaming)
        return query.payload.upper()

    servicer = ScriptedQueries(serve=[asking])
    async with client_on(scheme, servicer) as client, client.queries.serve("s.*", answer):
        await eventually(lambda: bool(asking.answers()))

    assert asking.opening.takes_questions
    (answers,) = asking.answers()
    assert ([7, 8, 9], [b"A", b"B", b"C"]) == (list(answers.query_ids), list(answers.bare))
    assert [("s.t", f"r-{number}", 9.0, "alice") for number in (41, 42, 43)] == seen


@both_kinds_of_wire
async def test_answers_of_every_kind(scheme: str) -> None:
    """Text, nothing and payloads are answers too; what fails is told by itself."""
    made = common_pb2.Payload(data=b"p", content_type="x/y")
    kinds: dict[bytes, Any] = {b"text": "t", b"none": None, b"payload": made, b"bytes": b"b"}
    asking = Asking(questions([*kinds, b"fail", b"cancelled", b"odd"]))

    def answer(query: Query) -> Any:
        if query.payload == b"fail":
            raise errors.KeyNotFound("no such thing")
        if query.payload == b"cancelled":
            raise asyncio.CancelledError
        return kinds.get(query.payload, object())

    servicer = ScriptedQueries(serve=[asking])
    async with client_on(scheme, servicer) as client, client.queries.serve("s.*", answer):
        await eventually(lambda: len(asking.replies()) == 3 and bool(asking.answers()))

    given: dict[int, bytes] = {}
    for answers in asking.answers():
        bodies = list(answers.bare) or [payload.data for payload in answers.payloads]
        given.update(zip(answers.query_ids, bodies, strict=True))
    assert {1: b"t", 2: b"", 3: b"p", 4: b"b"} == given
    assert [5, 6, 7] == sorted(reply.query_id for reply in asking.replies())
    assert all(reply.WhichOneof("outcome") == "error" for reply in asking.replies())


@both_kinds_of_wire
async def test_coroutines_are_answered_as_they_end(scheme: str) -> None:
    """What ends in one turn goes in one request; a cancelled one goes nowhere."""
    asking = Asking(questions([b"slow", b"a", b"b"]))
    release = asyncio.Event()

    async def answer(query: Query) -> bytes:
        async with asyncio.timeout(30):  # works only within a task
            if query.payload == b"slow":
                await release.wait()
        return query.payload

    servicer = ScriptedQueries(serve=[asking])
    async with client_on(scheme, servicer) as client, client.queries.serve("s.*", answer):
        await eventually(lambda: bool(asking.answers()))
        release.set()
        await eventually(lambda: len(asking.answers()) == 2)

    assert [[2, 3], [1]] == [list(answers.query_ids) for answers in asking.answers()]


@both_kinds_of_wire
async def test_single_queries_are_answered_as_ever(scheme: str) -> None:
    """A server that sends them one by one gets single replies, also of several parts."""
    single = query_pb2.ServeQuery(
        query_id=3, subject="s.t", request_id="mine", payload=common_pb2.Payload(data=b"q")
    )
    asking = Asking(single)
    seen: list[str] = []

    async def answer(query: Query) -> AsyncIterator[bytes]:
        seen.append(query.request_id)
        yield b"1"
        yield b"2"

    servicer = ScriptedQueries(serve=[asking])
    async with client_on(scheme, servicer) as client, client.queries.serve("s.*", answer):
        await eventually(lambda: len(asking.replies()) == 3)

    assert ["mine"] == seen
    assert [] == asking.answers()
    assert [b"1", b"2", b""] == [reply.payload.data for reply in asking.replies()]
    assert [False, False, True] == [reply.end for reply in asking.replies()]


@both_kinds_of_wire
async def test_compressed_answers_are_payloads(scheme: str) -> None:
    """A client with a codec compresses what it answers, and says so."""
    asking = Asking(questions([b"q"]))
    servicer = ScriptedQueries(serve=[asking])
    async with (
        client_on(scheme, servicer, compression="zstd") as client,
        client.queries.serve("s.*", lambda _: b"a" * 10_000),
    ):
        await eventually(lambda: bool(asking.answers()))

    (answers,) = asking.answers()
    assert [] == list(answers.bare)
    assert common_pb2.CODEC_ZSTD == answers.payloads[0].codec


@both_kinds_of_wire
async def test_large_answers_are_cut_into_several_requests(scheme: str) -> None:
    """A request of answers stays below 240 KiB and one answer more."""
    asking = Asking(questions([b"q"] * 10))
    servicer = ScriptedQueries(serve=[asking])
    async with (
        client_on(scheme, servicer) as client,
        client.queries.serve("s.*", lambda _: bytes(100_000)),
    ):
        await eventually(lambda: sum(len(each.bare) for each in asking.answers()) == 10)

    assert [3, 3, 3, 1] == [len(each.bare) for each in asking.answers()]


@both_kinds_of_wire
async def test_the_handler_runs_in_the_context_of_who_serves(scheme: str) -> None:
    """Context variables are those at `serve`, in whatever turn the query is taken."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    asking = Asking(questions([b"q"]))
    servicer = ScriptedQueries(serve=[asking])
    async with client_on(scheme, servicer) as client:
        variable.set("mine")
        async with client.queries.serve("s.*", lambda _: variable.get()):
            await eventually(lambda: bool(asking.answers()))

    assert [b"mine"] == list(asking.answers()[0].bare)


@both_kinds_of_wire
async def test_a_draining_server_gets_the_answers_in_hand(scheme: str) -> None:
    """What is being answered when `draining` comes is answered, then the requests end."""
    ended = asyncio.Event()
    release = asyncio.Event()
    got: list[int] = []

    async def drain(call: Conversation) -> None:
        await call.greet()
        await call.write(questions=questions([b"q"]))
        await call.write(draining=common_pb2.Draining(grace=Duration(seconds=10)))
        release.set()
        while (request := await call.read()) is not None:
            got.extend(request.answers.query_ids)
        ended.set()

    async def answer(query: Query) -> bytes:
        await release.wait()
        await asyncio.sleep(0.01)  # later than the announcement
        return b"a"

    servicer = ScriptedQueries(serve=[drain, Asking()])
    async with client_on(scheme, servicer) as client, client.queries.serve("s.*", answer):
        await asyncio.wait_for(ended.wait(), 20)
        await eventually(lambda: len(servicer.serving.calls) == 2)

    assert [1] == got


@both_kinds_of_wire
async def test_an_exception_of_any_text_fails_its_query_alone(scheme: str) -> None:
    """Surrogates, as in names of files, and megabytes of text do not end the stream."""
    asking = Asking(questions([b"odd", b"long", b"fine"]))

    def handle(query: Query) -> bytes:
        if query.payload == b"odd":
            raise ValueError("name \udc80")
        if query.payload == b"long":
            raise ValueError("x" * 20_000_000)
        return b"a"

    servicer = ScriptedQueries(serve=[asking])
    async with client_on(scheme, servicer) as client, client.queries.serve("s.*", handle):
        await eventually(lambda: len(asking.replies()) == 2 and len(asking.answers()) == 1)

    assert "ValueError: name \\udc80" == asking.replies()[0].error.message
