"""A responder that takes small messages: what does not fit fails, and its stream goes on."""

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

import tidewire
from support.asking import answer, asking, questions_of
from support.live_fake_engine import make_core
from support.responders import responding
from support.server import running
from tidewire import errors
from tidewire.client.translate import translate
from tidewire.transport.options import TransportOptions
from tidewire.v1 import common_pb2, query_pb2, query_pb2_grpc
from tidewire.wire.limits import WireLimits
from tidewire_server.services.query.asker import Asker
from tidewire_server.services.query.responder import Responder, numbers_of
from tidewire_server.services.query.runs import Part

MESSAGE_BYTES_MAX = 10_000


@pytest.mark.parametrize("takes_questions", [True, False])
async def test_what_does_not_fit_fails_alone(tmp_path: Path, takes_questions: bool) -> None:
    """
    A run over the responder's limit is cut up: each question that fits is answered, one that does
    not is told so, and the stream serves the next run whole.
    """
    bodies = [bytes(1_000)] * 12
    bodies[5] = bytes(MESSAGE_BYTES_MAX)
    options = TransportOptions(limits=WireLimits(message_bytes_max=MESSAGE_BYTES_MAX))
    async with (
        running(tmp_path, wires=("tcp",)) as server,
        tidewire.channel(server.url("tcp"), options=options) as small,
        tidewire.channel(server.url("tcp")) as channel,
        responding(small, "q", takes_questions=takes_questions) as responder,
        asking(channel) as asker,
    ):
        await asker.ask("q", 1, *bodies)
        for _ in range(len(bodies) - 1):
            if takes_questions:
                asked = await questions_of(responder)
                assert 1 == len(asked.bare)
                await answer(responder, [asked.first_query_id], [b"yes"])
            else:
                await responder.reply((await responder.query()).query_id, b"yes")
        await asker.wait(*range(1, len(bodies) + 1))
        await asker.ask("q", 100, b"a", b"b")
        if takes_questions:
            asked = await questions_of(responder)
            await answer(responder, [asked.first_query_id, asked.first_query_id + 1], [b"A", b"B"])
        else:
            for _ in range(2):
                query = await responder.query()
                await responder.reply(query.query_id, query.payload.data.upper())
        await asker.wait(100, 101)

    assert [6] == list(asker.failures)
    assert isinstance(asker.failures[6], errors.MessageTooLarge)
    assert {*range(1, 13), 100, 101} - {6} == set(asker.answers)
    assert [b"A", b"B"] == [asker.answers[number][1] for number in (100, 101)]
    assert asker.failures[6].figure("limit_bytes") == MESSAGE_BYTES_MAX


async def test_a_query_that_does_not_fit(tmp_path: Path) -> None:
    """The same for one query at a time, by the client and by the stub."""
    options = TransportOptions(limits=WireLimits(message_bytes_max=MESSAGE_BYTES_MAX))
    async with (
        running(tmp_path, wires=("tcp",)) as server,
        tidewire.channel(server.url("tcp"), options=options) as small,
        tidewire.connect(server.url("tcp")) as client,
        responding(small, "q") as responder,
    ):
        with pytest.raises(errors.MessageTooLarge):
            await client.queries.ask("q", bytes(MESSAGE_BYTES_MAX))
        request = query_pb2.AskRequest(subject="q")
        request.payload.data = bytes(MESSAGE_BYTES_MAX)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await query_pb2_grpc.QueryServiceStub(client.channel).Ask(request, timeout=10)
        waiting = asyncio.create_task(client.queries.ask("q", b"small"))
        await responder.reply((await responder.query()).query_id, b"yes")
        answered = await waiting

    assert isinstance(translate(caught.value), errors.MessageTooLarge)
    assert b"yes" == answered.payload


@pytest.mark.parametrize("kind", ["bare", "payloads"])
async def test_questions_are_taken_apart(kind: str) -> None:
    """Each by itself is what it was among the others: its numbers, its time, its asker."""
    bodies: list[Any] = [b"a", b"b"]
    if kind == "payloads":
        bodies = [common_pb2.Payload(data=body, content_type="text/plain") for body in bodies]
    asker = Asker(make_core(), lambda _: None, "p-", "who")
    together = Part(asker, "q", 40, bodies, bare=kind == "bare", deadline_s=1e9)
    responder = Responder("r", ["q"], takes_questions=True)
    responder._last_id = 6
    responder.give_part(together)

    responses = list(responder.singly((7, 8), 1e9 - 3))
    apart = [response.questions for response in responses]

    assert [(7,), (8,)] == [tuple(numbers_of(response)) for response in responses]
    assert [7, 8] == [one.first_query_id for one in apart]
    assert [40, 41] == [one.first_request for one in apart]
    for index, one in enumerate(apart):
        assert [bodies[index]] == list(getattr(one, kind))
        assert ("q", "p-", "who", 3) == (
            one.subject,
            one.request_prefix,
            one.principal,
            one.remaining.seconds,
        )
    responder.fail_unsent(7, errors.MessageTooLarge("it takes less"))
    assert [8] == [one.questions.first_query_id for one in responder.singly((7, 8), 0.0)]
