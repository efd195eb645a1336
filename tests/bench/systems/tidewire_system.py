"""tidewire, on any of its wires: one server process, FSYNC for what is durable."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tidewire
from bench.systems.base import (
    SUBJECT,
    NotSupportedError,
    Peer,
    Served,
    System,
    publish_loop,
)
from support.process import ServerProcess
from support.wires import listen_url
from tidewire import certs
from tidewire.transport import TlsConfig, listener_schemes
from tidewire.v1 import state_pb2, state_pb2_grpc

ENCRYPTED = frozenset({"grpcs", "tls", "wss", "quic", "dtls"})
ECHO = Path(__file__).parent.parent / "echo_server.py"


class TidewirePeer(Peer):
    """The asyncio client."""

    client: tidewire.Client
    publisher: Any = None
    quick: Any = None
    parts: list[Any]
    revision = 0

    @property
    def tls(self) -> TlsConfig | None:
        """What this client shows and trusts."""
        files = self.served.options.get("tls")
        return TlsConfig(**files) if files else None

    async def open(self) -> None:
        """Connect."""
        self.parts = []
        if self.served.options.get("echo"):
            channel = tidewire.transport.channel(self.served.address, tls=self.tls)
            self.channel = channel
            self.stub = state_pb2_grpc.StateServiceStub(channel)
            return
        self.client = await tidewire.connect(
            self.served.address, tls=self.tls, compression=self.served.options.get("codec")
        )

    async def close(self) -> None:
        """Disconnect."""
        if self.served.options.get("echo"):
            await self.channel.close()
        else:
            await self.client.close()

    async def echo(self, payload: bytes) -> None:
        """A generated stub's call to a handler that answers at once."""
        await self.stub.Get(state_pb2.GetRequest(key=payload.decode("ascii")))

    async def subscribe(self, handler: Callable[[Any], None], subject: str = SUBJECT) -> None:
        """Have a handler called for each message."""
        self.parts.append(await self.client.events.subscribe(subject, handler=handler))

    async def publish_for(
        self, seconds: float, payload: bytes, subjects: tuple[str, ...] = (SUBJECT,)
    ) -> int:
        """One call of ``publish`` a message."""
        async with self.client.events.publisher() as publisher:
            return await publish_loop(publisher.publish, seconds, payload, subjects)

    async def publish(self, payload: bytes) -> None:
        """One message on an open publisher."""
        if self.quick is None:
            self.quick = await self.client.events.publisher()
        await self.quick.publish(SUBJECT, payload)

    async def make_stream(self) -> None:
        """A stream and one consumer."""
        stream = self.client.events.stream("bench")
        await stream.create(["bench.>"])
        await stream.consumer("bench").create(ack_pending_max=65_536)

    async def publish_durable(self, payload: bytes) -> None:
        """One call a message, acknowledged at FSYNC."""
        await self.client.events.publish(SUBJECT, payload)

    async def pipeline_for(self, seconds: float, payload: bytes) -> int:
        """A publisher that is told of every acknowledgement."""
        async with self.client.events.publisher(acknowledge=True) as publisher:
            count = await publish_loop(publisher.publish, seconds, payload, (SUBJECT,))
            await publisher.flush(timeout_s=120)
            return count

    async def consume(self, total: int) -> None:
        """A handler for each message, acknowledged when it returns."""
        taken = 0
        done = asyncio.Event()

        def handle(_message: tidewire.Message) -> None:
            nonlocal taken
            taken += 1
            if taken >= total:
                done.set()

        # Leaving the block waits until the server has the acknowledgements.
        async with self.client.events.consume("bench", "bench", handler=handle):
            await done.wait()

    async def respond(self) -> None:
        """Serve a subject."""
        self.parts.append(await self.client.queries.serve("bench.echo", _same, in_flight_max=1_000))

    async def ask(self, payload: bytes) -> None:
        """Ask through the server."""
        await self.client.queries.ask("bench.echo", payload, timeout_s=10)

    async def put(self, key: str, value: bytes) -> None:
        """Acknowledged at FSYNC."""
        await self.client.state.put(key, value)

    async def get(self, key: str) -> None:
        """Read what is durable."""
        await self.client.state.get(key)

    async def swap(self, key: str, value: bytes) -> None:
        """Compare-and-set by revision."""
        entry = await self.client.state.get(key)
        revision = entry.revision if entry is not None else 0
        await self.client.state.put(key, value, expected_revision=revision)

    async def watch(self, handler: Callable[[Any], None]) -> None:
        """Watch a prefix."""
        watch = await self.client.state.watch("bench/")

        async def read() -> None:
            async for event in watch:
                handler(event)

        self.parts += [watch, asyncio.create_task(read())]

    async def checkpoint(self, state: bytes) -> None:
        """Commit an operator's state."""
        if not self.parts:
            operator = self.client.checkpoints.operator("bench")
            await operator.acquire(keep=2)
            self.parts.append(operator)
        await self.parts[0].commit(state)


def _same(query: Any) -> bytes:
    payload: bytes = query.payload
    return payload


class Tidewire(System):
    """One wire of tidewire."""

    peer = TidewirePeer
    durability = "FSYNC"

    def __init__(self, wire: str, codec: str | None = None, workers: int = 0) -> None:
        self.wire = wire
        self.codec = codec
        self.workers = workers
        self.name = f"tidewire {wire}" + (f" {codec}" if codec else "")
        if workers:
            self.name += f" {workers} workers"
        self.security = "mTLS" if wire in ENCRYPTED else "plain"

    def missing(self) -> str | None:
        """Why this wire cannot run here."""
        if self.wire in ("grpc", "grpcs", "grpc+unix") or self.wire in listener_schemes():
            return None
        return f"{self.wire}:// is not available"

    @contextlib.contextmanager
    def serve(self, folder: Path) -> Iterator[Served]:
        """``tidewire serve`` on this wire alone."""
        flags = ["--server-workers", str(self.workers)]
        options: dict[str, Any] = {"codec": self.codec}
        if self.wire in ENCRYPTED:
            options["tls"], more = certificates(folder)
            flags += more
        with ServerProcess(folder, (self.wire,), flags=flags) as server:
            yield Served(server.url(self.wire), [server.pid], options)

    @contextlib.contextmanager
    def serve_echo(self, folder: Path) -> Iterator[Served]:
        """A bare handler on this wire, in a process of its own."""
        options: dict[str, Any] = {"echo": True}
        command = [sys.executable, str(ECHO), listen_url(self.wire, folder)]
        if self.wire in ENCRYPTED:
            options["tls"], _ = certificates(folder)
            command.append(str(folder / "certs"))
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as running:
            assert running.stdout is not None
            line = running.stdout.readline()
            if not line:
                raise NotSupportedError(f"{self.wire}:// could not be served")
            try:
                yield Served(json.loads(line), [running.pid], options)
            finally:
                running.communicate()


def certificates(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Make a CA, and what a client and a server are told of it."""
    target = folder / "certs"
    server = certs.Leaf("server", "server", ("localhost", "127.0.0.1"))
    certs.init(target, [server, certs.Leaf("bench", "client")])
    client = {
        "ca": str(target / "ca.pem"),
        "certificate": str(target / "bench.pem"),
        "key": str(target / "bench.key"),
    }
    flags = ["--tls-ca", str(target / "ca.pem")]
    flags += ["--tls-certificate", str(target / "server.pem")]
    flags += ["--tls-key", str(target / "server.key")]
    return client, flags
