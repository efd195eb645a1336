#!/usr/bin/env python3
"""
Generate the Python stubs of every ``.proto`` under proto/ into client/.

    proto/generate.py                  write client/tidewire/v1 (and its siblings)
    proto/generate.py --check          exit 1, naming each difference, unless they are fresh

The generators are pinned and live in an environment of their own, because stubs refuse runtimes
older than the generator that wrote them: an old generator serves every user, but it needs an old
protobuf beside it. ``./run generate`` prepares that environment; ``--python`` or the variable
TIDEWIRE_CODEGEN_PYTHON name another one that holds exactly the pinned versions.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
TARGET = ROOT / "client"
PINS = {"grpcio-tools": "1.74.0", "mypy-protobuf": "5.1.0"}
SERVICE = re.compile(r"^service\s+\w+", re.MULTILINE)
STUB_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
INIT = '"""Generated from proto/{folder} by proto/generate.py: never edit."""\n'

# Runs inside the code generation environment: prints what is installed there, one line each.
PROBE = """
import importlib.metadata as m, pathlib, google.rpc, grpc_tools
for name in {names!r}:
    print(m.version(name))
print(pathlib.Path(grpc_tools.__file__).parent / "_proto")     # google/protobuf/*.proto
print(pathlib.Path(list(google.rpc.__path__)[0]).parent.parent)  # google/rpc/*.proto
"""


class GenerateError(Exception):
    """The stubs cannot be made; the message says why and what to do."""


def main() -> int:
    """Parse the command line and return the exit code: 0 done, 1 stale stubs, 2 cannot work."""
    parser = argparse.ArgumentParser(description="Generate client stubs from proto/.")
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    parser.add_argument("--python", help="interpreter that has the pinned generators")
    arguments = parser.parse_args()
    try:
        fresh = generate(codegen_python(arguments.python))
    except GenerateError as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2
    if arguments.check:
        return check(fresh)
    return write(fresh)


def codegen_python(given: str | None) -> Path:
    """Choose the interpreter: the flag, the environment variable, then .venv-codegen."""
    home = Path(os.environ.get("RUN_HOME") or ROOT)
    named = given or os.environ.get("TIDEWIRE_CODEGEN_PYTHON")
    python = Path(named) if named else home / ".venv-codegen" / "bin" / "python"
    if not python.exists():
        raise GenerateError(f"{python} does not exist; `./run generate` prepares it")
    return python.absolute()


def generate(python: Path) -> dict[str, bytes]:
    """Run the generators in a temporary folder and return path below client/ -> content."""
    protos = sorted(path.relative_to(PROTO) for path in PROTO.rglob("*.proto"))
    if not protos:
        raise GenerateError(f"no .proto file below {PROTO}")
    services = [path for path in protos if SERVICE.search((PROTO / path).read_text("utf-8"))]
    includes = probe(python)
    with tempfile.TemporaryDirectory(prefix="tidewire-proto-") as name:
        out = Path(name)
        base = [
            str(python),
            *("-m", "grpc_tools.protoc", *(f"-I{folder}" for folder in (PROTO, *includes))),
            f"--plugin=protoc-gen-mypy={python.parent / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={python.parent / 'protoc-gen-mypy_grpc'}",
        ]
        protoc(base, [f"--python_out={out}", f"--mypy_out=quiet:{out}"], protos)
        if services:
            protoc(base, [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"], services)
        fresh = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for folder in {path.parent for path in protos}:
        fresh[str(folder / "__init__.py")] = INIT.format(folder=folder).encode()
    return fresh


def probe(python: Path) -> list[str]:
    """Refuse generators of other versions; return the folders of the imported google/*.proto."""
    code = PROBE.format(names=tuple(PINS))
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise GenerateError(f"{python} lacks the generators:\n{done.stderr.strip()}")
    lines = done.stdout.splitlines()
    versions, includes = lines[: len(PINS)], lines[len(PINS) :]
    for (name, pin), version in zip(PINS.items(), versions, strict=True):
        if version != pin:
            raise GenerateError(f"{python} has {name} {version}; the stubs need exactly {pin}")
    return includes


def protoc(base: list[str], outputs: list[str], protos: list[Path]) -> None:
    """Run one protoc; its own messages name the faulty file and line."""
    command = [*base, *outputs, *map(str, protos)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROTO)
    if done.returncode:
        raise GenerateError(f"protoc failed:\n{(done.stderr or done.stdout).strip()}")


def present() -> set[str]:
    """Return the stubs that stand below client/ now."""
    return {
        str(path.relative_to(TARGET))
        for path in TARGET.rglob("*_pb2*")
        if path.name.endswith(STUB_SUFFIXES)
    }


def check(fresh: dict[str, bytes]) -> int:
    """Compare sets and bytes; print one line for each difference."""
    faults = [f"left over   client/{name}" for name in sorted(present() - fresh.keys())]
    for name, content in sorted(fresh.items()):
        path = TARGET / name
        if not path.exists():
            faults.append(f"missing     client/{name}")
        elif path.read_bytes() != content:
            faults.append(f"differs     client/{name}")
    for fault in faults:
        print(fault)
    if faults:
        print("the stubs are not what proto/ says: run `./run generate`")
        return 1
    print(f"{len(fresh)} generated files are fresh")
    return 0


def write(fresh: dict[str, bytes]) -> int:
    """Write what changed and remove what is left over."""
    changed = 0
    for name in sorted(present() - fresh.keys()):
        (TARGET / name).unlink()
        changed += 1
        print(f"removed  client/{name}")
    for name, content in sorted(fresh.items()):
        path = TARGET / name
        if path.exists() and path.read_bytes() == content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        changed += 1
        print(f"wrote    client/{name}")
    print(f"{changed} of {len(fresh)} files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
