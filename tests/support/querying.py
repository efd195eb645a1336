"""Servers of queries that do what a test's script says, on gRPC and on a raw wire."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from support.scripted import QUICK, WAIT_S, Conversation, Script, Scripted, idle
from tidewire.client.client import Client
from tidewire.client.session import ClientOptions
from tidewire.transport import RawServer, channel
from tidewire.v1 import common_pb2, query_pb2, query_pb2_grpc
from tidewire_server.router import Router

SCHEMES = ("grpc", "tcp")
"""One wire that reads and writes by tasks, one that hands over in the turn that brings."""

_Queries: Any = query_pb2_grpc.QueryServiceServicer


class ScriptedQueries(_Queries):  # type: ignore[misc]  # answers only what a test asks
    """Queries by scripts; a call of its own is answered by what was asked, in capitals."""

    def __init__(self, ask_many: Sequence[Script] = (), serve: Sequence[Script] = ()) -> None:
        self.asking = Scripted(query_pb2.AskManyResponse, ask_many)
        self.serving = Scripted(query_pb2.ServeResponse, serve)
        self.by_call: list[query_pb2.AskRequest] = []

    async def Ask(self, request: query_pb2.AskRequest, context: Any) -> query_pb2.AskResponse:
        """Answer at once."""
        self.by_call.append(request)
        return query_pb2.AskResponse(
            payload=common_pb2.Payload(data=request.payload.data.upper()),
            request_id=request.request_id,
            responder="by call",
        )

    async def AskMany(self, request_iterator: Any, context: Any) -> None:
        """Run the script of this call."""
        await self.asking.run(request_iterator, context)

    async def Serve(self, request_iterator: Any, context: Any) -> None:
        """Run the script of this call."""
        await self.serving.run(request_iterator, context)


class RefusingQueries(ScriptedQueries):
    """Knows no AskMany, or does not allow it."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__()
        self.code = code
        self.refused = 0

    async def AskMany(self, request_iterator: Any, context: Any) -> None:
        """Refuse."""
        self.refused += 1
        await context.abort(self.code, "not here")


@asynccontextmanager
async def client_on(scheme: str, servicer: Any, **options: Any) -> AsyncIterator[Client]:
    """A client of a scripted servicer over a real socket, with quick retries."""
    options.setdefault("timeout_s", WAIT_S)
    options.setdefault("retry", QUICK)
    router: Any = Router()
    query_pb2_grpc.add_QueryServiceServicer_to_server(servicer, router)
    server: Any
    if scheme == "grpc":
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((router,))
        url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    else:
        server = RawServer((router,))
        url = server.listen(f"{scheme}://127.0.0.1:0").url.text
    await server.start()
    client = Client(url, channel(url), ClientOptions(**options))
    try:
        yield client
    finally:
        await client.close()
        await server.stop(0.2)
        # What has handlers may be remembered by caches; the calls must not be.
        for scripted in (servicer.asking, servicer.serving):
            for call in scripted.calls:
                call.context = call._iterator = None


async def warm(client: Client, subject: str = "warm") -> None:
    """Ask by a call, and wait until the stream that it opens is there."""
    await client.queries.ask(subject, b"first")
    await client.queries._asker.enter(WAIT_S)


def requests_of(call: Conversation, kind: str) -> list[Any]:
    """What a client sent of one kind."""
    return [getattr(each, kind) for each in call.requests if each.WhichOneof("kind") == kind]


def answering(
    answer: Callable[[query_pb2.Questions], Sequence[tuple[int, bytes]]],
) -> Script:
    """Script that answers each request by what ``answer`` makes of it."""

    async def script(call: Conversation) -> None:
        await call.greet()
        while (request := await call.read()) is not None:
            if request.WhichOneof("kind") == "questions":
                rows = answer(request.questions)
                answers = query_pb2.Answers(responder="scripted")
                answers.ids.extend(number for number, _ in rows)
                answers.bare.extend(body for _, body in rows)
                await call.write(answers=answers)

    return script


def echo(questions: query_pb2.Questions) -> Sequence[tuple[int, bytes]]:
    """Answer every question with itself, the last one first."""
    bodies = questions.bare or [payload.data for payload in questions.payloads]
    rows = [(questions.first_id + place, body) for place, body in enumerate(bodies)]
    return rows[::-1]


async def greet_and_idle(call: Conversation) -> None:
    """Greet, and answer nothing."""
    await call.greet()
    await idle(call)
