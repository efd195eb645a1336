"""A publisher that is closed, against the real server."""

import asyncio
from pathlib import Path

import pytest

import tidewire
from support.scripted import Conversation, ScriptedEvents, client_of, events_of
from support.server import running
from tidewire.client import stream

MESSAGES = 40_000
WAIT_S = 20.0


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


async def test_a_publisher_given_up_while_it_opens_ends_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled before the greeting, it says that it sends no more: nobody waits for a limit."""
    monkeypatch.setattr(stream, "END_TIMEOUT_S", 2 * WAIT_S)
    called, cancelled = asyncio.Event(), asyncio.Event()
    ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def script(conversation: Conversation) -> None:
        called.set()
        await cancelled.wait()
        await conversation.greet()
        ended.set_result(await conversation.read())

    events = events_of(ScriptedEvents(publish=[script]))
    async with client_of(events, timeout_s=2 * WAIT_S) as client:
        opening = asyncio.ensure_future(client.events.publisher().__aenter__())
        async with asyncio.timeout(WAIT_S):
            await called.wait()
            opening.cancel()
            await asyncio.sleep(0)  # the cancellation reaches the opener before the greeting
            cancelled.set()
            assert None is await ended
        await asyncio.wait([opening])

    assert opening.cancelled()
