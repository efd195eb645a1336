"""``tcp://`` and ``tls://``: a stream of bytes, both ends of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc.aio

from tidewire.transport.channel import RawChannel
from tidewire.transport.listener import Listener, bind
from tidewire.transport.options import TransportOptions
from tidewire.transport.shell import Shell
from tidewire.transport.sockets import dial
from tidewire.transport.tls import ServerTls, TlsConfig, client_context, refuse_certificates
from tidewire.transport.url import WireUrl

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer


def tcp_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],
) -> RawChannel:
    """Return a channel without encryption; raise when certificates are given for it."""
    refuse_certificates(url.text, tls, "tls")

    async def connect(raw: RawChannel) -> Shell:
        return await dial(raw.stream_protocol, url.host, url.port, options=options)

    return RawChannel(
        url.text,
        connect,
        options=options,
        encrypted=False,
        interceptors=interceptors,
        codecs=codecs,
    )


def tls_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],
) -> RawChannel:
    """
    Return a channel over TLS 1.3 that verifies the server's chain and name.

    The files are read for each connection, so that new certificates need no new channel.
    """
    config = tls or TlsConfig()
    client_context(config)  # what is wrong with the files shows now, not at the first call

    async def connect(raw: RawChannel) -> Shell:
        return await dial(
            raw.stream_protocol,
            url.host,
            url.port,
            options=options,
            context=client_context(config),
            server_name=config.server_name,
        )

    return RawChannel(
        url.text,
        connect,
        options=options,
        encrypted=True,
        interceptors=interceptors,
        codecs=codecs,
    )


def stream_listener(server: "RawServer", url: WireUrl, tls: ServerTls | None) -> Listener:
    """
    Listen on TCP, with TLS when there are certificates; port 0 picks one.

    Raises:
        InvalidArgument: The address cannot be resolved or bound.
    """
    options = server.options
    sock = bind(url.host, url.port, backlog=options.backlog, reuse_port=options.reuse_port)
    shown = url.at(sock.getsockname()[1])
    return Listener(
        sock,
        lambda: server.stream_protocol(shown.text),
        url=shown,
        options=options,
        counters=server.counters,
        tls=tls,
    )
