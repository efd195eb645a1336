"""Makers of ``dtls://``: they import pyOpenSSL when the wire is used, not before."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc.aio

from tidewire.transport.options import TransportOptions
from tidewire.transport.registry import WireListener
from tidewire.transport.tls import ServerTls, TlsConfig
from tidewire.transport.url import WireUrl

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer

MISSING = "needs pyOpenSSL: pip install 'tidewire[dtls]'"


def dtls_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],
) -> grpc.aio.Channel:
    """Return a channel over DTLS that verifies the server's chain and name."""
    from tidewire.transport.dtls import dtls_channel as make

    return make(url, tls=tls, options=options, interceptors=interceptors, codecs=codecs)


def dtls_listener(server: "RawServer", url: WireUrl, tls: ServerTls | None) -> WireListener:
    """
    Listen on a UDP port; port 0 picks one.

    Raises:
        InvalidArgument: The address cannot be resolved or bound.
    """
    from tidewire.transport.dtls import dtls_listener as make

    return make(server, url, tls)
