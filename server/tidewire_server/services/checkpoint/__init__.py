"""Durable state of operators."""

from tidewire_server.services.checkpoint.service import CheckpointService

__all__ = ("CheckpointService",)
