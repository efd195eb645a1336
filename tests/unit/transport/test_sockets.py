"""Sockets below connections: whoever gives up leaves nothing that the event loop watches."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.authority import Authority
from tidewire.transport import TransportOptions
from tidewire.transport.sockets import UNIX_SEND_BYTES, adopt, dial, tune
from tidewire.transport.tls import client_context, server_context

LIMIT_S = 10.0


class _CutShort(asyncio.Protocol):
    """Has its task cancelled in the moment the handshake is done."""

    transport: asyncio.Transport

    def __init__(self, cut: Callable[[], object]) -> None:
        self._cut = cut
        self.number = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # by shape
        self.number = transport.get_extra_info("socket").fileno()
        self._cut()


@pytest.mark.parametrize("side", ["client", "server"])
async def test_given_up_when_the_handshake_is_done(side: str, tmp_path: Path) -> None:
    """The loop watches its socket no more, so that the number may be that of another one."""
    loop = asyncio.get_running_loop()
    authority = Authority(tmp_path)
    ours = client_context(authority.config(authority.issue("client")))
    theirs = server_context(authority.config(authority.issue("server")))
    options = TransportOptions()
    cut: dict[str, Callable[[], object]] = {"client": lambda: None, "server": lambda: None}
    made: dict[str, _CutShort] = {}

    def make(which: str) -> Callable[[], _CutShort]:
        return lambda: made.setdefault(which, _CutShort(cut[which]))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        port = listening.getsockname()[1]
        accepting = asyncio.ensure_future(loop.sock_accept(listening))
        tasks: dict[str, asyncio.Task[Any]] = {}
        cut[side] = lambda: tasks[side].cancel()  # noqa: PLW0108 (there is no task yet)
        tasks["client"] = asyncio.create_task(
            dial(make("client"), "127.0.0.1", port, options=options, context=ours)
        )
        accepted, _ = await asyncio.wait_for(accepting, LIMIT_S)
        tasks["server"] = asyncio.create_task(
            adopt(make("server"), accepted, options=options, context=theirs)
        )
        await asyncio.wait([tasks[side]], timeout=LIMIT_S)
        watched = loop.remove_reader(made[side].number)
        for protocol in made.values():
            if protocol.number >= 0:
                protocol.transport.abort()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    assert tasks[side].cancelled()
    assert not watched


@pytest.mark.parametrize("wanted", [0, 40_000])
def test_a_unix_socket_sends_from_more_than_the_kernel_gives(wanted: int) -> None:
    """Both ends overlap; what the options say goes before."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wanted or UNIX_SEND_BYTES)
        tune(ours, TransportOptions(send_buffer_bytes=wanted))
        sizes = [end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for end in (ours, theirs)]
    assert sizes[0] == sizes[1]


def test_a_tcp_socket_keeps_what_the_kernel_gives() -> None:
    """The kernel grows the buffer of TCP by itself, unless somebody sets it."""
    with socket.socket() as tuned, socket.socket() as untouched:
        tune(tuned, TransportOptions())
        sizes = [end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for end in (tuned, untouched)]
    assert sizes[0] == sizes[1]
