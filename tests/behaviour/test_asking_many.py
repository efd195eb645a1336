"""Many queries on one stream, by generated stubs, over every wire with streams."""

import pytest

import tidewire
from support.asking import answer, asking, questions_of
from support.responders import responding
from tidewire import errors

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
