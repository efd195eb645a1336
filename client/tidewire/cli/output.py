"""What commands write to standard output: payloads, JSON lines, and small tables."""

import base64
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from typing import Any, BinaryIO

from tidewire.cli.settings import ReaderGone

_CONTROL = {n: f"\\x{n:02x}" for n in (*range(32), 127, *range(128, 160)) if n not in (9, 10)}


class Output:
    """
    Writes results. On a terminal, what came from elsewhere cannot send it control characters; into
    a pipe, payloads go byte for byte.
    """

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout.buffer
        self._is_terminal = self._stream.isatty()

    def payload(self, data: bytes, *, flush: bool = True) -> None:
        """Write a payload on a line of its own; many at a time with one `flush` at their end."""
        if self._is_terminal:
            data = printable(data).encode()
        self._write(data + b"\n", flush=flush)

    def flush(self) -> None:
        """Hand on what was written."""
        self._write(b"", flush=True)

    def raw(self, data: bytes) -> None:
        """Write bytes and nothing else; on a terminal as `payload`."""
        if self._is_terminal:
            self.payload(data)
        else:
            self._write(data, flush=True)

    def _write(self, data: bytes, *, flush: bool) -> None:
        try:
            self._stream.write(data)
            if flush:
                self._stream.flush()
        except BrokenPipeError:
            raise ReaderGone from None

    def line(self, text: str) -> None:
        """Write a line."""
        self.payload(text.encode())

    def record(self, thing: object, *, flush: bool = True) -> None:
        """Write one JSON object on one line."""
        text = json.dumps(to_plain(thing), ensure_ascii=False)
        self.payload(text.encode(), flush=flush)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Write rows under their columns, as wide as the widest."""
        texts = [[printable(_text(cell)) for cell in row] for row in rows]
        widths = [
            max(len(column), *(len(row[index]) for row in texts), 0)
            for index, column in enumerate(columns)
        ]
        for row in ([column.upper() for column in columns], *texts):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.line("  ".join(cells).rstrip())

    def listing(self, items: Mapping[str, object]) -> None:
        """Write names and values under each other; nested ones deeper."""
        for name, value in items.items():
            if isinstance(value, Mapping):
                self.line(f"{name}:")
                for inner, deeper in value.items():
                    self.line(f"  {inner}: {printable(_text(deeper))}")
            else:
                self.line(f"{name}: {printable(_text(value))}")


def printable(data: bytes | str) -> str:
    """Text that a terminal shows and does not obey."""
    text = data.decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    return text.translate(_CONTROL)


def payload_fields(data: bytes, name: str = "payload") -> dict[str, str]:
    """A payload in JSON: text where it is UTF-8, else Base64 under another name."""
    try:
        return {name: data.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode("ascii")}


def to_plain(thing: Any) -> Any:
    """Turn what the client returns into what JSON can hold."""
    if isinstance(thing, Enum):
        return thing.name.lower()
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, bytes | bytearray | memoryview):
        return next(iter(payload_fields(bytes(thing)).values()))
    if isinstance(thing, datetime):
        return thing.isoformat()
    if isinstance(thing, Mapping):
        return {str(key): to_plain(value) for key, value in thing.items()}
    if hasattr(thing, "DESCRIPTOR"):
        from google.protobuf.json_format import MessageToDict

        return MessageToDict(thing, preserving_proto_field_name=True)
    if is_dataclass(thing):
        return {field.name: to_plain(getattr(thing, field.name)) for field in fields(thing)}
    if isinstance(thing, Iterable):
        return [to_plain(item) for item in thing]
    return str(thing)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return "" if value is None else str(value)
