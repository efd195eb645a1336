"""Many queries on one stream, by generated stubs, over every wire with streams."""

from collections import Counter
from contextlib import AsyncExitStack

import grpc.aio
import pytest

import tidewire
from support.asking import answer, asking, questions_of
from support.responders import responding
from tidewire import errors
from tidewire.v1 import common_pb2, query_pb2

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("streams")]


async def test_a_run_goes_and_comes_back_whole(client: tidewire.Client, name: str) -> None:
    """One request of questions is one response at the responder, and one of answers back."""
    async with (
        responding(client.channel, name, client_id="r", takes_questions=True) as responder,
        asking(client.channel, request_prefix="p-") as asker,
    ):
        await asker.ask(name, 7, b"a", b"b", b"c", remaining_s=15)
        asked = await questions_of(responder)
        first = asked.first_query_id
        await answer(responder, [first + 2, first, first + 1], [b"C", b"A", b"B"])
        await asker.wait(7, 8, 9)
        await asker.end()

    assert (name, [b"a", b"b", b"c"]) == (asked.subject, list(asked.bare))
    assert ("p-", 7) == (asked.request_prefix, asked.first_request)
    assert 0 < asked.remaining.ToNanoseconds() <= 15e9
    assert {7: ("r", b"A"), 8: ("r", b"B"), 9: ("r", b"C")} == asker.answers
    assert [9, 7, 8] == list(asker.responses[1].answers.ids)


async def test_a_responder_of_single_queries_answers_a_run(
    client: tidewire.Client, name: str
) -> None:
    """One that does not say it takes questions gets queries, and answers them one by one."""
    async with (
        responding(client.channel, name) as responder,
        asking(client.channel, request_prefix="p-") as asker,
    ):
        await asker.ask(name, 1, b"a", b"b")
        for _ in range(2):
            query = await responder.query()
            await responder.reply(query.query_id, query.request_id.encode() + query.payload.data)
        await asker.wait(1, 2)

    assert [b"p-1a", b"p-2b"] == [asker.answers[number][1] for number in (1, 2)]


async def test_nobody_there_fails_the_questions_and_not_the_stream(
    client: tidewire.Client, name: str
) -> None:
    """NO_RESPONDERS for each, at once; the next question is answered."""
    async with asking(client.channel) as asker:
        await asker.ask(name, 1, b"a", b"b")
        await asker.wait(1, 2)
        async with responding(client.channel, name, takes_questions=True) as responder:
            await asker.ask(name, 3, b"c")
            asked = await questions_of(responder)
            await answer(responder, [asked.first_query_id], [b"C"])
            await asker.wait(3)

    assert [errors.NoResponders] * 2 == [type(error) for error in asker.failures.values()]
    assert b"C" == asker.answers[3][1]


async def test_a_run_is_cut_evenly_over_equals(client: tidewire.Client, name: str) -> None:
    """64 questions over 4 idle responders are 16 for each, each in one response."""
    async with AsyncExitStack() as stack:
        responders = [
            await stack.enter_async_context(
                responding(client.channel, name, client_id=f"r{n}", takes_questions=True)
            )
            for n in range(4)
        ]
        asker = await stack.enter_async_context(asking(client.channel))
        await asker.ask(name, 1, *(b"%d" % n for n in range(1, 65)))
        for responder in responders:
            asked = await questions_of(responder)
            ids = range(asked.first_query_id, asked.first_query_id + len(asked.bare))
            await answer(responder, ids, asked.bare)
        await asker.wait(*range(1, 65))

    assert all(asker.answers[number][1] == b"%d" % number for number in range(1, 65))
    by_responder = Counter(responder for responder, _ in asker.answers.values())
    assert {f"r{n}": 16 for n in range(4)} == by_responder


async def test_nobody_has_room_for_the_rest(client: tidewire.Client, name: str) -> None:
    """What is over the responders' room fails as busy; the others are asked."""
    async with (
        responding(client.channel, name, takes_questions=True, in_flight_max=3) as responder,
        asking(client.channel) as asker,
    ):
        await asker.ask(name, 1, *[b"?"] * 5)
        asked = await questions_of(responder)
        await asker.wait(4, 5)
        await answer(responder, range(asked.first_query_id, asked.first_query_id + 3), [b"!"] * 3)
        await asker.wait(1, 2, 3)

    assert {4: errors.RespondersBusy, 5: errors.RespondersBusy} == {
        number: type(error) for number, error in asker.failures.items()
    }
    assert [1, 2, 3] == sorted(asker.answers)


async def test_cancelling_and_the_deadline_reach_the_responder(
    client: tidewire.Client, name: str
) -> None:
    """A question nobody waits for is cancelled by itself; one that is late fails its asker too."""
    async with (
        responding(client.channel, name, takes_questions=True) as responder,
        asking(client.channel) as asker,
    ):
        await asker.ask(name, 1, b"a", b"b", b"c", remaining_s=60)
        first = (await questions_of(responder)).first_query_id
        await asker.cancel(2, 2, 99)
        cancelled = [(await responder.next()).cancel.query_id]
        await asker.ask(name, 4, b"late", remaining_s=0.2)
        late = (await questions_of(responder)).first_query_id
        cancelled.append((await responder.next()).cancel.query_id)
        await asker.wait(4)
        await answer(responder, [late, first + 1, first, first + 2], [b"-", b"-", b"A", b"C"])
        await asker.wait(1, 3)
        await asker.end()

    assert [first + 1, late] == cancelled
    assert [1, 3] == sorted(asker.answers)
    assert [4] == list(asker.failures)
    assert isinstance(asker.failures[4], errors.DeadlineExceeded)


async def test_an_asker_that_leaves_cancels_what_it_asked(
    client: tidewire.Client, name: str
) -> None:
    """Its responder hears of each question that is not answered."""
    async with responding(client.channel, name, takes_questions=True) as responder:
        async with asking(client.channel) as asker:
            await asker.ask(name, 1, b"a", b"b")
            first = (await questions_of(responder)).first_query_id
            await answer(responder, [first], [b"A"])
            await asker.wait(1)
        left = (await responder.next()).cancel.query_id

    assert first + 1 == left


async def test_a_lost_responder_leaves_outcomes_unknown(client: tidewire.Client, name: str) -> None:
    """Each question it had is told so under its own identifier; the stream goes on."""
    async with asking(client.channel, request_prefix="p-") as asker:
        async with responding(client.channel, name, takes_questions=True) as responder:
            await asker.ask(name, 1, b"a", b"b", b"c")
            first = (await questions_of(responder)).first_query_id
            await answer(responder, [first], [b"A"])
            await asker.wait(1)
        await asker.wait(2, 3)
        async with responding(client.channel, name, takes_questions=True) as responder:
            await asker.ask(name, 4, b"d")
            await answer(responder, [(await questions_of(responder)).first_query_id], [b"D"])
            await asker.wait(4)

    assert [errors.OutcomeUnknown] * 2 == [type(asker.failures[number]) for number in (2, 3)]
    assert ["p-2", "p-3"] == [asker.failures[n].metadata["request_id"] for n in (2, 3)]


async def test_ending_the_requests_waits_for_the_answers(
    client: tidewire.Client, name: str
) -> None:
    """What is in hand is answered, then the stream ends with OK."""
    async with (
        responding(client.channel, name, takes_questions=True) as responder,
        asking(client.channel) as asker,
    ):
        await asker.ask(name, 1, b"a")
        await asker.call.done_writing()
        asked = await questions_of(responder)
        await answer(responder, [asked.first_query_id], [b"A"])
        while await asker.next() is not None:
            continue
        code = await asker.call.code()

    assert (grpc.StatusCode.OK, {1: ("anonymous", b"A")}) == (
        code,
        {number: (who.split("-")[0], body) for number, (who, body) in asker.answers.items()},
    )


async def test_payloads_travel_as_they_are(client: tidewire.Client, name: str) -> None:
    """Headers and all, in both directions; one over the limits fails alone."""
    payload = common_pb2.Payload(data=b"a", content_type="text/x")
    wrong = common_pb2.Payload(data=b"a", raw_size=7)
    async with (
        responding(client.channel, name, takes_questions=True) as responder,
        asking(client.channel) as asker,
    ):
        await asker.ask(name, 1, payloads=[payload, wrong, payload])
        parts = [await questions_of(responder) for _ in range(2)]
        answers = query_pb2.ServeAnswers(
            query_ids=[part.first_query_id for part in parts], payloads=[payload, wrong]
        )
        await responder.call.write(query_pb2.ServeRequest(answers=answers))
        await asker.wait(1, 2, 3)

    assert [payload] * 2 == [part.payloads[0] for part in parts]
    assert [payload] == [p for r in asker.responses for p in r.answers.payloads]
    assert errors.InvalidArgument is type(asker.failures[2])
    assert errors.ResponderFailed is type(asker.failures[3])


async def test_a_responders_error_is_its_questions_alone(
    client: tidewire.Client, name: str
) -> None:
    """A reply with a status, and one without anything, fail one question each."""
    async with (
        responding(client.channel, name, takes_questions=True) as responder,
        asking(client.channel, request_prefix="p-") as asker,
    ):
        await asker.ask(name, 1, b"a", b"b", b"c")
        first = (await questions_of(responder)).first_query_id
        status = errors.PermissionDenied("no").to_status()
        await responder.send_reply(query_pb2.ServeReply(query_id=first, error=status, end=True))
        await responder.send_reply(query_pb2.ServeReply(query_id=first + 1, end=True))
        await responder.reply(first + 2, b"C")
        await asker.wait(1, 2, 3)

    assert [errors.ResponderFailed] * 2 == [type(asker.failures[number]) for number in (1, 2)]
    assert "p-1" == asker.failures[1].metadata["request_id"]
    assert b"C" == asker.answers[3][1]


@pytest.mark.parametrize("guess", [0, 2, 1 << 40])
async def test_an_answer_to_what_was_never_asked_ends_the_responder(
    client: tidewire.Client, name: str, guess: int
) -> None:
    """INVALID_ARGUMENT; what came before it in the same request counts."""
    async with (
        responding(client.channel, name, takes_questions=True) as responder,
        asking(client.channel) as asker,
    ):
        await asker.ask(name, 1, b"a")
        first = (await questions_of(responder)).first_query_id
        await answer(responder, [first, guess], [b"A", b"?"])
        await asker.wait(1)
        code = await responder.ended()

    assert grpc.StatusCode.INVALID_ARGUMENT == code
    assert b"A" == asker.answers[1][1]


@pytest.mark.parametrize(
    "request_",
    [
        query_pb2.AskManyRequest(),
        query_pb2.AskManyRequest(open=query_pb2.AskManyOpen()),
        query_pb2.AskManyRequest(questions=query_pb2.Questions(subject="a", first_id=9)),
        query_pb2.AskManyRequest(
            questions=query_pb2.Questions(subject="a", first_id=9, bare=[b""] * 1025)
        ),
        query_pb2.AskManyRequest(
            questions=query_pb2.Questions(
                subject="a", first_id=9, bare=[b"a"], payloads=[common_pb2.Payload()]
            )
        ),
        query_pb2.AskManyRequest(
            questions=query_pb2.Questions(subject="a", first_id=2, bare=[b"a"])
        ),
        query_pb2.AskManyRequest(
            questions=query_pb2.Questions(subject="a", first_id=(1 << 64) - 1, bare=[b"a", b"b"])
        ),
    ],
    ids=["nothing", "open", "empty", "too many", "both kinds", "not rising", "too high"],
)
async def test_what_breaks_the_order_ends_the_stream(
    client: tidewire.Client, name: str, request_: query_pb2.AskManyRequest
) -> None:
    """PROTOCOL_ORDER or INVALID_ARGUMENT, after the control: a good run."""
    async with asking(client.channel) as asker:
        await asker.ask(name, 1, b"a", b"b")
        await asker.wait(1, 2)
        await asker.call.write(request_)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asker.end()

    assert caught.value.code() in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
    )


async def test_a_bad_subject_fails_its_run_alone(client: tidewire.Client, name: str) -> None:
    """INVALID_SUBJECT for each, and the next run is asked."""
    async with asking(client.channel) as asker:
        await asker.ask("a.*", 1, b"a", b"b")
        await asker.ask(name, 3, b"c", remaining_s=-1)
        await asker.wait(1, 2, 3)

    assert [errors.InvalidSubject, errors.InvalidSubject, errors.DeadlineExceeded] == [
        type(asker.failures[number]) for number in (1, 2, 3)
    ]
