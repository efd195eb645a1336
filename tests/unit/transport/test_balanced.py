"""Several servers behind one channel: even spread, a dead one out and back, on every wire."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer as GrpcHealth

from support.authority import Authority
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echo_service import EchoService
from support.echoing import serving_echo
from support.wires import ENCRYPTED, WIRES
from tidewire.errors import InvalidArgument
from tidewire.transport import (
    BalancedChannel,
    BalanceOptions,
    RawServer,
    ServerCredentials,
    TlsConfig,
    TransportOptions,
    channel,
    grpc_server,
)
from tidewire.transport.balance import Standing

Say = echo_pb2.SayRequest
LIMIT_S = 10.0
QUICK = BalanceOptions(failures_max=2, eject_first_s=0.05, eject_last_s=0.1, health_interval_s=0.05)
SOON = TransportOptions(backoff_first_s=0.05, backoff_last_s=0.1)
CONNECTED = tuple(wire for wire in WIRES if wire not in ("udp", "dtls"))
"""Wires with connections; datagrams have none to be lost."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # no types there
    """Says what it is told to."""

    def __init__(self) -> None:
        self.status = health_pb2.HealthCheckResponse.SERVING
        self.asked = 0

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        self.asked += 1
        return health_pb2.HealthCheckResponse(status=self.status)


@asynccontextmanager
async def several(
    wires: tuple[str, ...], folder: Path, **options: Any
) -> AsyncIterator[tuple[Any, list[tuple[str, Any, EchoService]], TlsConfig]]:
    """Serve echo once for each wire given, and connect to all."""
    authority = Authority(folder)
    encryption = authority.config(authority.issue("server"))
    client_tls = authority.config(authority.issue("client", common_name="alice"))
    async with AsyncExitStack() as stack:
        served = [
            await stack.enter_async_context(
                serving_echo(wire, server_tls=encryption if wire in ENCRYPTED else None)
            )
            for wire in wires
        ]
        options.setdefault("balance_options", QUICK)
        options.setdefault("options", SOON)
        made = channel([url for url, _, _ in served], tls=client_tls, **options)
        await stack.enter_async_context(made)
        yield made, served, encryption


async def until(condition: Any) -> None:
    """Wait for what the event loop will do."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.005)


def ready(made: BalancedChannel, count: int) -> bool:
    """Whether so many servers take calls; connects first."""
    made.get_state(try_to_connect=True)
    return count == sum(backend.standing is Standing.READY for backend in made.backends)


@pytest.mark.parametrize("policy", ["round_robin", "least_outstanding"])
@pytest.mark.parametrize("wire", WIRES)
async def test_calls_are_spread_evenly(wire: str, policy: str, tmp_path: Path) -> None:
    """Of sixty calls each of three servers has twenty, one after another and at the same time."""
    async with several((wire,) * 3, tmp_path, balance=policy) as (made, served, _):
        stub: Any = echo_pb2_grpc.EchoServiceStub(made)
        await asyncio.wait_for(made.channel_ready(), LIMIT_S)
        await until(lambda: ready(made, 3))
        for _ in range(30):
            await stub.Say(Say(text="x"), timeout=LIMIT_S)
        await asyncio.gather(*(stub.Say(Say(text="y"), timeout=LIMIT_S) for _ in range(30)))

        assert [20, 20, 20] == [len(service.order) for _, _, service in served]
        assert [0, 0, 0] == [backend.outstanding for backend in made.backends]


@asynccontextmanager
async def again(wire: str, url: str, tls: TlsConfig) -> AsyncIterator[EchoService]:
    """Serve echo where another server was."""
    service = EchoService()
    server: Any = grpc_server() if wire.startswith("grpc") else RawServer()
    echo_pb2_grpc.add_EchoServiceServicer_to_server(service, server)
    address = url.partition("://")[2]
    if wire == "grpc":
        server.add_insecure_port(address)
    elif wire == "grpc+unix":
        server.add_insecure_port(f"unix:{address}")
    elif wire == "grpcs":
        server.add_secure_port(address, ServerCredentials(tls).credentials)
    else:
        server.listen(url, tls=tls if wire in ENCRYPTED else None)
    await server.start()
    try:
        yield service
    finally:
        await server.stop(None)


@pytest.mark.parametrize("wire", CONNECTED)
async def test_a_dead_server_is_left_out_and_comes_back(wire: str, tmp_path: Path) -> None:
    """No call fails while one server is dead; when it is there again it gets its share."""
    async with several((wire,) * 2, tmp_path) as (made, served, encryption):
        assert isinstance(made, BalancedChannel)
        stub: Any = echo_pb2_grpc.EchoServiceStub(made)
        await until(lambda: ready(made, 2))
        (url, dead, _), (_, _, alive) = served
        await dead.stop(None)
        await until(lambda: made.backends[0].standing is not Standing.READY)
        for _ in range(10):
            assert "on" == (await stub.Say(Say(text="on"), timeout=LIMIT_S)).text
        assert 10 == len(alive.order)
        assert grpc.ChannelConnectivity.READY is made.get_state()

        async with again(wire, url, encryption) as service:
            await until(lambda: ready(made, 2))
            for _ in range(10):
                await stub.Say(Say(text="back"), timeout=LIMIT_S)
            assert 5 == len(service.order)


async def test_servers_of_different_wires(tmp_path: Path) -> None:
    """Each call goes over the wire of its server."""
    wires = ("grpc", "tcp", "tls", "unix", "memory")
    async with several(wires, tmp_path) as (made, served, _):
        stub: Any = echo_pb2_grpc.EchoServiceStub(made)
        await until(lambda: ready(made, len(wires)))
        for _ in range(50):
            await stub.Say(Say(text="x"), timeout=LIMIT_S)

        assert [10] * 5 == [len(service.order) for _, _, service in served]


async def test_streams_stay_and_count(tmp_path: Path) -> None:
    """A stream talks to one server; who is least busy takes open streams into account."""
    async with several(("tcp", "tcp"), tmp_path, balance="least_outstanding") as (made, served, _):
        stub: Any = echo_pb2_grpc.EchoServiceStub(made)
        await until(lambda: ready(made, 2))
        call = stub.Converse()
        for number in range(10):
            await call.write(echo_pb2.ConverseRequest(text=str(number)))
            assert str(number) == (await call.read()).text
        for _ in range(10):
            await stub.Say(Say(text="x"), timeout=LIMIT_S)

        assert [1, 0] == sorted((backend.outstanding for backend in made.backends), reverse=True)
        assert [0, 10] == sorted(len(service.order) for _, _, service in served)
        await call.done_writing()
        assert call.done() or await call.code() is grpc.StatusCode.OK
        assert [0, 0] == [backend.outstanding for backend in made.backends]


class Unwell(EchoService):
    """Fails every call as a broken server would, until it is told otherwise."""

    sick = True

    async def Say(self, request: Any, context: Any) -> echo_pb2.SayResponse:
        if self.sick:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no database")
        return await super().Say(request, context)


@pytest.mark.parametrize("wire", ["tcp", "grpcs"])
async def test_a_server_whose_calls_fail_is_ejected(wire: str, tmp_path: Path) -> None:
    """Connected, but failing: it gets no calls until its health says that it serves."""
    authority = Authority(tmp_path)
    server_tls = authority.config(authority.issue("server")) if wire in ENCRYPTED else None
    client_tls = authority.config(authority.issue("client")) if wire in ENCRYPTED else None
    sick, told = Unwell(), Health()
    async with (
        serving_echo(wire, server_tls=server_tls, service=sick) as (first, server, _),
        serving_echo(wire, server_tls=server_tls) as (second, _, well),
    ):
        if wire == "tcp":
            health_pb2_grpc.add_HealthServicer_to_server(told, server)
        options = BalanceOptions(failures_max=2, eject_first_s=0.2, health_interval_s=0)
        async with channel([first, second], tls=client_tls, balance_options=options) as made:
            assert isinstance(made, BalancedChannel)
            stub: Any = echo_pb2_grpc.EchoServiceStub(made)
            await until(lambda: ready(made, 2))
            told.status = health_pb2.HealthCheckResponse.NOT_SERVING
            failed = 0
            for _ in range(20):
                try:
                    await stub.Say(Say(text="x"), timeout=LIMIT_S)
                except grpc.aio.AioRpcError:
                    failed += 1
            assert (2, 18) == (failed, len(well.order))
            assert Standing.EJECTED is made.backends[0].standing

            sick.sick = False
            if wire == "tcp":
                asked = told.asked
                await until(lambda: told.asked > asked)
                assert Standing.EJECTED is made.backends[0].standing
            told.status = health_pb2.HealthCheckResponse.SERVING
            await until(lambda: ready(made, 2))
            for _ in range(10):
                await stub.Say(Say(text="y"), timeout=LIMIT_S)
            assert 5 == len(sick.order)


async def test_one_that_does_not_serve_gets_no_calls(tmp_path: Path) -> None:
    """NOT_SERVING, as a draining server says, is noticed without a failing call."""
    told = Health()
    async with several(("tcp", "tcp"), tmp_path) as (made, served, _):
        (_, server, _), (_, _, other) = served
        health_pb2_grpc.add_HealthServicer_to_server(told, server)
        stub: Any = echo_pb2_grpc.EchoServiceStub(made)
        await until(lambda: ready(made, 2))
        told.status = health_pb2.HealthCheckResponse.NOT_SERVING
        await until(lambda: made.backends[0].standing is Standing.FAILING)
        for _ in range(10):
            await stub.Say(Say(text="x"), timeout=LIMIT_S)

        assert 10 == len(other.order)
        told.status = health_pb2.HealthCheckResponse.SERVING
        await until(lambda: ready(made, 2))


async def test_nobody_there_is_told_at_once(tmp_path: Path) -> None:
    """With all servers dead the state says so, and a call has the reason."""
    async with several(("tcp", "tcp"), tmp_path) as (made, served, _):
        stub: Any = echo_pb2_grpc.EchoServiceStub(made)
        await made.channel_ready()
        for _, server, _ in served:
            await server.stop(None)
        await until(lambda: made.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(stub.Say(Say()), LIMIT_S)

        assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
        assert "tcp://" in (caught.value.details() or "")


@asynccontextmanager
async def healthy_grpc() -> AsyncIterator[tuple[str, Any, EchoService]]:
    """Serve echo by gRPC with a health service; give the address, the health and the echo."""
    service, server = EchoService(), grpc_server()
    healthy = GrpcHealth()
    echo_pb2_grpc.add_EchoServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    try:
        yield url, healthy, service
    finally:
        await server.stop(None)


@pytest.mark.parametrize("policy", ["round_robin", "first"])
async def test_addresses_of_grpc_are_balanced_by_grpc(policy: str) -> None:
    """
    Its own policies: even spread with health checks, or all to the first; no channel of ours.
    """
    async with AsyncExitStack() as stack:
        served = [await stack.enter_async_context(healthy_grpc()) for _ in range(2)]
        made = channel([url for url, _, _ in served], balance=policy, options=SOON)  # type: ignore[arg-type]
        await stack.enter_async_context(made)
        assert not isinstance(made, BalancedChannel)
        stub: Any = echo_pb2_grpc.EchoServiceStub(made)

        async def shares() -> list[int]:
            before = [len(service.order) for _, _, service in served]
            for _ in range(20):
                await stub.Say(Say(text="x"), timeout=LIMIT_S, wait_for_ready=True)
            after = [len(service.order) for _, _, service in served]
            return [late - early for early, late in zip(before, after, strict=True)]

        async def settle(expected: list[int]) -> None:
            async with asyncio.timeout(LIMIT_S):
                while await shares() != expected:
                    pass

        if policy == "first":
            await settle([20, 0])
            return
        await settle([10, 10])
        healthy = served[0][1]
        await healthy.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await settle([0, 20])
        await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
        await settle([10, 10])


@pytest.mark.parametrize("wire", ["tcp"])
async def test_an_abandoned_stream_is_still_cancelled(wire: str, tmp_path: Path) -> None:
    """Being counted does not keep a stream alive that nobody holds."""
    async with several((wire, wire), tmp_path) as (made, served, _):
        stub: Any = echo_pb2_grpc.EchoServiceStub(made)
        await until(lambda: ready(made, 2))
        call = stub.Repeat(echo_pb2.RepeatRequest(text="x", count=10**9, body_bytes=1_000))
        await call.read()
        del call
        gc.collect()
        await until(lambda: any(service.cancelled.is_set() for _, _, service in served))
        await until(lambda: not any(backend.outstanding for backend in made.backends))


async def test_closing_leaves_nothing(tmp_path: Path) -> None:
    """Tasks, timers of ejections and the channels below end with it; calls are refused after."""
    async with several(("tcp", "tls", "grpcs"), tmp_path) as (made, _, _):
        await until(lambda: ready(made, 3))
        before = asyncio.all_tasks()
        made._ended(made.pick(), True)
        made._ended(made.pick(), True)
        await made.close()
        await made.close()

        assert not made._tasks
        assert asyncio.all_tasks() <= before
        assert grpc.ChannelConnectivity.SHUTDOWN is made.get_state(try_to_connect=True)
        stub: Any = echo_pb2_grpc.EchoServiceStub(made)
        with pytest.raises((grpc.aio.AioRpcError, grpc.aio.UsageError)):
            await stub.Say(Say(), timeout=LIMIT_S)
        with pytest.raises(grpc.aio.UsageError):
            await made.channel_ready()


def test_lists_that_are_none() -> None:
    """No server, and a policy that is none, are refused at once."""
    with pytest.raises(InvalidArgument):
        channel([])
    with pytest.raises(InvalidArgument, match="balance"):
        channel(["tcp://127.0.0.1:1"], balance="random")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="balance"):
        channel("tcp://127.0.0.1:1", balance="random")  # type: ignore[arg-type]
