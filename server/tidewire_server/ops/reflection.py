"""
Server reflection, in both versions: clients ask for v1 first, the package serves v1alpha only.

The messages of both are the same on the wire, so v1 is the same handler under another name. The
name v1 is not listed among the services: its descriptor is in no pool here.
"""

from collections.abc import Iterable
from typing import Any, Final

from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from tidewire.eventflux import transport_pb2

NAMES: Final = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)


class _Pools:
    """
    Descriptors of our own contract and of EventFlux's, which is in a pool of its own; see
    proto/generate.py.
    """

    def __init__(self, *pools: Any) -> None:
        self._pools = pools

    def __getattr__(self, name: str) -> Any:
        def find(*arguments: Any) -> Any:
            for pool in self._pools[:-1]:
                try:
                    return getattr(pool, name)(*arguments)
                except KeyError:
                    continue
            return getattr(self._pools[-1], name)(*arguments)

        return find


class _Capture:
    """Takes the handlers that generated code registers."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """Ignore: the same handlers come by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Keep the handlers."""
        self.handlers.update(handlers)


def add_reflection(services: Iterable[str], server: Any) -> None:
    """
    Describe services to whoever asks.

    Args:
        services: Full names, such as ``tidewire.v1.EventService``.
        server: What handlers are registered with: a router or a server.

    """
    pools = _Pools(descriptor_pool.Default(), transport_pb2.DESCRIPTOR.pool)
    servicer = reflection.aio.ReflectionServicer([*services, reflection.SERVICE_NAME], pools)
    capture = _Capture()
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, capture)
    for name in NAMES:
        server.add_registered_method_handlers(name, capture.handlers)
