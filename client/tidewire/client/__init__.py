"""The asyncio client; use it as ``tidewire.connect``."""

# First: it sets what grpcio reads from the environment when it is imported.
import tidewire.transport  # noqa: F401

# isort: split
from tidewire.client.client import Client, connect

__all__ = ("Client", "connect")
