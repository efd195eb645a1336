"""
``unix://`` and ``grpc+unix://``: sockets of this machine's file system, both ends.

Such a connection is not encrypted, and nothing of it leaves the machine. Only the user who made
the socket can connect, and the kernel says who the client is. A token is refused all the same:
tokens are for encrypted wires, and a path does not prove who listens at it.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc.aio

from tidewire.transport.channel import RawChannel
from tidewire.transport.grpc import grpc_channel
from tidewire.transport.listener import Listener
from tidewire.transport.options import TransportOptions
from tidewire.transport.shell import Shell
from tidewire.transport.socket_file import SocketFile, bind_unix, check_path, grpc_target
from tidewire.transport.sockets import fast_transports, tune
from tidewire.transport.tls import ServerTls, TlsConfig, refuse_certificates
from tidewire.transport.url import WireUrl

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer

CONNECT_POLL_S: Final = 0.005
"""How often a client tries again while the server's backlog is full."""

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)


def unix_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],
) -> RawChannel:
    """Return a channel over a Unix socket; raise when certificates or a token are given for it."""
    refuse_certificates(url.text, tls)
    path = str(check_path(url.path))

    async def connect(raw: RawChannel) -> Shell:
        return await dial_unix(raw.stream_protocol, path, options)

    return RawChannel(
        url.text,
        connect,
        options=options,
        encrypted=False,
        interceptors=interceptors,
        codecs=codecs,
    )


def grpc_unix_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],
) -> grpc.aio.Channel:
    """Return a gRPC channel over a Unix socket; raise when certificates or a token are given."""
    refuse_certificates(url.text, tls)
    return grpc_channel(
        url,
        tls=None,
        options=options,
        interceptors=interceptors,
        codecs=codecs,
        target=grpc_target(str(check_path(url.path))),
    )


async def dial_unix(
    factory: Callable[[], ProtocolT], path: str, options: TransportOptions
) -> ProtocolT:
    """
    Connect to a socket; while its backlog is full, try again until the caller's time is over.

    Raises:
        OSError: Nobody listens there, or it may not be connected to.
    """
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        tune(sock, options)
        while not _connected(sock, path):  # noqa: ASYNC110 (nothing tells when there is room)
            await asyncio.sleep(CONNECT_POLL_S)
        fast = fast_transports()
        if fast is not None:
            _, protocol = await fast.create_unix_connection(loop, factory, sock=sock)
        else:
            _, protocol = await loop.create_unix_connection(factory, sock=sock)
    except BaseException:
        sock.close()
        raise
    taken: ProtocolT = protocol
    return taken


def _connected(sock: socket.socket, path: str) -> bool:
    """Connect. A full backlog is EAGAIN, which event loops mistake for a connection on its way."""
    try:
        sock.connect(path)
    except BlockingIOError:
        return False
    return True


class UnixListener(Listener):
    """A listener whose socket has a file."""

    def __init__(self, sock: socket.socket, file: SocketFile, *more: Any, **options: Any) -> None:
        super().__init__(sock, *more, **options)
        self._file = file

    def close(self) -> None:
        """Stop accepting; the path is free for another server at once."""
        self._file.remove()
        super().close()


def unix_listener(server: "RawServer", url: WireUrl, tls: ServerTls | None) -> UnixListener:
    """
    Listen on a Unix socket that is made with mode 0600.

    Raises:
        InvalidArgument: The path cannot be listened on; see
            :func:`~tidewire.transport.socket_file.bind_unix`.
    """
    sock, file = bind_unix(url.path, server.options.backlog)
    return UnixListener(
        sock,
        file,
        lambda: server.stream_protocol(url.text),
        url=url,
        options=server.options,
        counters=server.counters,
        tls=tls,
    )
