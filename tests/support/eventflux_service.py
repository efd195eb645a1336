"""EventFlux's service with all services behind it, on a real store, for tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from support.eventflux import stub_of
from support.live_fake_engine import make_core
from support.serving import Registration, serving
from tidewire.eventflux import transport_pb2_grpc
from tidewire.v1 import (
    checkpoint_pb2_grpc,
    control_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    heartbeat_pb2_grpc,
    query_pb2_grpc,
    state_pb2_grpc,
)
from tidewire.wire.batch import encode_payloads
from tidewire_server.core import Core
from tidewire_server.engine.embedded import open_engine
from tidewire_server.services.checkpoint import CheckpointService
from tidewire_server.services.control import ControlService
from tidewire_server.services.event import EventService
from tidewire_server.services.eventflux import Backends, EventFluxService
from tidewire_server.services.heartbeat import HeartbeatService
from tidewire_server.services.query import QueryService
from tidewire_server.services.state import StateService


class FakeContext:
    """What a unary handler asks of the context of a call."""

    def __init__(self, principal: str = "") -> None:
        self._auth = {"peer_spiffe_id": [principal.encode()]} if principal else {}

    def auth_context(self) -> dict[str, list[bytes]]:
        """Who calls."""
        return self._auth

    def time_remaining(self) -> float | None:
        """No deadline."""
        return None


@dataclass
class EventFlux:
    """A running service, what is behind it, and a client."""

    core: Core
    backends: Backends
    service: EventFluxService
    channel: grpc.aio.Channel
    stub: Any = field(init=False)

    def __post_init__(self) -> None:
        self.stub = stub_of(self.channel)

    async def create_stream(self, name: str, *subjects: str) -> None:
        """Make a stream."""
        config = event_pb2.StreamConfig(name=name, subjects=subjects)
        stub: Any = event_pb2_grpc.EventServiceStub(self.channel)
        await stub.CreateStream(event_pb2.CreateStreamRequest(config=config))

    async def publish(self, subject: str, *payloads: bytes) -> event_pb2.PublishResponse:
        """Publish as a client of tidewire does."""
        stub: Any = event_pb2_grpc.EventServiceStub(self.channel)
        request = event_pb2.PublishRequest(batch=encode_payloads(subject, payloads))
        response = await stub.Publish(request)
        assert isinstance(response, event_pb2.PublishResponse)
        return response


@asynccontextmanager
async def eventflux(path: Path, *, authorize: Any = None, **core: Any) -> AsyncIterator[EventFlux]:
    """Open the store and serve everything; ``core`` are fields of the core."""
    engine = await open_engine(path)
    made = make_core(engine, **core)
    backends = Backends(
        event=EventService(made),
        query=QueryService(made),
        state=StateService(made),
        control=ControlService(made),
        heartbeat=HeartbeatService(made),
        checkpoint=CheckpointService(made),
        authorize=authorize,
    )
    service = EventFluxService(made, backends)
    registrations: list[Registration] = [
        (event_pb2_grpc.add_EventServiceServicer_to_server, backends.event),
        (query_pb2_grpc.add_QueryServiceServicer_to_server, backends.query),
        (state_pb2_grpc.add_StateServiceServicer_to_server, backends.state),
        (control_pb2_grpc.add_ControlServiceServicer_to_server, backends.control),
        (heartbeat_pb2_grpc.add_HeartbeatServiceServicer_to_server, backends.heartbeat),
        (checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server, backends.checkpoint),
        (transport_pb2_grpc.add_TransportServicer_to_server, service),
    ]
    try:
        async with serving(made, registrations) as channel:
            yield EventFlux(made, backends, service, channel)
    finally:
        await engine.close()
