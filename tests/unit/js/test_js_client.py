"""The JavaScript client in Node, against a real server."""

import asyncio
import json
import subprocess
from pathlib import Path

from support.node import CLIENT, ROOT, node
from support.pages import STEPS, prepared

SCRIPT = ROOT / "tests/browser/node.mjs"
LIMIT_S = 60.0


async def test_whole_client(tmp_path: Path) -> None:
    """Every step of the scenario passes over ws."""
    command = [*node(websocket=True), str(SCRIPT)]
    async with prepared(tmp_path) as it:
        process = await asyncio.create_subprocess_exec(
            *command,
            it.url("ws"),
            (CLIENT / "tidewire.js").as_uri(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(LIMIT_S):
            out, err = await process.communicate()

    assert 0 == process.returncode, err.decode()
    assert STEPS == len(json.loads(out))
