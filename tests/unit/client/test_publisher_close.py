"""A publisher that is closed, against the real server."""

import asyncio
from pathlib import Path

import pytest

import tidewire
from support.server import running

MESSAGES = 40_000
WAIT_S = 30.0


@pytest.mark.parametrize("wire", ["grpc", "tcp"])
async def test_closing_drops_nothing_that_was_not_acknowledged(wire: str, tmp_path: Path) -> None:
    """A publisher without acknowledgements ends its stream; what is on its way still arrives."""
    received: list[bytes] = []
    everything = asyncio.Event()

    def handle(message: tidewire.Message) -> None:
        received.append(message.payload)
        if len(received) == MESSAGES:
            everything.set()

    async with (
        running(tmp_path, wires=(wire,)) as server,
        tidewire.connect(server.url(wire)) as client,
        client.events.subscribe("bulk", handler=handle) as subscription,
    ):
        async with client.events.publisher(acknowledge=False) as publisher:
            for i in range(MESSAGES):
                await publisher.publish("bulk", b"%08d" % i + b"x" * 120)
        async with asyncio.timeout(WAIT_S):
            await everything.wait()

        assert 0 == subscription.lost
    assert [b"%08d" % i for i in range(MESSAGES)] == [payload[:8] for payload in received]
