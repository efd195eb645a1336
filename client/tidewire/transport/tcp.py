"""``tcp://`` and ``tls://``: channels over one TCP connection."""

from collections.abc import Callable, Sequence

import grpc.aio

from tidewire.errors import InvalidArgument
from tidewire.transport.channel import ClientLink, RawChannel
from tidewire.transport.options import TransportOptions
from tidewire.transport.sockets import dial
from tidewire.transport.stream import WireProtocol
from tidewire.transport.tls import TlsConfig, client_context
from tidewire.transport.url import WireUrl


def tcp_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],
) -> RawChannel:
    """Return a channel without encryption; raise when certificates are given for it."""
    if tls is not None:
        raise InvalidArgument(
            f"{url.text} is not encrypted, but certificates are given: use tls://"
        )

    async def connect(
        factory: Callable[[], WireProtocol[ClientLink]],
    ) -> WireProtocol[ClientLink]:
        return await dial(factory, url.host, url.port, options=options)

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

    async def connect(
        factory: Callable[[], WireProtocol[ClientLink]],
    ) -> WireProtocol[ClientLink]:
        return await dial(
            factory,
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
