"""The servicer of ``eventflux.transport.Transport``; the contract is in its proto file."""

from collections.abc import AsyncIterator

from tidewire.eventflux import transport_pb2, transport_pb2_grpc
from tidewire_server.core import Context, Core
from tidewire_server.services.eventflux.access import Backends
from tidewire_server.services.eventflux.events import EventsSession
from tidewire_server.services.eventflux.filters import read_request
from tidewire_server.services.eventflux.kinds import Kinds
from tidewire_server.services.eventflux.members import Nodes
from tidewire_server.services.eventflux.messages import (
    MILLISECOND_NS,
    Reader,
    TransportMessage,
    Writer,
)
from tidewire_server.services.eventflux.session import MessageSession


class EventFluxService(transport_pb2_grpc.TransportServicer):
    """
    Serves EventFlux's clients; one instance for all wires.

    It keeps no data: an EVENT or METADATA becomes a publish, a QUERY an ask, a STATE a write or
    read of a key, a CONTROL a command, a HEARTBEAT a beat of a member and a CHECKPOINT a commit, by
    the services of this server and by their rules. Nothing is taken for something else: a type that
    says nothing to do is refused.

    Args:
        core: Shared parts.
        backends: The services messages become calls of.
        accept_mislabelled_zstd: Take payloads that say ZSTD and are no Zstandard frame as they
            are, which is what EventFlux's own client sends by default.
    """

    def __init__(
        self, core: Core, backends: Backends, *, accept_mislabelled_zstd: bool = False
    ) -> None:
        self._core = core
        self._backends = backends
        self._reader = Reader(core, accept_mislabelled_zstd=accept_mislabelled_zstd)
        self._writer = Writer(core)
        self._nodes = Nodes(core, backends)
        self._kinds = Kinds(core, backends, self._nodes, self._writer)

    async def start(self) -> None:
        """Nothing is to be loaded."""

    async def close(self) -> None:
        """Wait for joins that are under way."""
        await self._nodes.close()

    async def SendMessage(self, request: TransportMessage, context: Context) -> TransportMessage:
        """Do what one message says."""
        message = await self._reader.read(request)
        return await self._kinds.do(message, context)

    async def StreamMessages(  # type: ignore[override]  # read/write style: answers are written
        self, requests: AsyncIterator[TransportMessage], context: Context
    ) -> None:
        """Do what many messages say, pipelined, answered in their order."""
        event = self._backends.event
        parts = (self._reader, self._writer, self._kinds)
        await MessageSession(self._core, event, *parts, context).run(requests)

    async def StreamEvents(  # type: ignore[override]  # read/write style: events are written
        self, request: transport_pb2.EventRequest, context: Context
    ) -> None:
        """Send events to a reader."""
        self._backends.check(context, "EventService/Subscribe")
        wanted = read_request(request, self._core.wall_ns() // MILLISECOND_NS)
        await EventsSession(self._core, self._backends.event.exchange, wanted, context).run()

    async def Heartbeat(
        self, request: transport_pb2.HeartbeatRequest, context: Context
    ) -> transport_pb2.HeartbeatResponse:
        """Take a heartbeat and say how the server and its members are."""
        return await self._nodes.heartbeat(request, context)
