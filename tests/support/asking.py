"""An asker of many queries over a plain stub, and responders that take them so, for tests."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from tidewire import errors
from tidewire.v1 import query_pb2, query_pb2_grpc

WAIT_S = 20.0


class TestAsker:
    """
    One AskMany stream, driven by hand.

    Attributes:
        answers: Answers by number of the question, as far as they were read: who, and what.
        failures: Errors by number of the question.
        draining: The server said that it goes.
    """

    __test__ = False

    def __init__(self, call: Any) -> None:
        self.call = call
        self.answers: dict[int, tuple[str, bytes]] = {}
        self.failures: dict[int, errors.TidewireError] = {}
        self.responses: list[query_pb2.AskManyResponse] = []
        self.draining = False

    async def ask(self, subject: str, first_id: int, *bodies: bytes, **more: Any) -> None:
        """Ask in one run; ``more`` are fields of `Questions`, ``remaining_s`` the time left."""
        remaining_s = more.pop("remaining_s", None)
        questions = query_pb2.Questions(subject=subject, first_id=first_id, bare=bodies, **more)
        if remaining_s is not None:
            questions.remaining.FromNanoseconds(int(remaining_s * 1e9))
        await self.call.write(query_pb2.AskManyRequest(questions=questions))

    async def cancel(self, *ids: int) -> None:
        """Wait for these no more."""
        cancel = query_pb2.AskManyCancel(ids=ids)
        await self.call.write(query_pb2.AskManyRequest(cancel=cancel))

    async def next(self) -> query_pb2.AskManyResponse | None:
        """Read and note the next response; ``None`` at the end."""
        async with asyncio.timeout(WAIT_S):
            response = await self.call.read()
        if response is grpc.aio.EOF:
            return None
        assert isinstance(response, query_pb2.AskManyResponse)
        self.responses.append(response)
        answers, failed = response.answers, response.failed
        bodies = list(answers.bare) or [payload.data for payload in answers.payloads]
        for number, body in zip(answers.ids, bodies, strict=True):
            assert number not in self.answers, "answered twice"
            self.answers[number] = (answers.responder, body)
        for number in failed.ids:
            assert number not in self.failures, "failed twice"
            self.failures[number] = errors.from_status(failed.error)
        self.draining = self.draining or response.HasField("draining")
        return response

    async def wait(self, *ids: int) -> None:
        """Read until these are answered or have failed."""
        while not all(number in self.answers or number in self.failures for number in ids):
            assert await self.next() is not None, "the stream has ended"

    async def end(self) -> None:
        """Ask no more, and read to the end."""
        await self.call.done_writing()
        while await self.next() is not None:
            continue


@asynccontextmanager
async def asking(channel: grpc.aio.Channel, **options: Any) -> AsyncIterator[TestAsker]:
    """Open a stream of questions."""
    call = query_pb2_grpc.QueryServiceStub(channel).AskMany()
    asker = TestAsker(call)
    opening = query_pb2.AskManyOpen(**options)
    await call.write(query_pb2.AskManyRequest(open=opening))
    first = await asker.next()
    assert first is not None
    assert first.HasField("opened")
    try:
        yield asker
    finally:
        call.cancel()


async def questions_of(responder: Any) -> query_pb2.ServeQuestions:
    """Read the next response to a responder, which must be questions."""
    response = await responder.next()
    assert response.WhichOneof("kind") == "questions", response
    questions: query_pb2.ServeQuestions = response.questions
    return questions


async def answer(responder: Any, ids: Sequence[int], bodies: Sequence[bytes]) -> None:
    """Answer several questions at once."""
    answers = query_pb2.ServeAnswers(query_ids=ids, bare=bodies)
    await responder.call.write(query_pb2.ServeRequest(answers=answers))
