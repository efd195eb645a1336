#!/usr/bin/env python3
"""
Write requirements/*.lock from pyproject.toml; `./run lock [--upgrade]` finds uv and calls this.

Each list is universal (Python 3.11 to 3.14, any glibc Linux), pins every dependency with the
hashes of its wheels, agrees with the other lists, and names no index. Pins stay as they are unless
pyproject.toml forces a change or --upgrade asks for the newest.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
OLDEST_PYTHON = "3.11"
SERVER = ["pyproject.toml", "--extra=server", "--extra=certs"]
# lock name -> arguments of `uv pip compile`
SOURCES: dict[str, list[str]] = {
    "base": ["pyproject.toml"],
    "runtime": SERVER,
    "demo": [*SERVER, "--extra=demo"],
    "build": ["--group=build"],
    "dev": [*SERVER, "--group=dev"],
    "browser": ["--group=browser"],
    "bench": [*SERVER, "--group=bench"],
    "codegen": ["--group=codegen"],
}
EVERYTHING = ["pyproject.toml", "--all-extras", "--group=dev", "--group=browser", "--group=bench"]
APART = {"codegen"}  # an environment of its own, with older pins on purpose
PIN = re.compile(r"^(\w[^\\]*?)\s*\\?$")


def main(words: list[str]) -> int:
    """Resolve everything at once, then write each list as a part of that."""
    if not words or words[1:] not in ([], ["--upgrade"]):
        print("usage: ./run lock [--upgrade]", file=sys.stderr)
        return 2
    uv, upgrade = words[0], bool(words[1:])
    with tempfile.TemporaryDirectory(prefix="tidewire-lock-") as name:
        pins = Path(name) / "pins.txt"
        pins.write_text("" if upgrade else known_pins(), "utf-8")
        resolve(uv, EVERYTHING, pins, "--no-annotate")
        for lock, sources in SOURCES.items():
            target = LOCKS / f"{lock}.lock"
            if upgrade:
                target.unlink(missing_ok=True)
            agree = [] if lock in APART else ["--constraint", str(pins)]
            resolve(uv, sources, target, "--generate-hashes", "--no-annotate", *agree)
            print(f"wrote requirements/{lock}.lock")
    return 0


def known_pins() -> str:
    """Return the pins of the present lists, one a line, without hashes."""
    pins: set[str] = set()
    for path in LOCKS.glob("*.lock"):
        if path.stem not in APART:
            matches = map(PIN.match, path.read_text("utf-8").splitlines())
            pins.update(match[1] for match in matches if match)
    return "".join(f"{pin}\n" for pin in sorted(pins))


def resolve(uv: str, sources: list[str], target: Path, *words: str) -> None:
    """Write one list; what it held before is kept where it still fits."""
    command = [uv, "pip", "compile", "--universal", f"--python-version={OLDEST_PYTHON}"]
    command += ["--no-build", "--no-emit-index-url", "--no-emit-find-links", "--no-header"]
    command += ["--quiet", *words, *sources, "--output-file", str(target)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
