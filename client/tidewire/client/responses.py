"""Reading a server stream of one call, with errors of ours."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc.aio

from tidewire.client.translate import RPC_ERRORS, is_own_cancellation, translate


async def responses(call: Any) -> AsyncGenerator[Any, None]:
    """
    Iterate over the responses of a call; it is cancelled when the iteration ends, however it does.

    Use it within ``contextlib.aclosing``.

    Raises:
        TidewireError: The call failed, or the server ended it with an error.
    """
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            yield response
    except asyncio.CancelledError as error:
        if is_own_cancellation():
            raise
        raise translate(error) from error
    except RPC_ERRORS as error:
        raise translate(error) from error
    finally:
        call.cancel()
