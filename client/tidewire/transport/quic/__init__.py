"""``quic://``: one stream for each call, TLS 1.3, both ends of it. Needs aioquic."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc.aio

from tidewire.transport.channel import RawChannel
from tidewire.transport.options import TransportOptions
from tidewire.transport.registry import WireListener
from tidewire.transport.shell import Shell
from tidewire.transport.tls import ServerTls, TlsConfig, client_context
from tidewire.transport.url import WireUrl

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer


def quic_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],
) -> RawChannel:
    """
    Return a channel over QUIC that verifies the server's chain and name.

    The files are read for each connection, so that new certificates need no new channel.
    """
    from tidewire.transport.quic.dial import dial

    config = tls or TlsConfig()
    client_context(config)  # what is wrong with the files shows now, not at the first call

    async def connect(raw: RawChannel) -> Shell:
        return await dial(raw, url, config)

    return RawChannel(
        url.text,
        connect,
        options=options,
        encrypted=True,
        interceptors=interceptors,
        codecs=codecs,
    )


def quic_listener(server: "RawServer", url: WireUrl, tls: ServerTls | None) -> WireListener:
    """
    Listen on a UDP port; port 0 picks one.

    Raises:
        InvalidArgument: The address cannot be resolved or bound.
        TlsFailed: A client without a certificate would get in.
    """
    from tidewire.transport.quic.listener import listen

    return listen(server, url, tls)
