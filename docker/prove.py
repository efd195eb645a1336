#!/usr/bin/env python3
"""
Build docker/Dockerfile and prove the image, without a container daemon; `./run image` calls this.

    prove.py [--base IMAGE]

It needs Linux, root, and the Debian packages buildah and debootstrap, which it installs where apt
can. The base image is a Debian made here by debootstrap, unless --base names one to pull.
Everything is kept in .run/image: delete that folder to begin afresh.

Exit codes: 0 proved, 1 something is wrong with the image, 3 this machine cannot run the proof.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = Path(os.environ.get("RUN_HOME") or ROOT).absolute() / ".run" / "image"
PACKAGES = ("buildah", "debootstrap")
RELEASE = "bookworm"
BASE_TAG = "localhost/tidewire-base"
TAG = "localhost/tidewire"
USER = "10001:10001"
# Not the defaults: chroot isolation shares the network of this machine, where they may be in use.
GRPC, TLS, PLAIN, ADMIN = (f"127.0.0.1:{port}" for port in (42051, 42401, 42400, 42464))
SERVER = {
    "TIDEWIRE_LISTEN__URLS": f"grpcs://{GRPC},tls://{TLS},tcp://{PLAIN}",
    "TIDEWIRE_ADMIN__ADDRESS": ADMIN,
}
CLIENT = {
    "TIDEWIRE_CA": "/certs/ca.pem",
    "TIDEWIRE_CERT": "/certs/prover.pem",
    "TIDEWIRE_KEY": "/certs/prover.key",
}
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
STEP_TIMEOUT_S = 1200
CA_TARGET = "/etc/ssl/certs/ca-certificates.crt"


class ImageError(Exception):
    """The image is not as it must be."""


class CannotRun(Exception):
    """This machine lacks what the proof needs."""


def say(text: str) -> None:
    """Tell what happens, on stderr, at once."""
    print(f"image: {text}", file=sys.stderr, flush=True)


def call(*words: str | Path) -> str:
    """Print and run one command; return what it wrote to standard output."""
    argv = [str(word) for word in words]
    say(f"$ {shlex.join(argv)}")
    done = subprocess.run(
        argv, text=True, check=False, stdout=subprocess.PIPE, timeout=STEP_TIMEOUT_S
    )
    if done.returncode:
        raise ImageError(f"exit code {done.returncode} from: {shlex.join(argv)}\n{done.stdout}")
    return done.stdout.strip()


def buildah(*words: str | Path) -> str:
    """Run buildah with its storage in our folder; vfs works on any file system."""
    return call(*storage(), *words)


def storage() -> list[str]:
    """Return buildah and the options that say where it keeps things."""
    folders = ("--root", str(STATE / "storage"), "--runroot", str(STATE / "runroot"))
    return ["buildah", "--storage-driver", "vfs", *folders]


def require_tools() -> None:
    """Find the tools, or install them with apt; say what is missing where neither works."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise CannotRun("it needs Linux and root (chroot isolation and debootstrap)")
    missing = [name for name in PACKAGES if not shutil.which(name)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise CannotRun(f"missing: {' '.join(missing)}, and there is no apt-get to install them")
    try:
        call("apt-get", "update", "-qq")
        call("apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing)
    except ImageError as error:
        raise CannotRun(f"apt-get could not install {' '.join(missing)}: {error}") from error


def make_base() -> str:
    """Make the base image: a fresh Debian with python3 and certificates. Return its name."""
    tree = STATE / "base"
    if not (tree / "usr" / "bin" / "python3").exists():
        shutil.rmtree(tree, ignore_errors=True)
        wanted = "--include=python3,ca-certificates"
        call("debootstrap", "--variant=minbase", wanted, RELEASE, tree)
    if BASE_TAG not in buildah("images", "--format", "{{.Name}}").splitlines():
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, tree, "/")
        buildah("commit", "--quiet", "--rm", container, BASE_TAG)
    return BASE_TAG


def build(base: str) -> None:
    """Build the image; index and certificates of this machine are lent to its first stage."""
    words = ["build", "--isolation", "chroot", "--format", "docker", "--pull-never"]
    words += ["--ignorefile", str(ROOT / "docker" / "Dockerfile.dockerignore")]
    words += ["--file", str(ROOT / "docker" / "Dockerfile"), "--build-arg", f"BASE={base}"]
    if os.environ.get("PIP_INDEX_URL"):
        words += ["--build-arg", "PIP_INDEX_URL"]
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates:
        words += ["--volume", f"{certificates}:{CA_TARGET}:ro"]
        words += ["--build-arg", f"SSL_CERT_FILE={CA_TARGET}"]
    if base != BASE_TAG:
        words.remove("--pull-never")
    buildah(*words, "--tag", TAG, str(ROOT))


def check_configuration() -> None:
    """The image says what orchestrators read: user, volume, health check, entry, ports."""
    found = json.loads(buildah("inspect", "--type", "image", TAG))["Docker"]["config"]
    wanted = {
        "User": USER,
        "Entrypoint": ["/opt/tidewire/bin/tidewire"],
        "Cmd": ["serve"],
        "Volumes": {"/data": {}},
        "StopSignal": "SIGTERM",
    }
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ImageError(f"{key} is {found.get(key)!r}, not {value!r}")
    if found["Healthcheck"]["Test"] != ["CMD", "/opt/tidewire/bin/tidewire", "health"]:
        raise ImageError(f"the health check is {found['Healthcheck']}")
    lent = [entry for entry in found["Env"] if entry.startswith(("PIP_", "SSL_"))]
    if lent:
        raise ImageError(f"settings of the building machine are in the image: {lent}")


def check_files(mount: Path) -> None:
    """Only /data is writable to the user, and no installer is left."""
    user = int(USER.partition(":")[0])
    for path in (mount / "opt" / "tidewire").rglob("*"):
        status = path.lstat()
        if not path.is_symlink() and (status.st_uid == user or status.st_mode & 0o022):
            raise ImageError(f"{path.relative_to(mount)} can be changed by others than root")
    data = (mount / "data").stat()
    if data.st_uid != user:
        raise ImageError(f"/data belongs to uid {data.st_uid}, not {user}")
    if list((mount / "opt" / "tidewire").glob("lib/python3*/site-packages/pip")):
        raise ImageError("pip is in the image")


@contextmanager
def container() -> Iterator[str]:
    """Yield a container of the image; it is removed at the end."""
    name = buildah("from", "--pull-never", TAG)
    try:
        yield name
    finally:
        buildah("rm", name)


def inside(name: str, variables: dict[str, str], *words: str) -> list[str]:
    """Return the command line that runs tidewire in the container as the image's own user."""
    options = [*storage(), "run", "--isolation", "chroot", "--user", USER]
    options += [word for key, value in variables.items() for word in ("--env", f"{key}={value}")]
    return [*options, name, "--", "/opt/tidewire/bin/tidewire", *words]


def check_server(name: str) -> None:
    """The server starts as the image's user, is healthy on each wire, and stops on SIGTERM."""
    call(*inside(name, {}, "certs", "init", "/certs", "--host", "localhost", "--client", "prover"))
    argv = inside(name, SERVER, "serve")
    say(f"$ {shlex.join(argv)} &")
    server = subprocess.Popen(argv, start_new_session=True)
    try:
        wait_healthy(name, server)
        for url in (f"grpcs://{GRPC}", f"tls://{TLS}"):
            local = url.replace("127.0.0.1", "localhost")
            say(f"{url}: {call(*inside(name, {**CLIENT, 'TIDEWIRE_URL': local}, 'health'))}")
    finally:
        terminate(server)
    if server.returncode != 0:
        raise ImageError(f"the server left with exit code {server.returncode} after SIGTERM")


def wait_healthy(name: str, server: subprocess.Popen[bytes]) -> None:
    """Ask the image's own health command until it says yes."""
    probe = inside(name, {"TIDEWIRE_URL": f"tcp://{PLAIN}"}, "health")
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        if server.poll() is not None:
            raise ImageError(f"the server ended with exit code {server.returncode}")
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            say(f"healthy: {done.stdout.strip()}")
            return
        if time.monotonic() > deadline:
            report = (done.stdout + done.stderr).strip()
            raise ImageError(f"not healthy after {START_TIMEOUT_S} s: {report}")
        time.sleep(0.5)


def terminate(server: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the server itself: chroot isolation does not pass it on."""
    if server.poll() is None:
        for pid in descendants(server.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"/opt/tidewire/bin/" in command and b"buildah" not in command:
                os.kill(pid, 15)
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, 9)
        server.wait()
        raise ImageError(f"the server did not stop within {STOP_TIMEOUT_S} s") from None


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes that came from one, parents first."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield int(child)
            yield from descendants(int(child))


def prove(base: str | None) -> None:
    """Make, build and check, one after the other."""
    require_tools()
    STATE.mkdir(parents=True, exist_ok=True)
    build(base or make_base())
    check_configuration()
    with container() as name:
        check_files(Path(buildah("mount", name)))
        say(f"runs: {call(*inside(name, {}, '--version'))}")
        check_server(name)
    archive = STATE / "tidewire.tar"
    archive.unlink(missing_ok=True)
    buildah("push", "--quiet", TAG, f"docker-archive:{archive}:tidewire:latest")
    say(f"proved; {archive} holds the image ({archive.stat().st_size >> 20} MiB)")


def main() -> int:
    """Parse the command line and run the proof."""
    parser = argparse.ArgumentParser(description="Build and prove the container image.")
    parser.add_argument("--base", help="base image to pull instead of a debootstrap one")
    arguments = parser.parse_args()
    try:
        prove(arguments.base)
    except CannotRun as error:
        say(f"cannot run here: {error}")
        return 3
    except ImageError as error:
        say(f"FAIL: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
