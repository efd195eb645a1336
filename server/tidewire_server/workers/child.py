"""One worker process as its server sees it: started, asked, watched, and started again."""

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from tidewire_server.ops.config import ConfigError

READY_TIMEOUT_S: Final = 60.0
COMMAND_TIMEOUT_S: Final = 5.0
HANG_S: Final = 30.0
"""A worker that answers nothing for so long is killed: the kernel still gives it connections."""
RESTART_FIRST_S: Final = 0.5
"""Wait before one that ended is started again; it doubles while they do not last."""
RESTART_LAST_S: Final = 30.0
LASTED_S: Final = 30.0
"""One that served for so long is started again without a longer wait."""
LINE_BYTES_MAX: Final = 1 << 24

log = logging.getLogger(__name__)


class WorkerProcess:
    """
    One worker, by its pipes. It is started again whenever it ends by itself.

    Args:
        number: Its place among the workers.
        told: What it has to know, as JSON.
        gone: Called with the number when it has ended, before it is started again.
    """

    def __init__(
        self, number: int, told: Mapping[str, Any], gone: Callable[[int], None] = lambda _: None
    ) -> None:
        self.number = number
        self.restarts = 0
        self._told = {**told, "number": number}
        self._gone = gone
        self._process: asyncio.subprocess.Process | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._questions = 0
        self._answered_s = 0.0
        self._began_s = 0.0
        self._wait_s = RESTART_FIRST_S
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
        self._began_s = 0.0  # it does not serve yet
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tidewire_server.workers.process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
        )
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                process.stdin.write(json.dumps(self._told).encode() + b"\n")
                ready = await process.stdout.readline()
        except (TimeoutError, OSError, RuntimeError):
            ready = b""
        if not ready:
            self.kill()
            await process.wait()
            raise ConfigError(f"worker {self.number} did not start; the log above says why")
        self._began_s = self._answered_s = time.monotonic()

    async def _keep(self) -> None:
        """Read its answers; start it again when it ends."""
        while True:
            process = self._process
            assert process is not None
            await self._read_answers(process)
            code = await self._wait_ended(process)
            self._give_up_asking()
            self._gone(self.number)
            if self._ending:
                return
            log.error("a worker ended", extra={"worker": self.number, "exit_code": code})
            if time.monotonic() - self._began_s >= LASTED_S:
                self._wait_s = RESTART_FIRST_S
            while not await self._restarted():
                continue

    async def _wait_ended(self, process: asyncio.subprocess.Process) -> int:
        """Return its exit code; one that closed its output and goes on is of no use, and killed."""
        try:
            return await asyncio.wait_for(process.wait(), COMMAND_TIMEOUT_S)
        except TimeoutError:
            self.kill()
            return await process.wait()

    async def _read_answers(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                answer = json.loads(line)
                self._answered_s = time.monotonic()
                waiting = self._asked.pop(answer["id"], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer["answer"])
        except (ValueError, LookupError, OSError):
            log.exception("a worker wrote what is no answer", extra={"worker": self.number})

    async def _restarted(self) -> bool:
        await asyncio.sleep(self._wait_s)
        self._wait_s = min(2 * self._wait_s, RESTART_LAST_S)
        try:
            await self._spawn()
        except (ConfigError, OSError) as error:
            why = {"worker": self.number, "why": str(error), "again_in_s": self._wait_s}
            log.error("a worker did not start", extra=why)
            return False
        self.restarts += 1
        log.warning("a worker was started again", extra={"worker": self.number})
        return True

    def _give_up_asking(self) -> None:
        for waiting in self._asked.values():
            waiting.cancel()
        self._asked.clear()

    def kill(self) -> None:
        """End it at once, when it runs."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def kill_if_hung(self) -> bool:
        """Kill one that has answered nothing for `HANG_S`; return whether it was."""
        process = self._process
        if process is None or process.returncode is not None or self._ending:
            return False
        if self._began_s == 0.0 or time.monotonic() - self._answered_s < HANG_S:
            return False
        log.error("a worker hangs, it is killed", extra={"worker": self.number})
        self._answered_s = time.monotonic()
        self.kill()
        return True

    async def ask(self, do: str, *, timeout_s: float = COMMAND_TIMEOUT_S, **more: Any) -> Any:
        """Give it a command and return the answer; ``None`` when it has none to give."""
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            return None
        self._questions += 1
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        command = {"id": self._questions, "do": do, **more}
        try:
            process.stdin.write(json.dumps(command).encode() + b"\n")
        except (OSError, RuntimeError):  # it is ending, and its pipe is closed
            return None
        self._asked[command["id"]] = waiting
        try:
            done, _ = await asyncio.wait([waiting], timeout=timeout_s)
        finally:
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
                self.kill()
                await process.wait()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
