"""Starts worker processes, watches over them, and speaks for their listeners."""

import asyncio
import base64
import contextlib
import json
import logging
import pickle
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from tidewire.transport import ConnectionInfo, WireCounters, WireUrl
from tidewire.transport.listener import bind
from tidewire_server.ops.config import Config, ConfigError, to_builtins
from tidewire_server.router import Router
from tidewire_server.workers.channel import engine_options
from tidewire_server.workers.upstream import WorkerServer

WORKER_SCHEMES: Final = frozenset({"tcp", "tls", "ws", "wss"})
READY_TIMEOUT_S: Final = 20.0
COMMAND_TIMEOUT_S: Final = 5.0
FIGURES_S: Final = 1.0
"""How often workers are asked for their counters."""
RESTART_S: Final = 0.5
LINE_BYTES_MAX: Final = 1 << 24
IDENTIFIERS_PER_WORKER: Final = 1_000_000_000
"""Identifiers of connections are those of their worker, moved by its number times this."""

log = logging.getLogger(__name__)


class WorkerProcess:
    """One worker, by its pipes. It is started again whenever it ends by itself."""

    def __init__(self, number: int, told: Mapping[str, Any]) -> None:
        self.number = number
        self.figures: dict[str, Any] = {}
        self._told = told
        self._process: asyncio.subprocess.Process | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._questions = 0
        self._ending = False
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """
        Start it and wait until it listens.

        Raises:
            ConfigError: It could not.
        """
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    async def _spawn(self) -> None:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tidewire_server.workers.process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(self._told).encode() + b"\n")
        try:
            line = await asyncio.wait_for(process.stdout.readline(), READY_TIMEOUT_S)
        except TimeoutError:
            line = b""
        if not line:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise ConfigError(f"worker {self.number} did not start; the log above says why")

    async def _keep(self) -> None:
        """Read its answers; start it again when it ends."""
        while True:
            assert self._process is not None
            assert self._process.stdout is not None
            while line := await self._process.stdout.readline():
                answer = json.loads(line)
                waiting = self._asked.pop(answer["id"], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer["answer"])
            code = await self._process.wait()
            self._give_up_asking()
            if self._ending:
                return
            log.error("a worker ended", extra={"worker": self.number, "exit_code": code})
            while not await self._restarted():
                continue

    async def _restarted(self) -> bool:
        await asyncio.sleep(RESTART_S)
        try:
            await self._spawn()
        except (ConfigError, OSError) as error:
            log.error("a worker did not start", extra={"worker": self.number, "why": str(error)})
            return False
        log.warning("a worker was started again", extra={"worker": self.number})
        return True

    def _give_up_asking(self) -> None:
        for waiting in self._asked.values():
            waiting.cancel()
        self._asked.clear()

    async def ask(self, do: str, *, timeout_s: float = COMMAND_TIMEOUT_S, **more: Any) -> Any:
        """Give it a command and return the answer; ``None`` when it has none to give."""
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            return None
        self._questions += 1
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[self._questions] = waiting
        command = {"id": self._questions, "do": do, **more}
        process.stdin.write(json.dumps(command).encode() + b"\n")
        done, _ = await asyncio.wait([waiting], timeout=timeout_s)
        self._asked.pop(command["id"], None)
        return waiting.result() if done and not waiting.cancelled() else None

    async def stop(self, grace_s: float) -> None:
        """End it in order; kill it when that takes longer than the grace."""
        self._ending = True
        await self.ask("stop", timeout_s=grace_s + COMMAND_TIMEOUT_S, grace_s=grace_s)
        process = self._process
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), COMMAND_TIMEOUT_S)
            except TimeoutError:
                process.kill()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])


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
            each.figures.get(self._scheme, {}).get("idle", 0) for each in self._workers.processes
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
        self._server.listen(engine)
        await self._server.start()
        told = {
            "config": to_builtins(self._config),
            "urls": self._urls,
            "engine": engine,
            "methods": self._router.shapes,
        }
        count = self._config.server.workers
        self.processes = [WorkerProcess(number, told) for number in range(count)]
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
        told = [each.figures[scheme] for each in self.processes if scheme in each.figures]
        packed = [base64.b64decode(figures["counters"]) for figures in told]
        return merged([pickle.loads(each) for each in packed])  # noqa: S301 (our own process)

    async def _ask_for_figures(self) -> None:
        while True:
            for process in self.processes:
                process.figures = await process.ask("figures") or process.figures
            await asyncio.sleep(FIGURES_S)


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
