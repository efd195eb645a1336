"""Transports with one fault each, which the conformance kit must find."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import grpc

from tidewire.testing import Served
from tidewire.transport import (
    RawServer,
    TlsConfig,
    TransportOptions,
    WireUrl,
    registry,
)
from tidewire.transport.link import ServerLink
from tidewire.transport.listener import Listener, bind
from tidewire.transport.stream import WireProtocol
from tidewire.transport.tcp import tcp_channel
from tidewire.wire.call import Call
from tidewire.wire.limits import MIB, WireLimits

EVERY = 10


class DroppingLink(ServerLink):
    """Loses every tenth message of a client, and says nothing."""

    seen = 0

    def _lost(self) -> bool:
        self.seen += 1
        return self.seen % EVERY == 0

    def on_call_opened(self, call: Call, message: bytes | None, last: bool) -> None:
        if message is None or not self._lost():
            super().on_call_opened(call, message, last)

    def deliver(self, call: Call, message: bytes, last: bool) -> None:
        if not self._lost():
            super().deliver(call, message, last)
        elif last:
            call.peer_done = True
            call.on_half_closed()


class SwappingLink(ServerLink):
    """Gives every second message of a stream before the one that came before it."""

    kept: bytes | None = None

    def deliver(self, call: Call, message: bytes, last: bool) -> None:
        kept, self.kept = self.kept, None
        if kept is None and not last:
            self.kept = message
            return
        super().deliver(call, message, last and kept is None)
        if kept is not None:
            super().deliver(call, kept, last)

    def receive_half_close(self, call: Call) -> None:
        if self.kept is not None:
            kept, self.kept = self.kept, None
            super().deliver(call, kept, False)
        super().receive_half_close(call)


class SilentShell(WireProtocol[Any]):
    """Tells nobody that the connection is gone."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.lost.set_result(None)


def listener_of(link_class: type[ServerLink]) -> Callable[..., Any]:
    """Return a maker of listeners whose connections have these links."""

    def make(server: RawServer, url: WireUrl, tls: object) -> Listener:
        sock = bind(url.host, url.port)
        shown = url.at(sock.getsockname()[1])

        def protocol() -> WireProtocol[ServerLink]:
            return WireProtocol(
                lambda shell, now_s: server.admit(shell, shown.text, now_s, link_class),
                server.counters,
            )

        options, counters = server.options, server.counters
        return Listener(sock, protocol, url=shown, options=options, counters=counters)

    return make


def plain_channel(url: WireUrl, **more: Any) -> Any:
    """Return a channel over TCP; certificates it is given are ignored, which is a fault."""
    more["tls"] = None
    return tcp_channel(replace(url, scheme="tcp"), **more)


def silent_channel(url: WireUrl, **more: Any) -> Any:
    """Return a channel whose shells are silent about their end."""
    made: Any = tcp_channel(replace(url, scheme="tcp"), **more)
    make = made.stream_protocol

    def silent() -> WireProtocol[Any]:
        shell: Any = make()
        shell.__class__ = SilentShell
        return shell  # type: ignore[no-any-return]  # a WireProtocol

    made.stream_protocol = silent
    return made


@contextmanager
def registered(
    scheme: str, channel: Any, listener: Any, *, encrypted: bool = False
) -> Iterator[None]:
    """Register a transport for a while."""
    registry.register(scheme, channel)
    registry.register_listener(scheme, listener, encrypted=encrypted)
    try:
        yield
    finally:
        del registry._TRANSPORTS[scheme]
        del registry._LISTENERS[scheme]


@asynccontextmanager
async def greedy(
    handlers: grpc.GenericRpcHandler, url: str, tls: TlsConfig | None
) -> AsyncIterator[Served]:
    """Serve with windows so large that no client is ever stopped."""
    limits = WireLimits(
        call_credit_bytes=1024 * MIB, connection_credit_bytes=1024 * MIB, unread_bytes_max=1 << 40
    )
    server = RawServer((handlers,), options=TransportOptions(limits=limits))
    bound = server.listen(url, tls=tls).url
    await server.start()
    try:
        yield Served(bound.text, server, bool)
    finally:
        await server.stop(None)
