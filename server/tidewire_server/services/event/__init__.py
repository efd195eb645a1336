"""Events: publish and subscribe, durable streams and consumers."""

from tidewire_server.services.event.service import EventService

__all__ = ("EventService",)
