"""
``grpc.health.v1``: whether the server, and each of its services, takes calls.

Our own servicer, because the package's holds one lock while it writes to a watcher: a watcher that
does not read would keep everybody from hearing that the server is going.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from grpc_health.v1 import health_pb2, health_pb2_grpc

from tidewire.errors import NotFound, ResourceExhausted
from tidewire_server.core import Context

SERVER: Final = ""
"""Name under which the health of the whole server is asked for."""
WATCHERS_MAX: Final = 4_096

Status = Any  # health_pb2.HealthCheckResponse.ServingStatus, which is untyped


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped package
    """Answers probes, and tells watchers of changes."""

    def __init__(self, services: Iterable[str]) -> None:
        serving: Status = health_pb2.HealthCheckResponse.SERVING
        self._statuses: dict[str, Status] = dict.fromkeys((SERVER, *services), serving)
        self._changed = asyncio.Event()
        self._watchers = 0
        self._is_going = False

    def set_serving(self, service: str, serving: bool) -> None:
        """
        Change what is said of a service, or of the server; after `shut_down` it changes nothing.

        Args:
            service: Full name such as ``tidewire.v1.StateService``, or `SERVER`.
            serving: Whether it takes calls.

        """
        if not self._is_going:
            response = health_pb2.HealthCheckResponse
            self._statuses[service] = response.SERVING if serving else response.NOT_SERVING
            self._tell()

    def shut_down(self) -> None:
        """Say NOT_SERVING for everything, for good; watchers are told and their calls end."""
        self._is_going = True
        for service in self._statuses:
            self._statuses[service] = health_pb2.HealthCheckResponse.NOT_SERVING
        self._tell()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Say how a service is now."""
        status = self._statuses.get(request.service)
        if status is None:
            raise NotFound(
                f'no service {request.service[:256]!r} is known here; ask for "" or for one of '
                f"{', '.join(sorted(name for name in self._statuses if name))}"
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Say how a service is, and again whenever that changes, until the server goes."""
        if self._watchers >= WATCHERS_MAX:
            raise ResourceExhausted(
                f"{WATCHERS_MAX} calls watch the health of this server already; use Check",
                retry_after_s=1.0,
            )
        self._watchers += 1
        try:
            said: Status | None = None
            while True:
                changed = self._changed  # taken before the status, so that no change is missed
                unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                status = self._statuses.get(request.service, unknown)
                if status != said:
                    yield health_pb2.HealthCheckResponse(status=status)
                    said = status
                    continue  # a slow reader may have been passed by a change
                if self._is_going:
                    return
                await changed.wait()
        finally:
            self._watchers -= 1

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
