"""State and Checkpoint on a real store, over gRPC on loopback."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
from google.rpc import status_pb2

from support.serving import Registration, serving
from tidewire import errors
from tidewire.transport import RawServer, channel
from tidewire.v1 import (
    checkpoint_pb2_grpc,
    common_pb2,
    event_pb2,
    state_pb2,
    state_pb2_grpc,
)
from tidewire_server.core import Core, ServiceLimits
from tidewire_server.engine.base import Engine
from tidewire_server.engine.embedded import EngineOptions, open_engine
from tidewire_server.members import Members
from tidewire_server.router import Router
from tidewire_server.services.checkpoint import CheckpointService
from tidewire_server.services.state import StateService

if TYPE_CHECKING:
    from tidewire.v1.checkpoint_pb2_grpc import CheckpointServiceAsyncStub
    from tidewire.v1.state_pb2_grpc import StateServiceAsyncStub

WAIT_S = 20.0
"""Long enough for anything that happens at all."""


@dataclass(frozen=True, slots=True)
class Store:
    """What a test works with: the stubs, and what is behind them."""

    core: Core
    engine: Engine
    channel: grpc.aio.Channel
    service: StateService
    state: "StateServiceAsyncStub"
    checkpoints: "CheckpointServiceAsyncStub"


@asynccontextmanager
async def open_store(
    directory: Path,
    *,
    limits: ServiceLimits | None = None,
    options: EngineOptions | None = None,
    state_service: type[StateService] = StateService,
    wire: str = "grpc",
) -> AsyncIterator[Store]:
    """Open a store in this directory and serve it."""
    engine = await open_engine(
        directory, node_id="server", options=options or EngineOptions(ballast_bytes=0)
    )
    core = Core(engine, Members(), "server", "0", limits=limits or ServiceLimits())
    service = state_service(core)
    registrations: list[Registration] = [
        (state_pb2_grpc.add_StateServiceServicer_to_server, service),
        (checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server, CheckpointService(core)),
    ]
    try:
        serve = serving if wire == "grpc" else serving_raw
        async with serve(core, registrations) as connected:
            state = state_pb2_grpc.StateServiceStub(connected)
            checkpoints = checkpoint_pb2_grpc.CheckpointServiceStub(connected)
            yield Store(core, engine, connected, service, state, checkpoints)
    finally:
        await engine.close()


@asynccontextmanager
async def serving_raw(
    core: Core | None, registrations: Sequence[Registration]
) -> AsyncIterator[grpc.aio.Channel]:
    """As `serving`, over tcp://."""
    router = Router(drain=core.drain if core is not None else None)
    for add, servicer in registrations:
        add(servicer, router)
    server = RawServer((router,))
    port = server.add_listener("tcp://127.0.0.1:0")
    for _, servicer in registrations:
        await servicer.start()
    await server.start()
    try:
        async with channel(f"tcp://127.0.0.1:{port}") as connected:
            yield connected
    finally:
        await server.stop(0.2)
        for _, servicer in reversed(registrations):
            await servicer.close()


async def refused(call: Awaitable[object]) -> errors.TidewireError:
    """Wait for a call to fail and return its error as it travelled."""
    try:
        async with asyncio.timeout(WAIT_S):
            await call
    except grpc.aio.AioRpcError as error:
        for key, value in error.trailing_metadata():
            if key == errors.STATUS_TRAILER and isinstance(value, bytes):
                return errors.from_status(status_pb2.Status.FromString(value))
        raise AssertionError(f"an error without details: {error}") from error
    raise AssertionError("the call was not refused")


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so that nothing tells of."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (the product has no event for it)
            await asyncio.sleep(0.01)


def payload(data: bytes) -> common_pb2.Payload:
    """Build a value."""
    return common_pb2.Payload(data=data)


def put(key: str, data: bytes = b"", **values: object) -> state_pb2.PutRequest:
    """Build a write."""
    return state_pb2.PutRequest(key=key, value=payload(data), **values)  # type: ignore[arg-type]


def put_operation(key: str, data: bytes = b"", **values: object) -> state_pb2.StateOperation:
    """Build a write within a transaction."""
    return state_pb2.StateOperation(put=put(key, data, **values))


def delete_operation(key: str) -> state_pb2.StateOperation:
    """Build a delete within a transaction."""
    return state_pb2.StateOperation(delete=state_pb2.DeleteRequest(key=key))


def get_operation(key: str) -> state_pb2.StateOperation:
    """Build a read within a transaction."""
    return state_pb2.StateOperation(get=state_pb2.GetRequest(key=key))


def stream_config(name: str, *subjects: str, **values: object) -> event_pb2.StreamConfig:
    """Build the configuration of a stream."""
    return event_pb2.StreamConfig(name=name, subjects=subjects, **values)  # type: ignore[arg-type]
