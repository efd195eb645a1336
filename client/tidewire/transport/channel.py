"""
The client's end of raw wires: ``grpc.aio.Channel`` over connections that are made when needed.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc import ChannelConnectivity as State

from tidewire.errors import (
    Cancelled,
    DeadlineExceeded,
    ResourceExhausted,
    TidewireError,
    WireUnsuitable,
)
from tidewire.transport import multicallable
from tidewire.transport.client_call import CallCore
from tidewire.transport.client_link import ClientLink, connect
from tidewire.transport.connectivity import Connectivity
from tidewire.transport.counters import WireCounters
from tidewire.transport.options import TransportOptions
from tidewire.transport.pool import Ended, Pool, PoolStats
from tidewire.transport.shell import Shell
from tidewire.transport.stream import WireProtocol
from tidewire.transport.version import AGENT
from tidewire.wire.bodies import Ending, Hello
from tidewire.wire.deadlines import FOREVER
from tidewire.wire.frame import CALL_ID_MAX

Dial = Callable[["RawChannel"], Awaitable[Shell]]
"""
Makes one connection of a channel: what differs between wires. The shell it returns drives a
:class:`ClientLink`; the channel waits for that link to be ready.
"""


class RawChannel(grpc.aio.Channel):
    """
    A channel over a raw wire.

    It connects when the first call needs it, again after a loss, and waits longer after each
    failure. One connection carries all calls until it is full; then a pool of them does (see
    :class:`~tidewire.transport.pool.PoolOptions`). Use it in one event loop. It may be made before
    the loop runs.
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
        self.pool: Pool[ClientLink] = Pool(options.pool)
        self.closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dial = dial
        self._links: set[ClientLink] = set()
        self._waiting: dict[CallCore, None] = {}
        self._connecting: asyncio.Task[None] | None = None
        self._growing: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._connectivity = Connectivity()
        self._failure: TidewireError | None = None
        self._failures = 0
        self._grow_at_s = 0.0
        self._wanted = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the first use."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        return loop

    def pool_stats(self) -> PoolStats:
        """Return the connections by state, and what became of those before."""
        return self.pool.stats(len(self._waiting))

    # Calls ------------------------------------------------------------------------------------

    def start(self, call: CallCore, message: bytes | None, *, last: bool) -> None:
        """Open a call on a connection, or let it wait for one."""
        link = self.link
        self.counters.calls_active += 1
        if link is None or link.draining or len(link.calls) + len(link.unsent) >= link.room:
            link = self.link = self.pool.pick()
            if link is None:
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
        if self.closed:
            self._refuse(call, Cancelled("the channel is closed"))
        elif len(self._waiting) >= self.options.pending_calls_max:
            self._refuse(
                call, ResourceExhausted(f"{len(self._waiting)} calls wait for a connection")
            )
        elif self._connectivity.state is State.TRANSIENT_FAILURE and not call.wait_for_ready:
            assert self._failure is not None
            self._refuse(call, self._failure)
        else:
            call.pending = (message, last)
            self._waiting[call] = None
            self.pool.waits += 1
            if call.deadline_s is not None:
                call.waiting_timer = self.loop.call_at(call.deadline_s, self._expire, call)
            self._want()

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

    def move(self, call: CallCore, ending: Ending) -> None:
        """Give a call that no server has seen to another connection; not for ever."""
        call.moves += 1
        if call.moves > MOVES_MAX:
            call.over = True
            call.on_end(ending)
        else:
            self._wait(call, *call.detach())

    def ended(self, call: CallCore, ending: Ending) -> None:
        """Count the end of a call."""
        self.counters.calls_active -= 1
        self.counters.calls_ended[ending.code] += 1

    def collect(self, call: CallCore) -> None:
        """Cancel a call that nobody holds any more; from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call.abandon)

    # Connections ------------------------------------------------------------------------------

    def stream_protocol(self) -> WireProtocol[ClientLink]:
        """Return the shell of a new connection, for wires that are a stream of bytes."""
        return WireProtocol(lambda shell, now_s: ClientLink(self, shell, now_s), self.counters)

    async def dial(self) -> Shell:
        """Make one connection of this channel's wire."""
        return await self._dial(self)

    def _want(self) -> None:
        """See that calls which wait get a connection: the first one, or one more."""
        if not self.pool.members:
            self._connect()
        else:
            self._grow()

    def _connect(self) -> None:
        if self._connecting is None and not self.closed:
            self._connecting = self.loop.create_task(self._keep_connecting())

    async def _keep_connecting(self) -> None:
        """Connect; after a failure wait and go on while somebody wants the connection."""
        try:
            while not self.pool.members:
                self._connectivity.set(State.CONNECTING)
                if await self._open_one() or self.pool.members:
                    return
                failure = self._failure
                assert failure is not None
                self._connectivity.set(State.TRANSIENT_FAILURE)
                self._fail_waiting(failure)
                await asyncio.sleep(self._backoff_s())
                if not self._waiting and not self._wanted and not self.pool.members:
                    self._connectivity.set(State.IDLE)
                    return
        finally:
            self._connecting = None

    def _grow(self, *, first: bool = False) -> None:
        """Open what the pool wants beside the connections there are."""
        if self.closed or self.loop.time() < self._grow_at_s:
            return
        for _ in range(self.pool.wanted(len(self._waiting), first=first)):
            task = self.loop.create_task(self._open_another())
            self.pool.opening += 1
            self._growing.add(task)
            task.add_done_callback(self._grown)

    def _grown(self, task: "asyncio.Task[None]") -> None:
        self.pool.opening -= 1
        self._growing.discard(task)

    async def _open_another(self) -> None:
        """Open one more; when that fails the calls wait for room on those there are."""
        if not await self._open_one():
            wait_s = self._backoff_s()
            self._grow_at_s = self.loop.time() + wait_s
            await asyncio.sleep(wait_s)
            self.loop.call_soon(self._want_again)

    def _want_again(self) -> None:
        if self._waiting:
            self._want()

    def _backoff_s(self) -> float:
        options = self.options
        doublings = min(max(self._failures - 1, 0), 32)
        wait_s: float = min(options.backoff_first_s * 2**doublings, options.backoff_last_s)
        return wait_s * (1 + options.backoff_jitter * (2 * random.random() - 1))

    async def _open_one(self) -> bool:
        """Open a connection and use it; return False when it failed, and note why."""
        opened = await connect(self, self.url, self.options.connect_timeout_s)
        if isinstance(opened, ClientLink):
            self._use(opened)
            return True
        self._failures += 1
        self._failure = opened
        self.counters.errors[type(opened).__name__] += 1
        return False

    def _use(self, link: ClientLink) -> None:
        self._failures = 0
        self._failure = None
        self._wanted = False
        self._grow_at_s = 0.0
        self._links.add(link)
        first = not self.pool.members
        self.pool.add(link, self.loop.time())
        self._watch_links()
        if self.link is None:
            self.link = link
        self._connectivity.set(State.READY)
        self._admit()
        if first:
            self._grow(first=True)

    def _admit(self) -> None:
        """Open calls that wait, as long as there is room."""
        while self._waiting and self.pool.pick() is not None:
            call = next(iter(self._waiting))
            self.drop_waiting(call)
            message, last = call.pending
            call.pending = (None, False)
            self.counters.calls_active -= 1
            self.start(call, message, last=last)
            call.on_attached()
        self._watch_links()
        if self._waiting:
            self._want()

    def _fail_waiting(self, failure: TidewireError) -> None:
        for call in [call for call in self._waiting if not call.wait_for_ready]:
            self.drop_waiting(call)
            self._refuse(call, failure)

    # News of connections ----------------------------------------------------------------------

    def _watch_links(self) -> None:
        """Let connections tell of the end of each call only when somebody waits for that."""
        watched = self.pool.watched or bool(self._waiting)
        for link in self.pool.members:
            link.watched = watched
        self._arm_sweep()

    def on_rested(self, link: ClientLink) -> None:
        """A call of a connection has ended: there is room, or it is idle now."""
        surplus = self.pool.rested(link, self.loop.time())
        if self._waiting:
            self._admit()
        elif surplus is not None:
            self._retire(surplus, Ended.SURPLUS)
        elif self._sweep is None:
            self._arm_sweep()

    def suspect(self) -> None:
        """Doubt the server: a connection on which it does not answer a PING soon is closed."""
        for link in list(self.pool.members):
            link.suspect(self.loop.time())
            link.protocol.flush()

    def _retire(self, link: ClientLink, why: Ended) -> None:
        """Close a connection that carries nothing."""
        self._leave(link, why)
        link.close()
        link.protocol.flush()

    def _arm_sweep(self) -> None:
        due_s = self.pool.next_s()
        if self._sweep is None and due_s < FOREVER and not self.closed:
            self._sweep = self.loop.call_at(due_s, self._sweep_idle)

    def _sweep_idle(self) -> None:
        self._sweep = None
        for link in self.pool.expired(self.loop.time()):
            self._retire(link, Ended.IDLE)
        self._arm_sweep()

    def _leave(self, link: ClientLink, why: Ended) -> None:
        """Use a connection no more."""
        if not self.pool.remove(link, why):
            return
        if self.link is link:
            self.link = self.pool.pick()
        if not self.pool.members:
            self._connectivity.set(State.IDLE)

    def on_draining(self, link: ClientLink) -> None:
        """Use another connection from now on; calls that were not sent move there."""
        link.draining = True
        self._leave(link, Ended.DRAINING)
        for call in link.take_unsent():
            assert isinstance(call, CallCore)
            self._wait(call, *call.detach())
        if self._waiting and self.pool.members:
            self._admit()
        if not link.calls:
            link.protocol.finish()

    def on_closed(self, link: ClientLink) -> None:
        """A connection is over."""
        self._links.discard(link)
        self._leave(link, Ended.LOST)
        if self._waiting:
            self._want()

    # State ------------------------------------------------------------------------------------

    def get_state(self, try_to_connect: bool = False) -> State:
        """Return the state; connect if asked to and idle."""
        if try_to_connect and self._connectivity.state is State.IDLE:
            self._wanted = True
            self._connect()
        return self._connectivity.state

    async def wait_for_state_change(self, last_observed_state: State) -> None:
        """Wait until the state is another one."""
        await self._connectivity.wait_for_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Connect and wait until it is done, through failures."""
        await self._connectivity.wait_ready(self._want_ready)

    def _want_ready(self) -> State:
        state = self.get_state(try_to_connect=True)
        if state is not State.READY:
            self._wanted = True
        return state

    async def close(self, grace: float | None = None) -> None:
        """
        Take no more calls; let those in flight finish for ``grace`` seconds, then cancel them.
        """
        if self.closed:
            return
        self.closed = True
        for call in list(self._waiting):
            call.cancel_with(Ending.of(Cancelled("the channel was closed")))
        if self._sweep is not None:
            self._sweep.cancel()
        for task in (self._connecting, *self._growing):
            if task is not None:
                task.cancel()
        links = list(self._links)
        for link in links:
            self.pool.remove(link, Ended.CHANNEL)
        self.link = None
        if grace and links:
            for link in links:
                link.draining = True
                if not link.calls and not link.unsent:
                    link.protocol.finish()
            await asyncio.wait([link.protocol.lost for link in links], timeout=grace)
        for link in links:
            link.close()
            link.protocol.flush()
        self._connectivity.set(State.SHUTDOWN)
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
MOVES_MAX = 3
"""How often a call that was never sent moves on when its connection is lost."""
