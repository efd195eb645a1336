"""Let a program of the user answer: what came goes to its standard input, its output goes back."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Final

from tidewire.errors import ResponderFailed

OUTPUT_BYTES_MAX: Final = 10 * 1024 * 1024
ERROR_BYTES_MAX: Final = 64 * 1024
READ_BYTES: Final = 64 * 1024
SHOWN_CHARS: Final = 500


async def run_program(
    command: Sequence[str], data: bytes, variables: Mapping[str, str], timeout_s: float | None
) -> bytes:
    """
    Run a program once, without a shell.

    Args:
        command: Program and its arguments.
        data: Its standard input.
        variables: Put into its environment, beside our own.
        timeout_s: After this long it is killed; ``None`` leaves that to whoever cancels.

    Returns:
        What it wrote to standard output, at most 10 MiB.

    Raises:
        ResponderFailed: It cannot be started, ended with another code than 0, wrote too much or
            took too long; the message has the end of what it wrote to standard error.

    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **variables},
        )
    except OSError as error:
        raise ResponderFailed(f"{command[0]} cannot be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(timeout_s):
            _, output, told = await asyncio.gather(
                _feed(process, data),
                _drain(process.stdout, OUTPUT_BYTES_MAX),
                _drain(process.stderr, ERROR_BYTES_MAX),
            )
            code = await process.wait()
    except TimeoutError:
        raise ResponderFailed(f"{command[0]} took longer than {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0:
        text = told.decode("utf-8", "replace").strip()[-SHOWN_CHARS:]
        raise ResponderFailed(f"{command[0]} ended with exit code {code}: {text}".rstrip(": "))
    if len(output) > OUTPUT_BYTES_MAX:
        raise ResponderFailed(f"{command[0]} wrote more than {OUTPUT_BYTES_MAX} bytes")
    return output


async def _feed(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(data)
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        return  # it does not read its input, which is its own business


async def _drain(stream: asyncio.StreamReader | None, bytes_max: int) -> bytes:
    """Read to the end, keep a little more than the limit: enough to see that it was passed."""
    assert stream is not None
    kept = bytearray()
    while data := await stream.read(READ_BYTES):
        if len(kept) <= bytes_max:
            kept += data
    return bytes(kept)
