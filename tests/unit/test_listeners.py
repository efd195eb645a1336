"""How listeners stop: calls get their grace, peers that hang do not hold it."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from tidewire.v1 import state_pb2, state_pb2_grpc
from tidewire_server import listeners as listeners_module
from tidewire_server.listeners import Listeners

GRACE_S = 30.0
LIMIT_S = 20.0
"""Far below the grace, far above what a stop takes."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


class Held(state_pb2_grpc.StateServiceServicer):
    """Answers when it is let."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let = asyncio.Event()

    async def Get(self, request: state_pb2.GetRequest, context: Any) -> state_pb2.GetResponse:
        self.begun.set()
        await self.let.wait()
        return state_pb2.GetResponse(entry=state_pb2.Entry(key=request.key))


class Handlers(grpc.GenericRpcHandler):
    """What a service registers, as one handler."""

    def __init__(self, servicer: Held) -> None:
        self._found: dict[str, Any] = {}
        register: Any = state_pb2_grpc.add_StateServiceServicer_to_server
        register(servicer, self)

    def add_generic_rpc_handlers(self, _handlers: Any) -> None:
        """Not this way."""

    def add_registered_method_handlers(self, service: str, methods: dict[str, Any]) -> None:
        """Take them."""
        self._found |= {f"/{service}/{name}": handler for name, handler in methods.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Find one."""
        return self._found.get(handler_call_details.method)


@pytest.fixture
async def held(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[Listeners, Held, int]]:
    """Listeners with gRPC alone, what answers behind it, and its port."""
    monkeypatch.setattr(listeners_module, "GOODBYE_S", 0.2)
    servicer = Held()  # type: ignore[abstract]  # one method is enough
    handlers: Any = Handlers(servicer)
    nothing: Any = None
    made = Listeners(handlers, nothing)
    made._grpc = grpc.aio.server(handlers=(made.grpc_calls,))
    port = made._grpc.add_insecure_port("127.0.0.1:0")
    await made._grpc.start()
    yield made, servicer, port
    servicer.let.set()
    await made._grpc.stop(None)


async def test_a_peer_that_hangs_does_not_hold_the_stop(held: tuple[Listeners, Held, int]) -> None:
    """A connection without calls whose peer answers nothing is cut long before the grace."""
    made, _, port = held
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(PREFACE)
        assert await asyncio.to_thread(peer.recv, 1)  # the server's settings: it is connected
        began = time.monotonic()
        await made.stop(GRACE_S)
        assert time.monotonic() - began < LIMIT_S


async def test_a_call_in_flight_has_its_grace_beside_a_peer_that_hangs(
    held: tuple[Listeners, Held, int],
) -> None:
    """The control: what works is waited for, long after the others have said goodbye."""
    made, servicer, port = held
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(PREFACE)
        assert await asyncio.to_thread(peer.recv, 1)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = state_pb2_grpc.StateServiceStub(channel)
            call = asyncio.ensure_future(stub.Get(state_pb2.GetRequest(key="a"), timeout=LIMIT_S))
            await asyncio.wait_for(servicer.begun.wait(), LIMIT_S)
            stopping = asyncio.create_task(made.stop(GRACE_S))
            done, _ = await asyncio.wait({call, stopping}, timeout=1.0)
            assert not done
            servicer.let.set()
            assert "a" == (await call).entry.key
            await asyncio.wait_for(stopping, LIMIT_S)
