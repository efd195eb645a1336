"""Wires of others: installed distributions whose entry points add schemes, at both ends."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import third_wire
from support.process import ServerProcess
from tidewire.transport import WireStatus, wires

LIMIT_S = 60
TALK = """
import asyncio, sys, tidewire, tidewire.transport

async def main():
    async with tidewire.connect(sys.argv[1]) as client:
        assert type(client.channel).__name__ in ("RawChannel", "PooledChannel"), client.channel
        print((await client.info()).listeners[0].url == sys.argv[1])
        revision = (await client.state.put("k", b"v" * 300_000)).revision
        entry = await client.state.get("k")
        print(entry.revision == revision and entry.value == b"v" * 300_000)

asyncio.run(main())
"""


def install(site: Path, name: str, points: dict[str, dict[str, str]]) -> dict[str, str]:
    """
    Install a distribution with entry points in a folder, as pip would; return the environment of
    processes that have it.
    """
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = (
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in points.items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))
    (info / "RECORD").write_text("")
    shutil.copy(str(third_wire.__file__), site / "third_wire.py")
    search = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", ""))))
    return {"PYTHONPATH": search}


def python(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the distribution is installed."""
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The third wire, with both of its ends."""
    return install(
        tmp_path / "site",
        "third-wire",
        {
            "tidewire.transports": {"third": "third_wire:transport"},
            "tidewire.listeners": {"third": "third_wire:Listener"},
        },
    )


def test_an_installed_wire_works_at_both_ends(tmp_path: Path, installed: dict[str, str]) -> None:
    """`tidewire serve` listens on it and a client connects, with nothing but the URL."""
    with ServerProcess(tmp_path, ("third",), environment=installed) as server:
        url = server.url("third")
        assert url.startswith("third://127.0.0.1:")
        done = python(installed, "-c", TALK, url)
        assert "True\nTrue\n" == done.stdout, done.stderr
        health = python(installed, "-m", "tidewire.cli", "health", "--url", url)
        assert 0 == health.returncode, health.stderr
        # Control: nobody else's wire serves that port, and without the distribution there is none.
        other = python(installed, "-c", TALK, url.replace("third://", "tcp://"))
        assert 0 != other.returncode
        absent = python({}, "-c", TALK, url)
        assert "third:// is no wire here" in absent.stderr


def test_an_installed_wire_goes_through_the_conformance_kit(installed: dict[str, str]) -> None:
    """Nothing fails; what needs encryption is unsuitable, and says so."""
    done = python(installed, "-m", "tidewire.cli", "check-wire", "third://127.0.0.1:0")

    assert 0 == done.returncode, done.stdout + done.stderr


def test_wires_are_listed_with_reasons(tmp_path: Path, installed: dict[str, str]) -> None:
    """What is installed is there; what cannot be loaded is, with its reason, and harms nobody."""
    install(
        tmp_path / "site",
        "broken-wire",
        {
            "tidewire.transports": {"broken": "no_such_module:transport", "half": "third_wire:no"},
            "tidewire.listeners": {"deaf": "no_such_module:Listener", "tcp": "third_wire:Listener"},
        },
    )
    done = python(installed, "-m", "tidewire.cli", "wires", "--json")
    rows = {row["scheme"]: row for row in map(json.loads, done.stdout.splitlines())}

    assert 0 == done.returncode, done.stderr
    assert {
        "scheme": "third",
        "client": True,
        "server": True,
        "encrypted": False,
        "reason": "",
    } == rows["third"]
    for scheme, words in (
        ("broken", "No module named 'no_such_module'"),
        ("half", "has no attribute 'no'"),
        ("deaf", "No module named 'no_such_module'"),
        ("rdma", "tidewire.transports"),
    ):
        assert (False, False) == (rows[scheme]["client"], rows[scheme]["server"])
        assert words in rows[scheme]["reason"]
    assert (True, True) == (rows["tcp"]["client"], rows["tcp"]["server"])
    assert "the scheme tcp is there already" in done.stderr


def test_every_scheme_says_what_it_can() -> None:
    """Each known scheme works at both ends, or says why not."""
    known = {status.scheme: status for status in wires()}

    assert all(status.reason or (status.client and status.server) for status in known.values())
    assert not known["rdma"].client
    assert WireStatus("unix", True, True, False) == known["unix"]
    assert WireStatus("grpcs", True, True, True) == known["grpcs"]


def test_the_table_for_people() -> None:
    """`tidewire wires` shows them under each other."""
    done = python({}, "-m", "tidewire.cli", "wires")

    assert 0 == done.returncode
    assert ["WIRE", "CLIENT", "SERVER", "ENCRYPTED", "WHY", "NOT"] == done.stdout.split()[:6]
    assert any(line.split() == ["unix://", "yes", "yes", "no"] for line in done.stdout.splitlines())


def test_what_another_wire_needs_is_not_loaded() -> None:
    """A client of TCP has no other wire's modules; one that is used is loaded then."""
    program = (
        "import sys, tidewire.transport as t\n"
        "loaded = lambda: 'tidewire.transport.memory' in sys.modules\n"
        "t.channel('tcp://127.0.0.1:1'); before = loaded()\n"
        "t.channel('memory://a'); print(before, loaded())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert b"False True" == done.stdout.strip()
