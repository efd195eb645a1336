"""Queries: request and reply through the server."""

from tidewire_server.services.query.service import QueryService

__all__ = ("QueryService",)
