"""The demo as users run it, on a small input, and what it says when something is wrong."""

import csv
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidewire.errors import ConnectionLost, TidewireError, WireUnsuitable
from tidewire_server.demo import expected, scenario
from tidewire_server.demo.data import Reading, load
from tidewire_server.demo.datagrams import refused
from tidewire_server.demo.processes import Children
from tidewire_server.demo.report import KINDS, Progress, Unverified
from tidewire_server.demo.scenario import Scenario
from tidewire_server.demo.server import DATAGRAMS, LISTEN, start

WIRES = tuple(LISTEN)
DEMO_TIMEOUT_S = 150.0
END_TIMEOUT_S = 20.0


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three days of two cities, not in order."""
    path = tmp_path / "small.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(("city", "temperature", "time"))
        for hour in range(23, -1, -1):
            for day in (1, 2, 3):
                out.writerow(("Oslo", f"{hour - 12}.{day}", f"2024-02-0{day} {hour:02}:00"))
                out.writerow(("New York", f"{day * hour}", f"2024-02-0{day}T{hour:02}:30"))
    return path


@pytest.fixture
def children() -> Iterator[Children]:
    """Processes that do not outlive the test."""
    with Children() as started:
        yield started


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: the path of a Unix socket has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="tw") as name:
        yield Path(name)


def command(*words: str | Path) -> list[str]:
    """The demo's command line."""
    return [sys.executable, "-m", "tidewire_server.demo", *map(str, words)]


def temporary(folder: Path) -> dict[str, str]:
    """An environment in which the demo's own folders are made in this one."""
    return {**os.environ, "TMPDIR": str(folder)}


@pytest.mark.timeout(DEMO_TIMEOUT_S)
def test_every_cell_is_verified_on_every_wire(small: Path, folder: Path) -> None:
    """All kinds over all wires, an operator that is killed, and nothing left behind."""
    done = subprocess.run(
        command("--input", small, "--json"),
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
        env=temporary(folder),
        check=False,
    )

    cells: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert [] == [cell for cell in cells if not cell["ok"]], done.stderr
    assert [(wire, kind) for wire in WIRES for kind in KINDS] == [
        (cell["wire"], cell["kind"]) for cell in cells
    ]
    carried = [cell for cell in cells if "to send and to attend" not in cell["detail"]]
    assert {("Control", wire) for wire in DATAGRAMS} == {
        (cell["kind"], cell["wire"]) for cell in cells if cell not in carried
    }
    assert all(cell["count"] > 0 and cell["p50_us"] > 0 for cell in carried)
    assert all(
        "WireUnsuitable" in cell["detail"] or "MessageTooLarge" in cell["detail"]
        for cell in cells
        if cell["wire"] in DATAGRAMS and cell["kind"] != "State"
    )
    assert {"FSYNC"} == {
        cell["durability"] for cell in cells if cell["kind"] in ("Event", "State", "Checkpoint")
    }
    assert 0 == done.returncode
    assert [] == list(folder.iterdir())


@pytest.mark.timeout(DEMO_TIMEOUT_S)
async def test_a_wrong_summary_is_not_verified(
    small: Path, tmp_path: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: one mean that differs leaves unverified what was compared with it, and only that."""

    def compute(readings: list[Reading]) -> dict[tuple[str, str], expected.Summary]:
        right = expected.compute(readings)
        place = ("oslo", "2024-02-02")
        return {**right, place: right[place]._replace(mean=right[place].mean + 1)}

    class Wrong:
        days_over = staticmethod(expected.days_over)

    Wrong.compute = staticmethod(compute)  # type: ignore[attr-defined]
    monkeypatch.setattr(scenario, "expected", Wrong)
    server = await start(children, tmp_path, ["tcp"])
    cells = await Scenario("tcp", server, load(small), children, tmp_path, Progress()).run()

    assert {"Query", "Checkpoint"} == {cell.kind for cell in cells if not cell.ok}
    assert all("oslo" in cell.detail for cell in cells if not cell.ok)


async def test_what_a_wire_carries_is_not_excused() -> None:
    """Control: only the typed error that is asked for is a reason; another one or none is not."""

    async def ending_with(error: TidewireError | None) -> None:
        if error is not None:
            raise error

    await refused(ending_with(WireUnsuitable("no streams")), WireUnsuitable)
    for error in (None, ConnectionLost("gone")):
        with pytest.raises(Unverified):
            await refused(ending_with(error), WireUnsuitable)


@pytest.mark.timeout(DEMO_TIMEOUT_S)
async def test_a_server_that_goes_leaves_no_cell_verified(
    small: Path, tmp_path: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: what was not reached is not verified, and says why."""
    monkeypatch.setattr(scenario, "START_TIMEOUT_S", 5.0)
    server = await start(children, tmp_path, ["tcp"])
    assert 0 == await server.child.end()
    cells = await Scenario("tcp", server, load(small), children, tmp_path, Progress()).run()

    assert list(KINDS) == [cell.kind for cell in cells]
    assert not any(cell.ok for cell in cells)
    assert all(cell.detail.startswith("not reached: ") for cell in cells)


@pytest.mark.timeout(DEMO_TIMEOUT_S)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(small: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Interrupted at its work, the demo leaves no process and no folder."""
    (folder := tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        command("--input", small, "--wire", "tcp"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=temporary(folder),
    )
    assert process.stderr is not None
    server_pid = 0
    for line in process.stderr:
        server_pid = int(line.split()[-1]) if "server runs as process" in line else server_pid
        if "publishing" in line:
            break
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)

    assert 130 == process.returncode, rest
    assert "Traceback" not in rest
    assert server_pid > 0
    assert not Path(f"/proc/{server_pid}").exists()
    assert [] == list(folder.iterdir())


@pytest.mark.timeout(DEMO_TIMEOUT_S)
def test_a_kept_server_can_be_talked_to(small: Path, tmp_path: Path) -> None:
    """With --keep the server goes on, and the line that was printed reaches it."""
    (folder := tmp_path / "temporary").mkdir()
    done = subprocess.run(
        command("--input", small, "--wire", "tls", "--keep"),
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
        env=temporary(folder),
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    words = done.stdout.replace(".", " ").replace("`", " ").split()
    pid = int(words[words.index("process") + 1])
    try:
        told = next(line for line in done.stdout.splitlines() if "TIDEWIRE_URL=" in line)
        url = told.partition("=")[2].strip("'")
        listed = subprocess.run(
            [sys.executable, "-m", "tidewire.cli", "--url", url, "stream", "list", "--json"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert "daily-tls" in listed.stdout
    finally:
        end(pid)


def end(pid: int) -> None:
    """End a process that is nobody's child here."""
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        assert select.select([descriptor], [], [], END_TIMEOUT_S)[0]
    finally:
        os.close(descriptor)


def test_an_input_that_cannot_be_used_ends_it_with_2(tmp_path: Path) -> None:
    """One line says what is wrong; nothing is started."""
    done = subprocess.run(
        command("--input", tmp_path / "none.csv"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert 2 == done.returncode
    assert "cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
