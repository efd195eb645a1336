"""A responder of queries over a plain stub, for tests of the service."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from tidewire.v1 import common_pb2, query_pb2, query_pb2_grpc

WAIT_S = 10.0


class TestResponder:
    """
    One Serve stream, answered by hand.

    Attributes:
        opened: What the server said first.
    """

    __test__ = False

    def __init__(self, call: Any) -> None:
        self.call = call
        self.opened = common_pb2.Opened()

    async def next(self) -> query_pb2.ServeResponse:
        """Read the next response of the server."""
        async with asyncio.timeout(WAIT_S):
            response = await self.call.read()
        assert response is not grpc.aio.EOF, "the stream has ended"
        assert isinstance(response, query_pb2.ServeResponse)
        return response

    async def query(self) -> query_pb2.ServeQuery:
        """Read the next response, which must be a query."""
        response = await self.next()
        assert response.WhichOneof("kind") == "query", response
        return response.query

    async def reply(self, query_id: int, data: bytes, *, end: bool = True) -> None:
        """Answer."""
        payload = common_pb2.Payload(data=data)
        reply = query_pb2.ServeReply(query_id=query_id, payload=payload, end=end)
        await self.call.write(query_pb2.ServeRequest(reply=reply))

    async def send_reply(self, reply: query_pb2.ServeReply) -> None:
        """Answer with anything."""
        await self.call.write(query_pb2.ServeRequest(reply=reply))

    async def drain(self) -> None:
        """Take no more."""
        await self.call.write(query_pb2.ServeRequest(drain=True))

    async def ended(self) -> grpc.StatusCode:
        """Wait for the end of the stream, dropping what comes before it."""
        async with asyncio.timeout(WAIT_S):
            try:
                while await self.call.read() is not grpc.aio.EOF:
                    continue
            except grpc.aio.AioRpcError as error:
                return error.code()
            code = await self.call.code()
            assert isinstance(code, grpc.StatusCode)
            return code


@asynccontextmanager
async def responding(
    channel: grpc.aio.Channel, *subjects: str, **options: Any
) -> AsyncIterator[TestResponder]:
    """Open a responder; by the time it is there it gets queries."""
    call = query_pb2_grpc.QueryServiceStub(channel).Serve()
    responder = TestResponder(call)
    opening = query_pb2.ServeOpen(subjects=subjects or ("a",), **options)
    await call.write(query_pb2.ServeRequest(open=opening))
    first = await responder.next()
    assert first.WhichOneof("kind") == "opened"
    responder.opened.CopyFrom(first.opened)
    try:
        yield responder
    finally:
        call.cancel()


async def responding_all(
    channel: grpc.aio.Channel, stack: Any, names: Sequence[str], **options: Any
) -> list[TestResponder]:
    """Open several responders of subject ``a``; their client ids are the names."""
    return [
        await stack.enter_async_context(responding(channel, client_id=name, **options))
        for name in names
    ]
