"""
Several servers behind one ``grpc.aio.Channel``, on any wires.

Each call goes to one of them and stays there; a stream sticks to its server until it breaks. The
servers must have the same data (replicas, or proxies of one): what belongs to one server alone,
such as a membership or a position of its own streams, does not move with the call.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio
from google.rpc import status_pb2
from grpc import ChannelConnectivity as State

from tidewire.errors import STATUS_TRAILER, NoResponders, from_status
from tidewire.transport.balance import (
    Backend,
    Balance,
    BalanceOptions,
    BalancePolicy,
    Standing,
)
from tidewire.transport.client_call import RpcMethods
from tidewire.transport.connectivity import Connectivity
from tidewire.transport.intercepted import interceptors_of
from tidewire.transport.metadata import trailing
from tidewire.wire.datagram_limits import DATAGRAM_BYTES_MAX

HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"
_SERVING: Final = b"\x08\x01"  # HealthCheckResponse{status: SERVING}
_THERE: Final = frozenset(
    (
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    )
)
"""A server that answers so is there, and keeps its health to itself."""
_STANDINGS: Final = {
    State.TRANSIENT_FAILURE: Standing.FAILING,
    State.SHUTDOWN: Standing.FAILING,
}
_STATES: Final = {
    Standing.READY: State.READY,
    Standing.CONNECTING: State.CONNECTING,
    Standing.FAILING: State.TRANSIENT_FAILURE,
    Standing.EJECTED: State.TRANSIENT_FAILURE,
}


class BalancedChannel(grpc.aio.Channel):
    """
    A channel over the channels of several servers.

    It connects to all of them at the first use, keeps them connected, asks for their health, and
    spreads the calls. Use it in one event loop.
    """

    def __init__(
        self,
        channels: Sequence[tuple[str, grpc.aio.Channel]],
        *,
        policy: BalancePolicy = "round_robin",
        options: BalanceOptions | None = None,
    ) -> None:
        self._channels = [channel for _, channel in channels]
        backends = [Backend(index, url) for index, (url, _) in enumerate(channels)]
        self._balance = Balance(backends, policy, options or BalanceOptions())
        self._connectivity = Connectivity()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self._closed = False

    @property
    def backends(self) -> Sequence[Backend]:
        """The servers, in the order they were given; not to be changed."""
        return self._balance.backends

    @property
    def interceptors(self) -> tuple[Any, ...]:
        """Those of the servers' channels."""
        return tuple(each for channel in self._channels for each in interceptors_of(channel))

    @property
    def carries_streams(self) -> bool:
        """Whether every server is reached by a wire that carries streams."""
        return all(getattr(each, "carries_streams", True) for each in self._channels)

    @property
    def datagram_bytes(self) -> int:
        """Largest datagram that all servers are sent, where wires are of datagrams."""
        sizes = [getattr(each, "datagram_bytes", DATAGRAM_BYTES_MAX) for each in self._channels]
        return min(sizes)

    # Calls ------------------------------------------------------------------------------------

    def pick(self) -> Backend:
        """Choose the server of a call; :meth:`follow` must be told of the call."""
        if not self._started:
            self._start()
        return self._balance.pick()

    def follow(self, backend: Backend, call: Any) -> None:
        """Count a call until it ends, and judge its server by how it does."""
        if isinstance(call, RpcMethods):
            # Not `add_done_callback`: that one holds the call, and nobody could abandon it.
            core = call._core
            core.add_callback(lambda: self._ended(backend, _raw_failure(core.ending)))
        else:
            call.add_done_callback(lambda done: self._ended(backend, _failure(done)))

    def dropped(self, backend: Backend) -> None:
        """A call was refused before it began."""
        self._balance.ended(backend, failed=False)

    def _ended(self, backend: Backend, failed: bool) -> None:
        wait_s = self._balance.ended(backend, failed=failed)
        if wait_s is not None:
            self._aggregate()
            self._spawn(self._out(backend, wait_s))

    # Servers ----------------------------------------------------------------------------------

    def _start(self) -> None:
        self._started = True
        for backend in self.backends:
            self._spawn(self._tend(backend))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tend(self, backend: Backend) -> None:
        """Keep one server connected, and know how it is."""
        channel = self._channels[backend.index]
        while (state := channel.get_state(try_to_connect=True)) is not State.SHUTDOWN:
            changed = asyncio.ensure_future(channel.wait_for_state_change(state))
            try:
                if state is State.READY:
                    await self._attend(backend, changed)
                else:
                    self._note(backend, _STANDINGS.get(state, Standing.CONNECTING))
                    await changed
            finally:
                changed.cancel()

    async def _attend(self, backend: Backend, changed: "asyncio.Future[None]") -> None:
        """While it is connected ask for its health, now and then."""
        options = self._balance.options
        while not changed.done():
            healthy = await self._is_healthy(backend)
            if not changed.done():
                self._note(backend, Standing.READY if healthy else Standing.FAILING)
            if healthy and not backend.ejected:
                self._balance.settled(backend)
            wait_s = options.health_interval_s if healthy else options.eject_first_s
            await asyncio.wait([changed], timeout=wait_s or None)

    async def _out(self, backend: Backend, wait_s: float) -> None:
        """Wait out an ejection; then let the server back when it is healthy."""
        while True:
            await asyncio.sleep(wait_s)
            if await self._is_healthy(backend):
                self._balance.healthy(backend)
                self._aggregate()
                return
            wait_s = self._balance.eject(backend)

    async def _is_healthy(self, backend: Backend) -> bool:
        check: Any = self._channels[backend.index].unary_unary(HEALTH_CHECK)
        try:
            answer = await check(b"", timeout=self._balance.options.health_timeout_s)
        except grpc.aio.AioRpcError as error:
            return error.code() in _THERE
        except (grpc.aio.UsageError, asyncio.InvalidStateError):
            return False  # its channel was closed
        return bool(answer == _SERVING)

    def suspect(self) -> None:
        """Doubt the servers: each connection is asked whether it is there, where it can be."""
        for channel in self._channels:
            suspect = getattr(channel, "suspect", None)
            if suspect is not None:
                suspect()

    # State ------------------------------------------------------------------------------------

    def _note(self, backend: Backend, standing: Standing) -> None:
        self._balance.connection(backend, standing)
        self._aggregate()

    def _aggregate(self) -> None:
        best = min(self.backends, key=lambda backend: backend.standing.value).standing
        self._connectivity.set(_STATES[best])

    def get_state(self, try_to_connect: bool = False) -> State:
        """Return the best state of any server; connect to all if asked to."""
        if try_to_connect and not self._started and not self._closed:
            self._start()
        return self._connectivity.state

    async def wait_for_state_change(self, last_observed_state: State) -> None:
        """Wait until the best state is another one."""
        await self._connectivity.wait_for_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Connect and wait until a server takes calls."""
        await self._connectivity.wait_ready(lambda: self.get_state(try_to_connect=True))

    async def close(self, grace: float | None = None) -> None:
        """Take no more calls; let those in flight finish for ``grace`` seconds."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.gather(*(channel.close(grace) for channel in self._channels))
        self._connectivity.set(State.SHUTDOWN)

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

    def _methods(self, shape: str, *given: Any) -> list[Any]:
        return [getattr(channel, shape)(*given) for channel in self._channels]

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Return a callable for a method with one request and one response."""
        given = (method, request_serializer, response_deserializer)
        return _UnaryUnary(self, self._methods("unary_unary", *given))

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Return a callable for a method with one request and many responses."""
        given = (method, request_serializer, response_deserializer)
        return _UnaryStream(self, self._methods("unary_stream", *given))

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Return a callable for a method with many requests and one response."""
        given = (method, request_serializer, response_deserializer)
        return _StreamUnary(self, self._methods("stream_unary", *given))

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Return a callable for a method with many requests and many responses."""
        given = (method, request_serializer, response_deserializer)
        return _StreamStream(self, self._methods("stream_stream", *given))


class _Balanced:
    """A method of several channels."""

    def __init__(self, channel: BalancedChannel, methods: list[Callable[..., Any]]) -> None:
        self._channel = channel
        self._methods = methods

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Start a call on the server whose turn it is."""
        channel = self._channel
        backend = channel.pick()
        try:
            call = self._methods[backend.index](*arguments, **options)
        except BaseException:
            channel.dropped(backend)
            raise
        channel.follow(backend, call)
        return call


class _UnaryUnary(_Balanced, grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    """One request, one response."""


class _UnaryStream(_Balanced, grpc.aio.UnaryStreamMultiCallable[Any, Any]):
    """One request, many responses."""


class _StreamUnary(_Balanced, grpc.aio.StreamUnaryMultiCallable[Any, Any]):
    """Many requests, one response."""


class _StreamStream(_Balanced, grpc.aio.StreamStreamMultiCallable[Any, Any]):
    """Many requests, many responses."""


def _raw_failure(ending: Any) -> bool:
    """Whether a call of a raw wire says that its server is not well."""
    if ending is None or ending.code != grpc.StatusCode.UNAVAILABLE.value[0]:
        return False
    return _is_the_servers(trailing(ending))


def _failure(call: Any) -> bool:
    """Whether any call that has ended says that its server is not well."""
    if call.cancelled() or _settled(call.code()) is not grpc.StatusCode.UNAVAILABLE:
        return False
    return _is_the_servers(_settled(call.trailing_metadata()))


def _is_the_servers(metadata: Any) -> bool:
    for key, value in metadata or ():
        if key == STATUS_TRAILER and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
            return not isinstance(from_status(status), NoResponders)
    return True


def _settled(waiting: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine has that need not wait: that of a call which has ended."""
    try:
        waiting.send(None)
    except StopIteration as done:
        return done.value
    waiting.close()
    return None
