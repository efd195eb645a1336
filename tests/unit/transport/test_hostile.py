"""Peers of a raw wire that do not play by the rules cost little and harm nobody else."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest

from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echoing import serving_echo
from tidewire.client.translate import translate
from tidewire.errors import WireVersionUnsupported
from tidewire.transport import RawServer, TransportOptions, channel
from tidewire.wire.bodies import (
    Ending,
    Goaway,
    Hello,
    encode_goaway,
    encode_head,
    encode_hello,
)
from tidewire.wire.frame import (
    CREDIT,
    CREDIT_BODY,
    END,
    GOAWAY,
    HELLO,
    MESSAGE,
    OPEN,
    OPEN_PREFIX,
    WITH_MESSAGE,
    FrameDecoder,
    encode_frame,
)
from tidewire.wire.limits import FRAME_BYTES_MAX, KIB, MIB, WireLimits

LIMIT_S = 10.0
QUICK = TransportOptions(
    limits=WireLimits(hello_timeout_s=0.4, frame_timeout_s=0.4, keepalive_s=0.3, ping_timeout_s=0.3)
)
GREETING = encode_frame(HELLO, encode_hello(Hello(), WireLimits()))


@pytest.fixture(params=["tcp", "unix"])
def wire(request: pytest.FixtureRequest) -> str:
    """Wires whose bytes anybody can write."""
    return str(request.param)


@pytest.fixture
async def served(wire: str) -> AsyncIterator[tuple[str, RawServer, Any]]:
    """An echo server with short waits."""
    async with serving_echo(wire, options=QUICK) as (url, server, service):
        yield url, server, service


async def raw(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect without a client."""
    if url.startswith("unix://"):
        return await asyncio.open_unix_connection(url.removeprefix("unix://"))
    return await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has no event."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def everything(reader: asyncio.StreamReader) -> bytes:
    """Read until the server closes; it must, within the limit."""
    async with asyncio.timeout(LIMIT_S):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def works(url: str) -> None:
    """Prove that an honest client is served."""
    async with channel(url) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        assert "on" == (await stub.Say(echo_pb2.SayRequest(text="on"), timeout=LIMIT_S)).text


def opening(method: str, message: bytes, call_id: int = 1) -> bytes:
    """Return an OPEN with its only message."""
    head = encode_head(f"/support.echo.v1.EchoService/{method}")
    body = OPEN_PREFIX.pack(0, len(head)) + head + message
    return encode_frame(OPEN, body, flags=END | WITH_MESSAGE, priority=5, call_id=call_id)


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\xff" * 64,
        b"\x00" * 64,
        GREETING + b"\x00\x00\x00\x07",
        GREETING + b"\x7f\xff\xff\xff",
        GREETING + encode_frame(99, b"", call_id=1),
        GREETING + GREETING,
    ],
)
async def test_garbage(served: tuple[str, RawServer, Any], first: bytes) -> None:
    """Garbage ends its connection at once; others are served."""
    url, server, _ = served
    reader, writer = await raw(url)
    writer.write(first)
    await everything(reader)
    writer.close()

    await until(lambda: server.counters.connections_active == 0)
    assert {"ProtocolViolation": 1} == dict(server.counters.errors)
    await works(url)


@pytest.mark.parametrize("start", [b"", GREETING[:5], GREETING + opening("Say", b"")[:20]])
async def test_one_that_stops(served: tuple[str, RawServer, Any], start: bytes) -> None:
    """A peer that stops before HELLO, within it or within a frame is cut off."""
    url, server, _ = served
    reader, writer = await raw(url)
    writer.write(start)
    await everything(reader)
    writer.close()

    await until(lambda: server.counters.connections_active == 0)
    assert {"PeerTooSlow": 1} == dict(server.counters.errors)


async def test_one_byte_at_a_time(served: tuple[str, RawServer, Any]) -> None:
    """A frame that comes byte by byte is cut off although something always comes."""
    url, server, _ = served
    reader, writer = await raw(url)
    writer.write(GREETING)
    reading = asyncio.create_task(everything(reader))
    for byte in opening("Say", bytes(1000)):
        if reading.done():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.02)
    await reading
    writer.close()

    assert 1 == server.counters.errors["PeerTooSlow"]


async def test_truncated(served: tuple[str, RawServer, Any]) -> None:
    """A connection that ends within a frame ends its calls and nothing else."""
    url, server, service = served
    _, writer = await raw(url)
    writer.write(GREETING + opening("Say", echo_pb2.SayRequest(fault="sleep").SerializeToString()))
    await asyncio.wait_for(service.started.wait(), LIMIT_S)
    writer.write(opening("Say", b"", 2)[:7])
    writer.close()

    await asyncio.wait_for(service.cancelled.wait(), LIMIT_S)
    await until(lambda: server.counters.connections_active == 0)
    assert 0 == server.counters.calls_active
    await works(url)


async def test_one_that_vanishes(served: tuple[str, RawServer, Any]) -> None:
    """A peer that answers no PING is cut off."""
    url, server, _ = served
    reader, writer = await raw(url)
    writer.write(GREETING)
    sent = await everything(reader)
    writer.close()

    assert 1 == server.counters.errors["PeerVanished"]
    assert GOAWAY == FrameDecoder(FRAME_BYTES_MAX).feed(sent)[-1][0]


async def test_one_that_never_reads(wire: str) -> None:
    """A reader that does not read stops the handler that writes to it, and memory stays bounded."""
    async with serving_echo(wire) as (url, server, service):
        reader, writer = await raw(url)
        request = echo_pb2.RepeatRequest(count=10_000, body_bytes=64 * KIB)
        writer.write(GREETING + opening("Repeat", request.SerializeToString()))
        await until(lambda: service.written > 0)
        before = -1
        while before != service.written:
            before = service.written
            await asyncio.sleep(0.1)

        # The window of a call is 1 MiB; one message more is in the hands of the handler.
        assert service.written <= MIB // (64 * KIB) + 1
        assert server.counters.bytes_out <= MIB + 128 * KIB
        assert not reader.at_eof()
        writer.close()
        await asyncio.wait_for(service.cancelled.wait(), LIMIT_S)


async def test_one_that_gives_credit_and_never_reads(wire: str) -> None:
    """Credit without reading fills the sockets, then the handler stops just as well."""
    async with serving_echo(wire) as (url, server, service):
        _, writer = await raw(url)
        request = echo_pb2.RepeatRequest(count=10_000, body_bytes=64 * KIB)
        huge = CREDIT_BODY.pack(1 << 40)
        writer.write(
            GREETING
            + opening("Repeat", request.SerializeToString())
            + encode_frame(CREDIT, huge)
            + encode_frame(CREDIT, huge, call_id=1)
        )
        await until(lambda: service.written > 0)
        before = -1
        while before != service.written:
            before = service.written
            await asyncio.sleep(0.2)

        (link,) = server._links.values()
        assert service.written < 10_000
        assert link.scheduler.waiting_bytes <= 512 * KIB
        assert link.protocol.transport.get_write_buffer_size() <= 512 * KIB
        writer.close()
        await asyncio.wait_for(service.cancelled.wait(), LIMIT_S)


async def test_one_that_sends_too_much(wire: str) -> None:
    """A sender that ignores its credit is cut off with the reason."""
    async with serving_echo(wire) as (url, server, service):
        reader, writer = await raw(url)
        head = encode_head("/support.echo.v1.EchoService/Collect")
        writer.write(
            GREETING
            + encode_frame(OPEN, OPEN_PREFIX.pack(0, len(head)) + head, priority=5, call_id=1)
            + encode_frame(
                MESSAGE, echo_pb2.CollectRequest(text="wait").SerializeToString(), call_id=1
            )
        )
        await asyncio.wait_for(service.started.wait(), LIMIT_S)
        frame = encode_frame(
            MESSAGE, echo_pb2.CollectRequest(body=bytes(60_000)).SerializeToString(), call_id=1
        )
        for _ in range(40):
            writer.write(frame)
        sent = await everything(reader)
        writer.close()

        await until(lambda: server.counters.connections_active == 0)
        assert 1 == server.counters.errors["CreditExceeded"]
        assert b"CREDIT_EXCEEDED" in sent or not sent  # a reset may overtake the farewell


async def test_a_hundred_thousand_opens(wire: str) -> None:
    """A flood of calls is answered with refusals, and an honest client is served meanwhile."""
    options = TransportOptions(limits=WireLimits(calls_max=100))
    async with serving_echo(wire, options=options) as (url, server, _):
        reader, writer = await raw(url)
        sleep = echo_pb2.SayRequest(fault="sleep").SerializeToString()
        writer.write(GREETING)

        async def drain() -> None:
            while await reader.read(MIB):
                pass

        draining = asyncio.create_task(drain())
        for start in range(1, 100_001, 1000):
            writer.write(b"".join(opening("Say", sleep, start + n) for n in range(1000)))
            await writer.drain()
        await works(url)
        await until(lambda: server.counters.calls_ended[8] == 99_900)

        assert 100 == server.counters.calls_active
        writer.close()
        await draining
        await until(lambda: server.counters.calls_active == 0)


async def test_connections_are_limited(wire: str) -> None:
    """Connections over the limit are closed at once and counted."""
    options = TransportOptions(connections_max=2)
    async with serving_echo(wire, options=options) as (url, server, _):
        pairs = [await raw(url) for _ in range(2)]
        await until(lambda: server.counters.connections_active == 2)
        reader, writer = await raw(url)

        assert b"" == await everything(reader)
        assert 1 == server.counters.connections_refused
        for _, each in [*pairs, (reader, writer)]:
            each.close()


async def test_client_meets_garbage() -> None:
    """A client that reaches something else than tidewire says so, as UNAVAILABLE."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, channel(f"tcp://127.0.0.1:{port}") as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)

    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    assert "does the peer speak this protocol" in (caught.value.details() or "")


@pytest.mark.parametrize("greets", [True, False])
async def test_client_meets_silence(greets: bool) -> None:
    """A server that is silent, from the start or after HELLO, is left."""
    stay = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if greets:
            writer.write(GREETING)
        await stay.wait()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    options = replace(QUICK, connect_timeout_s=2.0)
    async with server, channel(f"tcp://127.0.0.1:{port}", options=options) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)
        stay.set()

    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()


async def test_a_server_of_another_version_is_named_as_such() -> None:
    """What the server says in GOAWAY reaches the caller typed: trying again would not help."""
    refusal = Ending.of(WireVersionUnsupported("the server speaks version 9"))
    goodbye = encode_frame(GOAWAY, encode_goaway(Goaway(0, refusal, 0.0)))

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.write(goodbye)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, channel(f"tcp://127.0.0.1:{port}") as raw:
        method: Any = raw.unary_unary("/a/B")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(b"", timeout=10)
        error = translate(caught.value)

    assert isinstance(error, WireVersionUnsupported)
    assert "version 9" in error.message
