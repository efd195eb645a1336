"""One connection of a raw channel, and how one is made."""

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from tidewire.errors import (
    ConnectionLost,
    PermissionDenied,
    TidewireError,
    TlsFailed,
    WireVersionUnsupported,
    from_status,
)
from tidewire.transport.client_call import CallCore
from tidewire.transport.shell import Shell
from tidewire.wire.bodies import STATUS_OK, Ending, Goaway
from tidewire.wire.call import Call
from tidewire.wire.client_side import ClientConnection

if TYPE_CHECKING:
    from tidewire.transport.channel import RawChannel

_LOGGER = logging.getLogger(__name__)

NEVER_SENT = {"sent": "no"}
"""Metadata of an error that says: the server never saw the call, so repeating it is safe."""


class ClientLink(ClientConnection):
    """One connection of a channel."""

    fatal: Ending | None = None
    """Why the server ended the connection, when it was not in order."""
    room = 0
    """Calls it takes at the same time; known when it is ready."""
    watched = False
    """Whether the channel wants to hear of the end of each call."""

    def __init__(self, channel: "RawChannel", protocol: Shell, now_s: float) -> None:
        super().__init__(channel.hello, channel.options.limits, now_s)
        self.channel = channel
        self.protocol = protocol
        self.ready: asyncio.Future[None] = channel.loop.create_future()
        """Done when HELLOs are exchanged; carries the error when they are not."""
        # Whoever waited may be gone: then nobody needs to be told.
        self.ready.add_done_callback(lambda done: done.cancelled() or done.exception())

    @property
    def busy(self) -> int:
        """Calls on it, those included whose OPEN has not gone out."""
        return len(self.calls) + len(self.unsent)

    @property
    def full(self) -> bool:
        """Whether it takes no call now."""
        return self.closed or self.draining or len(self.calls) + len(self.unsent) >= self.room

    @property
    def carried(self) -> int:
        """Calls that went out on it so far."""
        return self.last_call_id

    def on_ready(self) -> None:
        """Let the channel use the connection."""
        most = self.channel.options.pool.calls_per_connection
        calls_max = self.peer_limits.calls_max
        self.room = min(most, calls_max) if most else calls_max
        if not self.ready.done():
            self.ready.set_result(None)

    def on_goaway(self, goaway: Goaway) -> None:
        """Leave the connection to its calls in flight; those not sent go to another one."""
        if goaway.reason.code != STATUS_OK:
            _LOGGER.warning("the server ends the connection: %s", goaway.reason.message)
            self.fatal = goaway.reason
        self.channel.on_draining(self)

    def ending_error(self, error: TidewireError) -> TidewireError:
        """Tell calls in flight what the server said before it closed."""
        if self.fatal is None:
            return super().ending_error(error)
        said = _said(self.fatal)
        if isinstance(said, WireVersionUnsupported):
            return said  # it will not be better next time
        return ConnectionLost(f"the server ended the connection: {self.fatal.message}")

    def forget(self, call: Call) -> None:
        """Take a call out; the last one of a draining connection ends it."""
        ClientConnection.forget(self, call)
        if self.draining:
            if not self.calls:
                self.protocol.finish()
        elif self.watched:
            self.channel.on_rested(self)

    def on_closed(self, error: TidewireError) -> None:
        """Tell the channel."""
        if not self.ready.done():
            # What we refused ourselves is told as it is: trying again does not change it.
            tls = isinstance(error, TlsFailed)
            self.ready.set_exception(error if tls else self.ending_error(error))
        self.channel.on_closed(self)

    def _close(self, error: TidewireError) -> None:
        """End; calls whose OPEN never left may go to another connection: nobody saw them."""
        unsent = [] if self.channel.closed else self.take_unsent()
        super()._close(error)
        ending = Ending.of(self.ending_error(error))
        for call in unsent:
            assert isinstance(call, CallCore)
            self.channel.move(call, ending)


async def connect(channel: "RawChannel", url: str, timeout_s: float) -> ClientLink | TidewireError:
    """
    Make one connection and exchange HELLOs; return it, or why it is not there.

    An error that calls may be told as it is: UNAVAILABLE but for a refusal that will not change,
    and that no server has seen them.
    """
    protocol: Shell | None = None
    try:
        async with asyncio.timeout(timeout_s):
            protocol = await channel.dial()
            await protocol.connection.ready
    except TidewireError as error:
        return error if error.retry_safe or isinstance(error, TlsFailed) else _lasting(error)
    except TimeoutError:
        if protocol is not None:
            protocol.abort()
        return _unreached(f"no connection to {url} within {timeout_s:g} s")
    except ssl.SSLError as error:
        return TlsFailed(f"TLS with {url} failed: {error.reason or error}")
    except OSError as error:
        return _unreached(f"cannot connect to {url}: {error.strerror or error}")
    except asyncio.CancelledError:
        if protocol is not None:
            protocol.abort()
        raise
    except Exception as error:
        # A host name no codec takes, a transport of somebody else: no call may hang for it.
        _LOGGER.exception("connecting to %s failed in a way nobody expected", url)
        return _unreached(f"cannot connect to {url}: {error}")
    link: ClientLink = protocol.connection
    if link.closed or link.draining:
        return _unreached(f"{url} ended the connection at once")
    return link


def _unreached(message: str) -> ConnectionLost:
    return ConnectionLost(message, metadata=NEVER_SENT)


def _lasting(error: TidewireError) -> TidewireError:
    """Report what the server or TLS refused as UNAVAILABLE, as gRPC does, with its own words."""
    if isinstance(error, (WireVersionUnsupported, PermissionDenied)):
        return error
    return ConnectionLost(error.message, metadata={**error.metadata, **NEVER_SENT})


def _said(ending: Ending) -> TidewireError | None:
    """Return the error a GOAWAY carries, typed; ``None`` when it cannot be read."""
    try:
        return from_status(status_pb2.Status.FromString(ending.details))
    except DecodeError:
        return None
