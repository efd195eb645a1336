"""
``ws://`` and ``wss://``: frames in a WebSocket, both ends of it; also for pages in a browser.

A page may connect when the server names its origin in ``websocket.origins``: browsers let any page
open a WebSocket to any server, and nothing else protects one that a browser can reach. The path of
the URL is the path of the request, ``/`` by default.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import grpc.aio

from tidewire.errors import InvalidArgument
from tidewire.transport.channel import RawChannel
from tidewire.transport.client_link import ClientLink
from tidewire.transport.listener import Listener, bind
from tidewire.transport.options import TransportOptions
from tidewire.transport.shell import Shell
from tidewire.transport.sockets import dial
from tidewire.transport.stream import WireProtocol
from tidewire.transport.tls import ServerTls, TlsConfig, client_context, refuse_certificates
from tidewire.transport.url import WireUrl
from tidewire.wire.upgrade import TIMEOUT, UpgradePolicy

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer
    from tidewire.transport.websocket_shell import ClientWebSocket, ServerWebSocket

ALPN: Final = "http/1.1"
"""What TLS is told is inside: proxies on the way may ask."""
DEFAULT_PATH: Final = "/"
_PATH: Final = re.compile(r"(?:/[!-~]*)?")


def websocket_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],
) -> RawChannel:
    """
    Return a channel; for ``wss`` over TLS 1.3 that verifies the server's chain and name.

    The files are read for each connection, so that new certificates need no new channel.

    Raises:
        InvalidArgument: Certificates are given for ``ws``, or the path cannot be one.
        TlsFailed: The files cannot be used.
    """
    encrypted = url.scheme == "wss"
    if encrypted:
        tls = tls or TlsConfig()
        client_context(tls, ALPN)  # what is wrong with the files shows now, not at the first call
    else:
        refuse_certificates(url.text, tls, "wss")
    path = _path(url)
    # Here and not above: picows costs 25 ms to import, and is not there in a bare install.
    from tidewire.transport.websocket_shell import ClientWebSocket

    async def connect(raw: RawChannel) -> Shell:
        def shell() -> "ClientWebSocket[ClientLink]":
            return ClientWebSocket(
                lambda shell, now_s: ClientLink(raw, shell, now_s),
                raw.counters,
                options.limits,
                host=url.target,
                path=path,
            )

        dialled = await dial(
            shell,
            url.host,
            url.port,
            options=options,
            context=client_context(tls, ALPN) if tls is not None else None,
            server_name=tls.server_name if tls is not None else None,
        )
        try:
            await dialled.upgraded(url.text)
        except BaseException:
            dialled.abort()
            raise
        return dialled

    return RawChannel(
        url.text,
        connect,
        options=options,
        encrypted=encrypted,
        interceptors=interceptors,
        codecs=codecs,
    )


def _path(url: WireUrl) -> str:
    """Return the path of the request; raise when it could not stand in a request line."""
    if _PATH.fullmatch(url.path) is None:
        raise InvalidArgument(f"{url.text!r} has a path that is not printable ASCII without spaces")
    return url.path or DEFAULT_PATH


class WebSocketListener(Listener):
    """A listening socket whose handshakes end with the upgrade: bounded in time and number."""

    async def _open(self, shell: WireProtocol[Any]) -> None:
        asked = cast("ServerWebSocket[Any]", shell)
        try:
            refusal = await asked.upgraded
        except asyncio.CancelledError:
            asked.refuse(TIMEOUT)
            raise
        if refusal is not None:
            self._counters.refuse(refusal.reason, handshake=True)


def websocket_listener(
    server: "RawServer", url: WireUrl, tls: ServerTls | None
) -> WebSocketListener:
    """
    Listen on TCP for WebSockets, with TLS when there are certificates; port 0 picks one.

    Raises:
        InvalidArgument: The address cannot be resolved or bound, or the path cannot be one.
    """
    from tidewire.transport.websocket_shell import ServerWebSocket

    options = server.options
    policy = UpgradePolicy(
        path=_path(url),
        origins=tuple(origin.lower() for origin in options.websocket_origins),
        hosts=tuple(host.lower() for host in options.websocket_hosts),
    )
    sock = bind(url.host, url.port, backlog=options.backlog, reuse_port=options.reuse_port)
    shown = url.at(sock.getsockname()[1])
    return WebSocketListener(
        sock,
        lambda: ServerWebSocket(
            lambda shell, now_s: server.admit(shell, shown.text, now_s),
            server.counters,
            options.limits,
            policy,
        ),
        url=shown,
        options=options,
        counters=server.counters,
        tls=tls,
    )
