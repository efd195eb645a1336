"""One client: a channel, and the six kinds of messages over it."""

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio

from tidewire.client.checkpoints import Checkpoints
from tidewire.client.control import Control
from tidewire.client.events import Events
from tidewire.client.members import Members
from tidewire.client.opening import Opening
from tidewire.client.queries import Queries
from tidewire.client.retry import RetryPolicy
from tidewire.client.session import ClientOptions, Session, log, notify
from tidewire.client.state import State
from tidewire.client.timeouts import WAN, TimeoutProfile, profile_of
from tidewire.client.translate import RPC_ERRORS
from tidewire.errors import (
    CodecUnsupported,
    ConnectionLost,
    DeadlineExceeded,
    PermissionDenied,
    TidewireError,
    Unimplemented,
)
from tidewire.v1 import common_pb2, server_pb2
from tidewire.v1.server_pb2_grpc import ServerServiceStub
from tidewire.wire.codec import codecs_installed, name_of

if TYPE_CHECKING:
    from tidewire.signing import Signer, Verifier
    from tidewire.transport import BalancePolicy, TlsConfig, TransportOptions


class ConnectionState(Enum):
    """Whether there is a connection to the server."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    IDLE = "idle"
    """None is needed now; the next call makes one."""
    DISCONNECTED = "disconnected"
    """It was lost, or could not be made; another one is tried by itself."""
    CLOSED = "closed"


_STATES = {
    grpc.ChannelConnectivity.IDLE: ConnectionState.IDLE,
    grpc.ChannelConnectivity.CONNECTING: ConnectionState.CONNECTING,
    grpc.ChannelConnectivity.READY: ConnectionState.CONNECTED,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE: ConnectionState.DISCONNECTED,
    grpc.ChannelConnectivity.SHUTDOWN: ConnectionState.CLOSED,
}

StateListener = Callable[[ConnectionState], None]


class Client:
    """
    A client of one server, for one event loop; made by `tidewire.connect`.

    Attributes:
        events: Publish, subscribe, streams, consumers.
        queries: Ask, gather, answer.
        state: Shared versioned values.
        control: Commands to nodes.
        members: Who is alive.
        checkpoints: Durable state of operators.
        channel: The channel below; generated stubs of any service work on it.
        url: Where it is connected to.
    """

    def __init__(self, url: str, channel: grpc.aio.Channel, options: ClientOptions) -> None:
        self.url = url
        self.channel = channel
        self._session = Session(channel, options)
        self.events = Events(self._session)
        self.queries = Queries(self._session)
        self.state = State(self._session)
        self.control = Control(self._session)
        self.members = Members(self._session)
        self.checkpoints = Checkpoints(self._session)
        self._stub = ServerServiceStub(channel)
        self._state = ConnectionState.CONNECTING
        self._listeners: list[StateListener] = []
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def connection_state(self) -> ConnectionState:
        """Whether there is a connection now."""
        return self._state

    def on_connection_change(self, listener: StateListener) -> None:
        """Hear of every change of `connection_state`; listeners must not block or raise."""
        self._listeners.append(listener)

    async def info(self, *, timeout_s: float | None = None) -> server_pb2.GetInfoResponse:
        """Version, limits, codecs, listeners, engine and durability of the server."""
        info: server_pb2.GetInfoResponse = await self._session.unary(
            self._stub.GetInfo, server_pb2.GetInfoRequest(), timeout_s=timeout_s
        )
        return info

    async def close(self) -> None:
        """Close what is open, flush what is published, then the connection. May be repeated."""
        await self._session.close()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
            self._watcher = None
        await self.channel.close()
        self._set_state(ConnectionState.CLOSED)

    async def open(self) -> None:
        """
        Reach the server and check that it takes what this client sends.

        Raises:
            TidewireError: It was not reached within the connect timeout, or refused us.
        """
        self._watcher = asyncio.create_task(self._watch(), name="tidewire connection state")
        limit_s = self._session.options.connect_timeout_s
        try:
            info = await self.info(timeout_s=limit_s)
        except DeadlineExceeded as error:
            raise ConnectionLost(
                f"{self.url.partition('?')[0]} was not reached within {limit_s:g} s: "
                f"{error.message}"
            ) from error
        except (Unimplemented, PermissionDenied):
            # Reached; a server may keep this from us, or be a part of one.
            return
        codec = self._session.codec
        if codec != common_pb2.CODEC_NONE and codec not in info.codecs:
            raise CodecUnsupported(
                f"the server takes no bodies compressed with {name_of(codec)}; it takes "
                f"{', '.join(map(name_of, info.codecs))}"
            )

    async def _watch(self) -> None:
        state = self.channel.get_state()
        while True:
            self._set_state(_STATES[state])
            if state == grpc.ChannelConnectivity.SHUTDOWN:
                return
            try:
                await self.channel.wait_for_state_change(state)
            except RPC_ERRORS:
                return  # the channel was closed
            state = self.channel.get_state()

    def _set_state(self, state: ConnectionState) -> None:
        if state is self._state:
            return
        self._state = state
        level = log.warning if state is ConnectionState.DISCONNECTED else log.info
        # Without its query, which names key files.
        level("connection to %s: %s", self.url.partition("?")[0], state.value)
        for listener in self._listeners:
            notify(listener, state)


def connect(
    url: str | Sequence[str],
    *,
    tls: "TlsConfig | None" = None,
    name: str = "",
    node_id: str = "",
    timeout_s: float | None = None,
    connect_timeout_s: float | None = None,
    profile: TimeoutProfile | str | None = None,
    compression: str | None = None,
    retry: RetryPolicy | None = None,
    balance: "BalancePolicy" = "round_robin",
    transport_options: "TransportOptions | None" = None,
    channel: grpc.aio.Channel | None = None,
    signer: "Signer | None" = None,
    verifier: "Verifier | None" = None,
) -> Opening[Client]:
    """
    Connect to a server: ``async with tidewire.connect("tcp://localhost:7401") as client``.

    ``await`` gives the client too; close it then.

    Args:
        url: Scheme, host and port, such as ``tls://host:7401?ca=ca.pem&cert=me.pem&key=me.key``.
            Several URLs, of any wires, are servers of the same data: each call goes to one of
            them, and a stream (a subscription, a publisher, a membership) stays where it was
            opened until it breaks.
        tls: The certificates as an object.
        name: Name of this client in the server's logs, at most 64 bytes.
        node_id: Member whose life this client's deliveries and responders hang on.
        timeout_s: Time a request may take when the call does not say; 30 without a profile.
        connect_timeout_s: Time to reach the server; 10 without a profile. Streams and publishers
            that lost their server tell those who wait after this time, and go on trying.
        profile: "lan", "wan" or "satellite", or one of your own: how long to wait for what. What
            is given beside it wins; the times in ``transport_options`` do not.
        compression: Codec of what this client sends: "zstd", "lz4", "snappy" or ``None``.
        retry: When to try again.
        balance: How one of several servers is chosen: each in turn, the one with the fewest calls
            of this client, or the first that is there.
        transport_options: Limits and buffers of the wire.
        channel: Use this channel instead of making one; the client closes it.
        signer: Signs every batch of events this client publishes; see `tidewire.signing`.
        verifier: Verifies every batch of events this client receives, before its messages reach
            anybody. What it refuses is counted, told, and settled as never to be delivered again.

    Raises:
        InvalidArgument: The URL or an option cannot be used.
        Unavailable: The server was not reached.
        CodecUnsupported: It does not take the codec.
    """
    chosen = profile_of(profile)
    times = chosen or WAN
    options = ClientOptions(
        name=name,
        node_id=node_id,
        timeout_s=times.request_s if timeout_s is None else timeout_s,
        connect_timeout_s=times.connect_s if connect_timeout_s is None else connect_timeout_s,
        compression=compression,
        retry=retry or RetryPolicy(),
        signer=signer,
        verifier=verifier,
    )

    async def open_() -> Client:
        made: Any = channel
        if made is None:
            from tidewire.transport import TransportOptions
            from tidewire.transport import channel as open_channel

            wire = transport_options
            if chosen is not None:
                wire = chosen.applied_to(wire or TransportOptions())
            made = open_channel(
                url, tls=tls, options=wire, codecs=codecs_installed(), balance=balance
            )
        # Of several without their queries, which name key files.
        shown = url if isinstance(url, str) else ", ".join(each.partition("?")[0] for each in url)
        client = Client(shown, made, options)
        try:
            await client.open()
        except (TidewireError, asyncio.CancelledError):
            await client.close()
            raise
        return client

    return Opening(open_)
