"""Connect to the server that the options name, and run a command there."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import tidewire
from tidewire.cli.settings import Settings, Terminated
from tidewire.cli.wire import open_channel, tls_of
from tidewire.client.translate import RPC_ERRORS, translate

if TYPE_CHECKING:
    from tidewire.signing import Signer, Verifier

ResultT = TypeVar("ResultT")


class Caller:
    """Makes the calls of generated stubs: with the time limit, and errors as ours."""

    def __init__(self, wire: Any, timeout_s: float) -> None:
        self.channel = wire
        self._timeout_s = timeout_s

    async def call(self, method: Callable[..., Any], request: Any) -> Any:
        """
        Make one unary call.

        Raises:
            TidewireError: The call failed.

        """
        try:
            return await method(request, timeout=self._timeout_s)
        except RPC_ERRORS as error:
            raise translate(error) from error


def run_calls(settings: Settings, work: Callable[[Caller], Awaitable[ResultT]]) -> ResultT:
    """
    Do what needs unary calls only: no client, nothing that goes on in the background.

    Raises:
        TidewireError: A call failed, or the server was not reached.
        KeyboardInterrupt: The person at the terminal has had enough; the connection is closed.

    """

    async def whole() -> ResultT:
        async with open_channel(settings) as wire:
            return await work(Caller(wire, settings.timeout_s))

    return asyncio.run(whole())


def run(
    settings: Settings,
    work: "Callable[[tidewire.Client], Awaitable[ResultT]]",
    *,
    compression: str | None = None,
    signer: "Signer | None" = None,
    verifier: "Verifier | None" = None,
) -> ResultT:
    """
    Do what needs a client: it keeps streams open, reopens and resumes them. Raises as `run_calls`,
    and `Terminated` after SIGTERM.
    """

    async def whole() -> ResultT:
        async with (
            _ended_by_sigterm(),
            tidewire.connect(
                settings.url,
                tls=tls_of(settings),
                timeout_s=settings.timeout_s,
                connect_timeout_s=settings.timeout_s,
                compression=compression,
                signer=signer,
                verifier=verifier,
                name="tidewire-cli",
            ) as client,
        ):
            return await work(client)

    level = logging.ERROR if settings.quiet else logging.WARNING
    logging.basicConfig(
        format="tidewire: %(message)s", level=logging.INFO if settings.debug else level
    )
    return asyncio.run(whole())


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait for the first of these to end, drop the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()


@asynccontextmanager
async def _ended_by_sigterm() -> AsyncIterator[None]:
    """
    Let SIGTERM end the work in order. Without this a container's first process would ignore it.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    told = False

    def end() -> None:
        nonlocal told
        told = True
        if task is not None:
            task.cancel()

    loop.add_signal_handler(signal.SIGTERM, end)
    try:
        yield
    except asyncio.CancelledError:
        if not told:
            raise
        raise Terminated from None
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
