"""Events over every wire, through the public client."""

import asyncio
from datetime import UTC, datetime
from itertools import pairwise

import pytest

import tidewire
from support.scripted import eventually
from tidewire import errors
from tidewire.v1 import common_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 20.0


async def take(subscription: tidewire.Subscription, count: int) -> list[tidewire.Message]:
    """The next messages."""
    return [await subscription.next(timeout_s=WAIT_S) for _ in range(count)]


async def test_wildcards_choose_what_a_live_subscription_gets(
    client: tidewire.Client, name: str
) -> None:
    """A star is one token, a final > is one or more, and a message comes once for all matches."""
    async with (
        client.events.subscribe(f"{name}.*.x") as star,
        client.events.subscribe([f"{name}.>", f"{name}.a.x"]) as rest,
    ):
        for subject in ("a.x", "a.y", "b.x", "a.x.deep"):
            await client.events.publish(f"{name}.{subject}", subject)
        starred = await take(star, 2)
        all_ = await take(rest, 4)
        waiting = (star.waiting, rest.waiting)

    assert ["a.x", "b.x"] == [m.payload.decode() for m in starred]
    assert [b"a.x", b"a.y", b"b.x", b"a.x.deep"] == [m.payload for m in all_]
    assert (0, 0) == waiting


async def test_headers_and_order_survive(client: tidewire.Client, name: str) -> None:
    """Keys may repeat, values are bytes, and one publisher's order is kept on its subject."""
    headers = [("k", b"\x00\xff"), ("k", b"2"), ("trace", b"")]
    async with client.events.subscribe(name) as subscription:
        await client.events.publish(name, b"", headers=headers)
        await client.events.publish_many(name, [str(number) for number in range(500)])
        first = await subscription.next(timeout_s=WAIT_S)
        numbers = [int(m.payload) for m in await take(subscription, 500)]

    assert headers == list(first.headers)
    assert list(range(500)) == numbers


async def test_a_queue_group_shares_and_others_get_everything(
    client: tidewire.Client, name: str
) -> None:
    """Each batch goes to one member of a group, and to everybody who is in none."""
    shared: list[list[bytes]] = [[], []]
    alone: list[bytes] = []
    async with (
        client.events.subscribe(name, group="g", handler=lambda m: shared[0].append(m.payload)),
        client.events.subscribe(name, group="g", handler=lambda m: shared[1].append(m.payload)),
        client.events.subscribe(name, handler=lambda m: alone.append(m.payload)),
    ):
        sent = [str(number).encode() for number in range(60)]
        for payload in sent:
            await client.events.publish(name, payload)
        await eventually(lambda: len(alone) == 60 and sum(map(len, shared)) == 60)

    assert sent == alone
    assert sorted(sent) == sorted(shared[0] + shared[1])
    assert all(shared), "one member did everything"


@pytest.mark.needs("large")
async def test_a_slow_live_reader_is_told_what_it_lost(client: tidewire.Client, name: str) -> None:
    """What a reader that takes nothing missed is counted, and later messages come again."""
    lost: list[int] = []
    options = {"window_messages": 4, "window_bytes": 1 << 20, "on_lost": lost.append}
    async with client.events.subscribe(name, **options) as subscription:  # type: ignore[arg-type]
        body = bytes(200_000)
        for _ in range(70):  # 14 MB: over what the server keeps for one subscriber
            await client.events.publish(name, body)
        await client.events.publish(name, b"last")
        seen = 0
        while True:
            message = await subscription.next(timeout_s=WAIT_S)
            seen += 1
            if message.payload == b"last":
                break
        assert 71 == seen + subscription.lost

    assert subscription.lost > 0
    assert sum(lost) == subscription.lost


@pytest.mark.parametrize("limit", ["messages", "bytes", "age"])
async def test_retention_forgets_the_oldest(client: tidewire.Client, name: str, limit: str) -> None:
    """By count, bytes or age the first ones go; sequences are not used again."""
    stream = client.events.stream(name)
    options = {
        "messages": {"messages_max": 3},
        "bytes": {"bytes_max": 3_000},
        "age": {"age_max_s": 0.3},
    }[limit]
    await stream.create(name, **options)  # type: ignore[arg-type]
    for number in range(6):
        await client.events.publish(name, bytes([number]) * 700)
    async with asyncio.timeout(WAIT_S):
        # Each look is a call: the server has its turn.
        while (await stream.info()).state.first_sequence < 4:
            pass
    ack = await client.events.publish(name, b"")

    assert 7 == ack.sequence


async def test_a_full_stream_may_refuse(client: tidewire.Client, name: str) -> None:
    """With discard="new" what is over the limit is refused and what is kept stays."""
    stream = client.events.stream(name)
    await stream.create(name, messages_max=2, discard="new")
    for payload in ("1", "2"):  # one by one: purging removes whole batches
        await client.events.publish(name, payload)
    with pytest.raises(errors.StreamFull):
        await client.events.publish(name, "3")

    assert 2 == (await stream.info()).state.messages
    await stream.purge(1)
    assert 3 == (await client.events.publish(name, "3")).sequence


async def test_streams_refuse_what_contradicts(client: tidewire.Client, name: str) -> None:
    """The same stream may be made again, another of that name or subject may not."""
    stream = client.events.stream(name)
    await stream.create(f"{name}.>")
    await stream.create(f"{name}.>")
    with pytest.raises(errors.StreamExists):
        await stream.create(f"{name}.a")
    with pytest.raises(errors.SubjectOverlap):
        await client.events.stream(f"{name}2").create(f"{name}.*.x")
    await stream.update(paused=True)
    with pytest.raises(errors.StreamPaused):
        await client.events.publish(f"{name}.a", "x")
    await stream.update(paused=False)
    assert 1 == (await client.events.publish(f"{name}.a", "x")).sequence
    await stream.delete()
    with pytest.raises(errors.StreamNotFound):
        await stream.info()


async def test_acknowledgements_state_their_durability(client: tidewire.Client, name: str) -> None:
    """FSYNC by default where a stream takes it, MEMORY where none does, never less than asked."""
    await client.events.stream(name).create(f"{name}.kept")
    kept = await client.events.publish(f"{name}.kept", "x")
    live = await client.events.publish(f"{name}.live", "x")
    with pytest.raises(errors.NoStream):
        await client.events.publish(f"{name}.live", "x", durability="os")
    with pytest.raises(errors.DurabilityUnavailable):
        await client.events.publish(f"{name}.kept", "x", durability="quorum")

    fsync, memory = common_pb2.DURABILITY_FSYNC, common_pb2.DURABILITY_MEMORY
    assert (fsync, memory) == (kept.durability, live.durability)
    assert 1 == (await client.events.stream(name).info()).state.last_sequence


async def test_a_message_id_is_stored_once(client: tidewire.Client, name: str) -> None:
    """Also inside of a batch; an expected last sequence that is wrong stores nothing."""
    await client.events.stream(name).create(name)
    await client.events.publish(name, "a", message_id="1")
    again = await client.events.publish(name, "a", message_id="1")
    await client.events.publish_many(name, ["a", "b", "c"], message_ids=["1", "2", "2"])
    with pytest.raises(errors.WrongLastSequence) as caught:
        await client.events.publish(name, "d", expected_last_sequence=9)
    right = await client.events.publish(name, "d", expected_last_sequence=2)
    messages, _ = await client.events.fetch_from(name)

    assert (True, 1) == (again.duplicate, again.sequence)
    assert [b"a", b"b", b"d"] == [m.payload for m in messages]
    assert 3 == right.sequence
    assert "2" in str(caught.value)


async def test_reading_starts_where_it_is_told(client: tidewire.Client, name: str) -> None:
    """All, a sequence, a time, the last, and only what comes; then it follows."""
    await client.events.stream(name).create(name)
    for number in range(1, 4):
        await client.events.publish(name, str(number))
    await asyncio.sleep(0.01)
    middle = datetime.now(UTC)
    await asyncio.sleep(0.01)
    for number in range(4, 6):
        await client.events.publish(name, str(number))
    seen = {}
    for start in ("all", 2, middle, "last", "new"):
        async with client.events.read(name, start=start) as reading:
            await client.events.publish(name, "next")
            message = await reading.next(timeout_s=WAIT_S)
            seen[str(start)] = message.sequence

    # One more is published at each start.
    assert [1, 2, 4, 9, 10] == [
        seen["all"],
        seen["2"],
        seen[str(middle)],
        seen["last"] + 1,
        seen["new"],
    ]


async def test_a_consumer_settles_in_every_way(client: tidewire.Client, name: str) -> None:
    """Done, again after a delay, given up with a reason, given up after too many deliveries."""
    await client.events.stream(f"{name}dead").create(f"{name}.dead")
    stream = client.events.stream(name)
    await stream.create(name)
    consumer = stream.consumer("c")
    await consumer.create(deliveries_max=2, dead_letter_stream=f"{name}dead")
    await client.events.publish_many(name, ["done", "later", "never", "hopeless"])
    loop = asyncio.get_running_loop()
    times: list[float] = []
    async with client.events.consume(name, "c") as consuming:
        while (await consumer.info()).state.ack_floor < 4:
            try:
                message = await consuming.next(timeout_s=1.0)
            except errors.DeadlineExceeded:
                continue
            if message.payload == b"never":
                await message.terminate("no good")
            elif message.payload == b"hopeless":
                await message.retry(0.0, reason="tried")
            elif message.payload == b"later" and message.attempt == 1:
                times.append(loop.time())
                await message.retry(0.3)
            else:
                times.append(loop.time())
                await message.ack(confirm=True)
    dead, _ = await client.events.fetch_from(f"{name}dead")

    assert times[-1] - times[0] >= 0.25
    letters = {m.payload: m.dead_letter for m in dead}
    assert {b"never", b"hopeless"} == set(letters)
    never, hopeless = letters[b"never"], letters[b"hopeless"]
    assert never is not None
    assert hopeless is not None
    assert ("no good", 1, 3) == (never.reason, never.attempts, never.sequence)
    assert ("tried", 2, "c") == (hopeless.reason, hopeless.attempts, hopeless.consumer)
    assert 2 == (await consumer.info()).state.given_up


async def test_silence_is_a_redelivery_and_extension_holds_it_off(
    client: tidewire.Client, name: str
) -> None:
    """After the ack wait an unsettled message comes again; an extension starts the wait anew."""
    stream = client.events.stream(name)
    await stream.create(name)
    await stream.consumer("c").create(ack_wait_s=0.6)
    await client.events.publish(name, "x")
    loop = asyncio.get_running_loop()
    async with client.events.consume(name, "c") as consuming:
        first = await consuming.next(timeout_s=WAIT_S)
        began = loop.time()
        await asyncio.sleep(0.4)
        await first.extend()
        second = await consuming.next(timeout_s=WAIT_S)
        waited_s = loop.time() - began
        await second.ack(confirm=True)
        with pytest.raises(errors.TidewireError):
            await first.ack(confirm=True)

    assert (1, 2) == (first.attempt, second.attempt)
    assert waited_s >= 0.95


async def test_backoff_sets_the_time_between_deliveries(client: tidewire.Client, name: str) -> None:
    """Entry by entry, the last one repeats."""
    stream = client.events.stream(name)
    await stream.create(name)
    await stream.consumer("c").create(backoff_s=[0.1, 0.3])
    await client.events.publish(name, "x")
    loop = asyncio.get_running_loop()
    times = []
    async with client.events.consume(name, "c") as consuming:
        for _ in range(4):
            message = await consuming.next(timeout_s=WAIT_S)
            times.append(loop.time())
            await message.retry()
    gaps = [after - before for before, after in pairwise(times)]

    assert gaps[0] >= 0.08
    assert gaps[1] >= 0.28
    assert gaps[2] >= 0.28


async def test_a_consumer_is_shared(client: tidewire.Client, name: str) -> None:
    """Two takers of one consumer get everything between them; one that goes leaves its part."""
    stream = client.events.stream(name)
    await stream.create(name)
    await stream.consumer("c").create()
    got: list[bytes] = []
    sent = [str(number).encode() for number in range(200)]
    for begin in range(0, 200, 10):
        await client.events.publish_many(name, sent[begin : begin + 10])
    idle = await client.events.consume(name, "c", window_messages=20)
    await idle.next(timeout_s=WAIT_S)  # it holds some and settles none
    async with client.events.consume(name, "c", handler=lambda m: got.append(m.payload)):
        await eventually(lambda: len(got) >= 100)
        await idle.close()
        await eventually(lambda: len(set(got)) == 200)

    assert sorted(sent) == sorted(set(got))


async def test_fetch_and_acknowledge_do_the_same_by_calls(
    client: tidewire.Client, name: str
) -> None:
    """Fetch waits for the first message, and what is not settled comes again."""
    stream = client.events.stream(name)
    await stream.create(name)
    consumer = stream.consumer("c")
    await consumer.create(ack_wait_s=0.2)
    waiting = asyncio.create_task(client.events.fetch(name, "c", wait_s=20))
    await client.events.publish_many(name, ["1", "2"])
    fetched = await waiting
    await fetched[0].ack(confirm=True)
    again = await client.events.fetch(name, "c", wait_s=20)
    await again[0].terminate("enough")
    async with asyncio.timeout(WAIT_S):
        while (await consumer.info()).state.ack_floor < 2:
            pass

    assert [b"1", b"2"] == [m.payload for m in fetched]
    assert [(b"2", 2)] == [(m.payload, m.attempt) for m in again]
    assert [] == await client.events.fetch(name, "c")


async def test_pipelined_publishing_acknowledges_everything(
    client: tidewire.Client, name: str
) -> None:
    """Thousands on their way at a time are stored once and in order."""
    stream = client.events.stream(name)
    await stream.create(name)
    async with client.events.publisher(stream=name, durability="fsync") as publisher:
        for number in range(5_000):
            await publisher.publish(name, str(number))
        await publisher.flush()
    messages, following = await client.events.fetch_from(name, messages_max=10_000)

    assert 5_000 == (await stream.info()).state.messages
    assert [str(number).encode() for number in range(len(messages))] == [
        m.payload for m in messages
    ]
    assert len(messages) + 1 == following
