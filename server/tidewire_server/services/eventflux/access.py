"""The services an EventFlux message becomes a call of, and whether its sender may call them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tidewire_server.core import Context, principal
from tidewire_server.services.checkpoint import CheckpointService
from tidewire_server.services.control import ControlService
from tidewire_server.services.event import EventService
from tidewire_server.services.heartbeat import HeartbeatService
from tidewire_server.services.query import QueryService
from tidewire_server.services.state import StateService

PACKAGE: Final = "tidewire.v1"
Authorize = Callable[[str, str], None]
"""Called with the principal and the full method; raises `errors.PermissionDenied`."""


@dataclass(frozen=True, slots=True)
class Backends:
    """
    The services of the server.

    Attributes:
        authorize: Judges calls, as the router does; ``None``: everybody may do everything.
    """

    event: EventService
    query: QueryService
    state: StateService
    control: ControlService
    heartbeat: HeartbeatService
    checkpoint: CheckpointService
    authorize: Authorize | None = None

    def check(self, context: Context, method: str) -> None:
        """
        Refuse what the sender could not do by calling the service itself: a right to
        ``Transport/SendMessage`` alone is a right to nothing.

        Args:
            context: Of the EventFlux call.
            method: Such as ``StateService/Put``.

        Raises:
            PermissionDenied: No rule allows it.
        """
        if self.authorize is not None:
            self.authorize(principal(context), f"/{PACKAGE}.{method}")
