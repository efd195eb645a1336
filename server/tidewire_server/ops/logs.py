"""
What the server writes: log lines on stderr, and one ready line on stdout.

A line is an event with fields, as JSON or, on a terminal, for people. The standard library's
loggers and structlog's end in the same place and look the same. Bytes are never written, only how
many they were, and fields that are named like a secret or a payload are blanked: a mistake in a
call must not put a message's content in a log.
"""

import logging
import os
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any, Final, Literal, TextIO

import msgspec
import structlog
from structlog.typing import Processor, WrappedLogger

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
TEXT_CHARS_MAX: Final = 8_192
"""Longest text of one field; the rest is cut."""
BLANKED: Final = "[not logged]"
NEVER_LOGGED: Final = frozenset(
    {
        "authorization",
        "body",
        "credentials",
        "data",
        "key_pem",
        "password",
        "payload",
        "private_key",
        "secret",
        "token",
        "value",
    }
)

Fields = MutableMapping[str, Any]


def configure(
    level: str = "info",
    format: Literal["auto", "json", "console"] = "auto",  # noqa: A002 (the option's name)
    stream: TextIO | None = None,
) -> None:
    """
    Send every log line of the process to one stream; calling it again replaces what was set.

    Args:
        level: Least important level that is written; see `set_level`.
        format: "auto" is "console" when the stream is a terminal and "json" otherwise.
        stream: Where to write; ``None`` is stderr.

    """
    target = stream if stream is not None else sys.stderr
    console = format == "console" or (format == "auto" and target.isatty())
    structlog.configure(
        processors=[*_shared(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_shared()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_console(target) if console else _json()),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    set_level(level)


def set_level(level: str) -> None:
    """
    Change the least important level that is written, at once and for the whole process.

    Raises:
        ValueError: There is no such level.

    """
    if level not in LEVELS:
        raise ValueError(f"no log level {level!r}; known are {', '.join(LEVELS)}")
    logging.getLogger().setLevel(LEVELS[level])


def get_level() -> str:
    """The least important level that is written."""
    number = logging.getLogger().getEffectiveLevel()
    return next((name for name, value in LEVELS.items() if value >= number), "error")


def write_ready(
    listeners: Sequence[str], admin: str | None, *, node_id: str, stream: TextIO | None = None
) -> None:
    """
    Tell the starter of this process that it serves: one JSON object on one line of stdout.

    Args:
        listeners: URLs as they are bound, port 0 replaced.
        admin: URL of the admin listener; ``None`` when it is off.
        node_id: Name of the server.
        stream: Where to write; ``None`` is stdout.

    """
    target = stream if stream is not None else sys.stdout
    line = {
        "event": "ready",
        "listeners": list(listeners),
        "admin": admin,
        "node_id": node_id,
        "pid": os.getpid(),
    }
    target.write(msgspec.json.encode(line).decode() + "\n")
    target.flush()


def blank_secrets(_logger: WrappedLogger, _name: str, fields: Fields) -> Fields:
    """Drop what must not be written, and cut what is long."""
    for key, value in fields.items():
        if key.startswith("_"):  # structlog's own, such as the record: gone before rendering
            continue
        if key.lower() in NEVER_LOGGED:
            fields[key] = BLANKED
        elif isinstance(value, bytes | bytearray | memoryview):
            fields[key] = f"<{len(value)} bytes>"
        elif isinstance(value, str) and len(value) > TEXT_CHARS_MAX:
            fields[key] = value[:TEXT_CHARS_MAX] + f"... ({len(value)} characters)"
    return fields


def _shared() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        blank_secrets,
    ]


def _json() -> list[Processor]:
    # Tracebacks as text: the structured form would hold local variables, and so payloads.
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_encode)]


def _console(target: TextIO) -> list[Processor]:
    colors = target.isatty() and not os.environ.get("NO_COLOR")
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]


def _encode(fields: Any, **_options: Any) -> str:
    return msgspec.json.encode(fields, enc_hook=repr).decode()
