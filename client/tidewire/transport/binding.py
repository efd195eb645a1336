"""Sockets bound to one address, of every wire that has a host and a port."""

import socket
from collections.abc import Callable

from tidewire.errors import InvalidArgument


def bind_address(
    host: str, port: int, kind: socket.SocketKind, prepare: Callable[[socket.socket], object]
) -> socket.socket:
    """
    Return a socket that does not block, bound to the first address of ``host``; port 0 picks one.

    Args:
        host: Name or address; an address of IPv6 takes connections of IPv6 alone.
        port: Port.
        kind: ``SOCK_STREAM`` or ``SOCK_DGRAM``.
        prepare: Sets options before it is bound. What it raises closes the socket.

    Raises:
        InvalidArgument: The address cannot be resolved or bound, or the socket not prepared.
    """
    try:
        found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
        family, kind_, protocol, _, address = found[0]
        sock = socket.socket(family, kind_, protocol)
    except OSError as error:
        raise cannot_listen(host, port, error) from error
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        prepare(sock)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise cannot_listen(host, port, error) from error
    except BaseException:
        sock.close()
        raise
    return sock


def cannot_listen(host: str, port: int, error: OSError) -> InvalidArgument:
    """The error for an address that cannot be used."""
    return InvalidArgument(f"cannot listen on {host}:{port}: {error}")
