"""
Where one behaviour takes place: a server of the echo service on the wire, and channels to it.

Every behaviour has a site of its own, so that none meets what another has left.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
import grpc.aio

from tidewire.testing.echo import INDEX, SERVICE, Echo
from tidewire.transport import (
    RawServer,
    ServerCredentials,
    TlsConfig,
    TransportOptions,
    channel,
    grpc_server,
    parse_url,
)

if TYPE_CHECKING:
    from tidewire.testing.certificates import Trust

CALL_LIMIT_S: Final = 10.0
"""Deadline of the calls of behaviours; none should come near it."""
CONNECT_LIMIT_S: Final = 5.0
"""Within this a client is told that nobody answers."""
IDENTITY: Final = "spiffe://kit.example/client/alice"
"""What the certificate of the right client says."""
GRPC_SCHEMES: Final = frozenset({"grpc", "grpcs", "grpc+unix"})


class Server(Protocol):
    """A server that runs."""

    async def stop(self, grace: float | None) -> None:
        """Take no new calls; cancel those in flight after ``grace`` seconds."""
        ...


@dataclass(slots=True)
class Served:
    """
    A server and where it is.

    Attributes:
        url: Where clients connect.
        server: Its handle.
        refresh: Looks whether the files of its certificates have changed.
    """

    url: str
    server: Server
    refresh: Callable[[], Any]


ServerMaker = Callable[
    [grpc.GenericRpcHandler, str, TlsConfig | None], AbstractAsyncContextManager[Served]
]
"""Serves handlers on a URL, with certificates where the wire has them."""


@asynccontextmanager
async def serve(
    handlers: grpc.GenericRpcHandler, url: str, tls: TlsConfig | None
) -> AsyncIterator[Served]:
    """Serve on a scheme of the registry, or by gRPC."""
    parsed = parse_url(url)
    refresh: Callable[[], Any] = bool
    server: Any
    if parsed.scheme in GRPC_SCHEMES:
        server = grpc_server((handlers,))
        if tls is not None:
            credentials = ServerCredentials(tls)
            refresh = credentials.refresh
            bound = parsed.at(server.add_secure_port(parsed.target, credentials.credentials))
        elif parsed.path:
            server.add_insecure_port(f"unix:{parsed.path}")
            bound = parsed
        else:
            bound = parsed.at(server.add_insecure_port(parsed.target))
    else:
        server = RawServer((handlers,))
        bound = server.listen(url, tls=tls).url
    await server.start()
    try:
        yield Served(bound.text, server, refresh)
    finally:
        await server.stop(None)


class Site:
    """
    One server, its echo service, and a channel to it.

    Attributes:
        url: Where it is.
        echo: The servicer.
        channel: The channel behaviours use.
        trust: Certificates; ``None`` on a wire that has none.
    """

    def __init__(self, listen_url: str, maker: ServerMaker, trust: "Trust | None") -> None:
        self.echo = Echo()
        self.trust = trust
        self.url = listen_url
        self.channel: grpc.aio.Channel
        self._maker = maker
        self._served: Served
        self._serving = AsyncExitStack()
        self._channels: list[grpc.aio.Channel] = []
        self._stream: Any = None

    async def open(self) -> None:
        """Serve, and make the channel."""
        await self._serve()
        self.channel = self.connect()

    async def close(self) -> None:
        """Close the channels, then the server."""
        await asyncio.gather(*(each.close() for each in self._channels))
        await self._serving.aclose()

    async def _serve(self) -> None:
        tls = self.trust.server() if self.trust is not None else None
        self._served = await self._serving.enter_async_context(
            self._maker(self.echo.handlers(), self.url, tls)
        )
        self.url = self._served.url

    # The server -------------------------------------------------------------------------------

    async def stop(self, grace_s: float | None) -> None:
        """Stop the server in order."""
        await self._served.server.stop(grace_s)

    async def sever(self) -> None:
        """Cut the connections as a crash would; a server that cannot is stopped at once."""
        sever = getattr(self._served.server, "sever", None)
        if sever is None or not sever():
            await self._served.server.stop(None)

    async def restart(self) -> None:
        """Stop the server at once and start another one in its place, with the same echo."""
        await self._serving.aclose()
        self._serving = AsyncExitStack()
        await self._serve()

    def refresh(self) -> None:
        """Let the server look at its certificates."""
        self._served.refresh()

    # Clients ----------------------------------------------------------------------------------

    def connect(self, tls: TlsConfig | None = None, **options: Any) -> grpc.aio.Channel:
        """Make one more channel; it is closed with the site."""
        options.setdefault("connect_timeout_s", CONNECT_LIMIT_S)
        if tls is None and self.trust is not None:
            tls = self.trust.client()
        made = channel(self.url, tls=tls, options=TransportOptions(**options))
        self._channels.append(made)
        return made

    def unary(self, method: str, request: bytes = b"", **more: Any) -> Any:
        """Start a unary call; it has a deadline unless told otherwise."""
        more.setdefault("timeout", CALL_LIMIT_S)
        through: grpc.aio.Channel = more.pop("through", self.channel)
        start: Any = through.unary_unary(f"/{SERVICE}/{method}")
        return start(request, **more)

    async def say(self, request: bytes, **more: Any) -> bytes:
        """Send and get back."""
        answer: bytes = await self.unary("Say", request, **more)
        return answer

    def repeat(self, count: int, size: int = 0, tail: bytes = b"", **more: Any) -> Any:
        """Start a call that answers ``count`` messages of ``size`` bytes."""
        more.setdefault("timeout", CALL_LIMIT_S)
        request = INDEX.pack(count, size) + tail
        start: Any = self.channel.unary_stream(f"/{SERVICE}/Repeat")
        return start(request, **more)

    def collect(self, requests: Any = None, **more: Any) -> Any:
        """Start a call that takes many messages and answers what they were."""
        more.setdefault("timeout", CALL_LIMIT_S)
        return self.channel.stream_unary(f"/{SERVICE}/Collect")(requests, **more)

    def converse(self, method: str = "Converse", **more: Any) -> Any:
        """Start a call that answers each message."""
        more.setdefault("timeout", CALL_LIMIT_S)
        self._stream = self.channel.stream_stream(f"/{SERVICE}/{method}")(**more)
        return self._stream

    async def stream_error(self) -> grpc.aio.AioRpcError | None:
        """
        Return how the last call of many messages ended.

        Writing to a call that has ended says only that it has, on gRPC too.
        """
        call = self._stream
        if call is None or not call.done():
            return None
        code, text = await call.code(), await call.details()
        first, last = await call.initial_metadata(), await call.trailing_metadata()
        return grpc.aio.AioRpcError(code, first, last, details=text)


def numbered(number: int, size: int = 0) -> bytes:
    """Return a message with its number, as ``Collect`` reads them."""
    return INDEX.pack(number, size) + bytes(size)


def number_of(message: bytes) -> int:
    """Return the number of a message."""
    number: int = INDEX.unpack_from(message)[0]
    return number


def decoded(answer: bytes) -> Any:
    """Return what an answer says as JSON."""
    return json.loads(answer)
