"""
What commands to the server's own node do.
"""

import logging
from collections.abc import Callable

from tidewire.errors import InvalidArgument, NotFound, StreamNotFound
from tidewire_server.engine.base import Engine
from tidewire_server.listeners import Listeners
from tidewire_server.ops import logs

log = logging.getLogger(__name__)


class Actions:
    """The administration of one server; the control service calls it."""

    def __init__(
        self, engine: Engine, listeners: Listeners, begin_stop: Callable[[float | None], None]
    ) -> None:
        self._engine = engine
        self._listeners = listeners
        self._begin_stop = begin_stop

    async def drain(self, grace_s: float | None = None) -> None:
        """Shut the server down in order, as SIGTERM does; returns before it is down."""
        log.warning("told to drain", extra={"grace_s": grace_s})
        self._begin_stop(grace_s)

    async def pause_stream(self, name: str) -> None:
        """Refuse publishing to a stream and stop its consumers."""
        await self._set_paused(name, paused=True)

    async def resume_stream(self, name: str) -> None:
        """Undo `pause_stream`."""
        await self._set_paused(name, paused=False)

    async def disconnect_client(self, connection_id: str) -> None:
        """
        End a connection of a raw wire, named as in the log: ``tcp-5``.

        Raises:
            InvalidArgument: That is no name of a connection.
            NotFound: It is not open.
        """
        scheme, _, number = connection_id.partition("-")
        if not number.isdigit():
            raise InvalidArgument(
                f"{connection_id!r} is not a connection id, such as tcp-5",
                fields={"connection_id": "wire-number"},
            )
        if not await self._listeners.disconnect(scheme, int(number)):
            raise NotFound(f"no connection {connection_id} is open")

    async def list_connections(self) -> list[dict[str, str | int]]:
        """Open connections of the raw wires."""
        return [
            {
                "connection_id": f"{scheme}-{info.identifier}",
                "peer": info.peer,
                "identity": info.identity,
                "agent": info.agent,
                "calls": info.calls,
            }
            for scheme, infos in (await self._listeners.connections()).items()
            for info in infos
        ]

    async def set_log_level(self, level: str) -> None:
        """
        Change what is logged.

        Raises:
            InvalidArgument: There is no such level.
        """
        try:
            logs.set_level(level)
        except ValueError as error:
            raise InvalidArgument(str(error), fields={"level": str(error)}) from error

    async def _set_paused(self, name: str, *, paused: bool) -> None:
        config = self._engine.stream_config(name)
        if config is None:
            raise StreamNotFound(f"there is no stream {name!r}", metadata={"stream": name})
        changed = type(config).FromString(config.SerializeToString())
        changed.paused = paused
        await self._engine.update_stream(changed)
