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
    ListenerMaker,
    Missing,
    Transport,
    WireListener,
    channel,
    listener_schemes,
    missing,
    register,
    register_listener,
    register_missing,
    transports,
)
from tidewire.transport.server import ConnectionInfo, RawServer
from tidewire.transport.tcp import stream_listener, tcp_channel, tls_channel
from tidewire.transport.tls import ServerTls, TlsConfig
from tidewire.transport.url import WireUrl, parse_url

register("grpc", grpc_channel)
register("grpcs", grpcs_channel)
register("tcp", tcp_channel)
register("tls", tls_channel)
register_listener("tcp", stream_listener)
register_listener("tls", stream_listener, encrypted=True)

__all__ = [
    "ConnectionInfo",
    "GrpcServerOptions",
    "ListenerMaker",
    "Missing",
    "RawChannel",
    "RawServer",
    "ServerCredentials",
    "ServerTls",
    "TlsConfig",
    "Transport",
    "TransportOptions",
    "WireCounters",
    "WireListener",
    "WireUrl",
    "channel",
    "channel_options",
    "client_credentials",
    "grpc_server",
    "listener_schemes",
    "missing",
    "parse_url",
    "register",
    "register_listener",
    "register_missing",
    "server_options",
    "transports",
]
