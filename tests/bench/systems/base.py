"""What the scenarios ask of a system under measurement; each system answers in its own best way."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

TESTS: Final = Path(__file__).resolve().parent.parent.parent
SUBJECT: Final = "bench.messages"
READY_TIMEOUT_S: Final = 20.0
COUNTED_EVERY: Final = 256
"""A publishing loop looks at the clock once in so many messages."""


class NotSupportedError(Exception):
    """The system has no such thing, or cannot be measured here; the message is the reason."""


@dataclass(slots=True)
class Served:
    """A system that runs: where, as which processes, and what its answers promise."""

    address: str
    pids: list[int]
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """For a worker's command line."""
        return json.dumps(asdict(self))


class Peer:
    """
    One client of a system, in a worker process of its own.

    Every method here refuses; a system overrides what it has. A duration is in seconds, and a loop
    that is given one says how many it did.
    """

    def __init__(self, served: Served) -> None:
        self.served = served

    async def open(self) -> None:
        """Connect."""

    async def close(self) -> None:
        """Disconnect."""

    async def echo(self, payload: bytes) -> None:
        """One request to the server itself and its answer."""
        raise NotSupportedError("no service in the server answers")

    async def subscribe(self, handler: Callable[[Any], None], subject: str = SUBJECT) -> None:
        """Call ``handler`` once for each message from now on."""
        raise NotSupportedError("no publish and subscribe")

    async def publish_for(
        self, seconds: float, payload: bytes, subjects: tuple[str, ...] = (SUBJECT,)
    ) -> int:
        """Publish, one call a message, as fast as the system lets us; return how many."""
        raise NotSupportedError("no publish and subscribe")

    async def publish(self, payload: bytes) -> None:
        """Publish one message and let it go out now."""
        raise NotSupportedError("no publish and subscribe")

    async def make_stream(self) -> None:
        """Make what durable messages go to."""
        raise NotSupportedError("nothing durable")

    async def publish_durable(self, payload: bytes) -> None:
        """Publish one message and wait for its acknowledgement."""
        raise NotSupportedError("nothing durable")

    async def pipeline_for(self, seconds: float, payload: bytes) -> int:
        """Publish durably without waiting for each; return how many were acknowledged."""
        raise NotSupportedError("no pipelined durable publishing")

    async def consume(self, total: int) -> None:
        """Take this many stored messages, and acknowledge each."""
        raise NotSupportedError("nothing durable")

    async def respond(self) -> None:
        """Answer what is asked with the same bytes, from now on."""
        raise NotSupportedError("no queries through the server")

    async def ask(self, payload: bytes) -> None:
        """Ask the responder through the server."""
        raise NotSupportedError("no queries through the server")

    async def put(self, key: str, value: bytes) -> None:
        """Write a key."""
        raise NotSupportedError("no keys")

    async def get(self, key: str) -> None:
        """Read a key."""
        raise NotSupportedError("no keys")

    async def swap(self, key: str, value: bytes) -> None:
        """Write a key if it is as it was read."""
        raise NotSupportedError("no compare-and-set")

    async def watch(self, handler: Callable[[Any], None]) -> None:
        """Call ``handler`` once for each change of a key from now on."""
        raise NotSupportedError("no watches")

    async def checkpoint(self, state: bytes) -> None:
        """Make this state durable, atomically."""
        raise NotSupportedError("no checkpoints")


class System:
    """A system: how it is started, and what connects to it."""

    name: str
    peer: type[Peer] = Peer
    security = "plain"
    durability = "-"
    note = ""
    """How it is used, where there is more than one way."""

    def missing(self) -> str | None:
        """Why it cannot run here; ``None`` when it can."""
        return None

    def serve(self, folder: Path) -> contextlib.AbstractContextManager[Served]:
        """Run its server, fresh, with data in ``folder``."""
        raise NotSupportedError(f"{self.name} has no server for {folder.name}")


async def publish_loop(
    publish: Callable[[str, bytes], Any],
    seconds: float,
    payload: bytes,
    subjects: tuple[str, ...],
) -> int:
    """Call an awaitable ``publish(subject, payload)`` until the time is over; return how often."""
    count = 0
    stop = time.perf_counter() + seconds
    subject = subjects[0]
    several = len(subjects)
    while time.perf_counter() < stop:
        for _ in range(COUNTED_EVERY):
            if several > 1:
                subject = subjects[count % several]
            await publish(subject, payload)
            count += 1
    return count


async def windowed(call: Callable[[], Awaitable[Any]], in_flight: int, seconds: float) -> int:
    """Keep this many calls in flight until the time is over; return how many were answered."""
    done = 0
    stop = time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < stop:
            await call()
            done += 1

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return done


def free_port() -> int:
    """A port that was free a moment ago, for servers that cannot pick one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def process(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; what it writes is in ``folder/server.log``."""
    with (folder / "server.log").open("ab") as log:
        running = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_for_port(port: int) -> None:
    """Wait until a server listens."""
    stop = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > stop:
                raise
            time.sleep(0.02)
        else:
            return


def beside(name: str) -> str | None:
    """Path of a program that a package has put beside this interpreter."""
    path = Path(sys.executable).parent / name
    return str(path) if path.exists() else None
