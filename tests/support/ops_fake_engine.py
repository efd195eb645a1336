"""An engine that only says who it is, for parts of the server that store nothing."""

from typing import Any, cast

from tidewire.v1 import common_pb2
from tidewire_server.core import Core
from tidewire_server.engine.base import Engine
from tidewire_server.members import Members


class NamedEngine:
    """The attributes of an engine without its store."""

    def __init__(self) -> None:
        self.name = "fake"
        self.cluster_id = "cluster"
        self.epoch = 3
        self.durability_max = common_pb2.DURABILITY_OS
        self.failure: BaseException | None = None


def make_core(**options: Any) -> Core:
    """A core for services that do not store anything."""
    engine = cast("Engine", NamedEngine())
    return Core(engine=engine, members=Members(), node_id="node", version="1.2.3", **options)
