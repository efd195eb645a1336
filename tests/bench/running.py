"""Runs one scenario on one system: its server, its workers, and what each of them used."""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench.systems import NotSupportedError, Served, System
from bench.usage import cpu_s, families, resident_bytes

ROLES: Final = Path(__file__).with_name("roles.py")
WORKER_TIMEOUT_S: Final = 90.0
END_TIMEOUT_S: Final = 10.0

Figures = dict[str, Any]


class WorkerFailedError(Exception):
    """A worker ended without its figures; the message is the end of what it wrote."""


class WorkerProcess:
    """A worker, by its pipes."""

    def __init__(self, system: System, served: Served, role: str, spec: Figures) -> None:
        everything = {"system": system.name, "served": asdict(served), "role": role, **spec}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, str(ROLES), json.dumps(everything)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._guard = threading.Timer(WORKER_TIMEOUT_S, self._process.kill)
        self._guard.start()

    def line(self) -> Figures:
        """Its next line."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            raise WorkerFailedError(self._why())
        figures: Figures = json.loads(text)
        if "unsupported" in figures:
            raise NotSupportedError(figures["unsupported"])
        return figures

    def _why(self) -> str:
        """Why it has ended: the last words it wrote, else how its process ended."""
        code = self._process.wait()
        if not self._guard.is_alive():
            return f"killed after {WORKER_TIMEOUT_S:g} s"
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip().splitlines()[-3:]
        return " | ".join(tail) or f"ended with exit code {code} and no word"

    def go(self, word: object = "go") -> None:
        """Give it the next signal."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailedError(self._why()) from None

    def close(self) -> None:
        """End it, and wait; one that does not end is killed."""
        try:
            if self._process.poll() is None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.communicate(timeout=END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._guard.cancel()
            for pipe in (self._process.stdin, self._process.stdout, self._errors):
                assert pipe is not None
                pipe.close()


class Run:
    """Servers and workers of one measurement, ended together."""

    def __init__(self, system: System, stack: contextlib.ExitStack, folder: Path) -> None:
        self.system = system
        self.folder = folder
        self._stack = stack
        self.served: Served

    def serve(self, *, echo: bool = False) -> Served:
        """Start the system's server; with ``echo`` a bare handler instead."""
        make = getattr(self.system, "serve_echo", None) if echo else self.system.serve
        if make is None:
            raise NotSupportedError("no service in the server answers")
        self.served = self._stack.enter_context(make(self.folder))
        return self.served

    def worker(self, role: str, **spec: Any) -> WorkerProcess:
        """Start a worker and wait until it is ready."""
        worker = WorkerProcess(self.system, self.served, role, spec)
        self._stack.callback(worker.close)
        worker.line()
        return worker

    def usage(self) -> tuple[float, int]:
        """CPU seconds and resident bytes of the server's processes."""
        family = families(self.served.pids)
        return sum(map(cpu_s, family)), sum(map(resident_bytes, family))


@contextlib.contextmanager
def measuring(system: System) -> Iterator[Run]:
    """A fresh folder; everything is ended at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="tw") as folder, contextlib.ExitStack() as stack:
        yield Run(system, stack, Path(folder))
