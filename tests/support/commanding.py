"""A control service on the embedded store, and nodes that attend it, for tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from support.live_fake_engine import make_core
from support.serving import serving
from tidewire import errors
from tidewire.v1 import common_pb2, control_pb2, control_pb2_grpc
from tidewire_server.core import Core
from tidewire_server.engine.embedded import open_engine
from tidewire_server.services.control import ControlService

WAIT_S = 10.0


class Admin:
    """Actions of which two do something."""

    def __init__(self) -> None:
        self.drained: list[float | None] = []
        self.hold: asyncio.Event | None = None
        self.begun = asyncio.Event()

    async def drain(self, grace_s: float | None = None) -> None:
        self.drained.append(grace_s)

    async def pause_stream(self, name: str) -> None:
        raise errors.StreamNotFound(f"there is no stream {name!r}")

    async def resume_stream(self, name: str) -> None:
        raise ZeroDivisionError

    async def disconnect_client(self, connection_id: str) -> None:
        self.begun.set()
        if self.hold is not None:
            await self.hold.wait()

    async def list_connections(self) -> list[dict[str, str | int]]:
        return []

    async def set_log_level(self, level: str) -> None:
        return


class Served:
    """One start of a server on a store."""

    def __init__(self, core: Core, stub: Any, admin: Admin) -> None:
        self.core = core
        self.stub = stub
        self.admin = admin


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[Served]:
    """Open the store and serve; leaving is an orderly end."""
    engine = await open_engine(path)
    core, admin = make_core(engine), Admin()
    register = control_pb2_grpc.add_ControlServiceServicer_to_server
    try:
        async with serving(core, [(register, ControlService(core, admin))]) as channel:
            yield Served(core, control_pb2_grpc.ControlServiceStub(channel), admin)
    finally:
        await engine.close()


class Node:
    """One Attend stream, answered by hand."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def next(self) -> control_pb2.AttendResponse:
        async with asyncio.timeout(WAIT_S):
            response = await self.call.read()
        assert isinstance(response, control_pb2.AttendResponse), "the stream has ended"
        return response

    async def command(self) -> control_pb2.Command:
        response = await self.next()
        assert response.WhichOneof("kind") == "command", response
        return response.command

    async def acknowledge(self, command_id: str) -> None:
        taken = control_pb2.CommandAcknowledged(command_id=command_id)
        await self.call.write(control_pb2.AttendRequest(acknowledged=taken))

    async def succeed(self, command_id: str, data: bytes = b"") -> None:
        payload = common_pb2.Payload(data=data)
        result = control_pb2.CommandResult(command_id=command_id, result=payload)
        await self.call.write(control_pb2.AttendRequest(result=result))

    async def fail(self, command_id: str, error: errors.TidewireError) -> None:
        result = control_pb2.CommandResult(command_id=command_id, error=error.to_status())
        await self.call.write(control_pb2.AttendRequest(result=result))

    async def ended(self) -> grpc.StatusCode:
        async with asyncio.timeout(WAIT_S):
            try:
                while await self.call.read() is not grpc.aio.EOF:
                    continue
            except grpc.aio.AioRpcError as error:
                return error.code()
            code = await self.call.code()
            assert isinstance(code, grpc.StatusCode)
            return code


@asynccontextmanager
async def attending(server: Served, node_id: str, *groups: str) -> AsyncIterator[Node]:
    call = server.stub.Attend()
    node = Node(call)
    opening = control_pb2.AttendOpen(node_id=node_id, groups=groups)
    await call.write(control_pb2.AttendRequest(open=opening))
    assert "opened" == (await node.next()).WhichOneof("kind")
    try:
        yield node
    finally:
        call.cancel()
