"""Requests of a stream taken in the turn they come in, without waking the handler."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from tidewire.transport import RawServer, channel

LIMIT_S = 10.0
METHOD = "/test.Streams/Talk"


class Listener:
    """
    Takes what a rule allows, reads the rest.

    Attributes:
        heard: Requests in order, and whether each was taken at once.
        go_on: Until it is set, the handler is busy with what it read.
    """

    def __init__(self, declined: str) -> None:
        self.heard: list[tuple[str, bool]] = []
        self.declined = declined
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()
        self._busy = False

    async def talk(self, requests: AsyncIterator[bytes], context: Any) -> None:
        self.heard.append(((await anext(requests)).decode(), False))
        context.take_by(self.take)
        await context.write(b"ready")
        async for request in requests:
            self._busy = True
            await self.go_on.wait()
            self._busy = False
            self.heard.append((request.decode(), False))
        self.ended.set()

    def take(self, request: bytes) -> bool:
        if self._busy or request.decode() in self.declined:
            return False
        self.heard.append((request.decode(), True))
        return True


@asynccontextmanager
async def talking(listener: Listener) -> AsyncIterator[Any]:
    handlers: Any = {"Talk": grpc.stream_stream_rpc_method_handler(cast("Any", listener.talk))}
    server = RawServer()
    server.add_registered_method_handlers("test.Streams", handlers)
    url = server.listen("tcp://127.0.0.1:0").url.text
    await server.start()
    try:
        async with channel(url) as made:
            call: Any = made.stream_stream(METHOD)()
            await call.write(b"a")
            assert b"ready" == await call.read()
            yield call
    finally:
        await server.stop(None)


@pytest.mark.parametrize("declined", ["", "c", "bd"])
async def test_order_holds_between_what_is_taken_and_what_is_read(declined: str) -> None:
    """What comes while an earlier one waits to be read, waits behind it."""
    listener = Listener(declined)
    async with talking(listener) as call:
        for each in (b"b", b"c", b"d", b"e"):
            await call.write(each)
        listener.go_on.set()
        await call.done_writing()
        async with asyncio.timeout(LIMIT_S):
            await listener.ended.wait()
            assert grpc.StatusCode.OK == await call.code()

    assert list("abcde") == [each for each, _ in listener.heard]
    at_once = "".join(each for each, taken in listener.heard if taken)
    assert {"": "bcde", "c": "b", "bd": ""}[declined] == at_once


async def test_what_nothing_holds_back_is_taken_at_once() -> None:
    """The handler is not woken for it; the end reaches it all the same."""
    listener = Listener("")
    listener.go_on.set()
    async with talking(listener) as call:
        async with asyncio.timeout(LIMIT_S):
            await call.write(b"b")
            await call.write(b"c")
            await call.done_writing()
            await listener.ended.wait()

    assert [("a", False), ("b", True), ("c", True)] == listener.heard


async def test_credit_is_given_back_for_what_is_taken() -> None:
    """Far more than a window goes through."""
    listener = Listener("")
    listener.go_on.set()
    async with talking(listener) as call:
        async with asyncio.timeout(LIMIT_S):
            for _ in range(64):
                await call.write(b"x" * 256 * 1024)
            await call.done_writing()
            await listener.ended.wait()

    assert 65 == len(listener.heard)
