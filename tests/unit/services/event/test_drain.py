"""The server goes: every stream is told, what was begun is done, and streams end cleanly."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.events import WAIT_S, Events, event_service, payloads
from tidewire import errors
from tidewire.v1 import event_pb2
from tidewire.wire.batch import encode_payloads
from tidewire_server.services.event.allowance import Allowance
from tidewire_server.services.event.exchange import Exchange
from tidewire_server.services.event.live import LiveBuffer, LiveHub
from tidewire_server.services.event.publish_stream import PublishSession

GRACE_S = 30.0


@pytest.fixture
async def events(tmp_path: Path) -> AsyncIterator[Events]:
    async with event_service(tmp_path) as running:
        await running.create_stream("S", "s.>")
        yield running


async def test_every_stream_is_told_and_ends(events: Events) -> None:
    """Readers get what is there, then `draining`, then a clean end; new streams are refused."""
    await events.create_consumer("S", "c")
    await events.publish("s.a", [b"x"])
    streams = [
        await events.live("live"),
        await events.ordered("S", start=event_pb2.StartPosition(all=True)),
    ]

    events.core.drain.start(GRACE_S)

    for stream in streams:
        assert GRACE_S == (await stream.of_kind("draining")).draining.grace.seconds
        with pytest.raises(EOFError):
            while True:
                await stream.next()
    with pytest.raises(errors.Draining):
        await events.live("live")


async def test_live_subscribers_outlast_publishers(events: Events) -> None:
    """What publishers still send while the server drains reaches who listens."""
    publication = await events.publisher()
    live = await events.live("live")
    events.core.drain.start(GRACE_S)
    await live.of_kind("draining")
    await publication.publish(1, encode_payloads("live", [b"last"]))
    assert 1 == (await publication.results(1))[1].response.receivers
    assert ["draining"] == [response.WhichOneof("kind") for response in publication.skipped]
    await publication.call.done_writing()
    with pytest.raises(EOFError):
        await publication.next()

    assert [b"last"] == payloads(await live.delivery())
    with pytest.raises(EOFError):
        await live.next()


async def test_what_was_read_is_published_though_it_was_held_back(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of one request that wait for a subscriber when reading ends have their outcomes."""
    buffer = LiveBuffer(Allowance(), messages_max=1, bytes_max=1)
    held, go_on = asyncio.Event(), asyncio.Event()

    async def hold_back() -> None:
        held.set()
        await go_on.wait()

    monkeypatch.setattr(buffer, "hold_back", hold_back)
    monkeypatch.setattr(LiveHub, "holder", lambda *_: buffer)
    sessions: list[PublishSession] = []
    monkeypatch.setattr(
        Exchange, "add_session", lambda _, session: sessions.append(session), raising=True
    )
    publication = await events.publisher()
    several = event_pb2.PublishItems(
        item=[
            event_pb2.PublishItem(
                publish_id=number,
                request=event_pb2.PublishRequest(batch=encode_payloads("live", [b"x"])),
            )
            for number in (1, 2, 3)
        ]
    )
    await publication.call.write(event_pb2.PublishStreamRequest(several=several))
    async with asyncio.timeout(WAIT_S):
        await held.wait()
    sessions[0].end()
    await asyncio.sleep(0)
    go_on.set()

    assert {1, 2, 3} == set(await publication.results(3))
    with pytest.raises(EOFError):
        await publication.next()


async def test_deliveries_may_be_settled_and_no_new_ones_come(events: Events) -> None:
    """A consumer's subscription ends when what it has is settled."""
    await events.create_consumer("S", "c")
    one = await events.consume("S", "c")
    await events.publish("s.a", [b"x"] * 3)
    await one.delivery()
    events.core.drain.start(GRACE_S)
    await one.of_kind("draining")
    await events.publish("s.a", [b"x"])
    await one.settle(1, 2)
    assert not (await one.settle(3, 3)).failed

    with pytest.raises(EOFError):
        await one.next()
    assert 3 == (await events.consumer("S", "c")).state.ack_floor


async def test_the_end_of_the_grace_ends_the_rest(events: Events) -> None:
    """Who does not go by itself is ended cleanly before the server cuts it."""
    await events.create_consumer("S", "c")
    one = await events.consume("S", "c")
    publication = await events.publisher()
    await events.publish("s.a", [b"x"])
    await one.delivery()
    events.core.drain.start(0.3)
    await one.of_kind("draining")

    with pytest.raises(EOFError):
        await one.next()
    with pytest.raises(EOFError):
        while True:
            await publication.next()
