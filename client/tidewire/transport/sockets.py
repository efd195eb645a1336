"""
Byte streams below a connection: sockets with their options, over aiofastnet where it is there.
"""

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any, Final, TypeVar

from tidewire.transport.options import TransportOptions

SWITCH: Final = "TIDEWIRE_AIOFASTNET"
_TCP_PROBES = 3
UNIX_SOCKETS: Final = os.name == "posix" and hasattr(socket, "AF_UNIX")
"""Whether this system has sockets with paths, as POSIX means them."""

UNIX_SEND_BYTES: Final = 512 * 1024
"""
SO_SNDBUF of a Unix socket unless the options say another; it is all that lies between the two ends.

Linux gives 208 KiB and asks for more when three quarters of that are gone: the ends take turns.
With this a server waits 0.7 times for a message of 1 MiB instead of 3.5 times.
"""

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)


class _LeftInHandshake(logging.Filter):
    """
    Drops what aiofastnet reports when a TLS handshake fails, at either end.

    It gives a class for the exception, which is then an error, for every stranger, and one that
    ``logging`` cannot even print. Whoever listens counts these connections and why they failed, and
    whoever connects is told by an exception.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is something else."""
        return not (record.exc_info and isinstance(record.exc_info[1], type))


_LEFT_IN_HANDSHAKE: Final = _LeftInHandshake()


def fast_transports() -> ModuleType | None:
    """Return aiofastnet when it can be imported and TIDEWIRE_AIOFASTNET is not 0."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        import aiofastnet
    except ImportError:
        return None
    logging.getLogger("asyncio").addFilter(_LEFT_IN_HANDSHAKE)  # there once, however often
    module: ModuleType = aiofastnet
    return module


def tune(sock: socket.socket, options: TransportOptions) -> None:
    """Set the options of a stream socket, those of TCP only where it is TCP."""
    send_bytes = options.send_buffer_bytes
    if not send_bytes and UNIX_SOCKETS and sock.family == socket.AF_UNIX:
        send_bytes = UNIX_SEND_BYTES
    if send_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    if options.receive_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.receive_buffer_bytes)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if options.unsent_bytes and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, options.unsent_bytes)
    if options.write_timeout_s and hasattr(socket, "TCP_USER_TIMEOUT"):
        timeout_ms = max(1, int(options.write_timeout_s * 1_000))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
    if options.tcp_keepalive_s:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", options.tcp_keepalive_s),
            ("TCP_KEEPINTVL", max(1, options.tcp_keepalive_s // _TCP_PROBES)),
            ("TCP_KEEPCNT", _TCP_PROBES),
        ):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def dial(
    factory: Callable[[], ProtocolT],
    host: str,
    port: int,
    *,
    options: TransportOptions,
    context: ssl.SSLContext | None = None,
    server_name: str | None = None,
) -> ProtocolT:
    """
    Connect to the first address of ``host`` that answers, and do the TLS handshake.

    Raises:
        OSError: Nobody answers, or (``ssl.SSLError``) TLS failed.
    """
    loop = asyncio.get_running_loop()
    name = (server_name or host) if context is not None else None
    fast = fast_transports()
    if fast is not None and context is not None:
        sock = await _reach(host, port)
        transport, protocol = await _secure(
            lambda make: fast.create_connection(
                loop, make, sock=sock, ssl=context, server_hostname=name
            ),
            factory,
            sock,
        )
    elif fast is not None:
        transport, protocol = await fast.create_connection(loop, factory, host, port)
    else:
        transport, protocol = await loop.create_connection(
            factory, host, port, ssl=context, server_hostname=name
        )
    tune_transport(transport, options)
    taken: ProtocolT = protocol
    return taken


async def adopt(
    factory: Callable[[], ProtocolT],
    sock: socket.socket,
    *,
    options: TransportOptions,
    context: ssl.SSLContext | None = None,
) -> ProtocolT:
    """Serve an accepted socket, after the TLS handshake where there is a context."""
    loop = asyncio.get_running_loop()
    tune(sock, options)
    timeout_s = options.handshake_timeout_s if context is not None else None
    fast = fast_transports()
    if fast is not None:
        _, protocol = await _secure(
            lambda make: fast.connect_accepted_socket(
                loop, make, sock, ssl=context, ssl_handshake_timeout=timeout_s
            ),
            factory,
            sock,
        )
    else:
        _, protocol = await loop.connect_accepted_socket(
            factory, sock, ssl=context, ssl_handshake_timeout=timeout_s
        )
    taken: ProtocolT = protocol
    return taken


async def _reach(host: str, port: int) -> socket.socket:
    """Return a socket connected to the first address that answers. Error: OSError."""
    loop = asyncio.get_running_loop()
    problem = OSError(f"{host} has no address")
    for family, kind, number, _, address in await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, number)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            problem = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise problem


async def _secure(
    begin: Callable[[Callable[[], ProtocolT]], Awaitable[Any]],
    factory: Callable[[], ProtocolT],
    sock: socket.socket,
) -> Any:
    """
    Do a handshake of aiofastnet; when that is given up let nothing watch the socket any more.

    Whoever is cancelled when the handshake has just been done leaves a transport that still closes
    in order, and reads: a socket closed under it makes libuv abort the process soon after.
    """
    made: list[ProtocolT] = []

    def make() -> ProtocolT:
        made.append(factory())
        return made[0]

    try:
        return await begin(make)
    except BaseException:
        transport = getattr(made[0], "transport", None) if made else None
        if transport is not None:
            transport.abort()
        else:
            sock.close()
        raise


def tune_transport(transport: asyncio.BaseTransport, options: TransportOptions) -> None:
    """Set the options of the socket under a transport."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        tune(sock, options)
