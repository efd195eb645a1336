"""Many queries on one stream: how they travel, and what becomes of them when it does not go on."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from support.querying import (
    SCHEMES,
    RefusingQueries,
    ScriptedQueries,
    answering,
    client_on,
    echo,
    greet_and_idle,
    requests_of,
    warm,
)
from support.scripted import WAIT_S, Conversation, eventually, idle
from tidewire import errors
from tidewire.client import asker as asker_module
from tidewire.client import asking
from tidewire.client.client import Client
from tidewire.client.retry import RetryPolicy
from tidewire.v1 import common_pb2, query_pb2

both_kinds_of_wire = pytest.mark.parametrize("scheme", SCHEMES)


def tasks_of(client: Client, bodies: list[bytes], subject: str = "s", **options: Any) -> list[Any]:
    """Ask all at once."""
    return [asyncio.ensure_future(client.queries.ask(subject, body, **options)) for body in bodies]


@both_kinds_of_wire
async def test_what_is_asked_in_one_turn_travels_together(scheme: str) -> None:
    """A request for each subject and kind, numbers without a gap, answers in any order."""
    servicer = ScriptedQueries([answering(echo)])
    async with client_on(scheme, servicer) as client:
        await warm(client)
        bodies = [b"%d" % number for number in range(40)]
        asked = tasks_of(client, bodies) + tasks_of(client, bodies[:3], "other")
        with_headers = tasks_of(client, bodies[:5], headers=[("k", b"v")])
        replies = await asyncio.gather(*asked, *with_headers)

    (call,) = servicer.asking.calls
    runs = requests_of(call, "questions")
    assert [*bodies, *bodies[:3], *bodies[:5]] == [reply.payload for reply in replies]
    assert [("s", 40, 0), ("other", 3, 0), ("s", 0, 5)] == [
        (run.subject, len(run.bare), len(run.payloads)) for run in runs
    ]
    firsts = [run.first_id for run in runs]
    assert [firsts[0], firsts[0] + 40, firsts[0] + 43] == firsts
    prefix = requests_of(call, "open")[0].request_prefix
    assert f"{prefix}{firsts[0] + 1}" == replies[1].request_id
    assert "scripted" == replies[1].responder
    assert len(servicer.by_call) == 1


@both_kinds_of_wire
async def test_runs_are_bounded(scheme: str) -> None:
    """At most 240 KiB are in one request, where each question and each header counts for 240."""
    servicer = ScriptedQueries([answering(echo)])
    async with client_on(scheme, servicer) as client:
        await warm(client)
        await asyncio.gather(*tasks_of(client, [b""] * 2_500))
        await asyncio.gather(*tasks_of(client, [bytes(50_000)] * 10))
        await asyncio.gather(*tasks_of(client, [b"h"] * 30, headers=[("k", b"v")] * 60))

    sizes = [
        len(run.bare) or len(run.payloads)
        for run in requests_of(servicer.asking.calls[0], "questions")
    ]
    assert [1024, 1024, 452, 4, 4, 2, 16, 14] == sizes


@both_kinds_of_wire
async def test_ten_thousand_at_once_are_all_answered(scheme: str) -> None:
    """Each gets its own answer, also when the stream is not open yet."""
    servicer = ScriptedQueries([answering(echo)])
    async with client_on(scheme, servicer) as client:
        bodies = [b"%05d" % number for number in range(10_000)]
        replies = await asyncio.gather(*tasks_of(client, bodies))

    assert bodies == [reply.payload for reply in replies]


@both_kinds_of_wire
@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED])
async def test_without_the_method_queries_are_calls_for_good(
    scheme: str, code: grpc.StatusCode
) -> None:
    """The server is asked for the stream once; no query is lost or late for it."""
    servicer = RefusingQueries(code)
    async with client_on(scheme, servicer) as client:
        for _ in range(3):
            replies = await asyncio.gather(*tasks_of(client, [b"a", b"b"]))
            assert [b"A", b"B"] == [reply.payload for reply in replies]

    assert (1, 6) == (servicer.refused, len(servicer.by_call))


async def test_several_servers_are_asked_by_calls() -> None:
    """Balancing spreads queries one by one; one server alone, as control, gets a stream."""
    servicer = ScriptedQueries([answering(echo)])
    async with client_on("tcp", servicer) as client:
        session = client._session

        class Two:
            backends = (1, 2)

        session.channel = Two()  # type: ignore[assignment]
        spread = asker_module.Asker(session, client.queries._stub.AskMany, client.queries._numbers)
        session.channel = client.channel
        assert await spread.enter(1.0) is None
        assert await spread.enter(1.0) is None
        assert [] == servicer.asking.calls
        await warm(client)
        assert 1 == len(servicer.asking.calls)


async def test_a_server_that_does_not_greet_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Queries go by calls; who waited for the stream goes on when its time is over."""
    monkeypatch.setattr(asker_module, "OPEN_WAIT_S", 0.05)
    servicer = ScriptedQueries([idle])
    async with client_on("tcp", servicer) as client:
        for _ in range(3):
            replies = await asyncio.gather(*tasks_of(client, [b"a", b"b"]))
            assert [b"A", b"B"] == [reply.payload for reply in replies]

    assert 6 == len(servicer.by_call)


@both_kinds_of_wire
@pytest.mark.parametrize("way", ["deadline", "cancelled"])
async def test_who_waits_no_longer_tells_the_server(scheme: str, way: str) -> None:
    """Numbers of queries given up are taken back; the others go on."""
    servicer = ScriptedQueries([greet_and_idle])
    async with client_on(scheme, servicer) as client:
        await warm(client)
        other = asyncio.ensure_future(client.queries.ask("s", b"stays", timeout_s=15))
        limit_s = 0.05 if way == "deadline" else WAIT_S
        asked = tasks_of(client, [b"a", b"b"], timeout_s=limit_s)
        (call,) = servicer.asking.calls
        await eventually(lambda: len(requests_of(call, "questions")) == 2)
        if way == "cancelled":
            for each in asked:
                each.cancel()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        await eventually(lambda: sum(len(c.ids) for c in requests_of(call, "cancel")) == 2)
        assert not other.done()
        other.cancel()

    first = requests_of(call, "questions")[1].first_id
    cancelled = {number for each in requests_of(call, "cancel")[:2] for number in each.ids}
    assert {first, first + 1} <= cancelled
    expected = errors.DeadlineExceeded if way == "deadline" else asyncio.CancelledError
    assert [expected, expected] == [type(outcome) for outcome in outcomes]
    if way == "deadline":
        prefix = requests_of(call, "open")[0].request_prefix
        problem = outcomes[0]
        assert isinstance(problem, errors.DeadlineExceeded)
        assert f"{prefix}{first}" == problem.metadata["request_id"]


@both_kinds_of_wire
async def test_of_what_was_sent_when_the_stream_breaks_nobody_knows(scheme: str) -> None:
    """Each gets the id of its query; who asks next is served by a call, then by a new stream."""

    async def take_and_cut(call: Conversation) -> None:
        await call.greet()
        await call.read()
        await call.cut()

    servicer = ScriptedQueries([take_and_cut, answering(echo)])
    async with client_on(scheme, servicer) as client:
        await warm(client)
        outcomes = await asyncio.gather(*tasks_of(client, [b"a", b"b"]), return_exceptions=True)
        assert b"NEXT" == (await client.queries.ask("s", b"next")).payload
        await warm(client)
        assert b"on" == (await client.queries.ask("s", b"on")).payload

    run = requests_of(servicer.asking.calls[0], "questions")[0]
    prefix = requests_of(servicer.asking.calls[0], "open")[0].request_prefix
    assert [errors.OutcomeUnknown, errors.OutcomeUnknown] == [type(each) for each in outcomes]
    assert [f"{prefix}{run.first_id}", f"{prefix}{run.first_id + 1}"] == [
        each.request_id for each in outcomes if isinstance(each, errors.OutcomeUnknown)
    ]
    assert 2 == len(servicer.asking.calls)


@both_kinds_of_wire
async def test_a_server_that_goes_still_answers(scheme: str) -> None:
    """After `draining` nothing more is asked there; what was asked there is answered."""
    going = asyncio.Event()

    async def drain(call: Conversation) -> None:
        await call.greet()
        questions = (await call.read()).questions
        await call.write(draining=common_pb2.Draining(grace=Duration(seconds=10)))
        going.set()
        assert await call.read() is None  # the client ends its side
        answers = query_pb2.Answers(ids=[questions.first_id], bare=[b"late"], responder="r")
        await call.write(answers=answers)

    servicer = ScriptedQueries([drain, answering(echo)])
    async with client_on(scheme, servicer) as client:
        await warm(client)
        early = asyncio.ensure_future(client.queries.ask("s", b"early"))
        await going.wait()
        await eventually(lambda: client.queries._asker.stream is None)
        assert b"MEANWHILE" == (await client.queries.ask("s", b"meanwhile")).payload
        assert b"late" == (await early).payload


@both_kinds_of_wire
async def test_a_failure_is_told_to_each_or_tried_again(scheme: str) -> None:
    """Nobody to answer is raised, each with an exception of its own; an overload goes again."""

    async def fail(call: Conversation) -> None:
        await call.greet()
        for problem in (errors.NoResponders("nobody"), errors.Overloaded("too much")):
            questions = (await call.read()).questions
            ids = range(questions.first_id, questions.first_id + len(questions.bare))
            failure = query_pb2.AskManyFailure(ids=ids, error=problem.to_status())
            await call.write(failed=failure)
        await idle(call)

    servicer = ScriptedQueries([fail])
    async with client_on(scheme, servicer) as client:
        await warm(client)
        first, second = await asyncio.gather(
            *tasks_of(client, [b"a", b"b"]), return_exceptions=True
        )
        assert isinstance(first, errors.NoResponders)
        assert isinstance(second, errors.NoResponders)
        assert first is not second
        assert b"AGAIN" == (await client.queries.ask("s", b"again")).payload


@both_kinds_of_wire
async def test_closing_the_client_ends_what_is_in_hand(scheme: str) -> None:
    """It may have been done or not; after it nothing can be asked."""
    servicer = ScriptedQueries([greet_and_idle])
    async with client_on(scheme, servicer) as client:
        await warm(client)
        asked = tasks_of(client, [b"a"])
        await eventually(lambda: bool(requests_of(servicer.asking.calls[0], "questions")))
        await client.close()
        (outcome,) = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(outcome, errors.OutcomeUnknown)
        with pytest.raises(errors.ConnectionLost):
            await client.queries.ask("s", b"late")


@both_kinds_of_wire
async def test_large_and_compressed_questions(scheme: str) -> None:
    """A large one goes by a call; a compressed one by the stream, as a payload."""
    servicer = ScriptedQueries([answering(echo)])
    async with client_on(scheme, servicer, compression="zstd") as client:
        await warm(client)
        await client.queries.ask("s", b"tiny")
        await client.queries.ask("s", b"a" * 5_000)
        await client.queries.ask("s", bytes(range(256)) * 10_000, content_type="x/y")

    runs = requests_of(servicer.asking.calls[0], "questions")
    assert [1, 0] == [len(run.bare) for run in runs][:2]
    assert common_pb2.CODEC_ZSTD == runs[1].payloads[0].codec


@both_kinds_of_wire
async def test_answers_nobody_asked_for_end_the_stream(scheme: str) -> None:
    """Numbers that are over are passed over; other numbers of ids and answers break the stream."""

    async def odd(call: Conversation) -> None:
        await call.greet()
        first = (await call.read()).questions.first_id
        await call.write(answers=query_pb2.Answers(ids=[first + 7], bare=[b"?"]))
        await call.write(answers=query_pb2.Answers(ids=[first, first], bare=[b"1", b"2"]))
        await call.read()
        await call.write(answers=query_pb2.Answers(ids=[first + 1, first + 2], bare=[b"?"]))
        await idle(call)

    servicer = ScriptedQueries([odd])
    async with client_on(scheme, servicer) as client:
        await warm(client)
        assert b"1" == (await client.queries.ask("s", b"a")).payload
        with pytest.raises(errors.OutcomeUnknown):
            await client.queries.ask("s", b"b")


async def test_beyond_the_bound_queries_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sent as others are answered, and fail as not sent when their time is over."""
    monkeypatch.setattr(asking, "ASKED_MAX", 4)
    release = asyncio.Event()

    async def hold(call: Conversation) -> None:
        await call.greet()
        questions = (await call.read()).questions
        await release.wait()
        rows = echo(questions)
        answers = query_pb2.Answers(ids=[n for n, _ in rows], bare=[b for _, b in rows])
        await call.write(answers=answers)
        while (request := await call.read()) is not None:
            rows = echo(request.questions)
            answers = query_pb2.Answers(ids=[n for n, _ in rows], bare=[b for _, b in rows])
            await call.write(answers=answers)

    servicer = ScriptedQueries([hold])
    async with client_on("tcp", servicer) as client:
        await warm(client)
        held = tasks_of(client, [b"a", b"b", b"c", b"d"])
        await eventually(lambda: bool(requests_of(servicer.asking.calls[0], "questions")))
        # Its run is judged when it is begun: this one is let in, those after it are not.
        held += tasks_of(client, [b"e"])
        await asyncio.sleep(0)
        with pytest.raises(errors.DeadlineExceeded) as caught:
            await client.queries.ask("s", b"late", timeout_s=0.05)
        assert "no" == caught.value.metadata["sent"]
        waiting = tasks_of(client, [b"f", b"g"])
        release.set()
        replies = await asyncio.gather(*held, *waiting)

    assert [b"a", b"b", b"c", b"d", b"e", b"f", b"g"] == [reply.payload for reply in replies]


class BlockedCall:
    """A call whose wire takes only what the test lets it."""

    def __init__(self) -> None:
        self.clear = False
        self.requests: list[Any] = []

    def write_nowait(self, request: Any) -> bool:
        """Take a request when the test allows it."""
        if self.clear:
            self.requests.append(request)
        return self.clear

    async def write(self, request: Any) -> None:
        """Take one, then none."""
        self.requests.append(request)
        await asyncio.Event().wait()


async def test_only_what_was_sent_is_of_unknown_outcome() -> None:
    """When the call ends, what waited for the wire is told as never sent; control: what did not."""
    call = BlockedCall()
    async with client_on("tcp", ScriptedQueries()) as client:
        stream = asking.Questioning(client._session, call, asking.Numbers("p-"))
        futures = [client._session.loop.create_future() for _ in range(3)]
        stream.ask("s", 5.0, b"sent", 4, futures[0])
        await eventually(lambda: len(call.requests) == 1)
        stream.ask("s", 5.0, b"queued", 6, futures[1])
        await asyncio.sleep(0)
        stream.ask("s", 5.0, b"not even queued", 6, futures[2])
        stream.end(errors.ConnectionLost("cut"))

    sent, *unsent = [future.result() for future in futures]
    assert isinstance(sent, errors.OutcomeUnknown)
    assert "p-1" == sent.request_id
    assert ["no", "no"] == [each.metadata["sent"] for each in unsent]


async def test_what_is_given_up_before_it_is_sent_never_is() -> None:
    """Its question leaves the run, and others keep their answers; an empty run is not sent."""
    call = BlockedCall()
    async with client_on("tcp", ScriptedQueries()) as client:
        stream = asking.Questioning(client._session, call, asking.Numbers("p-"))
        futures = [client._session.loop.create_future() for _ in range(3)]
        runs = [stream.ask("s", 5.0, b"%d" % n, 1, future) for n, future in enumerate(futures)]
        alone = client._session.loop.create_future()
        empty = stream.ask("other", 5.0, b"alone", 5, alone)
        stream.give_up(runs[1], futures[1])
        stream.give_up(empty, alone)
        call.clear = True
        await eventually(lambda: bool(call.requests))
        answers = query_pb2.Answers(ids=[1, 2], bare=[b"zero", b"two"])
        stream.take(query_pb2.AskManyResponse(answers=answers))
        await asyncio.sleep(0)
        stream.end(errors.ConnectionLost("over"))

    (request,) = call.requests
    assert [b"0", b"2"] == list(request.questions.bare)
    assert [b"zero", b"two"] == [futures[0].result().payload, futures[2].result().payload]
    assert not futures[1].done()


async def test_time_runs_also_while_the_wire_takes_nothing() -> None:
    """A query that could not be sent in time fails as never sent, and is not sent later."""
    call = BlockedCall()
    async with client_on("tcp", ScriptedQueries()) as client:
        stream = asking.Questioning(client._session, call, asking.Numbers("p-"))
        futures = [client._session.loop.create_future() for _ in range(2)]
        stream.ask("s", 60.0, b"first", 5, futures[0])
        await eventually(lambda: len(call.requests) == 1)
        stream.ask("s", 0.02, b"second", 6, futures[1])
        problem = await asyncio.wait_for(futures[1], WAIT_S)
        stream.end(errors.ConnectionLost("over"))

    assert isinstance(problem, errors.DeadlineExceeded)
    assert "no" == problem.metadata["sent"]
    assert 1 == len(call.requests)


async def test_what_a_stream_turned_away_goes_by_calls_without_a_budget() -> None:
    """All of it, whatever the retries allowed; control: an overload is held to them."""
    away = [errors.ConnectionLost("gone", metadata={"sent": "no"}), errors.Draining("going")]
    strict = RetryPolicy(budget_burst=1, budget_ratio=0.0, delay_first_s=0.001)
    async with client_on("tcp", ScriptedQueries(), retry=strict) as client:
        ends_s = client._session.clock() + WAIT_S
        again = client.queries._ask_again
        replies = await asyncio.gather(
            *(again(away[number % 2], "s", b"x", ends_s) for number in range(50))
        )
        assert [b"X"] * 50 == [reply.payload for reply in replies]
        assert b"X" == (await again(errors.Overloaded("much"), "s", b"x", ends_s)).payload
        with pytest.raises(errors.Overloaded):
            await again(errors.Overloaded("much"), "s", b"x", ends_s)
