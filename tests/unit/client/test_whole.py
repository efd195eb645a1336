"""The client and the real server together, on gRPC and on a raw wire."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import tidewire
from support.scripted import eventually
from support.server import Running, running
from tidewire import errors
from tidewire.client.client import Client, ConnectionState
from tidewire.client.responder import Query

WIRES = ("grpc", "tcp")


@pytest.fixture(params=WIRES)
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a server of its own."""
    async with (
        running(tmp_path, wires=(request.param,)) as server,
        tidewire.connect(server.url(request.param)) as made,
    ):
        yield made


async def test_connecting_knows_the_server(client: Client) -> None:
    """A client is connected when it was opened, and closed when it was closed."""
    states: list[ConnectionState] = []
    client.on_connection_change(states.append)

    info = await client.info()
    await client.close()

    assert "test-server" == info.node_id
    assert ConnectionState.CLOSED is client.connection_state
    assert ConnectionState.CLOSED is states[-1]
    with pytest.raises(errors.ConnectionLost):
        await client.info()


async def test_events_of_a_stream(client: Client) -> None:
    """What is published is stored once, read in order, consumed until it is settled."""
    stream = client.events.stream("orders")
    await stream.create("orders.>", description="tests")
    first = await client.events.publish("orders.a", "one", headers=[("k", b"v")], message_id="m")
    again = await client.events.publish("orders.a", "one", message_id="m")
    many = await client.events.publish_many("orders.b", [str(n) for n in range(5)])
    with pytest.raises(errors.WrongLastSequence):
        await client.events.publish("orders.a", "x", expected_last_sequence=2)
    with pytest.raises(errors.NoStream):
        await client.events.publish("elsewhere", "x", durability="fsync")

    async with client.events.read("orders", subjects="orders.b", start=3) as reading:
        read = [(await reading.next(timeout_s=20)).payload for _ in range(4)]
    consumer = stream.consumer("worker")
    await consumer.create(deliveries_max=2, backoff_s=[0.01])
    attempts: list[tuple[int, int]] = []
    async with client.events.consume("orders", "worker") as consuming:
        while len(attempts) < 7:
            message = await consuming.next(timeout_s=20)
            attempts.append((message.sequence, message.attempt))
            if message.attempt == 1 and message.sequence == 2:
                await message.retry(0.0)
            else:
                await message.ack(confirm=True)
    fetched, following = await client.events.fetch_from("orders", messages_max=100)

    assert (1, 1, True) == (first.sequence, again.sequence, again.duplicate)
    assert "fsync" == str(first.durability)
    assert [2, 3, 4, 5, 6] == [ack.sequence for ack in many]
    assert [b"1", b"2", b"3", b"4"] == read
    assert [(n, 1) for n in range(1, 7)] == sorted(set(attempts) - {(2, 2)})
    assert (2, 2) in attempts
    assert 6 == (await consumer.info()).state.ack_floor
    assert (6, 7) == (len(fetched), following)
    assert ["orders"] == [found.config.name async for found in client.events.streams()]
    assert ["worker"] == [found.config.name async for found in stream.consumers()]
    assert 6 == await stream.purge()
    await consumer.delete()
    await stream.delete()


async def test_fetched_messages_are_settled(client: Client) -> None:
    """Messages taken by calls are acknowledged by calls."""
    stream = client.events.stream("jobs")
    await stream.create("jobs")
    await stream.consumer("c").create()
    await client.events.publish_many("jobs", ["1", "2", "3"])

    messages = await client.events.fetch("jobs", "c", wait_s=1.0)
    for message in messages[:2]:
        await message.ack()
    await messages[2].ack(confirm=True)

    assert [b"1", b"2", b"3"] == [message.payload for message in messages]
    assert 3 == (await stream.consumer("c").info()).state.ack_floor
    with pytest.raises(errors.TidewireError):
        await messages[0].ack(confirm=True)


async def test_a_closed_consumer_leaves_its_messages_to_others(client: Client) -> None:
    """What was not acknowledged can be had by others as soon as close returns; acks are kept."""
    stream = client.events.stream("jobs")
    await stream.create("jobs")
    await stream.consumer("c").create()
    await client.events.publish_many("jobs", [str(number) for number in range(10)])

    async with client.events.consume("jobs", "c") as consuming:
        for _ in range(4):
            await (await consuming.next(timeout_s=20)).ack()
    left = await client.events.fetch("jobs", "c")

    assert [(sequence, 2) for sequence in range(5, 11)] == [
        (message.sequence, message.attempt) for message in left
    ]


async def test_live_events_reach_handlers(client: Client) -> None:
    """A handler gets every live message, in order."""
    got: list[bytes] = []
    sent = [str(number).encode() for number in range(5_000)]
    done = asyncio.Event()

    def handle(message: tidewire.Message) -> None:
        got.append(message.payload)
        if len(got) == len(sent):
            done.set()

    async with client.events.subscribe("live.*", handler=handle) as subscription:
        async with client.events.publisher(compression="zstd") as publisher:
            for payload in sent:
                await publisher.publish("live.a", payload)
        await asyncio.wait_for(done.wait(), 20)

        assert 0 == subscription.lost
    assert sent == got


async def test_queries_of_every_shape(client: Client) -> None:
    """One reply, many replies, replies of many, and every way to fail."""

    async def answer(query: Query) -> str:
        if query.text == "fail":
            raise errors.RevisionMismatch("not now", metadata={"actual_revision": 7})
        return query.text.upper()

    async def count(query: Query) -> AsyncIterator[str]:
        for number in range(int(query.text)):
            yield str(number)

    queries = client.queries
    with pytest.raises(errors.NoResponders):
        await queries.ask("upper", "x")
    async with (
        queries.serve("upper", answer),
        queries.serve("upper", lambda _: "B", group="b"),
        queries.serve("count.*", count),
    ):
        assert (await queries.ask("upper", "hi")).text in ("HI", "B")
        replies = [reply.text async for reply in queries.ask_stream("count.a", "3")]
        gathered = await queries.gather("upper", "x")
        with pytest.raises(errors.TooFewResponders):
            await queries.gather("upper", "x", first=5)
    async with queries.serve("upper", answer):
        with pytest.raises(errors.ResponderFailed):
            await queries.ask("upper", "fail")

    assert ["0", "1", "2"] == replies
    assert ["B", "X"] == sorted(reply.text for reply in gathered.replies)
    assert gathered.complete


async def test_a_query_given_up_reaches_the_responder(client: Client) -> None:
    """Cancelling who asks cancels who answers; time that is over is over for both."""
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(query: Query) -> str:
        assert 0 < query.remaining_s <= 60
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return ""

    async with client.queries.serve("slow", answer):
        asking = asyncio.create_task(client.queries.ask("slow"))
        await asyncio.wait_for(started.wait(), 20)
        asking.cancel()
        await asyncio.wait_for(cancelled.wait(), 20)
        with pytest.raises(errors.DeadlineExceeded):
            await client.queries.ask("slow", timeout_s=0.1)


async def test_state_and_its_watch(client: Client) -> None:
    """Values, revisions, transactions, history and a watch that sees all of it."""
    state = client.state
    made = await state.put("a", "1")
    with pytest.raises(errors.RevisionMismatch) as caught:
        await state.put("a", "2", expected_revision=0)
    async with state.watch("") as watch:
        # The snapshot is taken after the greeting: what is written meanwhile would be in it.
        events = [await watch.next(timeout_s=20) for _ in range(2)]
        result = await (
            state.transact().if_revision("a", made.revision).put("a", "2").put("b", "3").commit()
        )
        failed = state.transact().if_absent("a").put("a", "4")
        failed.otherwise.get("b")
        otherwise = await failed.commit()
        assert await state.delete("b")
        events += [await watch.next(timeout_s=20) for _ in range(3)]

    found = await state.get("a")
    assert found is not None
    assert ("2", 2) == (found.text, found.version)
    assert made.revision == caught.value.figure("actual_revision")
    assert (True, False) == (result.succeeded, otherwise.succeeded)
    assert ["snapshot", "synced", "put", "put", "delete"] == [event.kind.value for event in events]
    assert ["a"] == [entry.key async for entry in state.range()]
    assert [b"2", b"1"] == [event.value async for event in state.history("a")]
    assert await state.get("nothing") is None
    changed, revision = await state.changes(after_revision=made.revision)
    assert (3, 3) == (len(changed), revision)


async def test_leases_and_members(client: Client) -> None:
    """What hangs on a membership goes with it; the cluster knows who is there."""
    async with client.members.watch() as watch:
        async with client.members.join("node-1", groups=["g"]) as membership:
            await client.state.put("leased", "x", lease=membership)
            joined = await watch.next(timeout_s=20)
            with pytest.raises(errors.NodeInUse):
                await client.members.join("node-1")
            names = [member.node_id for member in await client.members.list("g")]
        left = await watch.next(timeout_s=20)
    async with client.state.watch("leased") as values:
        kinds = []
        while "synced" not in kinds:
            kinds.append((await values.next(timeout_s=20)).kind.value)

    assert ["node-1"] == names
    assert ("alive", "left") == (joined.status, left.status)
    assert 0 == (await client.members.cluster()).healthy
    assert kinds[-1] == "synced"


async def test_commands_reach_nodes(client: Client) -> None:
    """A command is done by each node of a group, its progress is seen, its id is honoured."""
    done: list[str] = []

    async def work(command: tidewire.Command) -> object:
        done.append(command.command_id)
        return {"got": command.json()}

    control = client.control
    async with (
        control.attend("n1", {"do": work}, groups=["g"]),
        control.attend("n2", {"do": work}, groups=["g"]),
    ):
        sent = control.send("do", {"x": 1}, group="g", command_id="one")
        steps = [step.progress async for step in sent]
        outcome = sent.outcome
        repeated = await control.send("do", {"x": 1}, group="g", command_id="one")
        with pytest.raises(errors.CommandConflict):
            await control.send("do", {"x": 2}, group="g", command_id="one")
    with pytest.raises(errors.NoTargets):
        await control.send("do", all_nodes=True)
    nodes, finished = await control.get("one")

    assert outcome is not None
    assert {"got": {"x": 1}} == outcome.check().nodes["n1"].json()
    assert repeated.succeeded
    assert ["one", "one"] == done
    assert 2 == steps.count("succeeded")
    assert (2, True) == (len(nodes), finished)


async def test_checkpoints_commit_everything_together(client: Client) -> None:
    """State in chunks, positions, outputs and changes are committed, and only new chunks travel."""
    await client.events.stream("in").create("in")
    await client.events.stream("in").consumer("c").create()
    await client.events.stream("out").create("out")
    await client.events.publish_many("in", ["1", "2", "3"])
    operator = client.checkpoints.operator("job.one")
    state = os.urandom(1_000_000)
    with pytest.raises(errors.FailedPrecondition, match="acquire"):
        await operator.commit(b"")

    assert await operator.acquire() is None
    first = await operator.commit(
        state,
        positions={("in", "c"): 2},
        outputs=[("out", "result")],
        changes=client.state.transact().put("done", "2"),
        note="first",
    )
    changed = state[:-1] + bytes([state[-1] ^ 1])
    second = await operator.commit(changed, expected_revision=1)
    small = await operator.commit("small")
    last = await operator.load()
    before = await operator.load(2)
    other = client.checkpoints.operator("job.one")
    await other.acquire()
    with pytest.raises(errors.OperatorFenced):
        await operator.commit(b"late")

    assert (4, 1, 0) == (first.chunks_sent, second.chunks_sent, small.chunks_sent)
    assert 1 == first.outputs[0].stored.first
    assert 2 == (await client.events.stream("in").consumer("c").info()).state.ack_floor
    assert last is not None
    assert before is not None
    assert (b"small", 3) == (last.state, last.info.revision)
    assert changed == before.state
    assert [3, 2, 1] == [info.revision for info in await operator.list()]
    assert 2 == (await operator.list())[-1].position("in")
    assert ["job.one"] == [info.operator for info in await client.checkpoints.list()]
    with pytest.raises(errors.CheckpointNotFound):
        await operator.load(99)


@pytest.mark.parametrize("wire", WIRES)
async def test_a_server_that_is_not_there_is_told(wire: str, tmp_path: Path) -> None:
    """Connecting fails within its time with a typed error; a server that came back is used."""
    async with running(tmp_path, wires=(wire,)) as server:
        url = server.url(wire)
        client = await tidewire.connect(url, timeout_s=20)
        states: list[ConnectionState] = []
        client.on_connection_change(states.append)
    with pytest.raises(errors.Unavailable):
        await tidewire.connect(url, connect_timeout_s=2.0)
    listen = {"urls": [url]}
    async with running(tmp_path, wires=(wire,), listen=listen) as server:
        async with asyncio.timeout(20):
            while True:
                try:
                    info = await client.info(timeout_s=5.0)
                    break
                except errors.Unavailable:
                    await asyncio.sleep(0.05)
        assert "test-server" == info.node_id
        await client.close()
    assert ConnectionState.DISCONNECTED in states or ConnectionState.IDLE in states


@pytest.mark.parametrize("wire", WIRES)
async def test_streams_survive_a_restart(wire: str, tmp_path: Path) -> None:
    """Over a restart of the server nothing published is lost, nor read twice or out of order."""
    async with running(tmp_path, wires=(wire,)) as server:
        client, got, sent = await _begin(server, wire)
        url = server.url(wire)
        publisher = await client.events.publisher()
        reading = await client.events.read("s", handler=lambda m: got.append(m.payload))
        for number in range(100):
            sent.append(str(number).encode())
            await publisher.publish("s.a", sent[-1])
        await publisher.flush()
    for number in range(100, 200):
        sent.append(str(number).encode())
        await publisher.publish("s.a", sent[-1])
    async with running(tmp_path, wires=(wire,), listen={"urls": [url]}):
        await publisher.flush()
        await eventually(lambda: len(got) >= 200)
        await client.events.publish("s.a", b"last")
        await client.close()

    assert sent == got[:200]
    assert publisher.reopened >= 1
    assert reading.reopened >= 1


async def _begin(server: Running, wire: str) -> tuple[Client, list[bytes], list[bytes]]:
    client = await tidewire.connect(server.url(wire), timeout_s=20)
    await client.events.stream("s").create("s.>")
    return client, [], []
