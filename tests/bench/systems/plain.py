"""What there is below: bare grpc.aio and pyzmq, as they come."""

import asyncio
import contextlib
import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio

from bench.systems.base import COUNTED_EVERY, SUBJECT, Peer, Served, System, process
from tidewire.v1 import state_pb2, state_pb2_grpc

SETTLE_S = 0.5
"""Subscriptions reach the proxy on their own time."""
LINGER_MS = 10_000
"""What waits in a closed socket may still go out for this long."""
SEND_TIMEOUT_MS = 20_000
"""A proxy that takes nothing for so long is a failure with a reason, not a wait for the guard."""
ECHO = Path(__file__).parent.parent / "echo_server.py"


class BarePeer(Peer):
    """A plain channel."""

    async def open(self) -> None:
        """Connect."""
        self.channel = grpc.aio.insecure_channel(self.served.address.removeprefix("bare://"))
        self.stub = state_pb2_grpc.StateServiceStub(self.channel)

    async def close(self) -> None:
        """Disconnect."""
        await self.channel.close()

    async def echo(self, payload: bytes) -> None:
        """The same generated stub."""
        await self.stub.Get(state_pb2.GetRequest(key=payload.decode("ascii")))


class BareGrpc(System):
    """grpc.aio with no options."""

    name = "bare grpc.aio"
    peer = BarePeer

    @contextlib.contextmanager
    def serve_echo(self, folder: Path) -> Iterator[Served]:
        """The handler of the other wires."""
        with subprocess.Popen(
            [sys.executable, str(ECHO), "bare://127.0.0.1:0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as running:
            assert running.stdout is not None
            try:
                yield Served(json.loads(running.stdout.readline()), [running.pid])
            finally:
                running.communicate()


class ZmqPeer(Peer):
    """Blocking sockets: what its guide advises for speed; the reader has a thread."""

    async def open(self) -> None:
        """Make a context."""
        import zmq

        self.context = zmq.Context()
        self.kinds: Any = zmq
        self.front, self.back = json.loads(self.served.address)
        self.publisher: Any = None

    async def close(self) -> None:
        """Close the sockets; the reader's thread ends with its context."""
        if self.publisher is not None:
            self.publisher.close(linger=LINGER_MS)
        await asyncio.get_running_loop().run_in_executor(None, self.context.term)

    async def subscribe(self, handler: Callable[[Any], None], subject: str = SUBJECT) -> None:
        """A SUB socket behind the proxy."""

        def read() -> None:
            socket = self.context.socket(self.kinds.SUB)
            socket.set(self.kinds.RCVHWM, 0)
            socket.connect(self.back)
            socket.subscribe(subject.encode())
            try:
                while True:
                    handler(socket.recv_multipart())
            except self.kinds.ContextTerminated:
                socket.close(linger=0)

        threading.Thread(target=read, daemon=True).start()
        await asyncio.sleep(SETTLE_S)

    async def publish_for(
        self, seconds: float, payload: bytes, subjects: tuple[str, ...] = (SUBJECT,)
    ) -> int:
        """A PUB socket that waits when it is full."""
        socket = await self._publisher()
        names = [subject.encode() for subject in subjects]
        count = 0
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            for _ in range(COUNTED_EVERY):
                socket.send_multipart([names[count % len(names)], payload])
                count += 1
            await asyncio.sleep(0)  # other publishers of this process have their turns
        return count

    async def _publisher(self) -> Any:
        if self.publisher is None:
            self.publisher = self.context.socket(self.kinds.PUB)
            self.publisher.set(self.kinds.XPUB_NODROP, 1)
            self.publisher.set(self.kinds.SNDTIMEO, SEND_TIMEOUT_MS)
            self.publisher.connect(self.front)
            await asyncio.sleep(SETTLE_S)
        return self.publisher

    async def publish(self, payload: bytes) -> None:
        """One message."""
        (await self._publisher()).send_multipart([SUBJECT.encode(), payload])


class Zmq(System):
    """A proxy between PUB and SUB sockets."""

    name = "pyzmq"
    note = "XSUB/XPUB proxy in C"
    peer = ZmqPeer

    def missing(self) -> str | None:
        """Why it cannot run."""
        found = importlib.util.find_spec("zmq")
        return None if found else "pyzmq is not in this environment"

    @contextlib.contextmanager
    def serve(self, folder: Path) -> Iterator[Served]:
        """The proxy, on sockets in the folder."""
        ends = [f"ipc://{folder}/front", f"ipc://{folder}/back"]
        with process([sys.executable, __file__, *ends], folder) as running:
            yield Served(json.dumps(ends), [running.pid])


def _proxy(front: str, back: str) -> None:
    import zmq

    context = zmq.Context()
    inward, outward = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
    inward.set(zmq.RCVHWM, 0)
    outward.set(zmq.SNDHWM, 0)
    inward.bind(front)
    outward.bind(back)
    zmq.proxy(inward, outward)


if __name__ == "__main__":
    _proxy(*sys.argv[1:])
