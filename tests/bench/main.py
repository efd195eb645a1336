"""
Measure tidewire beside its peers: every scenario on every system that has it.

    ./run bench                             everything; about 20 minutes with --seconds 1
    ./run bench query 'unary echo'          scenarios whose names contain these words
    ./run bench --systems nats,'tidewire tcp' --seconds 5
    ./run bench --list                      what there is
    ./run bench --growth                    how cost grows, 3 minutes; see growth.py
    ./run bench --page                      write proto/SPEED.md from the last runs

Results go to ``.run/bench``: ``results.json``, ``tables.md`` and a plot for each scenario. A system
that cannot run a scenario, or fails in it, is listed with the reason, and the rest goes on;
standard error tells how far it is and the time left. Times are closed-loop unless the scenario
says otherwise; rates are what the receiver got.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import growth, report
from bench.progress import Progress
from bench.scenarios import SCENARIOS, Scenario, chosen, measure
from bench.systems import NotSupportedError, System, all_systems

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PAGE: Final = ROOT / "proto" / "SPEED.md"
SECONDS: Final = 3.0
REASON_CHARS_MAX: Final = 300


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", help="words of scenario names")
    parser.add_argument("--systems", default="", help="names, separated by commas")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=1, help="the median round counts")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    parser.add_argument("--list", action="store_true", help="list scenarios and systems")
    parser.add_argument("--keep", action="store_true", help="add to the results of the last run")
    parser.add_argument("--growth", action="store_true", help="measure growth instead")
    parser.add_argument("--sizes-max", type=int, default=10_000_000, help="of growth")
    parser.add_argument("--page", action="store_true", help="write the page from the last run")
    return parser.parse_args()


def one(scenario: Scenario, system: System, seconds: float) -> dict[str, Any]:
    """Measure once; a reason instead of figures when it cannot be."""
    reason = system.missing()
    if reason is not None:
        return {"reason": reason}
    try:
        return measure(scenario, system, seconds)
    except NotSupportedError as error:
        return {"reason": str(error)}
    except Exception as error:  # noqa: BLE001 (whatever a peer does is a row, not the end of the run)
        lines = str(error).strip().splitlines() or [""]
        return {"reason": f"failed: {type(error).__name__}: {lines[-1]}"[:REASON_CHARS_MAX]}


def rounds(
    scenario: Scenario, systems: list[System], given: argparse.Namespace, progress: Progress
) -> dict[str, Any]:
    """Measure all systems of a scenario, interleaved; each one's median round."""
    runs: dict[str, list[dict[str, Any]]] = {system.name: [] for system in systems}
    for _ in range(given.rounds):
        for system in systems:
            with progress.doing(scenario.name, system.name) as job:
                job.figures = one(scenario, system, given.seconds)
            runs[system.name].append(job.figures)
    outcome = {}
    for name, tries in runs.items():
        good = sorted(
            (each for each in tries if scenario.figure in each),
            key=lambda each: float(each[scenario.figure]),
        )
        outcome[name] = good[len(good) // 2] if good else tries[-1]
    return outcome


def measure_growth(given: argparse.Namespace, out: Path) -> int:
    """Measure how cost grows, and keep it for the page; exit code 1 when a size failed."""
    kinds = given.scenarios or list(growth.SIZES)
    rows = kept_growth(out)
    for kind in kinds:
        rows[kind] = growth.grow(kind, given.sizes_max)
        print(growth.table(kind, rows[kind]), flush=True)
        (out / "growth.json").write_text(json.dumps(rows, indent=1))
    return int(any("failed" in row for kind in kinds for row in rows[kind]))


def kept_growth(out: Path) -> dict[str, list[dict[str, Any]]]:
    """What growth gave the last time, if ever."""
    path = out / "growth.json"
    grown: dict[str, list[dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else {}
    return grown


def kept(out: Path) -> tuple[dict[str, Any], dict[tuple[str, str], dict[str, Any]]]:
    """What the last run gave, if there was one."""
    path = out / "results.json"
    return report.from_json(path.read_text()) if path.exists() else ({}, {})


def measure_all(given: argparse.Namespace, out: Path) -> int:
    """Measure what was asked for; exit code 1 when something failed that should have worked."""
    systems = all_systems()
    wanted = [name.strip() for name in given.systems.split(",") if name.strip()]
    last_about, last = kept(out)
    measured = dict(last) if given.keep else {}
    commands = list(last_about.get("commands", ())) if given.keep else []
    commands.append(shlex.join(["./run", "bench", *sys.argv[1:]]))
    about = {"commands": commands, "seconds": given.seconds}
    todo = [
        (scenario, [name for name in scenario.systems if not wanted or name in wanted])
        for scenario in chosen(given.scenarios)
    ]
    jobs = [(scenario.name, name) for scenario, names in todo for name in names] * given.rounds
    progress = Progress(jobs, {key: row["took_s"] for key, row in last.items() if "took_s" in row})
    for scenario, names in todo:
        chosen_systems = [systems[name] for name in names]
        for name, figures in rounds(scenario, chosen_systems, given, progress).items():
            measured[scenario.name, name] = figures
        if names and not given.json:
            print(report.table(scenario, measured), flush=True)
        # Kept after each: what was measured stays when the rest is given up.
        (out / "results.json").write_text(report.to_json(measured, about))
    text, grown = report.to_json(measured, about), kept_growth(out)
    page = report.page(measured, {**about, "host": report.host()}, grown)
    (out / "tables.md").write_text(page)
    drawn = list(report.plots(measured, out))
    print(text if given.json else report.goals(measured, grown))
    print(f"written to {out}: results.json, tables.md, {len(drawn)} plots", file=sys.stderr)
    return int(any("failed" in each.get("reason", "") for each in measured.values()))


def main() -> int:
    """Run; exit 1 when something failed that should have worked."""
    given = arguments()
    out: Path = given.out or Path(os.environ.get("RUN_HOME") or ROOT) / ".run" / "bench"
    if given.list:
        print("\n".join([*(each.name for each in SCENARIOS), "", *all_systems()]))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    if given.growth:
        return measure_growth(given, out)
    if given.page:
        about, results = kept(out)
        PAGE.write_text(report.page(results, about, kept_growth(out)))
        return 0
    return measure_all(given, out)


if __name__ == "__main__":
    sys.exit(main())
