#!/usr/bin/env python3
"""
Every check of the repository but the tests; `./run check` prepares the environment and calls this.

    check.py [NAME...]          run the named checks, or all; exit 1 if any failed
    check.py --write-baseline   accept the contract in proto/ as the one not to break

All of them run, also after a failure, so that one round shows everything.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("RUN_HOME") or ROOT).absolute()
BIN = Path(sysconfig.get_path("scripts"))
BASELINE = ROOT / "proto" / "baseline.binpb"
SCRIPTS = ("run", ".ci/check.py", ".ci/lock.py")
PACKAGES = {"tidewire", "tidewire_server"}
# A bare install has neither the server's dependencies nor the sources in reach.
BARE = """
import sys, tidewire
assert "site-packages" in tidewire.__file__, tidewire.__file__
from tidewire.v1 import event_pb2_grpc
missing = [name for name in getattr(tidewire, "__all__", []) if not hasattr(tidewire, name)]
assert not missing, missing
assert "tidewire_server" not in sys.modules
"""
STEP_TIMEOUT_S = 600


class CheckError(Exception):
    """A check failed; the message is what the developer needs to see."""


def call(*words: str | Path, cwd: Path = ROOT) -> str:
    """Run one tool and return what it printed; a failure carries it."""
    argv = [str(word) for word in words]
    done = subprocess.run(
        argv,
        cwd=cwd,
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=STEP_TIMEOUT_S,
    )
    if done.returncode:
        raise CheckError(done.stdout.strip() or f"exit code {done.returncode}")
    return done.stdout.strip()


def format_() -> None:
    """Ruff: the layout of every file is the formatter's."""
    call(BIN / "ruff", "format", "--check", ".", *SCRIPTS)


def lint() -> None:
    """Ruff: the rules in pyproject.toml."""
    call(BIN / "ruff", "check", ".", *SCRIPTS)


def mypy() -> None:
    """Mypy, strict: sources, tests, and the programs around them."""
    call(BIN / "mypy", "client", "server", "tests")
    for program in (*SCRIPTS, "proto/generate.py", "docker/prove.py"):
        if (ROOT / program).exists():
            call(BIN / "mypy", program)


def pyright() -> None:
    """Pyright, as basedpyright, which comes whole from PyPI: what users' editors say."""
    call(BIN / "basedpyright", "--level", "error", "--pythonpath", sys.executable)


def imports() -> None:
    """Import-linter: which part may know which."""
    call(BIN / "lint-imports", "--no-cache", "--no-logo")


def buf_lint() -> None:
    """Buf, STANDARD and COMMENTS: names, comments and structure of the contract."""
    with tempfile.TemporaryDirectory(prefix="tidewire-buf-") as name:
        workspace = buf_workspace(Path(name))
        call(BIN / "buf", "lint", "proto", cwd=workspace)


def buf_breaking() -> None:
    """Buf, FILE: nothing that users' generated code relies on has gone since the baseline."""
    if not BASELINE.exists():
        raise CheckError(f"{BASELINE} is missing; `./run baseline` writes it")
    with tempfile.TemporaryDirectory(prefix="tidewire-buf-") as name:
        workspace = buf_workspace(Path(name))
        # As one image: buf compares a workspace module by module, and the baseline has no modules.
        call(BIN / "buf", "build", "--output", "now.binpb", cwd=workspace)
        rules = json.dumps({"version": "v2", "breaking": {"use": ["FILE"]}})
        against = ("--against", BASELINE, "--against-config", rules)
        call(BIN / "buf", "breaking", "now.binpb", "--config", rules, *against, cwd=workspace)


def write_baseline() -> None:
    """Write the image that later contracts are compared with."""
    with tempfile.TemporaryDirectory(prefix="tidewire-buf-") as name:
        workspace = buf_workspace(Path(name))
        call(BIN / "buf", "build", "--exclude-source-info", "--output", BASELINE, cwd=workspace)


def buf_workspace(folder: Path) -> Path:
    """
    Lay proto/ beside the google/rpc files it imports, as two modules of one workspace.

    buf would fetch those from its registry; here they come from the installed Python package
    googleapis-common-protos, so the checks need nothing but the locks.
    """
    import google.rpc

    installed = Path(next(iter(google.rpc.__path__)))
    for name in ("tidewire", "eventflux"):
        shutil.copytree(ROOT / "proto" / name, folder / "proto" / name)
    shutil.copytree(installed, folder / "google" / "google" / "rpc", ignore=not_proto)
    rules = (ROOT / "proto" / "buf.yaml").read_text("utf-8").replace("- path: .", "- path: proto")
    rules = rules.replace("[eventflux]", "[proto/eventflux]")
    google_module = "modules:\n  - path: google\n    lint:\n      ignore: [google]\n"
    (folder / "buf.yaml").write_text(rules.replace("modules:\n", google_module), "utf-8")
    return folder


def not_proto(_folder: str, names: list[str]) -> list[str]:
    """Tell copytree to leave everything but the few .proto files that are imported."""
    kept = {"code.proto", "error_details.proto", "status.proto"}
    return [name for name in names if name not in kept]


def stubs() -> None:
    """generate.py --check: the stubs are what proto/ says, byte for byte."""
    call(sys.executable, ROOT / "proto" / "generate.py", "--check")


def tidy() -> None:
    """The tidy test: sizes, layout, links, nothing of one machine in the repository."""
    call(sys.executable, "-m", "pytest", "-q", "tests/test_tidy.py")


def bare() -> None:
    """The wheel alone, without extras: it installs, imports, and holds two packages."""
    with tempfile.TemporaryDirectory(prefix="tidewire-bare-") as name:
        folder = Path(name)
        call(BIN / "hatchling", "build", "-t", "wheel", "-d", folder)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        roots = {entry.split("/")[0] for entry in names}
        extra = {root for root in roots if not root.endswith(".dist-info")} ^ PACKAGES
        if extra:
            raise CheckError(f"the wheel's roots are {sorted(roots)}, not {sorted(PACKAGES)}")
        for package in PACKAGES:
            if f"{package}/py.typed" not in names:
                raise CheckError(f"{package}/py.typed is not in the wheel")
        call(ROOT / "run", "venv", folder / "venv", "base")
        python = folder / "venv" / "bin" / "python"
        install_wheel(python, wheel)
        call(python, "-I", "-W", "error", "-c", BARE, cwd=folder)
        call(folder / "venv" / "bin" / "tidewire", "--version", cwd=folder)


def install_wheel(python: Path, wheel: Path) -> None:
    """Install the wheel and check that its requirements are met, with uv or with pip."""
    uv = shutil.which("uv")
    if uv:
        call(uv, "pip", "install", "--python", python, "--no-deps", wheel)
        call(uv, "pip", "check", "--python", python)
        return
    call(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    call(python, "-m", "pip", "check")


CHECKS: dict[str, Callable[[], None]] = {
    "format": format_,
    "lint": lint,
    "mypy": mypy,
    "pyright": pyright,
    "imports": imports,
    "buf-lint": buf_lint,
    "buf-breaking": buf_breaking,
    "stubs": stubs,
    "tidy": tidy,
    "bare": bare,
}


def main(words: list[str]) -> int:
    """Run the named checks and print one line for each, with the output of those that fail."""
    if words == ["--write-baseline"]:
        write_baseline()
        print(f"wrote {BASELINE.relative_to(ROOT)}")
        return 0
    unknown = set(words) - CHECKS.keys()
    if unknown:
        print(f"no check {sorted(unknown)}; there are: {' '.join(CHECKS)}", file=sys.stderr)
        return 2
    failed = []
    for name in words or CHECKS:
        began = time.monotonic()
        try:
            CHECKS[name]()
            verdict, report = "ok  ", ""
        except (CheckError, OSError, subprocess.TimeoutExpired) as error:
            verdict, report = "FAIL", str(error)
            failed.append(name)
        print(f"{verdict}  {name:<13}{time.monotonic() - began:6.1f} s", flush=True)
        if report:
            print("\n".join(f"      {line}" for line in report.splitlines()), flush=True)
    print(f"{len(failed)} failed: {' '.join(failed)}" if failed else "every check passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
