"""The channel between a worker and the engine's process: what both ends of it agree on."""

from dataclasses import replace
from typing import Final

from tidewire.transport import TransportOptions
from tidewire_server.ops.config import Config

CALLS_MAX: Final = 65_536
"""Calls of all clients of a worker at the same time."""
CREDIT_BYTES: Final = 64 * 1024 * 1024
"""Flow-control window for all of them together; each call has its own below."""


def engine_options(config: Config) -> TransportOptions:
    """Return the options of that channel, at both ends."""
    limits = replace(
        config.wire.to_wire(),
        calls_max=CALLS_MAX,
        connection_credit_bytes=CREDIT_BYTES,
        unread_bytes_max=CREDIT_BYTES,
    )
    return TransportOptions(limits=limits, node_id=config.server.node_id)
