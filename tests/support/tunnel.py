"""
What lies between a client and a server, and can stop to pass anything without telling anybody.

``async with between(url) as path:`` gives another URL for the same server; after ``path.vanish()``
both ends still have their connections, and whatever they send is taken and lost: no FIN, no RST,
and for streams of bytes even the kernel's acknowledgements go on. Only asking can find that out.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.impairment import Impairment, impaired
from tidewire.transport.url import WireUrl, parse_url

PIECE_BYTES: Final = 64 * 1024
DATAGRAM_WIRES: Final = ("udp", "dtls", "quic")
UNIX_WIRES: Final = ("unix", "grpc+unix")


@dataclass(frozen=True, slots=True)
class Between:
    """A way to a server."""

    url: str
    vanish: Callable[[], None]


class Tunnel:
    """Passes bytes between clients and one server of a byte stream, until it vanishes."""

    def __init__(self, target: WireUrl) -> None:
        self._target = target
        self._passing = True
        self._is_over = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def vanish(self) -> None:
        """Take everything from now on and pass nothing, not even an end."""
        self._passing = False

    async def close(self) -> None:
        """End all of it, also what is just being connected."""
        self._is_over = True
        await asyncio.sleep(0)  # what was accepted, and has not begun, is to see it
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client to the server."""
        self._writers.add(writer)
        if self._is_over:
            writer.close()
            return
        accepting = asyncio.current_task()
        assert accepting is not None
        self._keep(accepting)
        target = self._target
        if target.scheme in UNIX_WIRES:
            far_reader, far_writer = await asyncio.open_unix_connection(target.path)
        else:
            far_reader, far_writer = await asyncio.open_connection(target.host, target.port)
        self._writers.add(far_writer)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._keep(asyncio.ensure_future(self._pump(source, sink)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(PIECE_BYTES):
                if self._passing:
                    sink.write(data)
                    await sink.drain()
            if self._passing:
                sink.close()


@asynccontextmanager
async def between(url: str, folder: Path) -> AsyncIterator[Between]:
    """Open another way to the server of a URL; sockets of Unix wires are made in ``folder``."""
    target = parse_url(url)
    if target.scheme in DATAGRAM_WIRES:
        async with impaired((target.host, target.port)) as proxy:

            def lose() -> None:
                proxy.up = proxy.down = Impairment(loss=1.0)

            yield Between(f"{target.scheme}://127.0.0.1:{proxy.address[1]}", lose)
        return
    tunnel = Tunnel(target)
    if target.scheme in UNIX_WIRES:
        path = folder / f"{target.scheme}.tunnel"
        server = await asyncio.start_unix_server(tunnel.accept, path)
        near = f"{target.scheme}://{path}"
    else:
        server = await asyncio.start_server(tunnel.accept, "127.0.0.1", 0)
        near = target.at(server.sockets[0].getsockname()[1]).text
    try:
        yield Between(near, tunnel.vanish)
    finally:
        server.close()
        await tunnel.close()
