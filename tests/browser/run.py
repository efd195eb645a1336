"""
A page in a real browser publishes and subscribes through the JavaScript client.

Needs Chromium and its driver (Debian: ``apt-get install chromium chromium-driver``) and Selenium
(the dependency group ``browser``). Exit code 0: everything was shown; 1: something failed; 3: it
cannot run here, and why.

    tests/browser/run.py [--screenshot FILE.png]
"""

import argparse
import asyncio
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests"))

CANNOT_RUN: Final = 3
SCRIPT_TIMEOUT_S: Final = 90
LOAD_TIMEOUT_S: Final = 30
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")


def say(text: str) -> None:
    """Report to whoever started this."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Report what is wrong."""
    sys.stderr.write(f"{text}\n")


class Failure(Exception):
    """Something was not as it must be."""


class Site(SimpleHTTPRequestHandler):
    """The page, the scenario and the client's modules."""

    def translate_path(self, path: str) -> str:
        """Serve ``/js/`` from the package and the rest from here."""
        name = path.partition("?")[0].rpartition("/")[2]
        folder = ROOT / "client/tidewire/js" if path.startswith("/js/") else HERE
        return str(folder / name)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def site() -> Iterator[str]:
    """Serve the page on loopback; give its origin."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def missing() -> str:
    """Return why this cannot run here; nothing when it can."""
    if not any(map(shutil.which, BROWSERS)):
        return "there is no Chromium; on Debian: apt-get install chromium chromium-driver"
    if not shutil.which("chromedriver"):
        return "there is no chromedriver; on Debian: apt-get install chromium-driver"
    if importlib.util.find_spec("selenium") is None:
        return "Selenium is not installed; ./run browser installs it"
    return ""


@contextmanager
def browser(folder: Path) -> Iterator[Any]:
    """Start Chromium without a window."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    options.accept_insecure_certs = (
        True  # the servers' certificates are of an authority of the test
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--ignore-certificate-errors",
        "--window-size=900,700",
        f"--user-data-dir={folder}",
        # Chromium's sandbox refuses root, which is who runs in containers of CI.
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(argument)
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(SCRIPT_TIMEOUT_S)
    driver.set_page_load_timeout(LOAD_TIMEOUT_S)
    try:
        yield driver
    finally:
        driver.quit()


def call(driver: Any, origin: str, function: str, *arguments: Any) -> dict[str, Any]:
    """Load the page from ``origin`` and return what one of its functions comes to."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(f"{origin}/page.html")
    WebDriverWait(driver, LOAD_TIMEOUT_S).until(
        lambda it: it.execute_script("return window.loaded === true")
    )
    script = f"const done = [...arguments].pop(); window.{function}(...arguments).then(done)"
    found: dict[str, Any] = driver.execute_async_script(script, *arguments)
    return found


def expect(what: str, expected: Any, actual: Any) -> None:
    """Report one thing that was shown, or raise."""
    if expected != actual:
        raise Failure(f"{what}: expected {expected!r}, got {actual!r}")
    say(f"ok  {what}")


async def show_whole_client(driver: Any, screenshot: Path | None) -> None:
    """The whole scenario from a page whose origin is listed; another origin gets nothing."""
    from support.pages import STEPS, prepared, raw_server

    with site() as listed, site() as other, tempfile.TemporaryDirectory() as folder:
        async with prepared(Path(folder), origins=[listed]) as it:
            server = raw_server(it, "ws")
            found = await asyncio.to_thread(call, driver, listed, "wholeClient", it.url("ws"))
            if screenshot is not None:
                driver.save_screenshot(str(screenshot))
            expect("no error in the page", None, found.get("error"))
            for step in found["steps"]:
                say(f"ok  {step}")
            expect("every step", STEPS, len(found["steps"]))
            before = server.counters.connections_opened
            found = await asyncio.to_thread(call, driver, other, "connectOnly", it.url("ws"), {})
            expect("a page of another origin is refused", "UNAVAILABLE", found.get("code"))
            expect("and was never connected", before, server.counters.connections_opened)
            refusals = server.counters.handshake_failures["origin_refused"]
            expect("and is counted as such", 1, refusals)


async def show_encryption(driver: Any) -> None:
    """Over wss a token gets in where certificates are not asked for, and not where they are."""
    from support.pages import prepared

    options = {"token": "a-secret", "name": "browser"}
    for asked in (False, True):
        with site() as origin, tempfile.TemporaryDirectory() as folder:
            option = {"origins": [origin], "client_certificates": asked}
            async with prepared(Path(folder), ("wss", "ws", "tcp"), **option) as it:
                url = it.url("wss")
                found = await asyncio.to_thread(call, driver, origin, "connectOnly", url, options)
                if asked:
                    what = "wss without the certificate it requires is refused"
                    expect(what, "UNAVAILABLE", found.get("code"))
                else:
                    expect("wss with a token", None, found.get("error"))
    with site() as origin:
        url = "ws://127.0.0.1:1"
        found = await asyncio.to_thread(call, driver, origin, "connectOnly", url, options)
        expect("a token is not sent over ws", "WIRE_UNSUITABLE", found.get("reason"))


async def main(screenshot: Path | None) -> int:
    """Show everything; return the exit code."""
    # aiofastnet reports a handshake the browser gave up with a class where an exception belongs,
    # which logging cannot print.
    logging.raiseExceptions = False
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder)) as driver:
        version = driver.capabilities["browserVersion"]
        say(f"Chromium {version}")
        try:
            await show_whole_client(driver, screenshot)
            await show_encryption(driver)
        except Failure as failure:
            complain(f"FAILED  {failure}")
            for entry in driver.get_log("browser"):
                complain(f"        {entry['level']} {entry['message']}")
            return 1
    say("The JavaScript client works in a browser.")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Show the JavaScript client in a browser.")
    parser.add_argument("--screenshot", type=Path, help="keep a picture of the page")
    wanted = parser.parse_args()
    if reason := missing():
        complain(f"cannot run: {reason}")
        sys.exit(CANNOT_RUN)
    sys.exit(asyncio.run(main(wanted.screenshot)))
