"""
The server about itself.
"""

import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Final

from tidewire.v1 import common_pb2, server_pb2, server_pb2_grpc
from tidewire_server.core import Context, Core, principal

PACKAGES: Final = (
    "grpcio",
    "protobuf",
    "lz4",
    "zstandard",
    "python-snappy",
    "uvloop",
    "aiofastnet",
)
"""Whose versions are told, where they are installed."""


class ServerService(server_pb2_grpc.ServerServiceServicer):
    """
    Answers GetInfo.

    Attributes:
        listeners: Where the server listens; filled in once the ports are known.

    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._components: dict[str, str] = {}
        self._started_ns = core.wall_ns()
        self.listeners: list[server_pb2.Listener] = []

    async def start(self) -> None:
        """Note when the server started, and what it is built on."""
        self._started_ns = self._core.wall_ns()
        self._components = dict(_components())

    async def close(self) -> None:
        """Hold nothing."""

    async def GetInfo(
        self, request: server_pb2.GetInfoRequest, context: Context
    ) -> server_pb2.GetInfoResponse:
        """Version, limits, codecs, listeners, engine, durability, and who the caller is."""
        core, engine = self._core, self._core.engine
        response = server_pb2.GetInfoResponse(
            node_id=core.node_id,
            version=core.version,
            cluster_id=engine.cluster_id,
            epoch=engine.epoch,
            limits=core.limits.to_proto(),
            codecs=core.codecs,
            listeners=self.listeners,
            engine=engine.name,
            durability_max=engine.durability_max,
            durability_default=min(common_pb2.DURABILITY_FSYNC, engine.durability_max),
            draining=core.drain.started.is_set(),
            components=self._components,
            principal=principal(context),
        )
        response.started.FromNanoseconds(self._started_ns)
        return response


def _components() -> Iterable[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    try:
        import apsw
    except ModuleNotFoundError:
        return
    yield "sqlite", apsw.sqlite_lib_version()
