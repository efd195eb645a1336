"""What is written, where, and what never is."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog

from tidewire_server.ops import logs

CANARY = "canary-7f3a"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Give the process back the handlers it had."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_are_json_with_time_in_utc() -> None:
    """One object for each line: event, level, logger, RFC 3339 time in UTC, and the fields."""
    stream = io.StringIO()
    logs.configure("info", "auto", stream)

    structlog.stdlib.get_logger("a.b").info("started", listeners=["tcp://127.0.0.1:1"])

    (line,) = lines(stream)
    assert ("started", "info", "a.b") == (line["event"], line["level"], line["logger"])
    assert ["tcp://127.0.0.1:1"] == line["listeners"]
    assert timedelta(0) == datetime.fromisoformat(line["timestamp"]).utcoffset()


def test_the_standard_library_logs_the_same_way() -> None:
    """A library that knows nothing of structlog ends in the same shape, its extra fields too."""
    stream = io.StringIO()
    logs.configure("info", "json", stream)

    logging.getLogger("lib").warning("took %s", "long", extra={"peer": "ipv4:127.0.0.1:1"})

    (line,) = lines(stream)
    assert ("took long", "warning", "lib") == (line["event"], line["level"], line["logger"])
    assert "ipv4:127.0.0.1:1" == line["peer"]


def test_the_level_changes_while_running() -> None:
    """Debug is off, on, and off again, without a restart; loggers made before obey too."""
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    logger = structlog.stdlib.get_logger("x")

    for level in ("info", "debug", "error"):
        logs.set_level(level)
        assert level == logs.get_level()
        logger.debug(level)

    assert ["debug"] == [line["event"] for line in lines(stream)]
    with pytest.raises(ValueError, match="known are debug, info"):
        logs.set_level("loud")


def leak(stream: io.StringIO) -> None:
    """Log carelessly, in every way there is."""
    secret = CANARY.encode()
    structlog.stdlib.get_logger("x").error("a", payload=CANARY, found=secret, token=CANARY)
    logging.getLogger("y").error("b", extra={"body": CANARY, "blob": memoryview(secret)})
    try:
        raise ValueError("wrong")
    except ValueError:
        logging.getLogger("z").exception("c", extra={"password": CANARY})


@pytest.mark.parametrize("format_", ["json", "console"])
def test_payloads_and_secrets_are_never_written(format_: Any) -> None:
    """Fields named like a secret are blanked, bytes are counted, and tracebacks hold no values."""
    stream = io.StringIO()
    logs.configure("debug", format_, stream)

    leak(stream)

    assert CANARY not in stream.getvalue()
    assert f"<{len(CANARY)} bytes>" in stream.getvalue()
    assert "ValueError: wrong" in stream.getvalue()


def test_leaks_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without the blanking the same lines hold the secret."""
    monkeypatch.setattr(logs, "blank_secrets", lambda _logger, _name, fields: fields)
    stream = io.StringIO()
    logs.configure("debug", "json", stream)

    leak(stream)

    assert CANARY in stream.getvalue()


def test_long_texts_are_cut() -> None:
    """A field cannot make a line of any length."""
    stream = io.StringIO()
    logs.configure("info", "json", stream)

    structlog.stdlib.get_logger("x").info("a", text="x" * 100_000)

    assert len(stream.getvalue()) < logs.TEXT_CHARS_MAX + 500


def test_the_ready_line_is_one_object() -> None:
    """Who started the server learns the ports from one line."""
    stream = io.StringIO()

    logs.write_ready(["tcp://127.0.0.1:5"], "http://127.0.0.1:6", node_id="n", stream=stream)

    (line,) = lines(stream)
    assert isinstance(line.pop("pid"), int)
    assert line == {
        "event": "ready",
        "listeners": ["tcp://127.0.0.1:5"],
        "admin": "http://127.0.0.1:6",
        "node_id": "n",
    }
