"""The asyncio client; use it as ``tidewire.connect``."""

from tidewire.client.client import Client, connect

__all__ = ("Client", "connect")
