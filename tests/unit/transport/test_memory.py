"""The wire within a process: names, threads, back-pressure and ends, as sockets have them."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echo_service import EchoService
from support.echoing import echoing, serving_echo
from tidewire.errors import InvalidArgument, WireUnsuitable
from tidewire.transport import RawServer, TransportOptions, channel
from tidewire.transport.memory import MemoryTransport
from tidewire.transport.options import TURN_BYTES, WRITE_HIGH_BYTES
from tidewire.wire.limits import MIB, WireLimits

LIMIT_S = 10.0
Say = echo_pb2.SayRequest


class Recorder:
    """Stands for a protocol: keeps what is done to it, in order."""

    def __init__(self) -> None:
        self.news: list[Any] = []
        self.over = asyncio.Event()

    def connection_made(self, transport: MemoryTransport) -> None:
        """Note it."""

    def take(self, data: bytes) -> None:
        """Note what came."""
        self.news.append(data)

    def eof_received(self) -> bool:
        """Note the end of what comes."""
        self.news.append("eof")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Note the end."""
        self.news.append(("lost", error))
        self.over.set()

    def pause_writing(self) -> None:
        """Note it."""
        self.news.append("pause")

    def resume_writing(self) -> None:
        """Note it."""
        self.news.append("resume")


class Pair:
    """Two ends in the running loop."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.near, self.far = MemoryTransport(loop, "pair"), MemoryTransport(loop, "pair")
        self.near.join(self.far)
        self.near_end, self.far_end = Recorder(), Recorder()
        self.near.begin(self.near_end)  # type: ignore[arg-type]
        self.far.begin(self.far_end)  # type: ignore[arg-type]


async def turns() -> None:
    """Let callbacks of callbacks run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_bytes_come_in_a_later_turn_and_in_order() -> None:
    """Nothing runs inside ``write``; a buffer that changes afterwards changes nothing."""
    pair, data = Pair(), bytearray(b"one")
    pair.near.write(data)
    data[:] = b"xxx"
    pair.near.writelines([b"t", memoryview(b"wo")])
    assert [] == pair.far_end.news
    await turns()

    assert b"onetwo" == b"".join(pair.far_end.news)


async def test_a_writer_is_paused_and_resumed() -> None:
    """Above the high mark it is paused, at the low mark resumed, as the reader takes it."""
    pair = Pair()
    pair.near.set_write_buffer_limits(high=10, low=4)
    pair.far.pause_reading()
    pair.near.write(b"0123456789")
    await turns()
    assert [] == pair.near_end.news
    pair.near.write(b"x")
    assert ["pause"] == pair.near_end.news
    await turns()
    assert (11, []) == (pair.near.get_write_buffer_size(), pair.far_end.news)

    pair.far.resume_reading()
    await turns()
    assert ["pause", "resume"] == pair.near_end.news
    assert (0, b"0123456789x") == (
        pair.near.get_write_buffer_size(),
        b"".join(pair.far_end.news),
    )


async def test_closing_hands_over_what_was_written() -> None:
    """The other end gets all of it, then the end; the writer's own end waits for that."""
    pair = Pair()
    pair.far.pause_reading()
    pair.near.write(b"last words")
    pair.near.close()
    pair.near.write(b"too late")
    await turns()
    assert [] == pair.near_end.news
    pair.far.resume_reading()
    await turns()

    assert [b"last words", "eof", ("lost", None)] == pair.far_end.news
    assert [("lost", None)] == pair.near_end.news
    assert pair.near.is_closing()
    assert pair.far.is_closing()


async def test_abort_ends_at_once() -> None:
    """The end that aborts does not wait; the other one learns of it."""
    pair = Pair()
    pair.far.pause_reading()
    pair.near.write(b"x" * 100)
    pair.near.abort()
    await turns()
    assert [("lost", None)] == pair.near_end.news
    pair.far.resume_reading()
    await turns()
    assert ("lost", None) == pair.far_end.news[-1]


async def test_both_ends_close_at_once() -> None:
    """Each is told once."""
    pair = Pair()
    pair.near.write(b"a")
    pair.far.write(b"b")
    pair.near.close()
    pair.far.close()
    await turns()

    assert [("lost", None)] == pair.near_end.news
    assert [("lost", None)] == pair.far_end.news


async def test_what_waits_in_between_is_bounded(tmp_path: Path) -> None:
    """A server that does not read holds the client back, however much it has to send."""
    async with echoing("memory", tmp_path) as served:
        await served.stub.Say(Say())
        server = next(iter(served.server._links.values())).protocol.transport
        client = served.channel.link.protocol.transport
        server.pause_reading()
        calls = [served.stub.Say(Say(body=bytes(MIB)), timeout=LIMIT_S) for _ in range(20)]
        await asyncio.sleep(0.05)
        held = client.get_write_buffer_size()
        server.resume_reading()
        await asyncio.gather(*calls)

    assert WRITE_HIGH_BYTES < held <= WRITE_HIGH_BYTES + 2 * TURN_BYTES


async def test_names() -> None:
    """A name is taken once, free again when its server stops, and unknown afterwards."""
    first, second = RawServer(), RawServer()
    first.listen("memory://one")
    with pytest.raises(InvalidArgument, match="in use"):
        second.listen("memory://one")
    await first.start()
    await first.stop(None)
    second.listen("memory://one")
    await second.stop(None)
    async with channel("memory://one") as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Say(Say(), timeout=LIMIT_S)
    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    assert "nothing in this process listens on it" in (caught.value.details() or "")


@pytest.mark.parametrize("url", ["memory://a:5", "memory://a/b", "memory://-", "memory://a%20b"])
async def test_names_that_are_none(url: str) -> None:
    """Only plain names; a port or a path would mean nothing."""
    with pytest.raises(InvalidArgument, match="memory://name"):
        channel(url)
    with pytest.raises(InvalidArgument, match="memory://name"):
        RawServer().listen(url)


async def test_no_token_and_no_certificates() -> None:
    """Nothing that asks for encryption is quietly dropped."""
    with pytest.raises(WireUnsuitable):
        channel("memory://a", options=TransportOptions(token="secret"))
    with pytest.raises(InvalidArgument, match="not encrypted"):
        channel("memory://a?ca=/x")


async def test_connections_are_limited() -> None:
    """One more than allowed is closed at once, and counted."""
    options = TransportOptions(connections_max=1)
    async with serving_echo("memory", options=options) as (url, server, _):
        async with channel(url) as first, channel(url) as second:
            await echo_pb2_grpc.EchoServiceStub(first).Say(Say(), timeout=LIMIT_S)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await echo_pb2_grpc.EchoServiceStub(second).Say(Say(), timeout=LIMIT_S)
        assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
        assert server.counters.connections_refused >= 1


class InThread:
    """An echo server in an event loop of another thread."""

    def __init__(self, url: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.server = RawServer()
        self.url = url
        self.service = EchoService()
        self.thread = threading.Thread(target=self.loop.run_forever)

    def start(self) -> None:
        """Serve."""
        echo_pb2_grpc.add_EchoServiceServicer_to_server(self.service, self.server)
        self.thread.start()

        async def begin() -> None:
            self.server.listen(self.url)
            await self.server.start()

        asyncio.run_coroutine_threadsafe(begin(), self.loop).result(LIMIT_S)

    def kill(self) -> None:
        """End the loop, with everything as it is."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LIMIT_S)
        self.loop.close()


@pytest.fixture
def elsewhere() -> Iterator[InThread]:
    """A server in another thread."""
    it = InThread("memory://elsewhere")
    it.start()
    yield it
    if not it.loop.is_closed():
        asyncio.run_coroutine_threadsafe(it.server.stop(None), it.loop).result(LIMIT_S)
        it.kill()


async def test_ends_in_two_threads(elsewhere: InThread) -> None:
    """Server and client may run in loops of their own; large messages come whole both ways."""
    limits = WireLimits(call_credit_bytes=100_000)
    async with channel(elsewhere.url, options=TransportOptions(limits=limits)) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        bodies = [os.urandom(500_000) for _ in range(20)]
        answers = await asyncio.gather(
            *(stub.Say(Say(body=body), timeout=LIMIT_S) for body in bodies)
        )
        assert bodies == [answer.body for answer in answers]


async def test_a_loop_that_dies(elsewhere: InThread) -> None:
    """When the server's loop is closed the next call fails with a reason; its name is free."""
    async with channel(elsewhere.url) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        await stub.Say(Say(), timeout=LIMIT_S)
        await asyncio.to_thread(elsewhere.kill)
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Say(Say(), timeout=LIMIT_S)
            assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    again = RawServer()
    again.listen(elsewhere.url)
    await again.stop(None)
