"""
What every service gets: the engine, the limits, who is who, and the news that the server is going.

Services know nothing of wires. They are servicers of generated stubs: a context with the methods of
`grpc.aio.ServicerContext` comes in, and errors leave as `tidewire.errors`, which the router turns
into statuses.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc.aio

from tidewire import errors
from tidewire.v1 import common_pb2
from tidewire_server.engine.base import Engine
from tidewire_server.members import Members

Context = grpc.aio.ServicerContext[Any, Any]

CODECS: Final = (
    common_pb2.CODEC_NONE,
    common_pb2.CODEC_LZ4,
    common_pb2.CODEC_SNAPPY,
    common_pb2.CODEC_ZSTD,
)
IDENTITY_KEYS: Final = (
    "peer_spiffe_id",
    "x509_subject_alternative_name",
    "peer_unix",
    "peer_memory",
)
"""Where `principal` looks in the authentication context, in this order."""


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """Bounds of the services; bytes and counts. Clients are told in ``Opened`` and ``GetInfo``."""

    payload_bytes_max: int = 10 * 1024 * 1024
    overhead_bytes_max: int = 256 * 1024
    batch_messages_max: int = 65_536
    ack_pending_max: int = 65_536
    response_bytes_max: int = 4 * 1024 * 1024
    transaction_operations_max: int = 128
    chunk_bytes_max: int = 1024 * 1024
    publish_pending_bytes_max: int = 16 * 1024 * 1024
    publish_pending_messages_max: int = 262_144
    subscriber_pending_bytes_max: int = 8 * 1024 * 1024
    subscriber_pending_messages_max: int = 262_144
    subscriber_stall_s: float = 10.0
    unary_wait_s_max: float = 30.0

    def to_proto(self) -> common_pb2.Limits:
        """Say what clients should know."""
        return common_pb2.Limits(
            payload_bytes_max=self.payload_bytes_max,
            overhead_bytes_max=self.overhead_bytes_max,
            batch_messages_max=self.batch_messages_max,
            ack_pending_max=self.ack_pending_max,
            response_bytes_max=self.response_bytes_max,
            transaction_operations_max=self.transaction_operations_max,
            chunk_bytes_max=self.chunk_bytes_max,
        )


class Drain:
    """The server is going: streams say so and end within the grace."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.grace_s = 0.0

    def start(self, grace_s: float) -> None:
        """Announce the end; a second call changes nothing."""
        if not self.started.is_set():
            self.grace_s = grace_s
            self.started.set()

    def message(self) -> common_pb2.Draining:
        """What to say on a stream."""
        draining = common_pb2.Draining()
        draining.grace.FromNanoseconds(int(self.grace_s * 1e9))
        return draining

    def refusal(self) -> errors.Draining:
        """Make the error for what is asked of a server that is going."""
        return errors.Draining(
            "the server is shutting down; connect to another, or try again", retry_after_s=1.0
        )


@dataclass(slots=True)
class Counters:
    """
    Plain counters of the services, read by the metrics. Names are metric names without the prefix.
    """

    values: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, amount: int = 1) -> None:
        """Count."""
        self.values[name] = self.values.get(name, 0) + amount


@dataclass(slots=True)
class Core:
    """
    Shared by all services of one server.

    Attributes:
        node_id: The server's own node id.
        version: Version of the software.
        members: Who is alive; written by the heartbeat service, read by the others.
        clock: Monotonic seconds; a test may give its own.
        wall_ns: Nanoseconds since 1970 UTC.
    """

    engine: Engine
    members: Members
    node_id: str
    version: str
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    codecs: tuple[common_pb2.Codec.ValueType, ...] = CODECS
    drain: Drain = field(default_factory=Drain)
    counters: Counters = field(default_factory=Counters)
    clock: Callable[[], float] = time.monotonic
    wall_ns: Callable[[], int] = time.time_ns
    _streams: int = 0

    def opened(self, credit: common_pb2.Credit | None = None) -> common_pb2.Opened:
        """First response of a stream."""
        self._streams += 1
        return common_pb2.Opened(
            node_id=self.node_id,
            epoch=self.engine.epoch,
            limits=self.limits.to_proto(),
            codecs=self.codecs,
            credit=credit,
            stream_id=f"{self.engine.epoch}-{self._streams}",
        )


def principal(context: Context) -> str:
    """
    Who calls, as the wire authenticated it: the SPIFFE id, else the first DNS name of the
    certificate; ``unix://uid=1000`` on a Unix socket, ``memory://process`` within the process;
    else "".

    Never the common name.
    """
    auth = context.auth_context()
    if not auth:
        return ""
    for key in IDENTITY_KEYS:
        for value in auth.get(key, ()):
            return value.decode()
    return ""
