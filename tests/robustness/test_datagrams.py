"""Calls over datagrams that are lost, repeated, reordered, too long or forged: each done once."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import pytest

from support.counting import CountingEcho
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.impairment import Impairment, ImpairmentProxy, impaired
from support.scripted import eventually
from tidewire.transport import RawServer, TransportOptions, channel
from tidewire.wire.bodies import Hello
from tidewire.wire.cookie import Commitment
from tidewire.wire.datagram import (
    HELLO,
    NO_PROOF,
    PADDING,
    PING,
    RETRY,
    RETRY_BYTES,
    Greeting,
    encode_datagram,
    encode_greeting,
    parse_datagram,
)
from tidewire.wire.datagram_limits import DatagramLimits
from tidewire.wire.limits import WireLimits

LIMIT_S = 60.0
Say = echo_pb2.SayRequest


@dataclass
class Impaired:
    """A client, its server, and what lies between."""

    server: Any
    service: CountingEcho
    proxy: ImpairmentProxy
    channel: Any
    stub: Any
    address: tuple[str, int]


@asynccontextmanager
async def serving(
    options: TransportOptions | None = None,
) -> AsyncIterator[tuple[RawServer, CountingEcho, tuple[str, int]]]:
    """Serve a counting echo on UDP."""
    service = CountingEcho()
    server = RawServer(options=options)
    echo_pb2_grpc.add_EchoServiceServicer_to_server(service, server)
    url = server.listen("udp://127.0.0.1:0").url
    await server.start()
    try:
        yield server, service, (url.host, url.port)
    finally:
        await server.stop(None)


@asynccontextmanager
async def impairing(
    impairment: Impairment,
    *,
    seed: int = 7,
    options: TransportOptions | None = None,
) -> AsyncIterator[Impaired]:
    """Serve an echo behind a proxy that impairs both ways."""
    async with (
        serving(options) as (server, service, address),
        impaired(address, up=impairment, seed=seed) as proxy,
        channel(f"udp://127.0.0.1:{proxy.address[1]}", options=options) as connected,
    ):
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        yield Impaired(server, service, proxy, connected, stub, address)


ROUGH = Impairment(loss=0.05, duplication=0.1, reordering=0.2, reordering_s=0.005)


@pytest.mark.parametrize(
    ("impairment", "calls"),
    [
        (Impairment(), 500),
        (Impairment(loss=0.01), 500),
        (Impairment(loss=0.05), 500),
        (Impairment(loss=0.2), 300),
        (Impairment(duplication=0.5), 500),
        (Impairment(reordering=0.5, reordering_s=0.01), 500),
        (ROUGH, 500),
        (Impairment(delay_s=0.08), 200),
    ],
    ids=["none", "loss1", "loss5", "loss20", "duplicates", "reordered", "rough", "delay"],
)
async def test_each_call_is_answered_and_done_once(impairment: Impairment, calls: int) -> None:
    """Whatever the path does, every call comes back with its own answer and ran exactly once."""
    async with impairing(impairment) as it:
        texts = [f"call-{index}" for index in range(calls)]

        async def ask(text: str) -> str:
            answer: str = (await it.stub.Say(Say(text=text), timeout=LIMIT_S)).text
            return answer

        answers = await asyncio.gather(*(ask(text) for text in texts))

        assert texts == answers
        assert dict.fromkeys(texts, 1) == it.service.done
        if impairment.loss >= 0.01:
            assert it.channel.counters.retransmissions > 0
            assert it.proxy.sent_up.lost > 0


async def test_without_the_memory_a_request_would_be_done_twice() -> None:
    """The control: the proxy does repeat requests, and the server's memory is what stops them."""
    async with impairing(Impairment(duplication=1.0)) as it:
        for index in range(20):
            await it.stub.Say(Say(text=str(index)), timeout=LIMIT_S)

        assert it.server.counters.duplicates >= 19
        assert dict.fromkeys(map(str, range(20)), 1) == it.service.done


async def test_a_slow_handler_is_waited_for_and_runs_once() -> None:
    """A handler that takes longer than many timeouts is polled for, not asked again."""
    async with impairing(Impairment(loss=0.2)) as it:
        texts = [f"{index}:1.0" for index in range(20)]
        calls = [it.stub.Say(Say(text=text), timeout=LIMIT_S) for text in texts]

        assert texts == [(await call).text for call in calls]
        assert dict.fromkeys(texts, 1) == it.service.done


async def test_a_session_goes_on_from_another_address() -> None:
    """When a NAT gives the client another address, its calls still end once each."""
    async with impairing(Impairment(loss=0.02)) as it:
        texts = [f"{index}:0.2" for index in range(30)]
        await it.stub.Say(Say(text="first"), timeout=LIMIT_S)
        calls = [it.stub.Say(Say(text=text), timeout=LIMIT_S) for text in texts]
        await asyncio.sleep(0.05)
        it.proxy.change_address()

        assert texts == [(await call).text for call in calls]
        assert dict.fromkeys([*texts, "first"], 1) == it.service.done
        assert 1 == it.server.counters.connections_opened


async def test_a_replay_from_another_address_has_no_effect() -> None:
    """Captured datagrams sent again from elsewhere get a RETRY of 48 bytes, and do nothing."""
    async with impairing(Impairment()) as it:
        it.proxy.capture = True
        for index in range(20):
            await it.stub.Say(Say(text=str(index)), timeout=LIMIT_S)
        captured = list(it.proxy.captured)

        got = await replay(it.address, captured)

        assert got
        kinds = {parse_datagram(data, from_client=False)[0] for data in got}
        assert {RETRY} == kinds
        assert sum(map(len, got)) <= sum(map(len, captured))
        assert dict.fromkeys(map(str, range(20)), 1) == it.service.done
        assert 1 == it.server.counters.connections_active
        assert "20" == (await it.stub.Say(Say(text="20"), timeout=LIMIT_S)).text


async def test_a_session_that_is_over_does_not_begin_again() -> None:
    """All of it sent again from its own address, while its cookie is good: nothing is done."""
    async with impairing(Impairment()) as it:
        it.proxy.capture = True
        await it.stub.Say(Say(text="once"), timeout=LIMIT_S)
        await it.channel.close()
        await eventually(lambda: not it.server.counters.connections_active)
        it.proxy.capture = False
        (back,) = it.proxy._backs.values()
        for data in it.proxy.captured:
            back.sendto(data)
        # The server reads what comes in order: the answer to this comes after all of that.
        async with channel(f"udp://{it.address[0]}:{it.address[1]}") as other:
            await echo_pb2_grpc.EchoServiceStub(other).Say(Say(text="other"), timeout=LIMIT_S)

        assert {"once": 1, "other": 1} == it.service.done
        assert {"connection_lost": 1} == it.server.counters.handshake_failures
        assert 2 == it.server.counters.connections_opened


async def replay(address: tuple[str, int], datagrams: list[bytes]) -> list[bytes]:
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


def hellos(count: int, cookie: bytes = b"") -> list[bytes]:
    """Return HELLOs of as many sessions."""
    body = encode_greeting(
        Greeting(cookie, NO_PROOF, Commitment().value, Hello(agent="flood")), WireLimits()
    )
    return [encode_datagram(HELLO, session, 1, body) for session in range(1, count + 1)]


async def test_an_address_that_is_not_verified_gets_no_more_than_it_sends() -> None:
    """Spoofed datagrams of every kind and length: no more bytes out than in, and no session."""
    async with serving() as (server, _, address):
        spoofed = [
            *hellos(500),
            *(encode_datagram(PING, number, number, PADDING) for number in range(1, 500)),
            *(
                encode_datagram(kind, 9, 9, bytes(size))
                for kind in range(20)
                for size in (0, 24, 99)
            ),
            *(bytes(size) for size in range(100)),
        ]

        got = await replay(address, spoofed)

        counters = server.counters
        assert got
        assert max(map(len, got)) <= RETRY_BYTES
        assert counters.bytes_out <= counters.bytes_in
        assert counters.connections_opened == 0
        assert counters.cookies_sent >= len(got)


async def test_sessions_are_bounded_and_the_honest_go_on() -> None:
    """More sessions than the limit are turned away with a reason; those that are there work."""
    options = TransportOptions(connections_max=10)
    async with serving(options) as (server, _, address):
        url = f"udp://{address[0]}:{address[1]}"
        async with channel(url) as honest:
            stub = echo_pb2_grpc.EchoServiceStub(honest)
            await stub.Say(Say(text="first"), timeout=LIMIT_S)

            await flood(address, 50)

            assert 10 == server.counters.connections_active
            assert 41 == server.counters.connections_refused
            assert "more" == (await stub.Say(Say(text="more"), timeout=LIMIT_S)).text
            async with channel(url) as late:
                late_stub = echo_pb2_grpc.EchoServiceStub(late)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await late_stub.Say(Say(text="late"), timeout=LIMIT_S)
            assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
            assert "10" in str(caught.value.details())


async def flood(address: tuple[str, int], count: int) -> None:
    """Open many sessions from one verified address."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(address)
        sock.send(hellos(1)[0])
        cookie = parse_datagram(await loop.sock_recv(sock, 2_000), from_client=False)[5]
        for hello in hellos(count, cookie):
            sock.send(hello)
            await asyncio.wait_for(loop.sock_recv(sock, 2_000), LIMIT_S)


async def test_a_path_that_carries_less_is_named() -> None:
    """Long datagrams that vanish end their calls with a typed error; short ones get through."""
    limits = DatagramLimits(datagram_bytes=9_000, retry_first_s=0.05, retry_most_s=0.1)
    options = TransportOptions(datagrams=limits)
    async with impairing(Impairment(mtu_bytes=1_400), options=options) as it:
        with pytest.raises(grpc.aio.AioRpcError) as request:
            await it.stub.Say(Say(text="up", body=bytes(5_000)), timeout=LIMIT_S)
        assert grpc.StatusCode.FAILED_PRECONDITION == request.value.code()
        assert "the path carries less" in str(request.value.details())
        assert 0 == it.service.done["up"]
        it.proxy.up = replace(it.proxy.up, mtu_bytes=65_507)
        with pytest.raises(grpc.aio.AioRpcError) as response:
            await it.stub.Say(Say(text="down", body=bytes(5_000)), timeout=LIMIT_S)
        assert grpc.StatusCode.FAILED_PRECONDITION == response.value.code()
        assert "is done" in str(response.value.details())
        assert 1 == it.service.done["down"]
        assert "short" == (await it.stub.Say(Say(text="short"), timeout=LIMIT_S)).text


async def test_a_server_that_vanishes_is_noticed() -> None:
    """When nothing comes any more the call ends within the bounds, and says why."""
    limits = DatagramLimits(retry_first_s=0.05, retry_most_s=0.1, silence_s=0.5)
    async with impairing(Impairment(), options=TransportOptions(datagrams=limits)) as it:
        await it.stub.Say(Say(text="there"), timeout=LIMIT_S)
        it.proxy.up = Impairment(loss=1.0)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(it.stub.Say(Say(text="gone")), LIMIT_S)

        assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
        assert "silent" in str(caught.value.details())


async def test_a_handler_is_cancelled_though_cancels_are_lost() -> None:
    """A call that is cancelled stops its handler, also when half of all datagrams are lost."""
    async with impairing(Impairment(loss=0.5), seed=3) as it:
        call = it.stub.Say(Say(fault="sleep"), timeout=LIMIT_S)
        await asyncio.wait_for(it.service.started.wait(), LIMIT_S)
        call.cancel()

        await asyncio.wait_for(it.service.cancelled.wait(), LIMIT_S)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_the_longest_datagrams_on_both_families(host: str) -> None:
    """Where both ends allow it, what UDP can carry goes through, on IPv4 and IPv6."""
    options = TransportOptions(datagrams=DatagramLimits(datagram_bytes=65_507))
    service = CountingEcho()
    server = RawServer(options=options)
    echo_pb2_grpc.add_EchoServiceServicer_to_server(service, server)
    url = server.listen(f"udp://{host}:0").url
    await server.start()
    try:
        async with channel(url.text, options=options) as connected:
            stub: Any = echo_pb2_grpc.EchoServiceStub(connected)
            body = bytes(65_507 - 200)
            assert body == (await stub.Say(Say(body=body), timeout=LIMIT_S)).body
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Say(Say(body=bytes(65_507)), timeout=LIMIT_S)
            assert grpc.StatusCode.RESOURCE_EXHAUSTED == caught.value.code()
    finally:
        await server.stop(None)


async def test_a_client_that_vanishes_takes_its_handlers_along() -> None:
    """A session nobody speaks for ends, and what it runs is cancelled."""
    limits = DatagramLimits(session_idle_s=1.0)
    async with impairing(Impairment(), options=TransportOptions(datagrams=limits)) as it:
        call = it.stub.Say(Say(fault="sleep"))
        await asyncio.wait_for(it.service.started.wait(), LIMIT_S)
        it.proxy.up = Impairment(loss=1.0)

        await asyncio.wait_for(it.service.cancelled.wait(), LIMIT_S)

        assert 0 == it.server.counters.connections_active
        call.cancel()
