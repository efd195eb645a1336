"""
A worker process: ``python -m tidewire_server.workers.process``, started by the server.

It is told what to do by JSON lines on standard input, answers by JSON lines on standard output, and
ends when standard input does: no worker outlives its server.
"""

import asyncio
import base64
import json
import logging
import os
import pickle
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec
import structlog
import uvloop

import tidewire.transport  # noqa: F401  (first: it tunes grpcio before that is imported)

# isort: split
from tidewire.transport import TransportOptions, WireCounters, channel
from tidewire_server.listeners import raw_options, tls_of
from tidewire_server.ops import logs
from tidewire_server.ops.collector import calm_collector
from tidewire_server.ops.config import Config
from tidewire_server.ops.descriptors import raise_limit
from tidewire_server.workers.channel import engine_options
from tidewire_server.workers.child import LINE_BYTES_MAX
from tidewire_server.workers.forward import ClientServer, Forwarder
from tidewire_server.workers.share import Shared
from tidewire_server.workers.supervisor import WORKER_SCHEMES

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""
Ignored: terminals and service managers send them to every process of a server at once, and it is
the server's part to end its workers, after the calls in flight.
"""

log = logging.getLogger(__name__)


class Worker:
    """The listeners of one worker."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._config = msgspec.convert(told["config"], Config)
        self._urls: list[str] = told["urls"]
        shapes = {method: (shape[0], shape[1]) for method, shape in told["methods"].items()}
        self._channel = channel(told["engine"], options=engine_options(self._config))
        self._forwarder = Forwarder(self._channel, shapes)
        self._servers: dict[str, ClientServer] = {}
        self._number: int = told["number"]
        self._shared = Shared(Path(told["counts"]), sorted(WORKER_SCHEMES))

    async def start(self) -> None:
        """Listen."""
        for url in self._urls:
            scheme = url.partition("://")[0]
            server = self._servers.get(scheme)
            if server is None:
                server = self._servers[scheme] = ClientServer(
                    (self._forwarder,),
                    options=self._options(scheme),
                    codecs=self._config.codecs.to_proto(),
                    count=partial(self._shared.put, scheme, self._number),
                )
            server.listen(
                url, tls=tls_of(self._config, scheme) if scheme in ("tls", "wss") else None
            )
        await self._channel.channel_ready()
        for server in self._servers.values():
            await server.start()

    def _options(self, scheme: str) -> TransportOptions:
        return replace(
            raw_options(self._config),
            reuse_port=True,
            connections_elsewhere=partial(self._shared.others, scheme, self._number),
        )

    async def do(self, command: dict[str, Any]) -> Any:
        """Carry out one command and return its answer."""
        match command["do"]:
            case "figures":
                return {
                    scheme: {"counters": _packed(server.counters), "idle": server.connections_idle}
                    for scheme, server in self._servers.items()
                }
            case "connections":
                return [
                    [scheme, info.identifier, info.peer, info.identity, info.agent, info.calls]
                    for scheme, server in self._servers.items()
                    for info in server.connections()
                ]
            case "disconnect":
                return self._servers[command["scheme"]].disconnect(command["identifier"])
            case "reload":
                outcomes = [server.reload_tls() for server in self._servers.values()]
                return all(outcomes)  # every one is reloaded even when one fails
            case "stop":
                await self.stop(command["grace_s"])
        return None

    async def stop(self, grace_s: float) -> None:
        """End in order."""
        servers = self._servers.values()
        await asyncio.gather(*(server.stop(grace_s) for server in servers))
        await self._channel.close()


def _packed(counters: WireCounters) -> str:
    return base64.b64encode(pickle.dumps(counters)).decode()


async def main() -> None:
    """Serve until standard input ends, or until told to stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    loop = asyncio.get_running_loop()
    answers = _take_stdout()
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    told = json.loads(await reader.readline())
    logs.configure(told["config"]["log"]["level"], told["config"]["log"]["format"])
    structlog.contextvars.bind_contextvars(worker=told["number"])
    raise_limit()
    worker = Worker(told)
    await worker.start()
    calm_collector()
    _say(answers, {"ready": True})
    running: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        # A task each: while one stop waits for its grace, a second one may cut it short.
        task = asyncio.create_task(_carry_out(worker, json.loads(line), answers))
        running.add(task)
        task.add_done_callback(running.discard)


def _take_stdout() -> TextIO:
    """Keep standard output for answers; what anything else prints goes where the log goes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


async def _carry_out(worker: Worker, command: dict[str, Any], answers: TextIO) -> None:
    try:
        answer = await worker.do(command)
    except Exception:
        log.exception("a worker could not carry out %s", command["do"])
        answer = None
    _say(answers, {"id": command["id"], "answer": answer})


def _say(answers: TextIO, thing: dict[str, Any]) -> None:
    answers.write(json.dumps(thing) + "\n")
    answers.flush()


if __name__ == "__main__":
    uvloop.run(main())
