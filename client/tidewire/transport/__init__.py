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
from importlib.util import find_spec
from typing import Final

from tidewire.transport.balance import BalanceOptions, BalancePolicy
from tidewire.transport.balanced import BalancedChannel
from tidewire.transport.channel import RawChannel
from tidewire.transport.counters import WireCounters
from tidewire.transport.opening import channel
from tidewire.transport.options import TransportOptions, buffer_bytes
from tidewire.transport.pool import PoolOptions, PoolStats
from tidewire.transport.registry import (
    ListenerMaker,
    Missing,
    Transport,
    WireListener,
    WireStatus,
    imported_from,
    listener_schemes,
    missing,
    register,
    register_listener,
    register_missing,
    transports,
    wires,
)
from tidewire.transport.server import ConnectionInfo, RawServer
from tidewire.transport.sockets import UNIX_SOCKETS
from tidewire.transport.tcp import stream_listener, tcp_channel, tls_channel
from tidewire.transport.tls import ServerTls, TlsConfig
from tidewire.transport.url import WireUrl, parse_url

register("grpc", grpc_channel)
register("grpcs", grpcs_channel)
register("tcp", tcp_channel)
register("tls", tls_channel)
register_listener("tcp", stream_listener)
register_listener("tls", stream_listener, encrypted=True)
_HERE: Final = "tidewire.transport"
register("memory", imported_from(f"{_HERE}.memory:memory_channel"))
register_listener("memory", imported_from(f"{_HERE}.memory:memory_listener"))
register("udp", imported_from(f"{_HERE}.udp:udp_channel"))
register_listener("udp", imported_from(f"{_HERE}.udp:udp_listener"))
if find_spec("OpenSSL") is None or find_spec("service_identity") is None:
    register_missing("dtls", "needs pyOpenSSL: pip install 'tidewire[dtls]'")
else:
    register("dtls", imported_from(f"{_HERE}.dtls:dtls_channel"))
    register_listener("dtls", imported_from(f"{_HERE}.dtls:dtls_listener"), encrypted=True)
if UNIX_SOCKETS:
    register("unix", imported_from(f"{_HERE}.unix:unix_channel"))
    register_listener("unix", imported_from(f"{_HERE}.unix:unix_listener"))
    register("grpc+unix", imported_from(f"{_HERE}.unix:grpc_unix_channel"))
else:
    for scheme in ("unix", "grpc+unix"):
        register_missing(scheme, "this system has no Unix sockets")
if find_spec("aioquic") is None:
    register_missing("quic", "needs aioquic: pip install 'tidewire[quic]'")
else:
    register("quic", imported_from(f"{_HERE}.quic:quic_channel"))
    register_listener("quic", imported_from(f"{_HERE}.quic:quic_listener"), encrypted=True)
register_missing(
    "rdma",
    "no Python binding for RDMA verbs is kept up; a transport of your own registers by the entry "
    "points tidewire.transports and tidewire.listeners",
)
if find_spec("picows") is None:
    for scheme in ("ws", "wss"):
        register_missing(scheme, "needs picows: pip install 'tidewire[ws]'")
else:
    for scheme in ("ws", "wss"):
        register(scheme, imported_from(f"{_HERE}.websocket:websocket_channel"))
        maker = imported_from(f"{_HERE}.websocket:websocket_listener")
        register_listener(scheme, maker, encrypted=scheme == "wss")

__all__ = [
    "BalanceOptions",
    "BalancePolicy",
    "BalancedChannel",
    "ConnectionInfo",
    "GrpcServerOptions",
    "ListenerMaker",
    "Missing",
    "PoolOptions",
    "PoolStats",
    "RawChannel",
    "RawServer",
    "ServerCredentials",
    "ServerTls",
    "TlsConfig",
    "Transport",
    "TransportOptions",
    "WireCounters",
    "WireListener",
    "WireStatus",
    "WireUrl",
    "buffer_bytes",
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
    "wires",
]
