"""Health, reflection and GetInfo, asked for over a real server."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from support.ops_fake_engine import make_core
from support.serving import serving
from tidewire.v1 import common_pb2, server_pb2, server_pb2_grpc
from tidewire_server.ops import health
from tidewire_server.ops.health import HealthService
from tidewire_server.ops.reflection import NAMES, add_reflection
from tidewire_server.services.server_info import ServerService

STATE = "tidewire.v1.StateService"
LIMIT_S = 10
Response = health_pb2.HealthCheckResponse


def registration(service: HealthService) -> tuple[Any, Any]:
    return (health_pb2_grpc.add_HealthServicer_to_server, service)


def ask(service: str) -> Any:
    return health_pb2.HealthCheckRequest(service=service)


async def test_the_server_and_each_service_can_be_asked_for() -> None:
    """Serving until it is said otherwise, each on its own; an unknown service is NOT_FOUND."""
    service = HealthService([STATE])
    async with serving(None, [registration(service)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        service.set_serving(STATE, serving=False)

        assert Response.SERVING == (await stub.Check(ask(""))).status
        assert Response.NOT_SERVING == (await stub.Check(ask(STATE))).status
        with pytest.raises(grpc.aio.AioRpcError, match="no service 'x'") as caught:
            await stub.Check(ask("x"))
        assert grpc.StatusCode.NOT_FOUND == caught.value.code()


async def test_watchers_hear_of_changes() -> None:
    """First how it is, then each change; an unknown service is said to be so and may appear."""
    service = HealthService([STATE])
    async with serving(None, [registration(service)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        known, unknown = (
            stub.Watch(ask(STATE), timeout=LIMIT_S),
            stub.Watch(ask("x"), timeout=LIMIT_S),
        )

        assert Response.SERVING == (await known.read()).status
        assert Response.SERVICE_UNKNOWN == (await unknown.read()).status
        service.set_serving("x", serving=True)
        assert Response.SERVING == (await unknown.read()).status
        service.shut_down()
        service.set_serving(STATE, serving=True)  # too late
        for call in (known, unknown):
            assert Response.NOT_SERVING == (await call.read()).status
            assert grpc.aio.EOF == await call.read()
        assert Response.NOT_SERVING == (await stub.Check(ask(""))).status


async def test_a_watcher_that_does_not_read_holds_nobody_up() -> None:
    """Changes are told to others while one reader is stuck in the middle of a response."""
    service = HealthService([])
    stuck: Any = service.Watch(ask(""), None)  # type: ignore[arg-type]
    await anext(stuck)
    other: Any = service.Watch(ask(""), None)  # type: ignore[arg-type]

    assert Response.SERVING == (await anext(other)).status
    service.set_serving("", serving=False)
    assert Response.NOT_SERVING == (await asyncio.wait_for(anext(other), LIMIT_S)).status
    await stuck.aclose()
    await other.aclose()
    assert 0 == service._watchers


async def test_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One watcher too many is refused with a hint."""
    monkeypatch.setattr(health, "WATCHERS_MAX", 1)
    service = HealthService([])
    async with serving(None, [registration(service)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        first = stub.Watch(ask(""), timeout=LIMIT_S)
        await first.read()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Watch(ask(""), timeout=LIMIT_S).read()

        assert grpc.StatusCode.RESOURCE_EXHAUSTED == caught.value.code()


@pytest.mark.parametrize("name", NAMES)
async def test_reflection_answers_in_both_versions(name: str) -> None:
    """Services are listed and described under v1 and v1alpha alike."""
    services = ["tidewire.v1.ServerService"]
    async with serving(None, [(add_reflection, services)]) as channel:
        call: Any = channel.stream_stream(
            f"/{name}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(timeout=LIMIT_S)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = await call.read()
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=services[0]))
        described = await call.read()
        await call.done_writing()

        names = [service.name for service in listed.list_services_response.service]
        assert {*services, NAMES[1]} == set(names)
        assert any(
            b"GetInfo" in f for f in described.file_descriptor_response.file_descriptor_proto
        )


async def test_the_server_tells_what_it_is() -> None:
    """Version, limits, codecs, listeners, engine and durability, as they are now."""
    core = make_core(codecs=(common_pb2.CODEC_NONE,))
    service = ServerService(core)
    listener = server_pb2.Listener(url="tcp://127.0.0.1:1")
    service.listeners.append(listener)
    add = server_pb2_grpc.add_ServerServiceServicer_to_server
    async with serving(core, [(add, service)]) as channel:
        stub = server_pb2_grpc.ServerServiceStub(channel)
        info = await stub.GetInfo(server_pb2.GetInfoRequest())
        core.drain.start(1.0)
        going = await stub.GetInfo(server_pb2.GetInfoRequest())

    assert ("node", "1.2.3", "fake", "cluster", 3) == (
        info.node_id,
        info.version,
        info.engine,
        info.cluster_id,
        info.epoch,
    )
    assert core.limits.to_proto() == info.limits
    assert [common_pb2.CODEC_NONE] == list(info.codecs)
    assert [listener] == list(info.listeners)
    assert common_pb2.DURABILITY_OS == info.durability_max == info.durability_default
    assert {"python", "grpcio", "protobuf", "sqlite"} <= set(info.components)
    assert "" == info.principal
    assert 0 < info.started.ToNanoseconds() <= core.wall_ns()
    assert (False, True) == (info.draining, going.draining)
