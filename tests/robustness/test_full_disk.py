"""A full disk, under a whole server."""

import asyncio
import shutil
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

import tidewire
from support.certificates import Certificates
from support.hostile import PROCESS_WIRES
from support.process import ServerProcess
from support.wires import LACKS
from tidewire import errors

WIRES: Final = tuple(wire for wire in PROCESS_WIRES if "large" not in LACKS.get(wire, ()))
"""Those that carry what fills a disk."""
WAIT_S: Final = 30.0


def test_a_full_disk_refuses_writes_and_loses_nothing(tmp_path: Path) -> None:
    """
    On a disk of 128 MiB: STORE_FULL on all wires, reads go on, what was acknowledged is there, and
    when space is made writing goes on.
    """
    mount, umount = shutil.which("mount"), shutil.which("umount")
    folder = tmp_path / "small"
    folder.mkdir()
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)]
    if not mount or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        certificates = Certificates.make(tmp_path / "certificates")
        flags = ["--log-level", "error"]
        with ServerProcess(folder, WIRES, flags=flags, certificates=certificates) as process:
            asyncio.run(_fill(process))
    finally:
        subprocess.run([umount or "umount", "-l", str(folder)], check=True)


async def _fill(process: ServerProcess) -> None:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                tidewire.connect(process.url(wire), tls=process.tls(wire), timeout_s=WAIT_S)
            )
            for wire in WIRES
        ]
        client, *_, other = clients
        stream = client.events.stream("s")
        await stream.create("s")
        acked = 0
        refused: list[type[BaseException]] = []
        async with asyncio.timeout(2 * WAIT_S):
            while not refused:
                try:
                    acked = (await client.events.publish("s", bytes(1_000_000))).sequence
                except errors.TidewireError as error:
                    refused.append(type(error))
        for each in clients:
            with pytest.raises(errors.StoreFull):
                await each.events.publish("s", bytes(2_000_000))
            with pytest.raises(errors.StoreFull):
                await each.state.put("k", bytes(2_000_000))
        stored = (await stream.info()).state.last_sequence
        messages, _ = await other.events.fetch_from("s", start=acked)
        await stream.purge()
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    ack = await client.events.publish("s", bytes(100_000))
                    break
                except errors.StoreFull:
                    await asyncio.sleep(0.1)

    assert [errors.StoreFull] == refused
    assert acked == stored
    assert [acked] == [message.sequence for message in messages]
    assert ack.sequence > acked
