"""
./run on machines that lack things: what it fetches it checks, and what it prints keeps secrets.

The file is loaded as a module; no environment is made and nothing outside this machine is asked.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHEEL = b"a wheel, for all we know"
INDEX_VARIABLES = ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "PIP_CONFIG_FILE")


class Index(ThreadingHTTPServer):
    """A package index on a free port; it remembers what it was asked."""

    def __init__(self, pages: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), IndexHandler)
        self.pages = pages
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        """The address of the simple API, without a user."""
        return f"http://127.0.0.1:{self.server_port}/simple"


class IndexHandler(BaseHTTPRequestHandler):
    """Answers from the index's pages."""

    server: Index

    def do_GET(self) -> None:
        """Serve a page, or 404."""
        self.server.asked.append((self.path, self.headers["Authorization"]))
        body = self.server.pages.get(self.path)
        self.send_response(200 if body is not None else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return ./run as a module whose state is in a folder of the test."""
    for name in INDEX_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("RUN_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    module = ModuleType("tidewire_run")
    module.__file__ = str(ROOT / "run")
    exec(compile((ROOT / "run").read_text("utf-8"), "run", "exec"), module.__dict__)
    return module


@pytest.fixture
def index(run: ModuleType) -> Iterator[Index]:
    """Serve an index that lists the pinned wheel, relative to its page."""
    page = f'<a href="../../files/{run.PIP_WHEEL}#sha256=0">{run.PIP_WHEEL}</a>'.encode()
    server = Index({"/simple/pip/": page, f"/files/{run.PIP_WHEEL}": WHEEL})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_pip_comes_from_the_configured_index(
    run: ModuleType, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's index is asked, with the user's name, and a second call fetches nothing."""
    monkeypatch.setattr(run, "PIP_SHA256", hashlib.sha256(WHEEL).hexdigest())
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//ann:s%40cret@"))

    path = run.fetch_pip()
    again = run.fetch_pip()

    assert path == again
    assert path.read_bytes() == WHEEL
    assert [path for path, _ in index.asked] == ["/simple/pip/", f"/files/{run.PIP_WHEEL}"]
    assert index.asked[0][1] == "Basic YW5uOnNAY3JldA=="


def test_a_wheel_with_another_hash_is_refused(
    run: ModuleType, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the index serves under the pinned name is not kept unless its hash fits."""
    monkeypatch.setenv("PIP_INDEX_URL", index.url)

    with pytest.raises(run.RunError, match="SHA-256"):
        run.fetch_pip()

    assert list((run.STATE).iterdir()) == []


def test_an_index_without_the_wheel_is_named(
    run: ModuleType, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says which page was asked, without the password."""
    index.pages["/simple/pip/"] = b'<a href="pip-1.0.tar.gz">'
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//ann:hidden@"))

    with pytest.raises(run.RunError, match=r"/simple/pip/ does not list pip-") as caught:
        run.fetch_pip()

    assert "hidden" not in str(caught.value)


def test_what_is_printed_has_no_password(
    run: ModuleType, index: Index, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Addresses are shown without the user's name and password, also when fetching fails."""
    index.pages.clear()
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//ann:hidden@"))

    with pytest.raises(run.RunError, match="404") as caught:
        run.fetch_pip()

    assert "hidden" not in str(caught.value) + capsys.readouterr().err


@pytest.mark.parametrize("kind", ["json", "html"])
def test_both_forms_of_a_project_page_are_read(run: ModuleType, kind: str) -> None:
    """JSON (PEP 691) and HTML (PEP 503) pages lead to the same file."""
    url = f"https://files.example/a/{run.PIP_WHEEL}"
    pages = {
        "json": json.dumps({"files": [{"url": "https://x.example/pip-1.0.zip"}, {"url": url}]}),
        "html": f'<a href="https://x.example/pip-1.0.zip">a</a><a href="{url}#sha256=1">b</a>',
    }

    assert url == run.find_link(pages[kind], "https://index.example/simple/pip/")


def test_the_index_comes_from_pip_configuration(run: ModuleType, tmp_path: Path) -> None:
    """Without a variable, pip's own file decides; without a file, PyPI."""
    before = run.index_url()
    file = tmp_path / "config" / "pip" / "pip.conf"
    file.parent.mkdir(parents=True)
    file.write_text("[global]\nindex-url = https://index.example/simple/\n")

    assert (before, run.index_url()) == (run.DEFAULT_INDEX, "https://index.example/simple")


def test_uv_and_pip_ask_the_same_index(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index set for one installer is handed to the other."""
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://index.example/simple")
    for_pip = run.environment()["PIP_INDEX_URL"]
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    for_uv = run.environment()["UV_DEFAULT_INDEX"]

    assert (for_pip, for_uv) == ("https://index.example/simple", "https://other.example/simple")


def test_locks_name_no_index_and_hash_every_pin() -> None:
    """Every pin of every lock has a hash, and no lock carries an address or an option."""
    locks = sorted((ROOT / "requirements").glob("*.lock"))

    names = ["base", "bench", "browser", "build", "codegen", "demo", "dev", "runtime"]
    assert names == [path.stem for path in locks]
    for lock in locks:
        text = lock.read_text("utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            assert re.fullmatch(r"\w[^\s:]*==[^:]+?(\s+--hash=sha256:[0-9a-f]{64})+", line), lock


def test_locks_agree_on_their_pins() -> None:
    """One package has one pin in all lists that share an environment."""
    pins: dict[str, set[str]] = {}
    for lock in (ROOT / "requirements").glob("*.lock"):
        if lock.stem == "codegen":
            continue
        for line in lock.read_text("utf-8").splitlines():
            if "==" in line:
                name, _, rest = line.rstrip(" \\").partition("==")
                version, _, marker = rest.partition(" ; ")
                pins.setdefault(f"{name} ; {marker}", set()).add(version)

    assert {} == {name: found for name, found in pins.items() if len(found) > 1}
