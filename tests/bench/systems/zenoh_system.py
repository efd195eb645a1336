"""
Eclipse Zenoh through a router, with its Python client.

The router is a session in router mode in a process of its own; publishers block instead of
dropping (``CongestionControl.BLOCK``), a declared publisher and a declared querier are used
throughout. As it comes, sessions of one machine hand long payloads on in shared memory; what
travels a network is measured without.
"""

import asyncio
import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.systems.base import (
    COUNTED_EVERY,
    SUBJECT,
    Peer,
    Served,
    System,
    free_port,
    process,
    wait_for_port,
)

THREADS = 64


def _config(mode: str, shared_memory: bool, *, connect: str = "", listen: str = "") -> Any:
    import zenoh

    config = zenoh.Config()
    config.insert_json5("mode", json.dumps(mode))
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("transport/shared_memory/enabled", json.dumps(shared_memory))
    if connect:
        config.insert_json5("connect/endpoints", json.dumps([connect]))
    config.insert_json5("listen/endpoints", json.dumps([listen] if listen else []))
    return config


class ZenohPeer(Peer):
    """A session in client mode."""

    session: Any
    querier: Any = None

    async def open(self) -> None:
        """Connect to the router."""
        import zenoh

        self.session = zenoh.open(
            _config("client", self.served.options["shared_memory"], connect=self.served.address)
        )
        self.pool = ThreadPoolExecutor(THREADS)
        self.publishers: dict[str, Any] = {}

    async def close(self) -> None:
        """Disconnect."""
        self.pool.shutdown(wait=False)
        self.session.close()

    def _publisher(self, subject: str) -> Any:
        import zenoh

        if subject not in self.publishers:
            self.publishers[subject] = self.session.declare_publisher(
                subject.replace(".", "/"), congestion_control=zenoh.CongestionControl.BLOCK
            )
        return self.publishers[subject]

    async def subscribe(self, handler: Callable[[Any], None], subject: str = SUBJECT) -> None:
        """A callback on Zenoh's thread."""
        key = subject.replace(".", "/").replace(">", "**")
        self.subscriber = self.session.declare_subscriber(key, handler)
        await asyncio.sleep(0.5)  # declarations reach the router on their own time

    async def publish_for(
        self, seconds: float, payload: bytes, subjects: tuple[str, ...] = (SUBJECT,)
    ) -> int:
        """A plain loop: the client has no asyncio."""
        puts = [self._publisher(subject).put for subject in subjects]
        await asyncio.sleep(0.5)
        count = 0
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            for _ in range(COUNTED_EVERY):
                puts[count % len(puts)](payload)
                count += 1
            await asyncio.sleep(0)  # other publishers of this process have their turns
        return count

    async def publish(self, payload: bytes) -> None:
        """One message."""
        self._publisher(SUBJECT).put(payload)

    async def respond(self) -> None:
        """A queryable that answers with the payload of the query."""

        def answer(query: Any) -> None:
            query.reply("bench/echo", query.payload)

        self.queryable = self.session.declare_queryable("bench/echo", answer)
        await asyncio.sleep(0.5)

    async def ask(self, payload: bytes) -> None:
        """A get; on a thread, as the client blocks."""
        if self.querier is None:
            self.querier = self.session.declare_querier("bench/echo")
            await asyncio.sleep(0.5)
        if self.served.options.get("in_flight", 1) == 1:
            self._ask(payload)
        else:
            await asyncio.get_running_loop().run_in_executor(self.pool, self._ask, payload)

    def _ask(self, payload: bytes) -> None:
        replies = list(self.querier.get(payload=payload))
        if len(replies) != 1:
            raise RuntimeError(f"{len(replies)} replies")


class Zenoh(System):
    """A router and its clients over TCP."""

    peer = ZenohPeer

    def __init__(self, *, shared_memory: bool = False) -> None:
        self.shared_memory = shared_memory
        self.name = "zenoh shared memory" if shared_memory else "zenoh"
        self.note = "as it comes" if shared_memory else "over TCP alone"

    def missing(self) -> str | None:
        """Why it cannot run."""
        found = importlib.util.find_spec("zenoh")
        return None if found else "eclipse-zenoh is not in this environment"

    @contextlib.contextmanager
    def serve(self, folder: Path) -> Iterator[Served]:
        """A router in a process of its own."""
        port = free_port()
        address = f"tcp/127.0.0.1:{port}"
        command = [sys.executable, __file__, address, *(["shared"] if self.shared_memory else [])]
        with process(command, folder) as running:
            wait_for_port(port)
            yield Served(address, [running.pid], {"shared_memory": self.shared_memory})


if __name__ == "__main__":
    import zenoh

    with zenoh.open(_config("router", len(sys.argv) > 2, listen=sys.argv[1])):
        sys.stdin.read()
