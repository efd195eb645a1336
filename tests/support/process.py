"""A server in a process of its own, as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from support.wires import ENCRYPTED, listen_url
from tidewire.transport import TlsConfig

if TYPE_CHECKING:
    from support.certificates import Certificates  # what it needs is not there for ./run bench

READY_TIMEOUT_S: Final = 60.0
END_TIMEOUT_S: Final = 20.0


class ServerProcess:
    """
    ``tidewire serve`` as a child process; ended by its own handle.

    Attributes:
        ready: The ready line: ``listeners``, ``admin``, ``node_id``, ``pid``.
        ready_s: Seconds from the start of the process to its ready line.
    """

    def __init__(
        self,
        folder: Path,
        wires: Sequence[str] = ("grpc", "tcp"),
        *,
        environment: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
        certificates: "Certificates | None" = None,
    ) -> None:
        self._certificates = certificates
        flags = [*flags, *_tls_flags(certificates)]
        self._log = (folder / "server.log").open("ab")
        self.log_path = folder / "server.log"
        listen = [part for wire in wires for part in ("--listen", listen_url(wire, folder))]
        command = [sys.executable, "-m", "tidewire.cli", "serve", *listen]
        command += ["--server-data-dir", str(folder / "data"), "--admin-address", "127.0.0.1:0"]
        self._process = subprocess.Popen(
            [*command, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **(environment or {})},
        )
        self._began = time.monotonic()
        self.ready: dict[str, Any] = {}
        self.ready_s = 0.0

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait_ready(self) -> Self:
        """Wait for the ready line; AssertionError with the log when the process ends before it."""
        assert self._process.stdout is not None
        guard = threading.Timer(READY_TIMEOUT_S, self._process.kill)
        guard.start()
        try:
            line = self._process.stdout.readline()
        finally:
            guard.cancel()
        assert line, f"the server did not get ready:\n{self.log()}"
        self.ready_s = time.monotonic() - self._began
        self.ready = json.loads(line)
        return self

    def url(self, wire: str) -> str:
        """Where to connect on this wire."""
        for url in self.ready["listeners"]:
            if url.startswith(f"{wire}://"):
                return str(url)
        raise LookupError(f"the server has no {wire}://")

    def tls(self, wire: str) -> TlsConfig | None:
        """What a client needs on this wire."""
        if wire not in ENCRYPTED:
            return None
        assert self._certificates is not None
        return self._certificates.client()

    def log(self) -> str:
        """What it wrote to stderr."""
        return self.log_path.read_text()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = END_TIMEOUT_S) -> int:
        """Wait for the end and return the exit code."""
        code = self._process.wait(timeout_s)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
        return code

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the process is killed when it does not end in time."""
        if self._process.poll() is None:
            self.send(number)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.wait()
            raise

    def __enter__(self) -> Self:
        return self.wait_ready()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self.end(signal.SIGKILL if kind is not None else signal.SIGTERM)
        else:
            self.end()


def _tls_flags(certificates: "Certificates | None") -> list[str]:
    """Flags of a server with these certificates."""
    if certificates is None:
        return []
    return [
        *("--tls-ca", str(certificates.ca)),
        *("--tls-certificate", str(certificates.server_certificate)),
        *("--tls-key", str(certificates.server_key)),
    ]
