"""The README's code works as it stands."""

import asyncio
import contextlib
import io
import re
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio

import tidewire
import tidewire.sync
from support.server import running

README = Path(__file__).resolve().parent.parent / "README.md"
SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)
URL = "tcp://127.0.0.1:7401"
TIMEOUT_S = 20.0

PRINTED = {
    "events.consume": "1 fsync\nweather.oslo b'-3'",
    "queries.serve": "b'abab'",
    "state.watch": "b'20'",
    "control.attend": "True b'paused'",
    "members.join": "pump-1 1 1",
    "checkpoints.operator": "b'sum=-3'",
    "StateServiceStub": "2 2",
    "sync.connect": "",
    "asyncio.run": "",
}
"""What each snippet must print, by a word that is only in it; snippets run in this order."""


def snippets() -> dict[str, str]:
    """The README's Python by the word that names it."""
    found = SNIPPET.findall(README.read_text())
    by_name = {}
    for name in PRINTED:
        matching = [code for code in found if name in code]
        assert len(matching) == 1, f"{len(matching)} snippets with {name}"
        by_name[name] = matching[0]
    assert len(found) == len(by_name), "a snippet of the README is not tested"
    return by_name


@pytest_asyncio.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """Where a fresh server listens."""
    async with running(tmp_path, ("tcp",)) as it:
        yield it.url("tcp")


def compiled(code: str, url: str) -> Callable[..., Any]:
    """Make a coroutine function of a snippet."""
    scope: dict[str, Any] = {"tidewire": tidewire, "asyncio": asyncio}
    body = textwrap.indent(code.replace(URL, url), "    ")
    exec(f"async def snippet(client):\n{body}", scope)
    snippet: Callable[..., Any] = scope["snippet"]
    return snippet


async def printed(code: str, url: str, client: tidewire.Client, expected: str) -> str:
    """Run a snippet until it has printed what is expected, or ends."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        task = asyncio.ensure_future(compiled(code, url)(client))
        stop_at = asyncio.get_running_loop().time() + TIMEOUT_S
        while not task.done() and (not expected or expected not in output.getvalue()):
            await asyncio.sleep(0.01)
            if asyncio.get_running_loop().time() > stop_at:
                break
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return output.getvalue()


async def test_the_snippets_of_the_kinds_work_one_after_the_other(url: str) -> None:
    """Each prints what it must on a fresh server."""
    async with tidewire.connect(url) as client:
        for name, code in snippets().items():
            if name not in ("sync.connect", "asyncio.run"):
                expected = PRINTED[name]
                assert expected in await printed(code, url, client, expected), name


async def test_the_blocking_snippet_works(url: str) -> None:
    """The facade prints a sequence, from a thread that has no loop."""
    async with tidewire.connect(url) as client:
        await client.events.stream("weather").create(["weather.>"])
    code = snippets()["sync.connect"].replace(URL, url)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        await asyncio.to_thread(exec, code, {})

    assert output.getvalue() == "1\n"


def test_the_frame_of_the_snippets_compiles() -> None:
    """The first snippet, in which the others stand, is Python."""
    compile(snippets()["asyncio.run"], "README.md", "exec")
