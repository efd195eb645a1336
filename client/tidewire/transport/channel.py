"""
The client's end of raw wires: ``grpc.aio.Channel`` over one connection that is made when needed.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc import ChannelConnectivity as State

from tidewire.errors import (
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    PermissionDenied,
    ResourceExhausted,
    TidewireError,
    TlsFailed,
    WireUnsuitable,
    WireVersionUnsupported,
)
from tidewire.transport import multicallable
from tidewire.transport.client_call import CallCore
from tidewire.transport.counters import WireCounters
from tidewire.transport.options import TransportOptions
from tidewire.transport.shell import Shell
from tidewire.transport.stream import WireProtocol
from tidewire.transport.version import AGENT
from tidewire.wire.bodies import STATUS_OK, Ending, Goaway, Hello
from tidewire.wire.call import Call
from tidewire.wire.client_side import ClientConnection
from tidewire.wire.frame import CALL_ID_MAX

_LOGGER = logging.getLogger(__name__)

Dial = Callable[["RawChannel"], Awaitable[Shell]]
"""
Makes one connection of a channel: what differs between wires. The shell it returns drives a
:class:`ClientLink`; the channel waits for that link to be ready.
"""


class ClientLink(ClientConnection):
    """One connection of a channel."""

    def __init__(self, channel: "RawChannel", protocol: Shell, now_s: float) -> None:
        super().__init__(channel.hello, channel.options.limits, now_s)
        self.channel = channel
        self.protocol = protocol
        self.ready: asyncio.Future[None] = channel.loop.create_future()
        """Done when HELLOs are exchanged; carries the error when they are not."""
        # Whoever waited may be gone: then nobody needs to be told.
        self.ready.add_done_callback(lambda done: done.cancelled() or done.exception())

    def on_ready(self) -> None:
        """Let the channel use the connection."""
        if not self.ready.done():
            self.ready.set_result(None)

    def on_goaway(self, goaway: Goaway) -> None:
        """Leave the connection to its calls in flight; those not sent go to another one."""
        if goaway.reason.code != STATUS_OK:
            _LOGGER.warning("the server ends the connection: %s", goaway.reason.message)
            self.fatal = goaway.reason
        self.channel.on_draining(self)

    fatal: Ending | None = None
    """Why the server ended the connection, when it was not in order."""

    def ending_error(self, error: TidewireError) -> TidewireError:
        """Tell calls in flight what the server said before it closed."""
        if self.fatal is not None:
            return ConnectionLost(f"the server ended the connection: {self.fatal.message}")
        return super().ending_error(error)

    def forget(self, call: Call) -> None:
        """Take a call out; the last one of a draining connection ends it."""
        ClientConnection.forget(self, call)
        if self.draining and not self.calls:
            self.protocol.finish()

    def on_closed(self, error: TidewireError) -> None:
        """Tell the channel."""
        if not self.ready.done():
            self.ready.set_exception(self.ending_error(error))
        self.channel.on_closed(self)


class RawChannel(grpc.aio.Channel):
    """
    A channel over a raw wire.

    It connects when the first call needs it, again after a loss, and waits longer after each
    failure. Use it in one event loop. It may be made before the loop runs.
    """

    def __init__(
        self,
        url: str,
        dial: Dial,
        *,
        options: TransportOptions,
        encrypted: bool,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        codecs: Sequence[int] = (),
    ) -> None:
        if options.token and not encrypted:
            raise WireUnsuitable(f"{url} is not encrypted: a token must not be sent over it")
        self.url = url
        self.options = options
        self.encrypted = encrypted
        self.interceptors = tuple(interceptors)
        self.hello = Hello(
            agent=options.agent or AGENT,
            codecs=tuple(codecs),
            token=options.token,
            node_id=options.node_id,
        )
        self.counters = WireCounters()
        self.link: ClientLink | None = None
        """Connection that takes new calls."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dial = dial
        self._links: set[ClientLink] = set()
        self._waiting: dict[CallCore, None] = {}
        self._connecting: asyncio.Task[None] | None = None
        self._state = State.IDLE
        self._state_changed: asyncio.Event | None = None
        self._failure: TidewireError | None = None
        self._failures = 0
        self._wanted = False
        self._closed = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the first use."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        return loop

    # Calls ------------------------------------------------------------------------------------

    def start(self, call: CallCore, message: bytes | None, *, last: bool) -> None:
        """Open a call on the connection, or let it wait for one."""
        link = self.link
        self.counters.calls_active += 1
        if link is None or link.draining:
            self._wait(call, message, last)
            return
        try:
            link.open(call, message, last=last)
        except TidewireError as error:
            self._refuse(call, error)
            return
        call.attached = True
        if link.last_call_id >= LATE_CALL_ID and link.exhausted:
            self.on_draining(link)

    def _refuse(self, call: CallCore, error: TidewireError) -> None:
        call.over = True
        call.on_end(Ending.of(error))

    def _wait(self, call: CallCore, message: bytes | None, last: bool) -> None:
        if self._closed:
            self._refuse(call, Cancelled("the channel is closed"))
        elif len(self._waiting) >= self.options.pending_calls_max:
            self._refuse(
                call, ResourceExhausted(f"{len(self._waiting)} calls wait for a connection")
            )
        elif self._state is State.TRANSIENT_FAILURE and not call.wait_for_ready:
            assert self._failure is not None
            self._refuse(call, self._failure)
        else:
            call.pending = (message, last)
            self._waiting[call] = None
            if call.deadline_s is not None:
                call.waiting_timer = self.loop.call_at(call.deadline_s, self._expire, call)
            self._connect()

    def _expire(self, call: CallCore) -> None:
        if call in self._waiting:
            self.drop_waiting(call)
            why = f"; {self._failure.message}" if self._failure else ""
            self._refuse(
                call, DeadlineExceeded(f"the deadline passed before a connection was there{why}")
            )

    def drop_waiting(self, call: CallCore) -> None:
        """Let a call wait no longer."""
        self._waiting.pop(call, None)
        if call.waiting_timer is not None:
            call.waiting_timer.cancel()
            call.waiting_timer = None

    def ended(self, call: CallCore, ending: Ending) -> None:
        """Count the end of a call."""
        self.counters.calls_active -= 1
        self.counters.calls_ended[ending.code] += 1

    def collect(self, call: CallCore) -> None:
        """Cancel a call that nobody holds any more; from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call.abandon)

    # Connection -------------------------------------------------------------------------------

    def stream_protocol(self) -> WireProtocol[ClientLink]:
        """Return the shell of a new connection, for wires that are a stream of bytes."""
        return WireProtocol(lambda shell, now_s: ClientLink(self, shell, now_s), self.counters)

    def _connect(self) -> None:
        if self._connecting is None and not self._closed:
            self._connecting = self.loop.create_task(self._keep_connecting())

    async def _keep_connecting(self) -> None:
        """Connect; after a failure wait and go on while somebody wants the connection."""
        try:
            while True:
                self._set_state(State.CONNECTING)
                failure = await self._try_connecting()
                if failure is None:
                    return
                self._failures += 1
                self._failure = failure
                self.counters.errors[type(failure).__name__] += 1
                self._set_state(State.TRANSIENT_FAILURE)
                self._fail_waiting(failure)
                await asyncio.sleep(self._backoff_s())
                if not self._waiting and not self._wanted:
                    self._set_state(State.IDLE)
                    return
        finally:
            self._connecting = None

    def _backoff_s(self) -> float:
        options = self.options
        doublings = min(self._failures - 1, 32)
        wait_s: float = min(options.backoff_first_s * 2**doublings, options.backoff_last_s)
        return wait_s * (1 + options.backoff_jitter * (2 * random.random() - 1))

    async def _try_connecting(self) -> TidewireError | None:
        """Return ``None`` when the connection is there, else why it is not."""
        timeout_s = self.options.connect_timeout_s
        protocol: Shell | None = None
        try:
            async with asyncio.timeout(timeout_s):
                protocol = await self._dial(self)
                await protocol.connection.ready
        except TidewireError as error:
            return error if error.retry_safe else _lasting(error)
        except TimeoutError:
            if protocol is not None:
                protocol.abort()
            return ConnectionLost(f"no connection to {self.url} within {timeout_s:g} s")
        except ssl.SSLError as error:
            return TlsFailed(f"TLS with {self.url} failed: {error.reason or error}")
        except OSError as error:
            return ConnectionLost(f"cannot connect to {self.url}: {error.strerror or error}")
        except asyncio.CancelledError:
            if protocol is not None:
                protocol.abort()
            raise
        except Exception as error:
            # A host name no codec takes, a transport of somebody else: no call may hang for it.
            _LOGGER.exception("connecting to %s failed in a way nobody expected", self.url)
            return ConnectionLost(f"cannot connect to {self.url}: {error}")
        link: ClientLink = protocol.connection
        if link.closed or link.draining:
            return ConnectionLost(f"{self.url} ended the connection at once")
        self._use(link)
        return None

    def _use(self, link: ClientLink) -> None:
        self._failures = 0
        self._failure = None
        self._wanted = False
        self._links.add(link)
        self.link = link
        self._set_state(State.READY)
        waiting = list(self._waiting)
        for call in waiting:
            self.drop_waiting(call)
            self._reopen(call)

    def _reopen(self, call: CallCore) -> None:
        message, last = call.pending
        call.pending = (None, False)
        self.counters.calls_active -= 1
        self.start(call, message, last=last)
        call.on_attached()

    def _fail_waiting(self, failure: TidewireError) -> None:
        for call in [call for call in self._waiting if not call.wait_for_ready]:
            self.drop_waiting(call)
            self._refuse(call, failure)

    def on_draining(self, link: ClientLink) -> None:
        """Use another connection from now on; calls that were not sent move there."""
        link.draining = True
        if self.link is link:
            self.link = None
            self._set_state(State.IDLE)
        for call in link.take_unsent():
            assert isinstance(call, CallCore)
            self._wait(call, *call.detach())
        if not link.calls:
            link.protocol.finish()

    def on_closed(self, link: ClientLink) -> None:
        """A connection is over."""
        self._links.discard(link)
        if self.link is link:
            self.link = None
            self._set_state(State.IDLE)

    # State ------------------------------------------------------------------------------------

    def _set_state(self, state: State) -> None:
        if state is self._state or self._state is State.SHUTDOWN:
            return
        self._state = state
        if self._state_changed is not None:
            self._state_changed.set()
            self._state_changed = None

    def get_state(self, try_to_connect: bool = False) -> State:
        """Return the state; connect if asked to and idle."""
        if try_to_connect and self._state is State.IDLE:
            self._wanted = True
            self._connect()
        return self._state

    async def wait_for_state_change(self, last_observed_state: State) -> None:
        """Wait until the state is another one."""
        while self._state is last_observed_state:
            if self._state_changed is None:
                self._state_changed = asyncio.Event()
            await self._state_changed.wait()

    async def channel_ready(self) -> None:
        """Connect and wait until it is done, through failures."""
        while (state := self.get_state(try_to_connect=True)) is not State.READY:
            if state is State.SHUTDOWN:
                raise grpc.aio.UsageError("the channel is closed")
            self._wanted = True
            await self.wait_for_state_change(state)

    async def close(self, grace: float | None = None) -> None:
        """
        Take no more calls; let those in flight finish for ``grace`` seconds, then cancel them.
        """
        if self._closed:
            return
        self._closed = True
        for call in list(self._waiting):
            call.cancel_with(Ending.of(Cancelled("the channel was closed")))
        self.link = None
        if self._connecting is not None:
            self._connecting.cancel()
        links = list(self._links)
        if grace and links:
            for link in links:
                link.draining = True
                if not link.calls and not link.unsent:
                    link.protocol.finish()
            await asyncio.wait([link.protocol.lost for link in links], timeout=grace)
        for link in links:
            link.close()
            link.protocol.flush()
        self._set_state(State.SHUTDOWN)
        if links:
            await asyncio.wait([link.protocol.lost for link in links], timeout=CLOSE_WAIT_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    # Methods ----------------------------------------------------------------------------------

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Return a callable for a method with one request and one response."""
        return multicallable.UnaryUnary(self, method, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Return a callable for a method with one request and many responses."""
        return multicallable.UnaryStream(self, method, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Return a callable for a method with many requests and one response."""
        return multicallable.StreamUnary(self, method, request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Return a callable for a method with many requests and many responses."""
        return multicallable.StreamStream(self, method, request_serializer, response_deserializer)


LATE_CALL_ID = CALL_ID_MAX // 2
"""From here on each call looks whether the connection has numbers left."""
CLOSE_WAIT_S = 1.0
"""How long ``close`` waits for streams to be closed in order."""


def _lasting(error: TidewireError) -> TidewireError:
    """Report what the server or TLS refused as UNAVAILABLE, as gRPC does, with its own words."""
    if isinstance(error, (WireVersionUnsupported, PermissionDenied)):
        return error
    return ConnectionLost(error.message)
