#!/usr/bin/env python3
"""
Generate the Python stubs: of proto/ into client/, and of the tests' own services beside them.

    proto/generate.py                  write what changed, remove what is left over
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
# folder that import paths begin in -> folder that Python's import paths begin in
TREES = {"proto": "client", "tests": "tests"}
# Packages of others' contracts -> where their stubs go: `import eventflux` must stay free for
# EventFlux's own.
FOREIGN = {"eventflux/transport": "tidewire/eventflux"}
PINS = {"grpcio-tools": "1.74.0", "mypy-protobuf": "5.1.0"}
PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
SERVICE = re.compile(r"^service\s+\w+", re.MULTILINE)
STUB_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
INIT = '"""Generated from {folder} by proto/generate.py: never edit."""\n'

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
    """Run the generators in temporary folders and return path in the repository -> content."""
    includes = probe(python)
    fresh: dict[str, bytes] = {}
    for source, target in TREES.items():
        fresh.update(generate_tree(python, ROOT / source, ROOT / target, includes))
    return fresh


def generate_tree(
    python: Path, source: Path, target: Path, includes: list[str]
) -> dict[str, bytes]:
    """Generate the stubs of all ``.proto`` files below one folder; only services get the rest."""
    fresh: dict[str, bytes] = {}
    protos = sorted(path.relative_to(source) for path in source.rglob("*.proto"))
    services = [path for path in protos if SERVICE.search((source / path).read_text("utf-8"))]
    roots = [f"-I{folder}" for folder in (source, ROOT / "proto", *includes)]
    with tempfile.TemporaryDirectory(prefix="tidewire-proto-") as name:
        out = Path(name)
        plugins = [f"--plugin={name}={python.parent / name}" for name in PLUGINS]
        base = [str(python), "-m", "grpc_tools.protoc", *dict.fromkeys(roots), *plugins]
        if protos:
            protoc(base, [f"--python_out={out}", f"--mypy_out=quiet:{out}"], protos)
        if services:
            protoc(base, [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"], services)
        files = [path for path in out.rglob("*") if path.is_file()]
        for path in files:
            place, content = relocate(path.relative_to(out), path.read_bytes())
            fresh[named(target / place)] = content
    for folder in {path.parent for path in protos}:
        text = INIT.format(folder=named(source / folder))
        package = FOREIGN.get(folder.as_posix(), folder.as_posix())
        fresh[named(target / package / "__init__.py")] = text.encode()
    return fresh


def relocate(path: Path, content: bytes) -> tuple[Path, bytes]:
    """
    Move a stub of somebody else's contract below our own package.

    Its descriptors go to a pool of their own: in the default pool they would refuse to load beside
    stubs that a user generated from the same contract under another file name.
    """
    place = FOREIGN.get(path.parent.as_posix())
    if place is None:
        return path, content
    theirs, ours = (name.replace("/", ".").encode() for name in (path.parent.as_posix(), place))
    content = content.replace(b"from " + theirs + b" import", b"from " + ours + b" import")
    content = content.replace(b"'" + theirs + b".transport_pb2", b"'" + ours + b".transport_pb2")
    content = content.replace(b"_descriptor_pool.Default()", b"_descriptor_pool.DescriptorPool()")
    return Path(place) / path.name, content


def named(path: Path) -> str:
    """Return a path as the repository names it."""
    return path.relative_to(ROOT).as_posix()


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
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise GenerateError(f"protoc failed:\n{(done.stderr or done.stdout).strip()}")


def present() -> set[str]:
    """Return the stubs that stand in the repository now."""
    return {
        named(path)
        for target in TREES.values()
        for path in (ROOT / target).rglob("*_pb2*")
        if path.name.endswith(STUB_SUFFIXES)
    }


def check(fresh: dict[str, bytes]) -> int:
    """Compare sets and bytes; print one line for each difference."""
    faults = [f"left over   {name}" for name in sorted(present() - fresh.keys())]
    for name, content in sorted(fresh.items()):
        path = ROOT / name
        if not path.exists():
            faults.append(f"missing     {name}")
        elif path.read_bytes() != content:
            faults.append(f"differs     {name}")
    for fault in faults:
        print(fault)
    if faults:
        print("the stubs are not what the .proto files say: run `./run generate`")
        return 1
    print(f"{len(fresh)} generated files are fresh")
    return 0


def write(fresh: dict[str, bytes]) -> int:
    """Write what changed and remove what is left over."""
    changed = 0
    for name in sorted(present() - fresh.keys()):
        (ROOT / name).unlink()
        changed += 1
        print(f"removed  {name}")
    for name, content in sorted(fresh.items()):
        path = ROOT / name
        if path.exists() and path.read_bytes() == content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        changed += 1
        print(f"wrote    {name}")
    print(f"{changed} of {len(fresh)} files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
