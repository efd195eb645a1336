"""What links and channels need of the shell that moves a connection's bytes, on any wire."""

import asyncio
from typing import Any, Protocol

from tidewire.transport.peer import Peer


class Shell(Protocol):
    """
    Drives one connection over one wire: a stream of bytes, QUIC, a queue in this process.

    It owns the socket, the timer and the sans-IO connection; links and channels tell it what to do.
    """

    lost: "asyncio.Future[None]"
    """Done when what carries the connection is closed."""

    @property
    def connection(self) -> Any:
        """The link it drives: a ``ClientLink`` or a ``ServerLink``."""
        ...

    def peer(self) -> Peer:
        """Who is at the other end."""
        ...

    def flush(self) -> None:
        """Hand what the connection has for the wire to the wire, as far as that takes it."""
        ...

    def finish(self) -> None:
        """Close when what the connection has queued is written and its calls are over."""
        ...

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        ...
