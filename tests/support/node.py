"""Node, where it is installed: the JavaScript client outside of a browser."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
CLIENT: Final = ROOT / "client/tidewire/js"
INSTEAD: Final = "; ./run browser shows the same in a browser"


@cache
def node(*, websocket: bool = False) -> list[str]:
    """Return how Node is called; skip where there is none, or none with WebSocket."""
    found = shutil.which("node")
    if found is None:
        pytest.skip(f"Node is not installed{INSTEAD}")
    if not websocket:
        return [found]
    for option in ([], ["--experimental-websocket"]):
        command = [found, *option, "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return [found, *option]
    pytest.skip(f"Node has no WebSocket before version 22{INSTEAD}")
