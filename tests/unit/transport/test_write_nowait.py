"""Writing past the event loop: only when nothing is in the way, and never without a bound."""

import asyncio
from typing import Any

import pytest

from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echo_service import EchoService
from support.echoing import serving_echo
from tidewire.transport import channel

LIMIT_S = 20.0
PIECE = 100_000
PIECES_MAX = 10_000

# Generated servicers say that streams are iterators; these write to the context.
_Echo: Any = EchoService


class Pushing(_Echo):  # type: ignore[misc]
    """Pushes until the wire has something in the way, and again when that has gone."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[int] = []
        self.filled = asyncio.Event()

    async def Repeat(self, request: Any, context: Any) -> None:
        """Fill the wire twice."""
        response = echo_pb2.RepeatResponse(body=bytes(PIECE))
        for _ in range(2):
            count = 0
            while count < PIECES_MAX and context.write_nowait(response):
                count += 1
            self.taken.append(count)
            self.filled.set()
            await context.write(response)


async def test_writing_stops_where_the_wire_does() -> None:
    """
    What the credit and the buffers do not take is refused, and may be written as usual; all that
    was taken comes, in order with the rest.
    """
    service = Pushing()
    async with serving_echo("tcp", service=service) as (url, _, _), channel(url) as made:
        call = echo_pb2_grpc.EchoServiceStub(made).Repeat(echo_pb2.RepeatRequest(), timeout=LIMIT_S)
        async with asyncio.timeout(LIMIT_S):
            await service.filled.wait()
            got = [len(response.body) async for response in call]

    assert all(0 < count < PIECES_MAX for count in service.taken)
    assert [PIECE] * (sum(service.taken) + 2) == got


async def test_nothing_is_taken_after_the_end() -> None:
    """A call that has ended takes nothing, and says so instead of raising."""
    seen: list[bool] = []
    done = asyncio.Event()

    class Late(_Echo):  # type: ignore[misc]
        async def Repeat(self, request: Any, context: Any) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append(context.write_nowait(echo_pb2.RepeatResponse()))
                done.set()

    async with serving_echo("tcp", service=Late()) as (url, _, _), channel(url) as made:
        call = echo_pb2_grpc.EchoServiceStub(made).Repeat(echo_pb2.RepeatRequest(), timeout=0.1)
        with pytest.raises(Exception, match=r"(?i)deadline"):
            await call.read()
        async with asyncio.timeout(LIMIT_S):
            await done.wait()

    assert [False] == seen
