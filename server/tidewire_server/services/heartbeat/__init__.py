"""Heartbeats: who is alive."""

from tidewire_server.services.heartbeat.service import HeartbeatService

__all__ = ("HeartbeatService",)
