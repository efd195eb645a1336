"""The wires the suites run over; a new wire is added here, and every suite has it."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

WIRES: Final = (
    "grpc",
    "grpcs",
    "grpc+unix",
    "tcp",
    "tls",
    "unix",
    "memory",
    "ws",
    "wss",
    "quic",
    "udp",
    "dtls",
)
"""Schemes every behaviour is shown on."""
ENCRYPTED: Final = tuple(wire for wire in WIRES if wire in ("grpcs", "tls", "quic", "dtls", "wss"))
"""Those of them that have certificates."""
LACKS: Final[Mapping[str, frozenset[str]]] = {
    **{wire: frozenset({"priorities"}) for wire in ("grpc", "grpcs", "grpc+unix")},
    "udp": frozenset({"streams", "large"}),
    "dtls": frozenset({"streams", "large"}),
}
"""What a wire cannot carry; ``support.needs`` proves that it says so."""


def listen_url(wire: str, folder: Path) -> str:
    """Return a URL to listen on that nobody else uses: port 0, a socket in ``folder``, a name."""
    if wire in ("unix", "grpc+unix"):
        return f"{wire}://{folder}/{secrets.token_hex(4)}.sock"
    if wire == "memory":
        return f"memory://{secrets.token_hex(4)}"
    return f"{wire}://127.0.0.1:0"
