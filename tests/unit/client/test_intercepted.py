"""Interceptors on a client's channel see the messages of the proto, however large they are."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

import tidewire
from support.server import running
from tidewire.v1 import event_pb2

LARGE = bytes(300_000)


class Looking(grpc.aio.StreamStreamClientInterceptor):
    """Keeps the types of what passes."""

    def __init__(self) -> None:
        self.requests: set[type] = set()
        self.responses: set[type] = set()

    async def intercept_stream_stream(
        self, continuation: Any, details: Any, requests: Any
    ) -> AsyncIterator[Any]:
        """Look at requests and responses."""

        async def looked_at() -> AsyncIterator[Any]:
            async for request in requests:
                self.requests.add(type(request))
                yield request

        call = await continuation(details, looked_at())

        async def answers() -> AsyncIterator[Any]:
            async for response in call:
                self.responses.add(type(response))
                yield response

        return answers()


@pytest.mark.parametrize("wire", ["tcp", "grpc"])
@pytest.mark.parametrize("servers", [1, 2])
async def test_large_messages_look_as_ever(wire: str, servers: int, tmp_path: Path) -> None:
    """Without interceptors long bodies go beside their messages; with them they do not."""
    looking = Looking()
    async with running(tmp_path, (wire,)) as server:
        urls = [server.url(wire)] * servers
        made = tidewire.channel(urls[0] if servers == 1 else urls, interceptors=[looking])
        async with (
            tidewire.connect(urls[0], channel=made) as client,
            client.events.subscribe("large") as messages,
        ):
            await client.events.publish("large", LARGE)
            message = await messages.next(timeout_s=10.0)

    assert LARGE == message.payload
    assert {event_pb2.PublishStreamRequest, event_pb2.SubscribeRequest} == looking.requests
    assert event_pb2.SubscribeResponse in looking.responses
    assert looking.responses <= {event_pb2.SubscribeResponse, event_pb2.PublishStreamResponse}
