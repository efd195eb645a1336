"""A full disk, under a whole server."""

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

import tidewire
from support.process import ServerProcess
from tidewire import errors

WIRES: Final = ("grpc", "tcp")
WAIT_S: Final = 30.0


def test_a_full_disk_refuses_writes_and_loses_nothing(tmp_path: Path) -> None:
    """
    On a disk of 128 MiB: STORE_FULL on both wires, reads go on, what was acknowledged is there, and
    when space is made writing goes on.
    """
    mount, umount = shutil.which("mount"), shutil.which("umount")
    folder = tmp_path / "small"
    folder.mkdir()
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)]
    if not mount or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        with ServerProcess(folder, WIRES, flags=["--log-level", "error"]) as process:
            asyncio.run(_fill(process))
    finally:
        subprocess.run([umount or "umount", "-l", str(folder)], check=True)


async def _fill(process: ServerProcess) -> None:
    async with (
        tidewire.connect(process.url("tcp"), timeout_s=WAIT_S) as client,
        tidewire.connect(process.url("grpc"), timeout_s=WAIT_S) as other,
    ):
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
        for each in (client, other):
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
