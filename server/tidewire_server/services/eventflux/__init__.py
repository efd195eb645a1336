"""EventFlux's Transport service: its clients call this server as they are."""

from tidewire_server.services.eventflux.access import Backends
from tidewire_server.services.eventflux.service import EventFluxService

__all__ = ["Backends", "EventFluxService"]
