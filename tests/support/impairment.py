"""
A UDP proxy that loses, repeats, reorders, delays and cuts datagrams, by a seed.

Put it between a client and a server: ``async with impaired(address, up=Impairment(loss=0.2))``.
Many kernels have no ``tc netem``; this one needs nothing.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

Address = tuple[str, int]

CLIENTS_MAX: Final = 1_024
"""Client addresses the proxy has a socket of its own for."""
CAPTURED_MAX: Final = 10_000
"""Datagrams kept for tests that replay them."""


@dataclass(frozen=True, slots=True)
class Impairment:
    """What happens to datagrams of one direction. Parts are 0 to 1, times seconds."""

    loss: float = 0.0
    """Part that is lost."""
    duplication: float = 0.0
    """Part that comes twice."""
    reordering: float = 0.0
    """Part that is held back for ``reordering_s``, so that later ones overtake it."""
    reordering_s: float = 0.01
    delay_s: float = 0.0
    """Time each datagram takes."""
    mtu_bytes: int = 65_507
    """Longer datagrams vanish, as at a router that drops them and tells nobody."""


@dataclass(slots=True)
class Figures:
    """What the proxy did to one direction, in datagrams; ``bytes`` counts what came in."""

    received: int = 0
    forwarded: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    too_long: int = 0
    bytes: int = 0


class _Socket(asyncio.DatagramProtocol):
    def __init__(self, receive: Any) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, address: Any) -> None:
        self._receive(data, address)

    def error_received(self, error: Exception) -> None:
        """A port that is closed: to the peer the datagram is lost."""


class ImpairmentProxy:
    """
    Passes datagrams between clients and one server; each client has a socket of its own there.

    Attributes:
        address: Where clients send to.
        up: What happens on the way to the server; may be replaced at any time.
        down: What happens on the way to the clients.
        sent_up: Figures of the way to the server.
        sent_down: Figures of the way to the clients.
        captured: Datagrams that came from clients, when ``capture`` is set.
    """

    def __init__(self, server: Address, up: Impairment, down: Impairment, seed: int) -> None:
        self.address: Address = ("", 0)
        self.up = up
        self.down = down
        self.sent_up = Figures()
        self.sent_down = Figures()
        self.capture = False
        self.captured: list[bytes] = []
        self._server = server
        self._random = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self._front: asyncio.DatagramTransport
        self._backs: dict[Address, asyncio.DatagramTransport] = {}
        self._opening: dict[Address, list[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen on a port of loopback."""
        self._front, _ = await self._loop.create_datagram_endpoint(
            lambda: _Socket(self._from_client), local_addr=("127.0.0.1", 0)
        )
        host, port = self._front.get_extra_info("sockname")[:2]
        self.address = (host, port)

    def close(self) -> None:
        """Pass nothing any more."""
        for task in self._tasks:
            task.cancel()
        self.change_address()
        self._front.close()

    def change_address(self) -> None:
        """Let the server see another address for every client from now on, as a NAT may do."""
        backs, self._backs = self._backs, {}
        for back in backs.values():
            back.close()

    def _from_client(self, data: bytes, client: Address) -> None:
        if self.capture and len(self.captured) < CAPTURED_MAX:
            self.captured.append(data)
        waiting = self._opening.get(client)
        if waiting is not None:
            waiting.append(data)
            return
        back = self._backs.get(client)
        if back is not None:
            self._pass(data, self.up, self.sent_up, back.sendto)
        elif len(self._backs) + len(self._opening) < CLIENTS_MAX:
            self._opening[client] = [data]
            task = self._loop.create_task(self._open_back(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open_back(self, client: Address) -> None:
        def to_client(data: bytes, _: Any) -> None:
            self._pass(
                data, self.down, self.sent_down, lambda passed: self._front.sendto(passed, client)
            )

        back, _ = await self._loop.create_datagram_endpoint(
            lambda: _Socket(to_client), remote_addr=self._server
        )
        self._backs[client] = back
        for data in self._opening.pop(client):
            self._pass(data, self.up, self.sent_up, back.sendto)

    def _pass(self, data: bytes, impairment: Impairment, figures: Figures, send: Any) -> None:
        figures.received += 1
        figures.bytes += len(data)
        if len(data) > impairment.mtu_bytes:
            figures.too_long += 1
            return
        if self._random.random() < impairment.loss:
            figures.lost += 1
            return
        times = 1
        if self._random.random() < impairment.duplication:
            figures.duplicated += 1
            times = 2
        for _ in range(times):
            wait_s = impairment.delay_s
            if self._random.random() < impairment.reordering:
                figures.reordered += 1
                wait_s += impairment.reordering_s
            figures.forwarded += 1
            if wait_s:
                self._loop.call_later(wait_s, _send, send, data)
            else:
                send(data)


def _send(send: Any, data: bytes) -> None:
    owner = getattr(send, "__self__", None)
    if owner is None or not owner.is_closing():
        send(data)


@asynccontextmanager
async def impaired(
    server: Address,
    *,
    up: Impairment | None = None,
    down: Impairment | None = None,
    seed: int = 1,
) -> AsyncIterator[ImpairmentProxy]:
    """
    Run a proxy in front of a server; ``down`` is by default the same as ``up``.

    Args:
        server: Host and port of the server.
        up: What happens on the way to the server.
        down: What happens on the way to the clients.
        seed: Of the choices: the same seed and the same datagrams give the same losses.
    """
    there = up or Impairment()
    proxy = ImpairmentProxy(server, there, down or there, seed)
    await proxy.open()
    try:
        yield proxy
    finally:
        proxy.close()
