"""The JavaScript client in Node, against a real server."""

import asyncio
import json
import socket
import subprocess
from pathlib import Path

import tidewire
from support.node import CLIENT, ROOT, node
from support.pages import STEPS, prepared
from support.server import running

SCRIPT = ROOT / "tests/browser/node.mjs"
LIMIT_S = 60.0
COUNT = 150


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


async def test_a_server_is_replaced(tmp_path: Path) -> None:
    """
    Nothing is lost or stored twice when the server goes in order and another one comes in its
    place, and a reader in order goes on where it was.
    """
    command = [*node(websocket=True), str(Path(__file__).with_name("restart.mjs"))]
    port = _free_port()
    listen = {"urls": [f"ws://127.0.0.1:{port}", "tcp://127.0.0.1:0"]}
    async with running(tmp_path, listen=listen) as it:
        async with tidewire.connect(it.url("tcp")) as client:
            await client.events.stream("kept").create(["kept.>"])
        process = await asyncio.create_subprocess_exec(
            *command,
            f"ws://127.0.0.1:{port}",
            (CLIENT / "tidewire.js").as_uri(),
            str(COUNT),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            while int(await process.stdout.readline()) < COUNT // 3:
                pass
    async with running(tmp_path, certificates=it.certificates, listen=listen):
        async with asyncio.timeout(LIMIT_S):
            out, err = await process.communicate()

    assert 0 == process.returncode, err.decode()
    outcome = json.loads(out.decode().splitlines()[-1])
    assert list(range(1, COUNT + 1)) == outcome["got"]
    assert outcome["interruptions"]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
