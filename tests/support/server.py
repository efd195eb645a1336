"""
A whole server in the test's own process, on every wire.

``TIDEWIRE_TEST_WORKERS=2 pytest tests/behaviour -k 'tcp or tls or ws'`` shows the same through
worker processes.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from support.certificates import Certificates
from support.wires import ENCRYPTED, WIRES, listen_url
from tidewire.transport import TlsConfig
from tidewire_server.app import Server
from tidewire_server.ops.config import Config

WORKERS: Final = "TIDEWIRE_TEST_WORKERS"
"""Names how many worker processes take the connections of the wires that have them."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs, and how to reach it."""

    server: Server
    certificates: Certificates

    def url(self, wire: str) -> str:
        """Where to connect on this wire."""
        for listener in self.server.listeners.bound:
            if listener.url.startswith(f"{wire}://"):
                return str(listener.url)
        raise LookupError(f"the server has no {wire}://")

    def tls(self, wire: str) -> TlsConfig | None:
        """What a client needs on this wire."""
        return self.certificates.client() if wire in ENCRYPTED else None


@asynccontextmanager
async def running(
    folder: Path,
    wires: tuple[str, ...] = WIRES,
    certificates: Certificates | None = None,
    **sections: dict[str, Any],
) -> AsyncIterator[Running]:
    """
    Run a server with its data in ``folder``, all ports picked, stopped by its own handle.

    Args:
        folder: For the store (``folder/data``) and the certificates; used again, the same store.
        wires: Schemes to listen on.
        certificates: Those of a server before, whose clients go on; by default new ones.
        sections: Options by section, over those a test needs.
    """
    certificates = certificates or Certificates.make(folder / "certs")
    server = Server(make_config(folder, certificates, wires, **sections))
    await server.start()
    try:
        yield Running(server, certificates)
    finally:
        await server.stop(0.5)


def make_config(
    folder: Path, certificates: Certificates, wires: tuple[str, ...], **sections: dict[str, Any]
) -> Config:
    """Make the configuration of a test's server."""
    plain: dict[str, dict[str, Any]] = {
        "server": {
            "node_id": "test-server",
            "data_dir": str(folder / "data"),
            "workers": int(os.environ.get(WORKERS, "0")),
        },
        "listen": {"urls": [listen_url(wire, folder) for wire in wires]},
        "tls": {
            "ca": str(certificates.ca),
            "certificate": str(certificates.server_certificate),
            "key": str(certificates.server_key),
        },
        "admin": {"address": "127.0.0.1:0"},
        "engine": {"ballast_bytes": 0},
    }
    for name, options in sections.items():
        plain.setdefault(name, {}).update(options)
    return msgspec.convert(plain, Config)
