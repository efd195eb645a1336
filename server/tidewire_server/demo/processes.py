"""Child processes: started without fork of our own, ended by their own handle, whatever happens."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tidewire.errors import Unavailable

END_TIMEOUT_S: Final = 15.0
LOG_LINES_SHOWN: Final = 15


class ChildFailed(Unavailable):
    """A process ended that was to go on, or did not end; the message has the end of its log."""


class Child:
    """
    A process; its standard error goes to a log file.

    It has a session of its own, so that Ctrl-C at the terminal reaches only the demo, which then
    ends its children in order.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path, *, talks: bool) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and modules)
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    async def read_line(self, limit_s: float) -> bytes:
        """
        The next line of its standard output.

        Raises:
            ChildFailed: It ended, or wrote none in time.
        """
        stdout = self._process.stdout
        assert stdout is not None
        reading = asyncio.get_running_loop().run_in_executor(None, stdout.readline)
        try:
            async with asyncio.timeout(limit_s):
                line = await asyncio.shield(reading)
        except (TimeoutError, asyncio.CancelledError):
            self.kill()  # frees the thread that reads
            await asyncio.wait([reading])
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # there is one
                raise
            raise ChildFailed(f"{self.name} said nothing for {limit_s:g} s{self.tail()}") from None
        if not line:
            raise ChildFailed(f"{self.name} ended at once{self.tail()}")
        return line

    def require_running(self) -> None:
        """Raise ChildFailed when it has ended."""
        code = self._process.poll()
        if code is not None:
            raise ChildFailed(f"{self.name} ended with exit code {code}{self.tail()}")

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    async def end(self) -> int:
        """
        Send SIGTERM, wait and return the exit code.

        Raises:
            ChildFailed: It had to be killed.
        """
        self._process.send_signal(signal.SIGTERM)
        code = await self._ended(END_TIMEOUT_S)
        if code is None:
            self.kill()
            await self._ended(END_TIMEOUT_S)
            raise ChildFailed(f"{self.name} did not end within {END_TIMEOUT_S:g} s{self.tail()}")
        return code

    async def _ended(self, limit_s: float) -> int | None:
        try:
            return await asyncio.to_thread(self._process.wait, limit_s)
        except subprocess.TimeoutExpired:
            return None

    def tail(self) -> str:
        """The end of its log, to be added to a message."""
        lines = self.log_path.read_text("utf-8", "replace").splitlines()[-LOG_LINES_SHOWN:]
        return "".join(f"\n    {line}" for line in ["; its log ends with:", *lines])

    def close(self) -> None:
        """Kill it when it still runs, and let go of it."""
        if self.running:
            self.kill()
            self._process.wait(END_TIMEOUT_S)
        if self._process.stdout is not None:
            self._process.stdout.close()


class Children:
    """All processes of the demo; those that still run at the end are killed."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def start(
        self, name: str, command: Sequence[str], folder: Path, *, talks: bool = False
    ) -> Child:
        """Start a process; `talks`: its standard output is read."""
        child = Child(name, command, folder, talks=talks)
        self._children.append(child)
        return child

    def release(self, child: Child) -> None:
        """Leave one to itself."""
        self._children.remove(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for child in self._children:
            child.close()
