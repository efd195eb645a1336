"""The channel between a worker and the engine's process: what both ends of it agree on."""

from dataclasses import replace
from typing import Final

from tidewire.transport import TransportOptions
from tidewire.wire.limits import KIB, MIB
from tidewire_server.ops.config import Config

CALLS_MAX: Final = 65_536
"""Calls of all clients of a worker on one connection to the engine's process."""
CONNECTION_CREDIT_BYTES: Final = 64 * MIB
"""On their way between the two at the same time."""
CALL_CREDIT_BYTES: Final = 256 * KIB
CALL_WINDOW_BYTES_MAX: Final = 2 * MIB
"""Windows of a call, smaller than those to clients: what one that does not read leaves here."""
UNREAD_BYTES_MAX: Final = 8 * 1024 * MIB
"""
Unread of all calls before the connection stops. The windows of calls bound what is kept, and the
engine cuts off who takes nothing; this bound is of one connection that many clients share, and were
it small, those that do not read would stop the others.
"""
HEAD_SPARE_BYTES: Final = 16 * KIB
"""What a worker adds to the head of a call, at most: who called."""
HEAD_CACHED_BYTES_MAX: Final = 2 * KIB


def engine_options(config: Config) -> TransportOptions:
    """Return the options of that channel, at both ends."""
    wire = config.wire.to_wire()
    limits = replace(
        wire,
        calls_max=CALLS_MAX,
        call_credit_bytes=CALL_CREDIT_BYTES,
        call_window_bytes_max=CALL_WINDOW_BYTES_MAX,
        connection_credit_bytes=CONNECTION_CREDIT_BYTES,
        unread_bytes_max=UNREAD_BYTES_MAX,
        head_bytes_max=wire.head_bytes_max + HEAD_SPARE_BYTES,
        head_cached_bytes_max=HEAD_CACHED_BYTES_MAX,
    )
    return TransportOptions(limits=limits, node_id=config.server.node_id)
