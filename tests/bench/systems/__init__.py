"""The systems that are measured side by side."""

from bench.systems.base import NotSupportedError, Peer, Served, System
from bench.systems.limit_system import Limit, limits
from bench.systems.nats_system import Nats
from bench.systems.plain import BareGrpc, Zmq
from bench.systems.redis_system import Redis
from bench.systems.tidewire_system import Tidewire
from bench.systems.zenoh_system import Zenoh

WIRES = (
    *("memory", "unix", "tcp", "tls", "ws", "wss", "quic"),
    *("udp", "dtls", "grpc", "grpcs", "grpc+unix"),
)
CODECS = ("lz4", "snappy", "zstd")


def all_systems() -> dict[str, System]:
    """Every system by its name."""
    systems: list[System] = [
        *(Tidewire(wire) for wire in WIRES if wire != "memory"),
        *(Tidewire("tcp", codec) for codec in CODECS),
        *(Tidewire(wire, workers=2) for wire in ("tcp", "tls")),
        Tidewire("tcp", workers=6),
        *(Nats(), Nats("default"), Nats("sync always")),
        *(Zenoh(), Zenoh(shared_memory=True)),
        *(Redis("always"), Redis("everysec")),
        *(BareGrpc(), Zmq()),
        *limits(),
    ]
    return {system.name: system for system in systems}


__all__ = ["Limit", "NotSupportedError", "Peer", "Served", "System", "all_systems"]
