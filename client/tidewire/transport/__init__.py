"""
Wires: both ends of each. ``channel(url)`` for clients, ``RawServer`` and ``grpc_server`` for
servers.
"""

# First: it sets what grpcio reads from the environment when it is imported.
from tidewire.transport.grpc import (
    GrpcServerOptions,
    ServerCredentials,
    channel_options,
    client_credentials,
    grpc_channel,
    grpc_server,
    grpcs_channel,
    server_options,
)

# isort: split
from tidewire.transport.channel import RawChannel
from tidewire.transport.counters import WireCounters
from tidewire.transport.options import TransportOptions
from tidewire.transport.registry import (
    Missing,
    Transport,
    channel,
    missing,
    register,
    register_missing,
    transports,
)
from tidewire.transport.server import ConnectionInfo, RawServer
from tidewire.transport.tcp import tcp_channel, tls_channel
from tidewire.transport.tls import ServerTls, TlsConfig
from tidewire.transport.url import WireUrl, parse_url

register("grpc", grpc_channel)
register("grpcs", grpcs_channel)
register("tcp", tcp_channel)
register("tls", tls_channel)

__all__ = [
    "ConnectionInfo",
    "GrpcServerOptions",
    "Missing",
    "RawChannel",
    "RawServer",
    "ServerCredentials",
    "ServerTls",
    "TlsConfig",
    "Transport",
    "TransportOptions",
    "WireCounters",
    "WireUrl",
    "channel",
    "channel_options",
    "client_credentials",
    "grpc_server",
    "missing",
    "parse_url",
    "register",
    "register_missing",
    "server_options",
    "transports",
]
