"""Shared versioned values, kept in sync."""

from tidewire_server.services.state.service import StateService

__all__ = ("StateService",)
