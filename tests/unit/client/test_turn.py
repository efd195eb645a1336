"""Who never runs out of work shares the event loop, by time and not by the number of messages."""

import asyncio

import pytest

from support.scripted import (
    Conversation,
    ScriptedEvents,
    client_of,
    events_of,
    eventually,
    forever,
    idle,
)
from tidewire.client import turn
from tidewire.client.message import Message
from tidewire.errors import ConnectionLost
from tidewire.v1 import event_pb2
from tidewire.wire.batch import encode_payloads

DELIVERIES = 64
STANDING, PASSING = 0.0, 2 * turn.TURN_S
"""What each look at the clock adds to it."""


class Rounds:
    """Counts how often the event loop comes round."""

    def __init__(self) -> None:
        self.count = 0
        self._on = True
        asyncio.get_running_loop().call_soon(self._again)

    def _again(self) -> None:
        self.count += 1
        if self._on:
            asyncio.get_running_loop().call_soon(self._again)

    def stop(self) -> None:
        """Count no more."""
        self._on = False


@pytest.fixture
def step_s(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """The clock that turns are measured with goes on by so much at each look, and else never."""
    step: float = request.param
    now_s = 0.0

    def look() -> float:
        nonlocal now_s
        now_s += step
        return now_s

    monkeypatch.setattr(turn, "perf_counter", look)
    return step


def several() -> event_pb2.Deliveries:
    """Small batches that come in one response."""
    deliveries = event_pb2.Deliveries()
    for number in range(DELIVERIES):
        batch = encode_payloads(f"a.{number}", [b"x"])
        deliveries.delivery.add(batch=batch)
    return deliveries


@pytest.mark.parametrize("step_s", [STANDING, PASSING], indirect=True)
@pytest.mark.parametrize("awaited", [False, True], ids=["function", "coroutine"])
async def test_a_subscription_lets_others_have_the_loop(step_s: float, awaited: bool) -> None:
    """Small deliveries that take no time are handled in one turn; those that take time are not."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.write(several=several())
        await forever(conversation)

    seen: list[int] = []
    rounds = Rounds()

    def handler(_message: Message) -> None:
        seen.append(rounds.count)

    async def waiting_handler(message: Message) -> None:
        handler(message)

    events = ScriptedEvents(subscribe=[serve])
    async with (
        client_of(events_of(events)) as client,
        client.events.subscribe("a.>", handler=waiting_handler if awaited else handler),
    ):
        await eventually(lambda: len(seen) == DELIVERIES)
    rounds.stop()

    assert (len(set(seen)) == 1) == (step_s == STANDING)


@pytest.mark.parametrize("step_s", [STANDING, PASSING], indirect=True)
async def test_a_publisher_lets_others_have_the_loop(step_s: float) -> None:
    """Messages on subjects of their own: there is room for all, but others wait for the loop."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        await idle(conversation)

    events = ScriptedEvents(publish=[serve])
    async with (
        client_of(events_of(events)) as client,
        client.events.publisher(acknowledge=False) as publisher,
    ):
        rounds = Rounds()
        for number in range(100):
            await publisher.publish(f"a.{number}", b"x")
        took = rounds.count
        rounds.stop()
        pending = publisher.pending_bytes

    assert pending > 0
    assert (took == 0) == (step_s == STANDING)


async def test_what_is_published_as_the_publisher_ends_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others, while they have the loop, close it: the message is not taken and forgotten."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        await idle(conversation)

    events = ScriptedEvents(publish=[serve])
    async with client_of(events_of(events)) as client:
        publisher = await client.events.publisher(acknowledge=False)

        async def end(_turn: turn.Turn) -> None:
            await publisher.close()

        monkeypatch.setattr(turn.Turn, "is_over", True)
        monkeypatch.setattr(turn.Turn, "end", end)
        await publisher.publish("a", b"x")
        with pytest.raises(ConnectionLost):
            await publisher.publish("b", b"y")
