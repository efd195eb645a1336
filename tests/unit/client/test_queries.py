"""Asking: what is known of a query whose connection was not there, or was lost."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import tidewire
from support.scripted import client_of
from support.server import running
from tidewire.client.queries import Queries
from tidewire.client.responder import Query
from tidewire.client.session import ClientOptions, Session
from tidewire.errors import ConnectionLost, InvalidArgument, OutcomeUnknown, ResponderFailed
from tidewire.v1 import common_pb2, query_pb2, query_pb2_grpc

_Queries: Any = query_pb2_grpc.QueryServiceServicer


class Losing(_Queries):  # type: ignore[misc]
    """Takes a query, and the connection is lost."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def Ask(self, request: query_pb2.AskRequest, context: Any) -> None:
        """Lose it, with words of our choice."""
        self.asked.append(request.request_id)
        await context.abort(grpc.StatusCode.UNAVAILABLE, request.payload.data.decode())


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.mark.parametrize("scheme", ["tcp", "grpc"])
async def test_a_query_that_was_never_sent_is_no_unknown_outcome(scheme: str) -> None:
    """Without a connection nothing was asked, and the error says so on every wire."""
    async with tidewire.channel(f"{scheme}://127.0.0.1:{closed_port()}") as channel:
        with pytest.raises(ConnectionLost) as caught:
            await Queries(Session(channel, ClientOptions())).ask("prices", "x", timeout_s=10)

    assert "no" == caught.value.metadata["sent"]


@pytest.mark.parametrize("words", ["connection reset by peer", "cannot connect to the moon"])
async def test_a_query_whose_connection_was_lost_may_have_been_answered(words: str) -> None:
    """Whatever the words: only what certainly was not sent is not of unknown outcome."""
    servicer = Losing()
    registration = (query_pb2_grpc.add_QueryServiceServicer_to_server, servicer)
    async with client_of(registration) as client:
        with pytest.raises(OutcomeUnknown, match=words) as caught:
            await client.queries.ask("prices", words)

    assert [caught.value.request_id] == servicer.asked


def test_what_carries_a_payload_reads_it_the_same_way() -> None:
    """Bytes, text, headers, media type and JSON of a query; bad JSON is the asker's mistake."""
    payload = common_pb2.Payload(data=b'{"a": 1}', content_type="application/json")
    payload.header.add(key="k", value=b"v")
    query = Query(query_pb2.ServeQuery(payload=payload))

    assert (b'{"a": 1}', '{"a": 1}', {"a": 1}) == (query.payload, query.text, query.json())
    assert ([("k", b"v")], "application/json") == (list(query.headers), query.content_type)
    assert {} == Query(query_pb2.ServeQuery()).json()
    with pytest.raises(InvalidArgument):
        Query(query_pb2.ServeQuery(payload=common_pb2.Payload(data=b"{"))).json()


@pytest.mark.parametrize("wire", ["tcp", "grpc"])
@pytest.mark.parametrize("kind", ["bytes", "coroutine", "stream"])
async def test_an_answer_that_is_too_large_fails_its_query_alone(
    wire: str, kind: str, tmp_path: Path
) -> None:
    """It ended the responder's stream, and with it the other queries in hand."""

    def answer(query: Query) -> bytes:
        return bytes(20_000_000) if query.payload == b"large" else b"fine"

    async def later(query: Query) -> bytes:
        return answer(query)

    async def several(query: Query) -> AsyncIterator[bytes]:
        yield answer(query)

    handler: Any = {"bytes": answer, "coroutine": later, "stream": several}[kind]
    async with (
        running(tmp_path, (wire,)) as server,
        tidewire.connect(server.url(wire)) as client,
        client.queries.serve("a", handler) as responder,
    ):

        async def ask(body: bytes) -> Any:
            if kind != "stream":
                return (await client.queries.ask("a", body)).payload
            return b"".join([each.payload async for each in client.queries.ask_stream("a", body)])

        await ask(b"first")
        bodies = (b"x", b"large", b"y")
        got: list[Any] = await asyncio.gather(*map(ask, bodies), return_exceptions=True)

        assert b"fine" == got[0] == got[2] == await ask(b"z")
        assert isinstance(got[1], ResponderFailed)
        assert "20000000" in got[1].message
        assert 0 == responder.reopened
