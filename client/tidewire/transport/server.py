"""The server of raw wires: ``grpc.aio.Server`` for generated code, with listeners by URL."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from tidewire.errors import Cancelled, InvalidArgument, WireUnsuitable
from tidewire.transport.counters import WireCounters
from tidewire.transport.link import HandlerCallDetails, ServerLink
from tidewire.transport.options import TransportOptions
from tidewire.transport.registry import WireListener, listener_maker
from tidewire.transport.shell import Shell
from tidewire.transport.stream import WireProtocol
from tidewire.transport.tls import ServerTls, TlsConfig, refuse_certificates
from tidewire.transport.url import parse_url
from tidewire.transport.version import AGENT
from tidewire.wire.bodies import HeadCache

_LOGGER = logging.getLogger(__name__)

KILL_TIMEOUT_S = 5.0
"""How long cancelled handlers may take before ``stop`` gives up waiting for them."""


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One connection, for listings."""

    identifier: int
    url: str
    peer: str
    identity: str
    agent: str
    node_id: str
    calls: int


class RawServer(grpc.aio.Server):
    """
    Serves calls of registered services over raw wires.

    Generated ``add_*Servicer_to_server`` functions take it as they take a ``grpc.aio.Server``; a
    shared router is given as a generic handler. Use it in one event loop; not for two tasks at
    once.
    """

    def __init__(
        self,
        handlers: Sequence[grpc.GenericRpcHandler] = (),
        *,
        options: TransportOptions | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        codecs: Iterable[int] = (),
        counters: WireCounters | None = None,
    ) -> None:
        self.options = options or TransportOptions()
        self.agent = self.options.agent or AGENT
        self.codecs = tuple(codecs)
        self.interceptors = tuple(interceptors)
        self.counters = counters or WireCounters()
        self.heads = HeadCache(
            self.options.limits.heads_cached_max, self.options.limits.head_cached_bytes_max
        )
        self.loop: asyncio.AbstractEventLoop
        self._generic = list(handlers)
        self.registered: dict[str, Any] = {}
        self._listeners: list[WireListener] = []
        self._links: dict[int, ServerLink] = {}
        self._shells: set[Shell] = set()
        """Connections whose sockets are open; some of them may have no calls any more."""
        self._opened = 0
        self._pool: ThreadPoolExecutor | None = None
        self._started = False
        self._stopping: asyncio.Task[None] | None = None
        self._kill: asyncio.Event | None = None
        self._stopped: asyncio.Event | None = None
        self._stop_by_s = float("inf")

    # Registration -----------------------------------------------------------------------------

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        """Register handlers that are asked in turn."""
        self._generic.extend(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, Any]
    ) -> None:
        """Register handlers by name; these are looked up first."""
        for method, handler in method_handlers.items():
            self.registered[f"/{service_name}/{method}"] = handler

    def find(self, details: HandlerCallDetails) -> Any:
        """Return the handler of a method, or ``None``."""
        handler = self.registered.get(details.method)
        if handler is not None:
            return handler
        for generic in self._generic:
            handler = generic.service(details)  # type: ignore[arg-type]  # registered as one
            if handler is not None:
                return handler
        return None

    # Listeners --------------------------------------------------------------------------------

    def add_insecure_port(self, address: str) -> int:
        """Listen on ``host:port`` without TLS; return the port."""
        return self.add_listener(f"tcp://{address}")

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Refuse: gRPC's credentials cannot be opened; see :meth:`add_listener`."""
        raise WireUnsuitable("raw wires take certificates by add_listener('tls://...', tls=...)")

    def add_listener(self, url: str, tls: TlsConfig | ServerTls | None = None) -> int:
        """Listen on a URL and return the port; see :meth:`listen`."""
        return self.listen(url, tls).url.port

    def listen(self, url: str, tls: TlsConfig | ServerTls | None = None) -> WireListener:
        """
        Listen on a URL such as ``tcp://host:port`` or ``tls://host:port``.

        Args:
            url: Where to listen; port 0 picks one. An encrypted wire may name its files by
                ``?cert=&key=&ca=``.
            tls: Certificates of an encrypted listener. Their files are looked at for each
                connection, so new ones need no restart.

        Returns:
            The listener, whose ``url`` has the port that was picked.

        Raises:
            InvalidArgument: The URL or the certificates cannot be.
            TlsFailed: The certificates cannot be used.
        """
        parsed = parse_url(url)
        make, encrypted = listener_maker(parsed.scheme)
        given = tls or parsed.tls
        if not encrypted:
            refuse_certificates(parsed.text, given)
        if given is None and encrypted:
            raise InvalidArgument(f"{parsed.text} needs certificates")
        server_tls = ServerTls(given) if isinstance(given, TlsConfig) else given
        listener = make(self, parsed, server_tls)
        self._listeners.append(listener)
        if self._started:
            listener.start()
        return listener

    def stream_protocol(self, url: str) -> WireProtocol[ServerLink]:
        """Return the shell of a connection that comes, for wires that are a stream of bytes."""
        return WireProtocol(lambda shell, now_s: self.admit(shell, url, now_s), self.counters)

    def admit(
        self, shell: Shell, url: str, now_s: float, link_class: type[ServerLink] = ServerLink
    ) -> ServerLink:
        """Return the link of a connection that has come over ``shell``."""
        self._opened += 1
        link = link_class(self, shell, now_s, identifier=self._opened, url=url)
        self._links[link.identifier] = link
        self._shells.add(shell)
        shell.lost.add_done_callback(lambda _: self._shells.discard(shell))
        return link

    def reload_tls(self) -> bool:
        """
        Reload the certificates of all listeners; return False when one of them keeps its old
        ones.
        """
        # A list, not a generator: every listener is reloaded even when one fails.
        outcomes = [each.tls.reload() for each in self._listeners if each.tls is not None]
        return all(outcomes)

    # Life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Accept connections. Once."""
        if self._started:
            raise RuntimeError("the server was started before")
        self.loop = asyncio.get_running_loop()
        self._started = True
        self._kill = asyncio.Event()
        self._stopped = asyncio.Event()
        for generic in self._generic:
            # A handler that goes by the name alone need not be asked again for each call.
            self.registered = {**getattr(generic, "by_method", {}), **self.registered}
        for listener in self._listeners:
            listener.start()

    async def stop(self, grace: float | None) -> None:
        """
        Stop in order: no new connections and calls at once, calls in flight within ``grace``
        seconds, then cancel them.

        Args:
            grace: Seconds; ``None`` cancels at once. Of several calls the shortest grace counts.
        """
        for listener in self._listeners:
            listener.close()
        if not self._started or self._kill is None:
            return
        if self._stopping is None:
            self._stopping = self.loop.create_task(self._stop(grace or 0.0))
        if not grace:
            self._kill.set()
        else:
            self.loop.call_later(grace, self._kill.set)
        await asyncio.shield(self._stopping)

    async def _stop(self, grace_s: float) -> None:
        assert self._kill is not None
        assert self._stopped is not None
        for link in list(self._links.values()):
            link.drain(grace_s)
        killed: asyncio.Future[Any] = self.loop.create_task(self._kill.wait())
        try:
            while self._shells and not killed.done():
                gone = [shell.lost for shell in self._shells]
                await asyncio.wait([killed, *gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            killed.cancel()
        running = [task for link in self._links.values() for task in link.running()]
        for link in list(self._links.values()):
            link.fail(Cancelled("the server stops"))
            link.protocol.flush()
        gone = [shell.lost for shell in self._shells]
        left: list[asyncio.Future[Any]] = [*running, *gone]
        if left:
            await asyncio.wait(left, timeout=KILL_TIMEOUT_S)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._stopped.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until the server has stopped; return whether ``timeout`` seconds passed before."""
        if self._stopped is None:
            raise RuntimeError("the server was not started")
        try:
            await asyncio.wait_for(self._stopped.wait(), timeout)
        except TimeoutError:
            return True
        return False

    def pool(self) -> ThreadPoolExecutor:
        """Return the threads for handlers that are not coroutines."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(
                self.options.sync_workers, thread_name_prefix="tidewire-handler"
            )
        return self._pool

    # Connections ------------------------------------------------------------------------------

    def greeted(self, link: ServerLink) -> None:
        """A connection is ready for calls."""

    def left(self, link: ServerLink) -> None:
        """A connection is over."""
        self._links.pop(link.identifier, None)

    def connections(self) -> list[ConnectionInfo]:
        """List the connections that are open."""
        return [
            ConnectionInfo(
                identifier=link.identifier,
                url=link.url,
                peer=link.peer.name,
                identity=", ".join(raw.decode() for raw in link.peer.identities or ()),
                agent=link.peer_hello.agent if link.peer_hello else "",
                node_id=link.peer_hello.node_id if link.peer_hello else "",
                calls=len(link.calls),
            )
            for link in self._links.values()
        ]

    @property
    def connections_idle(self) -> int:
        """How many connections have no call."""
        return sum(not link.calls for link in self._links.values())

    def sever(self) -> int:
        """Cut every connection at once, unsent bytes and all, as a crash does; return how many."""
        shells = list(self._shells)
        for shell in shells:
            shell.abort()
        return len(shells)

    def disconnect(self, identifier: int, why: str = "disconnected by the administrator") -> bool:
        """End a connection; return False when there is none of this number."""
        link = self._links.get(identifier)
        if link is None:
            return False
        link.fail(Cancelled(why))
        return True
