"""The demo's server: mTLS, a fresh folder for its data, a process of its own."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

from tidewire import certs
from tidewire_server.demo.processes import Child, ChildFailed, Children

LISTEN: Final[Mapping[str, str]] = {
    "grpcs": "grpcs://127.0.0.1:0",
    "tls": "tls://127.0.0.1:0",
    "quic": "quic://127.0.0.1:0",
    "wss": "wss://127.0.0.1:0",
    "grpc": "grpc://127.0.0.1:0",
    "tcp": "tcp://127.0.0.1:0",
    "ws": "ws://127.0.0.1:0",
    "unix": "unix://{folder}/u.sock",
    "grpc+unix": "grpc+unix://{folder}/g.sock",
    "dtls": "dtls://127.0.0.1:0",
    "udp": "udp://127.0.0.1:0",
}
"""
Where to listen for each wire, in the order of the demo: a wire is added by its URL. Port 0 picks a
port, ``{folder}`` is the demo's folder.
"""
ENCRYPTED: Final = frozenset({"grpcs", "tls", "quic", "wss", "dtls"})
"""Those of them whose clients need a certificate."""
DATAGRAMS: Final = frozenset({"dtls", "udp"})
"""Those of them that carry no streams."""
HELPER: Final = "unix"
"""Wire of those who answer where a wire carries no streams."""
READY_TIMEOUT_S: Final = 20.0
DRIVER: Final = "demo-driver"
OPERATOR: Final = "demo-operator"


class DemoServer:
    """
    A server that runs.

    Attributes:
        child: Its process.
        certificates: Folder with ``ca.pem``, and a certificate and key for each client's name.
    """

    def __init__(self, child: Child, certificates: Path, listeners: list[str]) -> None:
        self.child = child
        self.certificates = certificates
        self._urls = {urlsplit(url).scheme: url for url in listeners}

    def url(self, wire: str, client: str | None = DRIVER) -> str:
        """Where to connect on a wire, with the certificate of a client; ``None`` has none."""
        url = self._urls[wire]
        if wire not in ENCRYPTED:
            return url
        options = {"ca": f"{self.certificates / 'ca.pem'}"}
        if client is not None:
            options["cert"] = f"{self.certificates / client}.pem"
            options["key"] = f"{self.certificates / client}.key"
        return url + "?" + urlencode(options, safe="/", quote_via=quote)

    async def end(self) -> None:
        """End it in order. Error: ChildFailed."""
        code = await self.child.end()
        if code:
            raise ChildFailed(f"the server ended with exit code {code}{self.child.tail()}")


async def start(children: Children, folder: Path, wires: Sequence[str]) -> DemoServer:
    """Make certificates, start a server and wait until it serves. Error: ChildFailed."""
    certificates = folder / "certs"
    leaves = [
        certs.Leaf("server", "server", ("localhost", "127.0.0.1")),
        certs.Leaf(DRIVER, "client"),
        certs.Leaf(OPERATOR, "client"),
    ]
    certs.init(certificates, leaves)
    command = [sys.executable, "-m", "tidewire.cli", "serve"]
    helper = [HELPER] if DATAGRAMS.intersection(wires) and HELPER not in wires else []
    for wire in (*wires, *helper):
        command += ["--listen", LISTEN[wire].format(folder=folder)]
    command += ["--server-data-dir", f"{folder / 'data'}", "--server-node-id", "demo-server"]
    command += ["--tls-ca", f"{certificates / 'ca.pem'}"]
    command += ["--tls-certificate", f"{certificates / 'server.pem'}"]
    command += ["--tls-key", f"{certificates / 'server.key'}"]
    command += ["--admin-address", "127.0.0.1:0", "--log-format", "json"]
    child = children.start("server", command, folder, talks=True)
    ready = json.loads(await child.read_line(READY_TIMEOUT_S))
    return DemoServer(child, certificates, ready["listeners"])
