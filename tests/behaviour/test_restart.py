"""What goes on over a restart of the server, and how a server goes, on every wire."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

import tidewire
from support.process import ServerProcess
from support.scripted import eventually
from support.server import Running, running
from support.wires import LACKS
from tidewire import errors
from tidewire.v1 import (
    common_pb2,
    control_pb2,
    control_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    heartbeat_pb2,
    heartbeat_pb2_grpc,
    query_pb2,
    query_pb2_grpc,
    state_pb2,
    state_pb2_grpc,
)

WAIT_S = 20.0
GRACE_S = 2.0
CODECS = common_pb2.Codec.values()[1:]


class Lives:
    """A server on one wire that can be stopped and started again at the same address."""

    def __init__(self, folder: Path, wire: str) -> None:
        self._folder = folder
        self.wire = wire
        self._context: AbstractAsyncContextManager[Running] | None = None
        self.running: Running | None = None
        self.url = ""

    async def start(self) -> None:
        """Start it, at first or again."""
        more: dict[str, Any] = {}
        if self.running is not None:
            more = {"listen": {"urls": [self.url]}, "certificates": self.running.certificates}
        self._context = running(self._folder, (self.wire,), **more)
        self.running = await self._context.__aenter__()
        self.url = self.running.url(self.wire)

    async def stop(self) -> None:
        """Stop it in order."""
        context, self._context = self._context, None
        if context is not None:
            await context.__aexit__(None, None, None)

    async def restart(self) -> None:
        """One life after the other."""
        await self.stop()
        await self.start()

    def connect(self, **options: Any) -> Any:
        """Connect a client to it."""
        assert self.running is not None
        return tidewire.connect(self.url, tls=self.running.tls(self.wire), **options)


@pytest.fixture
async def lives(tmp_path: Path, wire: str) -> AsyncIterator[Lives]:
    """A server that runs its first life."""
    it = Lives(tmp_path, wire)
    await it.start()
    yield it
    await it.stop()


async def test_a_durable_consumer_goes_on(lives: Lives) -> None:
    """What was settled stays settled, what was not comes again, on the open subscription."""
    async with lives.connect() as client:
        stream = client.events.stream("s")
        await stream.create("s")
        await stream.consumer("c").create()
        await client.events.publish_many("s", [str(number) for number in range(1, 7)])
        async with client.events.consume("s", "c") as consuming:
            for _ in range(4):
                await (await consuming.next(timeout_s=WAIT_S)).ack(confirm=True)
            await lives.restart()
            await client.events.publish("s", "7")
            again: list[int] = []
            while len(again) < 3:
                message = await consuming.next(timeout_s=WAIT_S)
                try:
                    await message.ack(confirm=True)
                except errors.TidewireError:
                    continue  # of the life before: it comes again
                again.append(message.sequence)
        state = (await stream.consumer("c").info()).state

    assert [5, 6, 7] == again
    assert 7 == state.ack_floor
    assert consuming.reopened >= 1


async def test_message_ids_are_remembered(lives: Lives) -> None:
    """The dedup window survives, sequences go on."""
    async with lives.connect() as client:
        await client.events.stream("s").create("s")
        await client.events.publish("s", "x", message_id="one")
        await lives.restart()
        again = await client.events.publish("s", "x", message_id="one")
        other = await client.events.publish("s", "y", message_id="two")

    assert (True, 1) == (again.duplicate, again.sequence)
    assert (False, 2) == (other.duplicate, other.sequence)


async def test_watches_and_readers_resume_without_loss_or_copy(lives: Lives) -> None:
    """Everything before, around and after the restart is seen once and in order."""
    async with lives.connect() as client:
        await client.events.stream("s").create("s")
        read: list[str] = []
        async with (
            client.events.read("s", handler=lambda m: read.append(m.payload.decode())) as reading,
            client.state.watch("k/") as watch,
        ):
            # Before its snapshot has come, a watch that breaks begins again with a later one.
            first = await watch.next(timeout_s=WAIT_S)
            for number in range(5):
                await client.events.publish("s", str(number))
                await client.state.put("k/a", str(number))
            await lives.stop()
            await lives.start()
            async with lives.connect() as other:
                for number in range(5, 10):
                    await other.events.publish("s", str(number))
                    await other.state.put("k/a", str(number))
            await eventually(lambda: len(read) >= 10)
            seen: list[bytes | None] = []
            while b"9" not in seen:
                event = await watch.next(timeout_s=WAIT_S)
                if event.kind.value != "synced":
                    seen.append(event.value)

    expected = [str(number) for number in range(10)]
    assert "synced" == first.kind.value
    assert expected == read
    assert [value.encode() for value in expected] == seen
    if "streams" not in LACKS.get(lives.wire, ()):  # elsewhere a poll that failed is asked again
        assert reading.reopened >= 1
        assert watch.reopened >= 1


async def test_checkpoints_epochs_and_revisions_survive(lives: Lives) -> None:
    """The operator that had it may go on, the next one fences it, nothing is numbered again."""
    async with lives.connect() as client:
        operator = client.checkpoints.operator("op")
        await operator.acquire()
        await operator.commit("one")
        before = await client.info()
        entry = await client.state.put("k", "1")
        first = await client.members.join("n")
        token = first.fencing_token
        await first.close()
        await lives.restart()
        loaded = await operator.load()
        second = await operator.commit("two", expected_revision=1)
        other = client.checkpoints.operator("op")
        await other.acquire()
        with pytest.raises(errors.OperatorFenced):
            await operator.commit("late")
        after = await client.info()
        async with client.members.join("n") as member:
            later = member.fencing_token
        changed = await client.state.put("k", "2", expected_revision=entry.revision)

    assert loaded is not None
    assert b"one" == loaded.state
    assert 2 == second.revision
    assert other.epoch > operator.epoch
    assert after.epoch == before.epoch + 1
    assert later > token
    assert changed.revision > entry.revision


async def test_who_left_before_the_stop_is_gone_after_it(lives: Lives) -> None:
    """Leaving is stored also when the server stops at once: nobody waits for a lease to be over."""
    async with lives.connect() as client:
        joined = [await client.members.join(f"n{number}") for number in range(20)]
        await asyncio.gather(*(membership.close() for membership in joined))
        await lives.restart()
        members = await client.members.list()

    assert [] == [member.node_id for member in members]


@pytest.mark.needs("streams")
async def test_a_break_is_visible_and_over(lives: Lives) -> None:
    """The client says that it was disconnected and is connected again; its streams work on."""
    states: list[str] = []
    got: list[bytes] = []
    async with lives.connect(timeout_s=WAIT_S) as client:
        client.on_connection_change(lambda state: states.append(state.value))
        async with (
            client.events.subscribe("live", handler=lambda m: got.append(m.payload)) as live,
            client.queries.serve("q", lambda _: "answer") as responder,
            client.control.attend("n", {"do": lambda _: "done"}) as attendance,
        ):
            await lives.stop()
            await eventually(lambda: not live.connected)
            await lives.start()
            opened = (live, responder, attendance)
            await eventually(lambda: all(each.connected for each in opened))
            await client.events.publish("live", "x")
            answer = await client.queries.ask("q")
            outcome = await client.control.send("do", node_id="n")
            await eventually(lambda: got == [b"x"])
            reopened = [each.reopened for each in opened]

    assert "answer" == answer.text
    assert outcome.succeeded
    assert all(reopened)
    assert {"disconnected", "idle", "connecting"} & set(states)
    assert "connected" in states[1:]


STREAMS: dict[str, tuple[Any, str, list[Any]]] = {
    "subscribe": (
        event_pb2_grpc.EventServiceStub,
        "Subscribe",
        [
            event_pb2.SubscribeRequest(
                open=event_pb2.SubscribeOpen(
                    live=event_pb2.LiveSource(subjects=["a"]), codecs=CODECS
                )
            )
        ],
    ),
    "publish": (
        event_pb2_grpc.EventServiceStub,
        "PublishStream",
        [event_pb2.PublishStreamRequest(open=event_pb2.PublishOpen())],
    ),
    "serve": (
        query_pb2_grpc.QueryServiceStub,
        "Serve",
        [query_pb2.ServeRequest(open=query_pb2.ServeOpen(subjects=["q"], in_flight_max=1))],
    ),
    "attend": (
        control_pb2_grpc.ControlServiceStub,
        "Attend",
        [control_pb2.AttendRequest(open=control_pb2.AttendOpen(node_id="n"))],
    ),
    "watch": (state_pb2_grpc.StateServiceStub, "Watch", [state_pb2.WatchRequest(prefix="a")]),
    "members": (
        heartbeat_pb2_grpc.HeartbeatServiceStub,
        "WatchMembers",
        [heartbeat_pb2.WatchMembersRequest()],
    ),
}
"""Every stream of the server: its stub, method and first request."""


async def open_stream(channel: grpc.aio.Channel, name: str) -> Any:
    """Open a stream, past its greeting."""
    stub, method, requests = STREAMS[name]
    start = getattr(stub(channel), method)
    if name in ("watch", "members"):
        call = start(requests[0])
    else:
        call = start()
        await call.write(requests[0])
    async with asyncio.timeout(WAIT_S):
        assert "opened" == (await call.read()).WhichOneof("kind")
    return call


async def told(call: Any) -> list[str]:
    """Read to the end of a call: kinds of what came."""
    kinds: list[str] = []
    async with asyncio.timeout(WAIT_S):
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                kinds.append(response.WhichOneof("kind"))
        except grpc.aio.AioRpcError as error:
            kinds.append(error.code().name)
    return kinds


@pytest.mark.needs("streams")
async def test_every_stream_is_told_of_draining(lives: Lives) -> None:
    """Before it ends each stream hears it; new calls are refused; the server is gone in time."""
    assert lives.running is not None
    loop = asyncio.get_running_loop()
    async with lives.connect(timeout_s=WAIT_S) as client:
        calls = {name: await open_stream(client.channel, name) for name in STREAMS}
        reading = [asyncio.create_task(told(call)) for call in calls.values()]
        began = loop.time()
        await lives.running.server.stop(GRACE_S)
        lasted_s = loop.time() - began
        heard = dict(zip(calls, await asyncio.gather(*reading), strict=True))

    assert [] == [name for name, kinds in heard.items() if "draining" not in kinds]
    assert {"UNAVAILABLE"} >= {kinds[-1] for kinds in heard.values() if kinds[-1].isupper()}
    # Live subscriptions outlast publishers, who may still publish until the grace is over.
    assert lasted_s < GRACE_S + 3


@pytest.mark.needs("streams")
async def test_work_in_flight_finishes_while_draining(lives: Lives) -> None:
    """A query under way is answered, although the server was told to go, and then it goes."""
    assert lives.running is not None
    started, release = asyncio.Event(), asyncio.Event()

    async def answer(_: tidewire.Query) -> str:
        started.set()
        await release.wait()
        return "done"

    server = lives.running.server
    async with (
        lives.connect(timeout_s=WAIT_S) as client,
        lives.connect() as other,
        other.queries.serve("q", answer),
    ):
        asking = asyncio.create_task(client.queries.ask("q"))
        await asyncio.wait_for(started.wait(), WAIT_S)
        stopping = asyncio.create_task(server.stop(GRACE_S))
        await asyncio.wait_for(server.core.drain.started.wait(), WAIT_S)
        release.set()
        reply = await asking
        await stopping

    assert "done" == reply.text


def test_sigterm_is_obeyed_within_the_grace(tmp_path: Path) -> None:
    """A query that never ends is cut when the grace is over, and the exit code is 0."""

    async def hang(url: str) -> None:
        async with tidewire.connect(url) as client:
            started = asyncio.Event()

            async def never(_: tidewire.Query) -> str:
                started.set()
                await asyncio.Event().wait()
                return ""

            await client.queries.serve("q", never)
            asking = asyncio.create_task(client.queries.ask("q", timeout_s=60))
            await asyncio.wait_for(started.wait(), WAIT_S)
            process.send(signal.SIGTERM)
            code = await asyncio.to_thread(process.wait)
            with pytest.raises(errors.TidewireError):
                await asking
            codes.append(code)

    codes: list[int] = []
    for wire in ("grpc", "tcp"):
        with ServerProcess(tmp_path, (wire,), flags=["--drain-grace-s", "0.5"]) as process:
            asyncio.run(hang(process.url(wire)))

    assert [0, 0] == codes
