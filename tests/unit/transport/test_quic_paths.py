"""Paths of quic://: clients that move, datagrams that are lost or too long, servers that go."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from support.authority import Authority
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echo_service import EchoService
from support.impairment import Impairment, impaired
from support.quic import FAST, LIMIT_S, Quic, client, say, serving, shell_of, until
from tidewire.transport import RawServer, channel
from tidewire.transport.quic import tokens
from tidewire.transport.quic.backend import DATAGRAM_BYTES_LEAST, DATAGRAM_BYTES_MAX
from tidewire.transport.quic.shell import QuicShell
from tidewire.transport.quic.tokens import Bounded
from tidewire.wire.limits import KIB, WireLimits

WIDE = 65_507


@pytest.fixture(autouse=True)
def memories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test's clients begin without memories."""
    monkeypatch.setattr(tokens, "_MEMORIES", Bounded(4))


@pytest.fixture
async def quic(tmp_path: Path) -> AsyncIterator[Quic]:
    """A server over QUIC."""
    async with serving(tmp_path) as served:
        yield served


# Paths --------------------------------------------------------------------------------------------


async def test_a_client_that_moves_goes_on(quic: Quic) -> None:
    """A stream and the calls after it go on when the client's address changes; one connection."""
    async with (
        impaired(quic.address) as between,
        client(quic, between) as (_, stub),
    ):
        stream = stub.Converse(timeout=LIMIT_S)
        for number in range(6):
            await stream.write(echo_pb2.ConverseRequest(text=str(number)))
            assert str(number) == (await stream.read()).text
            (shell,) = quic.shells()
            before = shell.session.address
            between.change_address()
            assert "hello" == await say(stub)
            assert before != shell.session.address
        await stream.done_writing()

    assert 1 == quic.server.counters.connections_opened


async def test_datagrams_grow_with_the_path(quic: Quic) -> None:
    """On loopback both sides find the longest there is."""
    async with client(quic) as (connected, stub):
        await say(stub)
        shells = [shell_of(connected), *quic.shells()]
        await until(lambda: {s.session.datagram_bytes for s in shells} == {DATAGRAM_BYTES_MAX})


async def test_a_path_that_is_narrow(quic: Quic) -> None:
    """Where long datagrams vanish, short ones carry a long message both ways."""
    narrow = Impairment(mtu_bytes=DATAGRAM_BYTES_LEAST + 50)
    async with (
        impaired(quic.address, up=narrow) as between,
        client(quic, between) as (connected, stub),
    ):
        body = bytes(300 * KIB)
        answer = await stub.Say(echo_pb2.SayRequest(body=body), timeout=LIMIT_S)

        assert body == answer.body
        assert between.sent_up.too_long
        assert DATAGRAM_BYTES_LEAST == shell_of(connected).session.datagram_bytes


async def test_a_path_that_becomes_narrow(quic: Quic) -> None:
    """A connection with long datagrams goes on with short ones when long ones vanish."""
    async with (
        impaired(quic.address) as between,
        client(quic, between) as (connected, stub),
    ):
        await say(stub)
        shells = [shell_of(connected), *quic.shells()]
        await until(lambda: {s.session.datagram_bytes for s in shells} == {DATAGRAM_BYTES_MAX})
        between.up = between.down = Impairment(mtu_bytes=DATAGRAM_BYTES_LEAST + 50)
        body = bytes(100 * KIB)
        answer = await stub.Say(echo_pb2.SayRequest(body=body), timeout=LIMIT_S)

        assert body == answer.body
        assert DATAGRAM_BYTES_LEAST == shells[0].session.datagram_bytes
    assert 1 == quic.server.counters.connections_opened


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.2])
async def test_calls_under_loss(quic: Quic, loss: float) -> None:
    """Calls and a stream are whole where datagrams are lost, doubled and out of order."""
    bad = Impairment(
        loss=loss, duplication=0.05, reordering=0.1, reordering_s=0.005, mtu_bytes=1_300
    )
    async with (
        impaired(quic.address, up=bad, seed=7) as between,
        client(quic, between, options=replace(FAST, connect_timeout_s=LIMIT_S)) as (_, stub),
    ):
        texts = [str(number) for number in range(100)]
        answers = await asyncio.gather(*(say(stub, text) for text in texts))
        repeat = echo_pb2.RepeatRequest(text="r", count=50, body_bytes=2_000)
        got = [one.index async for one in stub.Repeat(repeat, timeout=LIMIT_S)]

    assert texts == answers
    assert list(range(50)) == got
    assert between.sent_down.lost or loss < 0.05


async def test_a_lost_datagram_delays_its_own_call_only(quic: Quic) -> None:
    """
    A datagram of one answer is lost, and has to be sent again: a call made after that is answered
    before. The control is a message behind it on the same stream, which has to wait.
    """
    far = Impairment(delay_s=0.05)
    async with (
        impaired(quic.address, up=far) as between,
        client(quic, between) as (_, stub),
    ):
        stream = stub.Converse(timeout=LIMIT_S)
        for _ in range(3):  # until the round trip is known
            await stream.write(echo_pb2.ConverseRequest(text="open"))
            await stream.read()
        between.down = replace(far, mtu_bytes=600)
        lost = between.sent_down.too_long
        held = asyncio.ensure_future(stream.read())
        await stream.write(echo_pb2.ConverseRequest(text="x" * 1_000))
        await until(lambda: between.sent_down.too_long > lost)
        between.down = far
        await stream.write(echo_pb2.ConverseRequest(text="behind"))

        assert "hello" == await say(stub)
        assert not held.done()
        assert 1_000 == len((await held).text)
        assert "behind" == (await stream.read()).text


async def test_a_server_that_vanishes_is_noticed(quic: Quic) -> None:
    """A call ends with UNAVAILABLE within the keepalive bound when nothing arrives any more."""
    limits = WireLimits(keepalive_s=0.3, ping_timeout_s=0.3)
    async with (
        impaired(quic.address) as between,
        client(quic, between, options=replace(FAST, limits=limits)) as (_, stub),
    ):
        call = stub.Say(echo_pb2.SayRequest(fault="sleep"))
        await quic.service.started.wait()
        between.up = between.down = Impairment(loss=1.0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call, LIMIT_S)

        assert grpc.StatusCode.UNAVAILABLE == caught.value.code()


async def test_a_restarted_server_resets_what_it_does_not_know(tmp_path: Path) -> None:
    """
    A client of the server before learns at once, not after a keepalive, that its connection is
    gone; the next call has a new one.
    """
    authority = Authority(tmp_path)
    server_tls = authority.config(authority.issue("server"))
    tls = authority.config(authority.issue("client"))
    servers: list[RawServer] = []

    async def start(port: int) -> int:
        server = RawServer()
        echo_pb2_grpc.add_EchoServiceServicer_to_server(EchoService(), server)
        picked = server.add_listener(f"quic://127.0.0.1:{port}", tls=server_tls)
        await server.start()
        servers.append(server)
        return picked

    port = await start(0)
    async with channel(f"quic://127.0.0.1:{port}", tls=tls, options=FAST) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        assert "hello" == await say(stub)
        (listener,) = servers[0]._listeners
        for shell in list(servers[0]._shells):
            assert isinstance(shell, QuicShell)
            shell._send = lambda _: None  # as after kill -9: it says nothing any more
            shell.abort()
        listener.close()
        sock = listener._sock  # type: ignore[attr-defined]
        await until(lambda: sock.fileno() < 0)
        await start(port)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(say(stub), LIMIT_S / 2)

        assert "does not know this connection" in (caught.value.details() or "")
        assert "hello" == await say(stub)
    for server in servers:
        await server.stop(None)


async def test_nobody_listens(quic: Quic) -> None:
    """A port where nobody listens is known at once, as is a server that is gone."""
    await quic.server.stop(None)
    async with client(quic, options=replace(FAST, connect_timeout_s=60.0)) as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(say(stub), LIMIT_S)

    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()


async def test_draining_serves_what_is_on_its_way(quic: Quic) -> None:
    """Calls in flight are answered after GOAWAY; the client then has nothing left there."""
    async with client(quic) as (_, stub):
        call = stub.Say(echo_pb2.SayRequest(fault="sleep"), timeout=LIMIT_S)
        await quic.service.started.wait()
        stopping = asyncio.ensure_future(quic.server.stop(LIMIT_S))
        await asyncio.sleep(0)
        quic.service.release.set()

        assert "released" == (await call).text
        await asyncio.wait_for(stopping, LIMIT_S)
    assert 0 == quic.server.counters.connections_active


# Long and many ------------------------------------------------------------------------------------


async def test_streams_that_rest_wake_up(quic: Quic) -> None:
    """Of many open streams each goes on when it is used again, and ends by either side."""
    async with client(quic) as (connected, stub):
        streams = [stub.Converse(timeout=3 * LIMIT_S) for _ in range(60)]
        for number, stream in enumerate(streams):
            await stream.write(echo_pb2.ConverseRequest(text=str(number)))
            assert str(number) == (await stream.read()).text
        sessions: list[Any] = [shell_of(connected).session, *(s.session for s in quic.shells())]
        resting = [len(session._quic._resting) for session in sessions]
        for stream in reversed(streams):
            await stream.write(echo_pb2.ConverseRequest(text="again"))
            assert "again" == (await stream.read()).text
        for stream in streams[:30]:
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
        for stream in streams[30:]:
            stream.cancel()
        assert "hello" == await say(stub)
        for session in sessions:
            await until(lambda session=session: len(session._quic._streams) <= 3)  # type: ignore[misc]

    assert all(count > 20 for count in resting)


async def test_keys_are_renewed(quic: Quic, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key protects more packets than it may; calls do not notice."""
    monkeypatch.setattr("tidewire.transport.quic.over_aioquic.connection.KEY_PACKETS_MAX", 20)
    async with client(quic) as (connected, stub):
        await say(stub)
        session: Any = shell_of(connected).session
        crypto = next(each for each in session._quic._cryptos.values() if each.send.is_valid())
        secrets = set()
        for number in range(100):
            assert str(number) == await say(stub, str(number))
            secrets.add(crypto.send.secret)

    assert len(secrets) > 3


async def test_addresses_of_version_6(tmp_path: Path) -> None:
    """IPv6 works as IPv4 does, and the peer is named as gRPC names it."""
    authority = Authority(tmp_path)
    server_tls = authority.config(authority.issue("server", addresses=("::1",)))
    tls = authority.config(authority.issue("client"))
    server = RawServer()
    echo_pb2_grpc.add_EchoServiceServicer_to_server(EchoService(), server)
    port = server.add_listener("quic://[::1]:0", tls=server_tls)
    await server.start()
    async with channel(f"quic://[::1]:{port}", tls=tls, options=FAST) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        answer = await stub.Say(echo_pb2.SayRequest(fault="who"), timeout=LIMIT_S)
    await server.stop(None)

    assert "peer=ipv6:%5B::1%5D:" in answer.text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
async def test_answers_leave_from_the_address_they_were_asked_at(tmp_path: Path) -> None:
    """A server on every address answers from the one a client knows; others would be dropped."""
    authority = Authority(tmp_path)
    server_tls = authority.config(authority.issue("server", addresses=("127.0.0.9", "::1")))
    tls = authority.config(authority.issue("client"))
    for listen, connect in (("0.0.0.0", "127.0.0.9"), ("[::]", "[::1]")):
        server = RawServer()
        echo_pb2_grpc.add_EchoServiceServicer_to_server(EchoService(), server)
        port = server.add_listener(f"quic://{listen}:0", tls=server_tls)
        await server.start()
        async with channel(f"quic://{connect}:{port}", tls=tls, options=FAST) as connected:
            stub = echo_pb2_grpc.EchoServiceStub(connected)
            assert "hello" == await say(stub)
            body = bytes(300 * KIB)
            answer = await stub.Say(echo_pb2.SayRequest(body=body), timeout=LIMIT_S)
            assert body == answer.body
        await server.stop(None)


async def test_the_next_address_of_a_host(quic: Quic, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that says nothing, and one that refuses, do not keep a client from the last."""
    monkeypatch.setattr("tidewire.transport.quic.dial.ADDRESS_WAIT_S", 0.2)
    port = quic.address[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.2", port))
        loop = asyncio.get_running_loop()
        where = [("127.0.0.2", port), ("127.0.0.3", port), ("127.0.0.1", port)]

        async def found(*_: Any, **__: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", address) for address in where]

        monkeypatch.setattr(loop, "getaddrinfo", found)
        async with client(quic) as (_, stub):
            assert "hello" == await say(stub)
