"""The client over datagrams that are lost: all is done once, and what is lossy counts its gaps."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import tidewire
from support.impairment import Impairment, ImpairmentProxy, impaired
from support.server import Running, running
from tidewire.errors import MessageTooLarge, WireUnsuitable
from tidewire.transport.udp import DatagramChannel
from tidewire.wire.spliced import SPLICED_BYTES_MIN

LIMIT_S = 60.0
LOSSY = Impairment(loss=0.2, duplication=0.05, reordering=0.1, reordering_s=0.002)


@asynccontextmanager
async def connected(
    server: Running, impairment: Impairment, *, down: Impairment | None = None
) -> AsyncIterator[tuple[tidewire.Client, ImpairmentProxy]]:
    """Connect through a proxy that impairs both ways."""
    host, port = server.url("udp").removeprefix("udp://").split(":")
    async with (
        impaired((host, int(port)), up=impairment, down=down, seed=11) as proxy,
        tidewire.connect(f"udp://127.0.0.1:{proxy.address[1]}", timeout_s=LIMIT_S) as client,
    ):
        yield client, proxy


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    """A server on UDP and TCP."""
    async with running(tmp_path, ("udp", "tcp")) as it:
        yield it


async def test_each_put_happens_once(server: Running) -> None:
    """A hundred puts through 20 % loss make a hundred revisions, not one more."""
    async with connected(server, LOSSY) as (client, proxy):
        before = (await client.state.put("k", "0")).revision
        entries = [await client.state.put("k", str(number)) for number in range(100)]
        changes = [event async for event in client.state.history("k")]

    assert list(range(before + 1, before + 101)) == [entry.revision for entry in entries]
    assert 101 == len(changes)
    assert proxy.sent_up.lost > 0


async def test_each_publish_is_stored_once(server: Running) -> None:
    """Publishing through loss stores every message once and in order."""
    async with connected(server, LOSSY) as (client, _):
        await client.events.stream("s").create("s")
        async with client.events.publisher() as publisher:
            for number in range(300):
                await publisher.publish("s", str(number))
            await publisher.flush()
        state = (await client.events.stream("s").info()).state
        read: list[str] = []
        async with client.events.read("s") as reading:
            while len(read) < 300:
                read.append((await reading.next(timeout_s=LIMIT_S)).payload.decode())

    assert 300 == state.messages
    assert [str(number) for number in range(300)] == read


async def test_a_consumer_gets_and_settles_everything(server: Running) -> None:
    """A durable consumer over loss: all messages, acknowledgements that hold, nothing left over."""
    async with connected(server, LOSSY) as (client, _):
        stream = client.events.stream("s")
        await stream.create("s")
        await stream.consumer("c").create(ack_wait_s=5.0)
        await client.events.publish_many("s", [str(number) for number in range(100)])
        seen: set[str] = set()
        async with client.events.consume("s", "c") as consuming:
            while len(seen) < 100:
                message = await consuming.next(timeout_s=LIMIT_S)
                seen.add(message.payload.decode())
                await message.ack()
        state = (await stream.consumer("c").info()).state

    assert {str(number) for number in range(100)} == seen
    assert 100 == state.ack_floor


async def test_what_a_closed_consumer_had_is_for_others_at_once(server: Running) -> None:
    """Messages that were taken and not settled go back when the subscription closes."""
    async with connected(server, Impairment()) as (client, _):
        stream = client.events.stream("s")
        await stream.create("s")
        await stream.consumer("c").create(ack_wait_s=300.0)
        await client.events.publish_many("s", ["a", "b", "c"])
        async with client.events.consume("s", "c") as first:
            await (await first.next(timeout_s=LIMIT_S)).ack()
            await first.next(timeout_s=LIMIT_S)
        async with client.events.consume("s", "c") as second:
            again = [(await second.next(timeout_s=LIMIT_S)).payload for _ in range(2)]

    assert [b"b", b"c"] == again


async def test_a_watch_sees_every_change_in_order(server: Running) -> None:
    """A watch over loss: the snapshot, then every change, none left out."""
    async with (
        connected(server, LOSSY) as (client, _),
        tidewire.connect(server.url("tcp")) as writer,
    ):
        for number in range(20):
            await writer.state.put(f"w/{number:02}", str(number))
        async with client.state.watch("w/") as watch:
            events = [await watch.next(timeout_s=LIMIT_S) for _ in range(21)]
            for number in range(50):
                await writer.state.put("w/x", str(number))
            events += [await watch.next(timeout_s=LIMIT_S) for _ in range(50)]

    expected = [str(number).encode() for number in [*range(20), *range(50)]]
    assert expected == [event.value for event in events if event.kind.value != "synced"]


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.2])
async def test_a_lossy_subscription_counts_its_gaps(server: Running, loss: float) -> None:
    """What arrived and what is counted as lost make up what was published, to the message."""
    published = 400
    down = Impairment(loss=loss, duplication=loss / 2, reordering=loss / 2, reordering_s=0.002)
    async with (
        connected(server, Impairment(), down=down) as (client, proxy),
        tidewire.connect(server.url("tcp")) as writer,
        client.events.subscribe("live.>") as subscription,
    ):
        got: list[int] = []
        reading = asyncio.create_task(collect(subscription, got))
        for number in range(published):
            await writer.events.publish("live.a", str(number))
        async with asyncio.timeout(LIMIT_S):
            while len(got) + subscription.lost < published:  # noqa: ASYNC110 (it tells nobody)
                await asyncio.sleep(0.02)
        reading.cancel()
        gaps = client.channel.counters.gaps  # type: ignore[attr-defined]  # a raw channel's

    assert published == len(got) + subscription.lost
    assert sorted(set(got)) == got
    assert (loss > 0) == (subscription.lost > 0)
    assert subscription.lost == gaps
    if loss:
        assert proxy.sent_down.lost > 0
        assert len(got) > published * (1 - 3 * loss)


async def collect(subscription: tidewire.Subscription, got: list[int]) -> None:
    """Keep what comes."""
    async for message in subscription:
        got.append(int(message.payload))


async def test_a_long_message_does_not_end_a_lossy_subscription(server: Running) -> None:
    """One whose body is kept apart fits no datagram: it is lost and told, and the rest comes."""
    async with (
        connected(server, Impairment()) as (client, _),
        tidewire.connect(server.url("tcp")) as writer,
        client.events.subscribe("live.>") as subscription,
    ):
        got: list[int] = []
        reading = asyncio.create_task(collect(subscription, got))
        await writer.events.publish("live.a", "1")
        await writer.events.publish("live.a", b"0" * SPLICED_BYTES_MIN)
        await writer.events.publish("live.a", "2")
        async with asyncio.timeout(LIMIT_S):
            while len(got) + subscription.lost < 3:  # noqa: ASYNC110 (it tells nobody)
                await asyncio.sleep(0.02)
        reading.cancel()

    assert [1, 2] == got
    assert 1 == subscription.lost
    assert 0 == subscription.reopened


async def test_lossy_publishes_say_how_many_arrived(server: Running) -> None:
    """One-way publishes are not waited for; the rate that arrived is measured and true."""
    async with (
        connected(server, Impairment(loss=0.2)) as (client, proxy),
        tidewire.connect(server.url("tcp")) as reader,
    ):
        await reader.events.stream("s").create("s")
        for number in range(400):
            await client.events.publish_lossy("s", str(number))
            if number % 50 == 0:
                await client.info()  # a moment for the socket
        channel: Any = client.channel
        assert isinstance(channel, DatagramChannel)
        sent, arrived = await channel.oneways()
        async with asyncio.timeout(LIMIT_S):  # what has arrived is being stored
            while (await reader.events.stream("s").info()).state.messages < arrived:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        stored = (await reader.events.stream("s").info()).state.messages

    assert 400 == sent
    assert arrived == stored
    assert 200 < arrived < 400
    assert proxy.sent_up.lost > 0


async def test_what_cannot_be_carried_says_what_can(server: Running) -> None:
    """Too long for a datagram, or a stream: a typed error, at once, with figures and advice."""
    async with connected(server, Impairment()) as (client, _):
        with pytest.raises(MessageTooLarge) as too_long:
            await client.state.put("k", bytes(2_000))
        with pytest.raises(WireUnsuitable, match="tcp://"):
            await client.queries.gather("q")

        assert 1_200 == too_long.value.figure("limit_bytes")
        assert (too_long.value.figure("size_bytes") or 0) > 2_000


async def test_servers_behind_one_client_over_datagrams(server: Running) -> None:
    """A client of several addresses subscribes by polls too, when their wire carries no streams."""
    async with tidewire.connect([server.url("udp"), server.url("udp")]) as client:
        await client.events.stream("s").create("s")
        await client.events.publish("s", "x")
        async with client.events.read("s") as reading:
            assert b"x" == (await reading.next(timeout_s=LIMIT_S)).payload


async def test_queries_and_members_over_loss(server: Running) -> None:
    """A query is answered by its responder once, a member beats, though every fifth is lost."""
    asked: list[str] = []

    async def answer(query: Any) -> str:
        asked.append(query.text)
        await asyncio.sleep(0.3)
        return f"{query.text}!"

    async with (
        connected(server, LOSSY) as (client, _),
        tidewire.connect(server.url("tcp")) as responder,
        responder.queries.serve("q", answer),
        client.members.join("node-u", lease_s=3.0) as membership,
    ):
        replies = await asyncio.gather(*(client.queries.ask("q", str(n)) for n in range(30)))
        members = await client.members.list()

        assert [f"{number}!" for number in range(30)] == [reply.text for reply in replies]
        assert sorted(map(str, range(30))) == sorted(asked)
        assert ["node-u"] == [member.node_id for member in members if member.node_id == "node-u"]
        assert membership.node_id == "node-u"
