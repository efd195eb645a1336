"""
Checksums of rows.

CRC32C over the columns, each with its type and length, so that no two different rows have the same
bytes.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from crc32c import crc32c

Column = int | str | bytes | None

_NUMBER = struct.Struct("<cq")
_LENGTH = struct.Struct("<cI")


def seal(*columns: Column) -> int:
    """Checksum of a row's columns."""
    parts: list[bytes] = []
    for column in columns:
        if column is None:
            parts.append(b"n")
        elif isinstance(column, int):
            parts.append(_NUMBER.pack(b"i", column))
        else:
            text = isinstance(column, str)
            data = column.encode() if isinstance(column, str) else column
            parts.append(_LENGTH.pack(b"s" if text else b"b", len(data)))
            parts.append(data)
    return int(crc32c(b"".join(parts)))


def fits(crc: object, *columns: object) -> bool:
    """
    Whether a row read from the store is what was written. Columns of types that are never written
    do not fit.
    """
    for column in columns:
        if column is not None and not isinstance(column, int | str | bytes):
            return False
    try:
        return crc == seal(*columns)  # type: ignore[arg-type]
    except (UnicodeEncodeError, struct.error):
        return False


def readable(cursor: Iterable[Any]) -> Iterator[Any]:
    """Rows, without those that a flipped bit has made impossible to read as text."""
    rows = iter(cursor)
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except UnicodeDecodeError:
            continue


def fits_digest(digest: bytes, data: bytes) -> bool:
    """Whether bytes have this SHA-256."""
    return hashlib.sha256(data).digest() == digest
