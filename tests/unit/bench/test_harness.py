"""The harness of ./run bench: what it says of runs that fail, of goals, and of the time left."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import growth, limits, main, report, running, usage
from bench.goals import GOALS, Against, Goal, Growth, Memory
from bench.progress import Progress
from bench.running import WorkerFailedError, measuring
from bench.scenarios import SCENARIOS, Scenario
from bench.systems import Served, System


class Nothing(System):
    """A system whose server is nothing."""

    name = "nothing"

    @contextlib.contextmanager
    def serve(self, folder: Path) -> Iterator[Served]:
        """Give an address that nobody has."""
        yield Served(f"nowhere://{folder.name}", [])


def scenario(run: Any) -> Scenario:
    """One that does this."""
    return Scenario("a scenario", "per_s", run, ("nothing",))


@pytest.mark.parametrize(
    "error", [AssertionError("no server\nits last word"), WorkerFailedError("x"), KeyError("pid")]
)
def test_a_failure_is_a_row(error: Exception) -> None:
    """Whatever a system raises becomes the reason of its row; the run goes on."""

    def fail(_system: System, _parameters: dict[str, Any]) -> dict[str, Any]:
        raise error

    row = main.one(scenario(fail), Nothing(), 1.0)
    assert f"failed: {type(error).__name__}: {str(error).splitlines()[-1]}" == row["reason"]


def test_an_interrupt_ends_the_run() -> None:
    """The control: a wish of the user is not a row."""

    def stop(_system: System, _parameters: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main.one(scenario(stop), Nothing(), 1.0)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os._exit(7)", "ended with exit code 7 and no word"),
        ("import os; os.kill(os.getpid(), 11)", "ended with exit code -11 and no word"),
        ("raise SystemExit('the proxy is gone')", "the proxy is gone"),
        ("import time; time.sleep(60)", "killed after 0.5 s"),
    ],
)
def test_a_worker_that_ends_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    """A worker that ends early is told from one that was killed for taking too long."""
    role = tmp_path / "roles.py"
    role.write_text(program)
    monkeypatch.setattr(running, "ROLES", role)
    if "sleep" in program:
        monkeypatch.setattr(running, "WORKER_TIMEOUT_S", 0.5)
    with measuring(Nothing()) as run:
        run.serve()
        with pytest.raises(WorkerFailedError) as caught:
            run.worker("caller")
    assert reason == str(caught.value)


def test_every_goal_is_a_row_without_results() -> None:
    """What was not measured says so, and no goal is left out."""
    lines = report.goals({}, {}).splitlines()[2:]
    assert len(lines) == sum("not measured" in line for line in lines)
    assert {"unary echo, 64 in flight", "growth of records", "100,000 idle connections"} <= {
        line.split(" | ")[0].removeprefix("| ") for line in lines
    }


@pytest.mark.parametrize(
    ("goal", "got", "shown", "met"),
    [
        (Against("a", "p50_us", "us", "them", 0.5), 0.5, "0.50x", True),
        (Against("a", "p50_us", "us", "them", 0.4), 0.5, "0.50x", False),
        (Against("a", "per_s", "us", "them", 2), 3.0, "3.00x", True),
        (Against("a", "per_s", "us", "them", 4), 3.0, "3.00x", False),
        (Growth("k", "CPU", "cpu", 1_000, 10, 1.3), 1.25, "1.25x", True),
        (Growth("k", "CPU", "cpu", 1_000, 10, 1.2), 1.25, "1.25x", False),
        (Growth("k", "CPU", "cpu", 5_000, 10, 1.2), None, "", False),
        (Memory("m", "us", 10, 12_000), 11_500.0, "11.5 kB", True),
        (Memory("m", "us", 10, 11_000), 11_500.0, "11.5 kB", False),
        (Memory("m", "us", 10), 10.0, "10", True),
        (Memory("m", "them", 10), 9.0, "9", False),
    ],
)
def test_goals_are_computed(goal: Goal, got: float | None, shown: str, met: bool) -> None:
    """Each kind of goal takes its figures from results or from growth, and judges both ways."""
    results = {
        ("a", "us"): {"p50_us": 100.0, "per_s": 30.0},
        ("a", "them"): {"p50_us": 200.0, "per_s": 10.0},
        ("m", "us"): {"bytes_each": 11_500.0, "connections": 10, "lost": 0},
        ("m", "them"): {"bytes_each": 11_500.0, "connections": 10, "lost": 1},
    }
    grown = {"k": [{"size": 10, "cpu": 0.8}, {"size": 1_000, "cpu": 1.0}]}
    assert got == goal.got(results, grown)
    if got is not None:
        assert (shown, met) == (goal.shown(got), goal.met(got))


def test_goals_are_about_what_is_measured() -> None:
    """Every goal on results names a scenario that has its systems."""
    systems = {each.name: each.systems for each in SCENARIOS}
    for goal in GOALS:
        if isinstance(goal, Against):
            assert {goal.ours, goal.theirs} <= set(systems[goal.scenario])
        elif isinstance(goal, Memory):
            assert goal.system in systems[goal.scenario]


def test_the_time_left_is_that_of_the_last_run(capsys: pytest.CaptureFixture[str]) -> None:
    """What took long the last time is counted so; what is new as the new ones before it."""
    progress = Progress([("a", "x"), ("a", "y"), ("b", "x")], {("b", "x"): 120.0})
    with progress.doing("a", "x") as job:
        job.figures = {"reason": "failed: it broke"}
    assert job.figures["took_s"] >= 0
    assert 120.0 <= progress.left_s() < 121.0
    said = capsys.readouterr().err
    assert "[1/3, 2.0 min left]" in said
    assert "a: x: failed: it broke" in said


def test_the_limits_of_the_machine_have_figures() -> None:
    """A copy of memory moves whole blocks, and says how fast and with what CPU."""
    figures = limits.memory_copy(0.05, 16 << 10)
    assert 0 == figures["bytes"] % (16 << 10)
    assert figures["bytes_per_s"] > 0
    assert figures["cpu_s"] > 0


@pytest.mark.parametrize("processes", [1, 2])
def test_bare_sockets_pass_blocks_on_and_back(processes: int) -> None:
    """Through one process and through two, which end by themselves."""
    round_trips = limits.hops(0.05, 128, processes)

    assert 0 < round_trips["p50_us"] <= round_trips["p99_us"]
    assert round_trips["calls"] > 0


def test_a_missing_iperf3_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without iperf3 its row says so."""
    monkeypatch.setenv("PATH", "/nowhere")
    reason = limits.iperf_missing()
    assert reason is not None
    assert "iperf3" in reason


def test_the_page_tells_all_commands(tmp_path: Path) -> None:
    """A run that adds to another keeps the command of the other, and what was measured."""
    about = {"commands": ["./run bench a"], "seconds": 1.0}
    results = {("query, 1 in flight", "nats"): {"p50_us": 100.0, "p99_us": 200.0}}
    (tmp_path / "results.json").write_text(report.to_json(results, about))
    kept_about, kept = main.kept(tmp_path)
    assert results == kept
    page = report.page(kept, {**kept_about, "commands": ["./run bench a", "./run bench b"]}, {})
    assert "commands: `./run bench a`, then `./run bench b`." in page
    assert "| nats | 100 | 1.00 |" in page


def test_a_growth_size_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size whose server breaks is a row with the reason, and the others are measured."""

    async def measure(_server: Any, size: int) -> dict[str, Any]:
        if size == 2:
            raise AssertionError("the server is gone")
        return {"cpu_s_per_million": 1.5}

    @contextlib.contextmanager
    def serve(*_arguments: Any) -> Iterator[None]:
        yield None

    monkeypatch.setattr(growth, "ServerProcess", serve)
    monkeypatch.setitem(growth.SIZES, "things", (measure, [1, 2, 3]))
    rows = growth.grow("things", 100)
    assert [1, 2, 3] == [row["size"] for row in rows]
    assert "the server is gone" in rows[1]["failed"]
    assert "| 2 | - |" in growth.table("things", rows)


def test_json_is_printed_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--json`` prints the results as they are kept, with the command."""
    monkeypatch.setattr(sys, "argv", ["main.py", "--json", "--systems", "none", "query"])
    given = argparse.Namespace(
        systems="none", keep=False, seconds=1.0, scenarios=["query"], rounds=1, json=True
    )
    assert 0 == main.measure_all(given, tmp_path)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "results.json").read_text())
    assert ["./run bench --json --systems none query"] == printed["commands"]


def test_cpu_of_another_process_is_told_exactly() -> None:
    """CPU of a process that works is its own account of it; one that is gone is an error."""
    program = "import time\nwhile time.process_time() < 0.2: pass\nprint('x', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used_s = usage.cpu_s(process.pid)
        assert 0.2 <= used_s < 0.4
        assert usage.resident_bytes(process.pid) > 1 << 20
        assert process.pid in usage.families([os.getpid()])
        process.communicate(b"\n")
    with pytest.raises(OSError, match="Invalid argument"):
        usage.cpu_s(process.pid)
