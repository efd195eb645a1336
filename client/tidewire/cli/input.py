"""Standard input: whole, or line by line without holding up the event loop."""

import asyncio
import io
import os
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from typing import Final, TextIO

import click

READ_BYTES: Final = 64 * 1024
VALUE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Most that is read as one value; the server's own limit is told by the server."""
LINE_BYTES_MAX: Final = 10 * 1024 * 1024
CHUNKS_AHEAD_MAX: Final = 4


def read_value(text: str) -> bytes:
    """The bytes of an argument; "-" means all of standard input."""
    if text != "-":
        return text.encode()
    data = sys.stdin.buffer.read(VALUE_BYTES_MAX + 1)
    if len(data) > VALUE_BYTES_MAX:
        raise click.ClickException(f"standard input is longer than {VALUE_BYTES_MAX} bytes.")
    return data


async def lines() -> AsyncIterator[list[bytes]]:
    """
    Yield the lines of standard input as they come, without their ends, many at a time.

    A thread reads, so that acknowledgements go on while nobody types; it is a daemon, so that an
    interrupt need not wait for the next line.
    """
    queue: asyncio.Queue[bytes] = asyncio.Queue(CHUNKS_AHEAD_MAX)
    loop = asyncio.get_running_loop()
    threading.Thread(target=_read, args=(sys.stdin, queue, loop), daemon=True).start()
    rest = b""
    while data := await queue.get():
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise click.ClickException(f"a line is longer than {LINE_BYTES_MAX} bytes.")
        if whole:
            yield whole
    if rest:
        yield [rest]


def _read(stdin: TextIO, queue: asyncio.Queue[bytes], loop: asyncio.AbstractEventLoop) -> None:
    try:
        descriptor = stdin.fileno()
    except (io.UnsupportedOperation, ValueError):
        descriptor = -1
    data = b"x"
    while data:
        # Not through the buffered stream: a daemon that holds its lock stops the interpreter's end.
        data = os.read(descriptor, READ_BYTES) if descriptor >= 0 else stdin.buffer.read()
        handing_over = queue.put(data)
        try:
            asyncio.run_coroutine_threadsafe(handing_over, loop).result()
        except (RuntimeError, CancelledError):  # the loop is over: nobody wants more
            handing_over.close()
            return
