"""What only raw wires have: priorities, reconnection, listings, options, the registry."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echo_service import EchoService
from support.echoing import Echoing, echoing, serving_echo
from tidewire.errors import InvalidArgument
from tidewire.transport import (
    RawChannel,
    RawServer,
    TransportOptions,
    channel,
    missing,
    parse_url,
    transports,
)
from tidewire.transport.registry import register, register_missing
from tidewire.wire.frame import CALL_ID_MAX
from tidewire.wire.limits import MIB, WireLimits

LIMIT_S = 10.0
Say = echo_pb2.SayRequest


@pytest.fixture
async def echo(tmp_path: Path) -> AsyncIterator[Echoing]:
    """Echo over tcp."""
    async with echoing("tcp", tmp_path) as served:
        yield served


async def test_urgent_call_overtakes_bulk(echo: Echoing) -> None:
    """
    A call of priority 0 is served while 10 MiB that were sent before it are still on their way.
    """
    await echo.stub.Say(Say())
    bulk = [
        asyncio.ensure_future(
            echo.stub.Say(
                Say(text=f"bulk {n}", body=bytes(10 * MIB)), metadata=(("tidewire-priority", "9"),)
            )
        )
        for n in range(2)
    ]
    await asyncio.sleep(0)
    await echo.stub.Say(Say(text="urgent"), metadata=(("tidewire-priority", "0"),))

    assert not any(task.done() for task in bulk)
    await asyncio.wait_for(asyncio.gather(*bulk), LIMIT_S)
    assert ["", "urgent"] == echo.service.order[:2]


@pytest.mark.parametrize("value", ["10", "x", "-1", ""])
async def test_priority_is_one_digit(echo: Echoing, value: str) -> None:
    """Another priority than 0 to 9 is refused."""
    with pytest.raises(InvalidArgument):
        echo.stub.Say(Say(), metadata=(("tidewire-priority", value),))


async def test_reconnects(echo: Echoing) -> None:
    """After a loss the next call connects again."""
    await echo.stub.Say(Say())
    (info,) = echo.server.connections()
    assert echo.server.disconnect(info.identifier)
    assert not echo.server.disconnect(info.identifier)
    async with asyncio.timeout(LIMIT_S):
        await echo.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)

    assert "again" == (await echo.stub.Say(Say(text="again"), timeout=LIMIT_S)).text
    assert 2 == echo.server.counters.connections_opened


async def test_calls_in_flight_of_a_lost_connection(echo: Echoing) -> None:
    """They are UNAVAILABLE, and the handler is cancelled."""
    call = echo.stub.Say(Say(fault="sleep"))
    await asyncio.wait_for(echo.service.started.wait(), LIMIT_S)
    echo.server.disconnect(echo.server.connections()[0].identifier)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call

    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    await asyncio.wait_for(echo.service.cancelled.wait(), LIMIT_S)


async def test_listing(echo: Echoing) -> None:
    """Connections are listed with peer, agent and calls."""
    call = echo.stub.Say(Say(fault="sleep"))
    await asyncio.wait_for(echo.service.started.wait(), LIMIT_S)
    (info,) = echo.server.connections()
    call.cancel()

    assert (1, "", 1) == (info.identifier, info.identity, info.calls)
    assert info.peer.startswith("ipv4:127.0.0.1:")
    assert info.agent.startswith("tidewire-python/")
    assert info.url == echo.url


async def test_drain_moves_clients_on(tmp_path: Path) -> None:
    """
    A draining server finishes what it has; new calls go to the server that took over its port.
    """
    async with serving_echo("tcp") as (url, first, service), channel(url) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        before = stub.Say(Say(fault="sleep"))
        await asyncio.wait_for(service.started.wait(), LIMIT_S)
        stopping = asyncio.create_task(first.stop(LIMIT_S))
        async with asyncio.timeout(LIMIT_S):
            await connected.wait_for_state_change(grpc.ChannelConnectivity.READY)

        second = RawServer()
        echo_pb2_grpc.add_EchoServiceServicer_to_server(EchoService(), second)
        second.add_listener(url)
        await second.start()
        assert "new" == (await stub.Say(Say(text="new"), timeout=LIMIT_S)).text
        service.release.set()
        assert "released" == (await before).text
        await asyncio.wait_for(stopping, LIMIT_S)
        await connected.close()
        await second.stop(None)


async def test_numbers_run_out(echo: Echoing) -> None:
    """When a connection has no call numbers left, another one takes over."""
    await echo.stub.Say(Say())
    first = echo.channel.link
    first.last_call_id = CALL_ID_MAX - 2
    answers = [await echo.stub.Say(Say(text=str(n)), timeout=LIMIT_S) for n in range(4)]

    assert ["0", "1", "2", "3"] == [answer.text for answer in answers]
    assert 2 == echo.server.counters.connections_opened
    async with asyncio.timeout(LIMIT_S):
        await first.protocol.lost
    assert 0 == echo.channel.counters.calls_active


async def test_failures_are_told_at_once_and_backed_off(unused_port: int) -> None:
    """While nobody answers, calls fail with the reason and the waits between attempts grow."""
    options = TransportOptions(backoff_first_s=0.05, backoff_last_s=0.2)
    async with channel(f"tcp://127.0.0.1:{unused_port}", options=options) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Say(Say(), timeout=LIMIT_S)
            assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
            assert f"tcp://127.0.0.1:{unused_port}" in (caught.value.details() or "")
        assert isinstance(connected, RawChannel)
        attempts = connected.counters.errors["ConnectionLost"]
        assert attempts < 20

        late = stub.Say(Say(text="late"), wait_for_ready=True, timeout=LIMIT_S)
        server = RawServer()
        echo_pb2_grpc.add_EchoServiceServicer_to_server(EchoService(), server)
        server.add_listener(f"tcp://127.0.0.1:{unused_port}")
        await server.start()
        assert "late" == (await late).text
        await connected.close()
        await server.stop(None)


@pytest.fixture
def unused_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_host_that_is_no_name(caplog: pytest.LogCaptureFixture) -> None:
    """A host name that cannot be encoded ends calls; they do not wait for ever."""
    async with channel(f"tcp://{'x' * 70}.example:1") as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Say(Say(), timeout=LIMIT_S)

    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()


async def test_calls_before_the_connection_may_be_cancelled(unused_port: int) -> None:
    """A call that waits for a connection can be cancelled, and closing ends it."""
    async with channel(f"tcp://127.0.0.1:{unused_port}") as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        cancelled = stub.Say(Say(), wait_for_ready=True)
        closed = stub.Say(Say(), wait_for_ready=True)
        assert cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    with pytest.raises(asyncio.CancelledError):
        await closed
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Say(Say())


@pytest.mark.parametrize("fast", ["0", "1"])
async def test_socket_options(fast: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Options of sockets are set on both ends, with and without aiofastnet."""
    monkeypatch.setenv("TIDEWIRE_AIOFASTNET", fast)
    options = TransportOptions(
        tcp_keepalive_s=17,
        unsent_bytes=65_536,
        send_buffer_bytes=40_000,
        receive_buffer_bytes=50_000,
    )
    async with echoing("tcp", tmp_path, options=options, server_options=options) as served:
        await served.stub.Say(Say(body=bytes(MIB)), timeout=LIMIT_S)
        links = [served.channel.link, *served.server._links.values()]
        for link in links:
            transport = link.protocol.transport
            assert (fast == "1") is type(transport).__module__.startswith("aiofastnet")
            sock = transport.get_extra_info("socket")

            def option(level: int, name: int, sock: Any = sock) -> int:
                value: int = sock.getsockopt(level, name)
                return value

            assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert 17 == option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            assert 65_536 == option(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert 80_000 == option(socket.SOL_SOCKET, socket.SO_SNDBUF)  # the kernel doubles it
            assert 100_000 == option(socket.SOL_SOCKET, socket.SO_RCVBUF)


async def test_unary_calls_make_no_tasks_at_the_client(tmp_path: Path) -> None:
    """Answers resolve futures straight from the bytes: no task for each call."""
    async with echoing("tcp", tmp_path) as served:
        await served.stub.Say(Say())
        calls = [served.stub.Say(Say(fault="sleep")) for _ in range(50)]
        clients = len(asyncio.all_tasks())
        await asyncio.wait_for(served.service.started.wait(), LIMIT_S)
        for call in calls:
            call.cancel()

    assert clients <= 3


async def test_ended_calls_are_forgotten(echo: Echoing) -> None:
    """Calls leave nothing behind, ended, cancelled or failed."""
    from tidewire.transport.client_call import CallCore
    from tidewire.transport.context import ServerCall

    def kept() -> list[object]:
        gc.collect()
        return [one for one in gc.get_objects() if isinstance(one, (CallCore, ServerCall))]

    of_others = kept()  # of tests before, by a traceback that somebody keeps
    for _ in range(20):
        await echo.stub.Say(Say(text="x"), timeout=LIMIT_S)
        call = echo.stub.Say(Say(fault="sleep"), timeout=LIMIT_S)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(grpc.aio.AioRpcError):
            await echo.stub.Say(Say(fault="abort"), timeout=LIMIT_S)
    async with asyncio.timeout(LIMIT_S):
        while echo.server.counters.calls_active:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    del call

    assert {} == echo.channel.link.calls
    assert [{}] == [link.calls for link in echo.server._links.values()]
    assert len(kept()) - len(of_others) <= 2


class _Sync(echo_pb2_grpc.EchoServiceServicer):
    """The service in functions that are not coroutines."""

    def Say(self, request: Any, context: Any) -> Any:
        if request.fault:
            context.abort(grpc.StatusCode.NOT_FOUND, "from a thread")
        context.set_trailing_metadata((("kind", "sync"),))
        return echo_pb2.SayResponse(text=request.text)

    def Repeat(self, request: Any, context: Any) -> Any:
        for index in range(request.count):
            yield echo_pb2.RepeatResponse(index=index)

    def Collect(self, request_iterator: Any, context: Any) -> Any:
        return echo_pb2.CollectResponse(text=",".join(r.text for r in request_iterator))

    def Converse(self, request_iterator: Any, context: Any) -> Any:
        for request in request_iterator:
            yield echo_pb2.ConverseResponse(text=request.text)


async def test_handlers_that_are_no_coroutines(tmp_path: Path) -> None:
    """Plain functions run in threads, in all four shapes."""
    async with echoing("tcp", tmp_path, service=_Sync()) as served:
        call = served.stub.Say(Say(text="a"), timeout=LIMIT_S)
        assert "a" == (await call).text
        assert "sync" == (await call.trailing_metadata())["kind"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.Say(Say(fault="x"), timeout=LIMIT_S)
        assert "from a thread" == caught.value.details()
        repeat = served.stub.Repeat(echo_pb2.RepeatRequest(count=3), timeout=LIMIT_S)
        assert [0, 1, 2] == [each.index async for each in repeat]
        words = [echo_pb2.CollectRequest(text=word) for word in "xyz"]
        assert "x,y,z" == (await served.stub.Collect(words, timeout=LIMIT_S)).text
        turns = [echo_pb2.ConverseRequest(text=word) for word in "xyz"]
        converse = served.stub.Converse(turns, timeout=LIMIT_S)
        assert ["x", "y", "z"] == [each.text async for each in converse]


def test_registry_lists_what_there_is() -> None:
    """An unknown scheme is refused with a list of what works and why others do not."""
    register_missing("carrier-pigeon", "install tidewire[pigeons]")
    with pytest.raises(InvalidArgument) as caught:
        channel("carrier-pigeon://roof:1")

    for word in ("tcp://", "tls://", "grpc://", "grpcs://", "tidewire[pigeons]"):
        assert word in str(caught.value)
    assert {"grpc", "grpcs", "tcp", "tls"} <= set(transports())
    assert "carrier-pigeon" in {absent.scheme for absent in missing()}
    with pytest.raises(ValueError, match="registered already"):
        register("tcp", transports()["tls"])


@pytest.mark.parametrize(
    "url",
    [
        "localhost:7401",
        "tcp:localhost",
        "tcp://",
        "tcp://host:port",
        "tcp://host:99999",
        "tcp://user:secret@host",
        "tls://host?cafile=x",
        "tcp://host#x",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    """A URL with something we do not understand is refused."""
    with pytest.raises(InvalidArgument):
        parse_url(url)


def test_urls() -> None:
    """URLs come apart, with default ports, IPv6 and certificates."""
    assert ("tcp", "localhost", 7401) == (
        (plain := parse_url("tcp://localhost")).scheme,
        plain.host,
        plain.port,
    )
    assert "tcp://[::1]:5" == parse_url("tcp://[::1]:5").text
    tls = parse_url("tls://host:1?ca=a.pem&cert=b.pem&key=c.pem&server_name=d").tls
    assert tls is not None
    assert ("a.pem", "b.pem", "c.pem", "d") == (tls.ca, tls.certificate, tls.key, tls.server_name)


def test_a_port_is_bound_once() -> None:
    """Two servers cannot share a port unnoticed."""
    first, second = RawServer(), RawServer()
    port = first.add_listener("tcp://127.0.0.1:0")
    with pytest.raises(InvalidArgument):
        second.add_listener(f"tcp://127.0.0.1:{port}")
    for listener in first._listeners:
        listener.close()


async def test_limits_travel(tmp_path: Path) -> None:
    """A client learns the server's limits and keeps to them."""
    options = TransportOptions(limits=WireLimits(message_bytes_max=1000, calls_max=3))
    async with echoing("tcp", tmp_path, server_options=options) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.Say(Say(body=bytes(2000)), timeout=LIMIT_S)
        assert grpc.StatusCode.RESOURCE_EXHAUSTED == caught.value.code()
        answers = await asyncio.gather(*(served.stub.Say(Say(text=str(n))) for n in range(20)))

    assert [str(n) for n in range(20)] == [answer.text for answer in answers]


async def test_no_answer_is_lost_when_servers_are_replaced_under_load() -> None:
    """Calls a draining server has taken are answered, whole; the others are safe to retry."""
    first = RawServer()
    echo_pb2_grpc.add_EchoServiceServicer_to_server(EchoService(), first)
    url = f"tcp://127.0.0.1:{first.add_listener('tcp://127.0.0.1:0')}"
    await first.start()
    server, failures, answers = first, [], 0
    stop = asyncio.Event()
    async with channel(url, options=TransportOptions(backoff_first_s=0.01)) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)

        async def work(number: int) -> None:
            nonlocal answers
            while not stop.is_set():
                body = bytes(200_000 if number % 3 else 10)
                try:
                    answer = await stub.Say(Say(text=str(number), body=body), timeout=LIMIT_S)
                    assert (str(number), len(body)) == (answer.text, len(answer.body))
                    answers += 1
                except grpc.aio.AioRpcError as error:
                    failures.append(error.details())
                    await asyncio.sleep(0.005)

        workers = [asyncio.create_task(work(number)) for number in range(20)]
        for _ in range(8):
            await asyncio.sleep(0.05)
            stopping = asyncio.create_task(server.stop(LIMIT_S))
            await asyncio.sleep(0)
            server = RawServer()
            echo_pb2_grpc.add_EchoServiceServicer_to_server(EchoService(), server)
            server.add_listener(url)
            await server.start()
            await asyncio.wait_for(stopping, LIMIT_S)
        stop.set()
        await asyncio.wait_for(asyncio.gather(*workers), LIMIT_S)
    await server.stop(None)

    assert answers > 0
    assert [] == [text for text in failures if "safe to retry" not in str(text)]
