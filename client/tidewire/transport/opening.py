"""Channels by URL: of one server, or of several."""

import ipaddress
from collections.abc import Sequence
from typing import Final

import grpc.aio

from tidewire.errors import InvalidArgument
from tidewire.transport import registry
from tidewire.transport.balance import BALANCE_POLICIES, BalanceOptions, BalancePolicy
from tidewire.transport.balanced import BalancedChannel
from tidewire.transport.grpc import grpc_list_channel
from tidewire.transport.options import TransportOptions
from tidewire.transport.tls import TlsConfig
from tidewire.transport.url import WireUrl, parse_url

_NATIVE: Final = ("round_robin", "first")


def channel(
    url: str | Sequence[str],
    *,
    tls: TlsConfig | None = None,
    options: TransportOptions | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    codecs: Sequence[int] = (),
    balance: BalancePolicy = "round_robin",
    balance_options: BalanceOptions | None = None,
) -> grpc.aio.Channel:
    """
    Return a ``grpc.aio.Channel`` for a URL such as ``tcp://localhost:7401``, or for several; every
    generated stub works on it.

    Several ``grpc://`` addresses that are numbers are balanced by gRPC itself ("round_robin" with
    its health checks, or "first"); all others by us, each over a channel of its own, and they may
    be of different wires.

    Args:
        url: Scheme, host and port; on encrypted wires also ``?ca=&cert=&key=&server_name=``.
        tls: The same as an object, for those of the URLs that are encrypted; it wins over them.
        options: Limits, waits and sockets.
        interceptors: Interceptors of ``grpc.aio``, of any shape.
        codecs: Numbers of the codecs this client can decompress, for HELLO.
        balance: "round_robin", "least_outstanding" or "first" (the first that is there).
        balance_options: When a server gets no calls; not for gRPC's own balancing.

    Returns:
        A channel that connects when it is first used. Close it.

    Raises:
        InvalidArgument: A URL or ``balance`` cannot be used; the message lists what can.
    """
    options = options or TransportOptions()
    if balance not in BALANCE_POLICIES:
        raise InvalidArgument(
            f"{balance!r} is no way to balance; there are {', '.join(BALANCE_POLICIES)}"
        )
    if isinstance(url, str):
        return registry.channel(
            url, tls=tls, options=options, interceptors=interceptors, codecs=codecs
        )
    urls = [parse_url(each) for each in url]
    if not urls:
        raise InvalidArgument("no URL is given; one at least is needed")
    if balance in _NATIVE and balance_options is None and _by_grpc(urls, tls):
        return grpc_list_channel(
            urls, tls=tls, options=options, interceptors=interceptors, balance=balance
        )
    channels = []
    for text, parsed in zip(url, urls, strict=True):
        mine = tls if parsed.scheme in registry.encrypted_schemes() else None
        made = registry.channel(
            text, tls=mine, options=options, interceptors=interceptors, codecs=codecs
        )
        channels.append((parsed.text, made))
    return BalancedChannel(channels, policy=balance, options=balance_options)


def _by_grpc(urls: Sequence[WireUrl], tls: TlsConfig | None) -> bool:
    """Whether gRPC can balance these: addresses of one family, without certificates."""
    if tls is not None or any(url.scheme != "grpc" for url in urls):
        return False
    try:
        versions = {ipaddress.ip_address(url.host).version for url in urls}
    except ValueError:
        return False  # a name: gRPC takes a list of addresses only
    return len(versions) == 1
