"""A server on Unix sockets that is killed, started twice, and asked by whom it may be used."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tidewire
from support.process import ServerProcess
from support.server import running
from tidewire import errors

WIRES = ("unix", "grpc+unix")
LIMIT_S = 30
EXIT_CONFIG = 2


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "tidewire.cli", *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def start(folder: Path, urls: list[str]) -> ServerProcess:
    """Start a server with nothing but these listeners."""
    flags = [part for url in urls for part in ("--listen", url)]
    return ServerProcess(folder, (), flags=flags)


@pytest.fixture
def urls(tmp_path: Path) -> list[str]:
    """One socket for each wire."""
    return [f"{wire}://{tmp_path}/{wire}.sock" for wire in WIRES]


def test_a_server_that_was_killed_leaves_nothing_in_the_way(
    tmp_path: Path, urls: list[str]
) -> None:
    """
    Its sockets stay and answer nobody; the next server takes them over, and removes them when it
    ends in order. While one serves, a second one does not get its sockets.
    """
    paths = [Path(url.partition("://")[2]) for url in urls]
    with start(tmp_path, urls) as first:
        first.end(signal.SIGKILL)
    assert all(path.is_socket() for path in paths)
    for url in urls:
        asked = command("health", "--url", url)
        assert 2 == asked.returncode, asked.stderr

    with start(tmp_path, urls):
        for url in urls:
            asked = command("health", "--url", url)
            assert (0, "SERVING\n") == (asked.returncode, asked.stdout), asked.stderr
            other = tmp_path / "other"
            second = command("serve", "--listen", url, "--server-data-dir", str(other))
            assert EXIT_CONFIG == second.returncode
            assert "in use" in second.stderr
            assert 0 == command("health", "--url", url).returncode
        assert [0o600, 0o600] == [stat.S_IMODE(path.stat().st_mode) for path in paths]
    assert [False, False] == [path.exists() for path in paths]


def test_the_command_line_shows_what_is_plain_and_who_one_is(
    tmp_path: Path, urls: list[str]
) -> None:
    """`tidewire info` over each of them."""
    with start(tmp_path, urls):
        shown = {url: command("info", "--url", url) for url in urls}
    for url, one in shown.items():
        assert 0 == one.returncode, one.stderr
        assert f"{url} (not encrypted)" in one.stdout
    assert f"you are: unix://uid={os.getuid()}" in shown[urls[0]].stdout
    assert "you are: not authenticated" in shown[urls[1]].stdout


async def test_rules_of_access_know_users(tmp_path: Path) -> None:
    """A rule names a user as the kernel does; who comes by grpcio's socket is nobody."""
    mine = f"unix://uid={os.getuid()}"
    rules: list[dict[str, Any]] = [
        {"principals": [mine], "methods": ["StateService/*", "ServerService/*"]},
        {"principals": ["unix://*"], "methods": ["StateService/Delete"], "effect": "deny"},
        {"principals": ["", "memory://process"], "methods": ["ServerService/*"]},
    ]
    async with running(tmp_path, (*WIRES, "memory"), access={"rules": rules}) as it:
        async with tidewire.connect(it.url("unix")) as client:
            await client.state.put("k", b"v")
            with pytest.raises(errors.PermissionDenied, match="uid="):
                await client.state.delete("k")
        for wire in ("grpc+unix", "memory"):
            async with tidewire.connect(it.url(wire)) as client:
                with pytest.raises(errors.PermissionDenied):
                    await client.state.get("k")
