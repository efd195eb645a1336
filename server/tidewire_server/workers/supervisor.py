"""Starts worker processes, watches over them, and speaks for their listeners."""

import asyncio
import base64
import contextlib
import pickle
import socket
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from tidewire.transport import ConnectionInfo, WireCounters, WireUrl
from tidewire.transport.listener import bind
from tidewire_server.ops.config import Config, to_builtins
from tidewire_server.router import Router
from tidewire_server.workers.channel import engine_options
from tidewire_server.workers.child import WorkerProcess
from tidewire_server.workers.share import Shared
from tidewire_server.workers.upstream import WorkerServer

WORKER_SCHEMES: Final = frozenset({"tcp", "tls", "ws", "wss"})
FIGURES_S: Final = 1.0
"""How often workers are asked for their counters."""
IDENTIFIERS_PER_WORKER: Final = 1_000_000_000
"""Identifiers of connections are those of their worker, moved by its number times this."""


class WorkerWire:
    """The connections of one scheme in all workers, as a raw server has them."""

    def __init__(self, scheme: str, workers: "Workers") -> None:
        self._scheme = scheme
        self._workers = workers

    @property
    def counters(self) -> WireCounters:
        """Counters of all workers together, at most a second old."""
        return self._workers.counters(self._scheme)

    @property
    def connections_idle(self) -> int:
        """Connections without a call, at most a second ago."""
        return sum(
            each.get(self._scheme, {}).get("idle", 0) for each in self._workers.figures.values()
        )


class Workers:
    """
    All workers of a server.

    Attributes:
        processes: The workers.
        wires: Their connections, by scheme.
    """

    def __init__(self, router: Router, config: Config) -> None:
        self.processes: list[WorkerProcess] = []
        self.wires: dict[str, WorkerWire] = {}
        self._router = router
        self._config = config
        self._held: list[socket.socket] = []
        self._folder = contextlib.ExitStack()
        self._urls: list[str] = []
        self._server = WorkerServer((router,), options=engine_options(config))
        self._asking: asyncio.Task[None] | None = None
        self._shared: Shared | None = None
        self.figures: dict[int, dict[str, Any]] = {}
        """What each worker said last, by its number and scheme."""
        self._past: dict[str, WireCounters] = {}
        """Counters of workers that have ended."""

    def add(self, url: WireUrl) -> WireUrl:
        """
        Let workers listen on a URL; return it with the port that was picked.

        The port is held from now on by a socket that never listens, so that workers can come and
        go. That nobody else has it is tried first: ports that are shared are shared silently.

        Raises:
            InvalidArgument: The address cannot be listened on.
        """
        if url.port:
            bind(url.host, url.port, listening=False).close()
        held = bind(url.host, url.port, reuse_port=True, listening=False)
        self._held.append(held)
        bound = url.at(held.getsockname()[1])
        self._urls.append(bound.text)
        self.wires.setdefault(url.scheme, WorkerWire(url.scheme, self))
        return bound

    async def start(self) -> None:
        """
        Start the workers, all at once, and wait until they listen.

        Raises:
            ConfigError: One could not start.
        """
        folder = self._folder.enter_context(tempfile.TemporaryDirectory(prefix="tidewire-"))
        engine = f"unix://{Path(folder)}/engine.sock"
        counts = Path(folder) / "connections"
        self._shared = Shared(counts, sorted(WORKER_SCHEMES))
        self._server.listen(engine)
        await self._server.start()
        told = {
            "config": to_builtins(self._config),
            "urls": self._urls,
            "engine": engine,
            "counts": str(counts),
            "methods": self._router.shapes,
        }
        count = self._config.server.workers
        self.processes = [WorkerProcess(number, told, self._gone) for number in range(count)]
        starts = [process.start() for process in self.processes]
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                await self.stop(0.0)
                raise outcome
        self._asking = asyncio.create_task(self._ask_for_figures())

    async def stop(self, grace_s: float) -> None:
        """End the workers in order, then their way to the engine."""
        if self._asking is not None:
            self._asking.cancel()
        for held in self._held:
            held.close()
        await asyncio.gather(*(process.stop(grace_s) for process in self.processes))
        await self._server.stop(0.0)
        self._folder.close()

    def _gone(self, number: int) -> None:
        """A worker has ended: its connections are over, what they did stays counted."""
        if self._shared is not None:
            self._shared.forget(number)
        for scheme, said in self.figures.pop(number, {}).items():
            counters: WireCounters = said["counters"]
            counters.connections_active = counters.calls_active = 0
            self._past[scheme] = merged([self._past.get(scheme, WireCounters()), counters])

    async def reload_tls(self) -> bool:
        """Have all of them read their certificates; False when one keeps its old ones."""
        answers = await asyncio.gather(*(process.ask("reload") for process in self.processes))
        return all(answers)

    async def connections(self) -> dict[str, list[ConnectionInfo]]:
        """List the open connections of all workers, by scheme."""
        found: dict[str, list[ConnectionInfo]] = {scheme: [] for scheme in self.wires}
        for process in self.processes:
            for scheme, number, *what, calls in await process.ask("connections") or ():
                identifier = process.number * IDENTIFIERS_PER_WORKER + number
                peer, identity, agent = what
                info = ConnectionInfo(identifier, f"{scheme}://", peer, identity, agent, "", calls)
                found[scheme].append(info)
        return found

    async def disconnect(self, scheme: str, identifier: int) -> bool:
        """End a connection; return False when there is none of this number."""
        number, within = divmod(identifier, IDENTIFIERS_PER_WORKER)
        if number >= len(self.processes) or scheme not in self.wires:
            return False
        ask = self.processes[number].ask
        return bool(await ask("disconnect", scheme=scheme, identifier=within))

    def counters(self, scheme: str) -> WireCounters:
        """Counters of a scheme, of all workers together."""
        said = [each[scheme]["counters"] for each in self.figures.values() if scheme in each]
        return merged([self._past.get(scheme, WireCounters()), *said])

    async def _ask_for_figures(self) -> None:
        while True:
            await asyncio.gather(*(self._ask_one(process) for process in self.processes))
            await asyncio.sleep(FIGURES_S)

    async def _ask_one(self, process: WorkerProcess) -> None:
        said = await process.ask("figures")
        if said is None:
            process.kill_if_hung()
            return
        for each in said.values():
            packed = base64.b64decode(each["counters"])
            each["counters"] = pickle.loads(packed)  # noqa: S301 (our own process)
        self.figures[process.number] = said


def merged(parts: list[WireCounters]) -> WireCounters:
    """Add counters up."""
    whole = WireCounters()
    for part in parts:
        for each in fields(WireCounters):
            mine, theirs = getattr(whole, each.name), getattr(part, each.name)
            if isinstance(mine, int):
                setattr(whole, each.name, mine + theirs)
            elif hasattr(mine, "merge"):
                mine.merge(theirs)
            else:
                mine.update(theirs)
    return whole
