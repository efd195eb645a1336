"""DTLS under loss, floods, replays and forged datagrams; certificates are proved in test_tls."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from support.authority import Authority
from support.counting import CountingEcho
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.impairment import Impairment, ImpairmentProxy, impaired
from tidewire.transport import RawServer, TransportOptions, channel
from tidewire.transport.dtls_association import Association, make_context
from tidewire.wire.datagram_limits import DatagramLimits

LIMIT_S = 60.0
PATIENT = TransportOptions(connect_timeout_s=30.0)
Say = echo_pb2.SayRequest


@dataclass
class Secured:
    """An echo server on DTLS behind a proxy, and the authority of both sides."""

    server: RawServer
    service: CountingEcho
    proxy: ImpairmentProxy
    authority: Authority
    address: tuple[str, int]

    def channel(self, options: TransportOptions = PATIENT) -> Any:
        """Return a channel with a good certificate, through the proxy."""
        tls = self.authority.config(self.authority.issue("client"))
        return channel(f"dtls://127.0.0.1:{self.proxy.address[1]}", tls=tls, options=options)


@asynccontextmanager
async def securing(
    folder: Path, impairment: Impairment, options: TransportOptions | None = None
) -> AsyncIterator[Secured]:
    """Serve an echo on DTLS behind a proxy."""
    authority = Authority(folder)
    service = CountingEcho()
    server = RawServer(options=options)
    echo_pb2_grpc.add_EchoServiceServicer_to_server(service, server)
    tls = authority.config(authority.issue("server"))
    url = server.listen("dtls://127.0.0.1:0", tls=tls).url
    await server.start()
    try:
        async with impaired((url.host, url.port), up=impairment, seed=5) as proxy:
            yield Secured(server, service, proxy, authority, (url.host, url.port))
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    "impairment",
    [
        Impairment(loss=0.05),
        Impairment(loss=0.2),
        Impairment(duplication=0.5, reordering=0.3, reordering_s=0.005),
    ],
    ids=["loss5", "loss20", "shuffled"],
)
async def test_each_call_is_done_once(tmp_path: Path, impairment: Impairment) -> None:
    """Handshake and calls get through loss, repeats and reordering; each call is done once."""
    async with securing(tmp_path, impairment) as it, it.channel() as connected:
        stub: Any = echo_pb2_grpc.EchoServiceStub(connected)
        texts = [f"call-{index}" for index in range(200)]

        answers = await asyncio.gather(*(stub.Say(Say(text=t), timeout=LIMIT_S) for t in texts))

        assert texts == [answer.text for answer in answers]
        assert dict.fromkeys(texts, 1) == it.service.done


async def exchange(address: tuple[str, int], datagrams: list[bytes]) -> list[bytes]:
    """Send datagrams from an address of its own; return what comes back until it is quiet."""
    loop = asyncio.get_running_loop()
    got: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(address)
        for data in datagrams:
            sock.send(data)
            await asyncio.sleep(0)
        try:
            while True:
                got.append(await asyncio.wait_for(loop.sock_recv(sock, 65_536), 0.3))
        except TimeoutError:
            return got


async def test_before_its_cookie_an_address_costs_nothing(tmp_path: Path) -> None:
    """ClientHellos without a cookie: fewer bytes out than in, and nothing is kept of them."""
    async with securing(tmp_path, Impairment()) as it:
        association = Association(
            make_context(it.authority.config(None), server=False), server_name="localhost"
        )
        association.handshake()
        hellos = association.output() * 200

        got = await exchange(it.address, hellos)

        counters = it.server.counters
        assert got
        assert sum(map(len, got)) <= sum(map(len, hellos))
        assert 0 == counters.connections_opened
        assert len(hellos) == counters.cookies_sent


async def test_plain_datagrams_are_dropped(tmp_path: Path) -> None:
    """Garbage and plain datagrams of the protocol get no answer at all."""
    async with securing(tmp_path, Impairment()) as it:
        got = await exchange(it.address, [bytes(60), b"tw\x01\x01" + bytes(80), b"\x16" * 700])

        assert [] == got
        assert 3 == sum(it.server.counters.datagrams_refused.values())


async def test_replayed_records_have_no_effect(tmp_path: Path) -> None:
    """Records sent again, from the client's own address and from another, do nothing."""
    async with securing(tmp_path, Impairment()) as it, it.channel() as connected:
        stub: Any = echo_pb2_grpc.EchoServiceStub(connected)
        it.proxy.capture = True
        for index in range(10):
            await stub.Say(Say(text=str(index)), timeout=LIMIT_S)
        records = list(it.proxy.captured)
        before = it.server.counters.duplicates

        assert [] == await exchange(it.address, [each for each in records if each[0] == 23])
        it.proxy.up = Impairment(duplication=1.0)
        await stub.Say(Say(text="last"), timeout=LIMIT_S)

        assert before == it.server.counters.duplicates
        assert dict.fromkeys([*map(str, range(10)), "last"], 1) == it.service.done


async def test_half_open_handshakes_are_bounded_and_end(tmp_path: Path) -> None:
    """Clients that show their cookie and say no more are bounded in number and in time."""
    limits = DatagramLimits(half_open_max=5, dtls_handshake_s=0.5)
    options = TransportOptions(datagrams=limits)
    async with securing(tmp_path, Impairment(), options) as it:
        for _ in range(8):
            await begin(it)

        refusals = it.server.counters.refusals
        assert 3 == refusals["too_many_connections"]
        async with asyncio.timeout(LIMIT_S):
            while refusals["timeout"] < 5:  # noqa: ASYNC110 (counters tell nobody)
                await asyncio.sleep(0.02)
        async with it.channel() as connected:
            stub: Any = echo_pb2_grpc.EchoServiceStub(connected)
            assert "in" == (await stub.Say(Say(text="in"), timeout=LIMIT_S)).text


async def begin(it: Secured) -> None:
    """Begin a handshake, show the cookie, and leave."""
    context = make_context(it.authority.config(None), server=False)
    association = Association(context, server_name="localhost")
    association.handshake()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(it.address)
        sock.send(association.output()[0])
        association.receive(await asyncio.wait_for(loop.sock_recv(sock, 4_096), LIMIT_S))
        for data in association.output():
            sock.send(data)
        await asyncio.sleep(0.02)


async def test_the_longest_datagrams(tmp_path: Path) -> None:
    """One record carries one datagram: up to 16,384 bytes, and what is longer is told before."""
    options = TransportOptions(datagrams=DatagramLimits(datagram_bytes=65_507))
    async with securing(tmp_path, Impairment(), options) as it, it.channel(options) as connected:
        stub: Any = echo_pb2_grpc.EchoServiceStub(connected)
        body = bytes(16_384 - 200)
        assert body == (await stub.Say(Say(body=body), timeout=LIMIT_S)).body
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Say(Say(body=bytes(16_384)), timeout=LIMIT_S)

        assert grpc.StatusCode.RESOURCE_EXHAUSTED == caught.value.code()
