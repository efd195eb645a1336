"""Asking: what is known of a query whose connection was not there, or was lost."""

import socket
from typing import Any

import grpc
import pytest

import tidewire
from support.scripted import client_of
from tidewire.client.queries import Queries
from tidewire.client.responder import Query
from tidewire.client.session import ClientOptions, Session
from tidewire.errors import ConnectionLost, InvalidArgument, OutcomeUnknown
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
