"""Listening sockets of every wire with a host and a port: bound, or refused with the reason."""

import socket
from collections.abc import Callable

import pytest

from tidewire.errors import InvalidArgument
from tidewire.transport import TransportOptions
from tidewire.transport.binding import bind_address
from tidewire.transport.datagram_socket import bind_datagrams
from tidewire.transport.listener import bind as bind_stream
from tidewire.transport.quic import sockets as quic_sockets

Bind = Callable[[str, int], socket.socket]

BINDERS: dict[str, Bind] = {
    "stream": bind_stream,
    "datagrams": lambda host, port: bind_datagrams(host, port, TransportOptions()),
    "quic": lambda host, port: quic_sockets.bind(host, port, TransportOptions())[0],
}


@pytest.fixture(params=BINDERS)
def bind(request: pytest.FixtureRequest) -> Bind:
    """Each wire's way to a socket."""
    found: Bind = BINDERS[request.param]
    return found


def test_port_0_picks_one_that_does_not_block(bind: Bind) -> None:
    """The socket has a port and never waits."""
    with bind("127.0.0.1", 0) as sock:
        assert sock.getsockname()[1] > 0
        assert not sock.getblocking()


def test_a_taken_port_is_refused(bind: Bind) -> None:
    """An address of another socket is an error with the address in it; nothing stays open."""
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(InvalidArgument, match=f"cannot listen on 127.0.0.1:{port}: .*in use"):
            bind("127.0.0.1", port)


def test_a_name_without_an_address_is_refused(bind: Bind) -> None:
    """A host that cannot be resolved is an error with its name in it."""
    with pytest.raises(InvalidArgument, match=r"cannot listen on nobody\.invalid:80"):
        bind("nobody.invalid", 80)


def test_an_address_of_ipv6_is_of_ipv6_alone(bind: Bind) -> None:
    """Connections of IPv4 do not come in by an address of IPv6."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with bind("::1", 0) as sock:
        assert 1 == sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@pytest.mark.parametrize("error", [OSError("no such option"), RuntimeError("a mistake")])
def test_a_socket_that_cannot_be_prepared_is_closed(error: Exception) -> None:
    """What ``prepare`` raises comes out, of the system's as InvalidArgument, and nothing leaks."""
    made: list[socket.socket] = []

    def prepare(sock: socket.socket) -> None:
        made.append(sock)
        raise error

    with pytest.raises((InvalidArgument, RuntimeError), match=str(error)):
        bind_address("127.0.0.1", 0, socket.SOCK_STREAM, prepare)
    assert -1 == made[0].fileno()
