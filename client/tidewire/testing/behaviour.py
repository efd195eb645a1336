"""What a behaviour is, and the words they are written in."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from tidewire.client.translate import translate
from tidewire.errors import MessageTooLarge, TidewireError, WireUnsuitable
from tidewire.testing.site import CALL_LIMIT_S, Site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STREAMS: Final = "streams"
LARGE: Final = "large"
CERTIFICATES: Final = "certificates"
TOKEN: Final = "token"  # noqa: S105 (the name of an ability)
PRIORITIES: Final = "priorities"
ABILITIES: Final = {
    STREAMS: "calls with many messages, and their flow control",
    LARGE: "messages of 10 MiB",
    CERTIFICATES: "mutual TLS; the registry knows which wires have it",
    TOKEN: "bearer tokens; encrypted wires have them",
    PRIORITIES: "urgent calls before bulk; gRPC has none",
}
"""What wires may lack, with a word on each. All of them carry unary calls."""
REFUSALS: Final[dict[str, tuple[type[TidewireError], ...]]] = {
    STREAMS: (WireUnsuitable,),
    LARGE: (WireUnsuitable, MessageTooLarge),
    CERTIFICATES: (WireUnsuitable,),
    TOKEN: (WireUnsuitable,),
    PRIORITIES: (),
}
"""How a wire must say that it lacks an ability."""
POLL_S: Final = 0.02
STILL_POLLS: Final = 15
"""A figure that has not changed for so many polls stands still."""


class Unmet(Exception):
    """A behaviour is not as it must be; the text says what was expected and what was found."""


class Absent(Unmet):
    """
    Calls work and an ability does not show.

    Excused where the wire is said not to have it.
    """

    def __init__(self, ability: str, what: str) -> None:
        super().__init__(f"{ability}: {what}")
        self.ability = ability


Run = Callable[[Site], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """
    One thing that holds on every wire.

    Attributes:
        name: Its name.
        group: Group it belongs to.
        needs: Abilities it takes.
        run: Shows it; raises what went wrong.
    """

    name: str
    group: str
    needs: frozenset[str]
    run: Run

    @property
    def proves(self) -> str:
        """What it proves, in a sentence."""
        return " ".join((self.run.__doc__ or "").split())


_FOUND: list[Behaviour] = []


def behaviour(*needs: str) -> Callable[[Run], Run]:
    """Add a function to the kit; its name and its docstring are the behaviour's."""

    def add(run: Run) -> Run:
        function: Any = run
        group = function.__module__.rpartition(".")[2]
        _FOUND.append(Behaviour(function.__name__, group, frozenset(needs), run))
        return run

    return add


def found() -> tuple[Behaviour, ...]:
    """Return what was added, in order."""
    return tuple(_FOUND)


def expect(expected: object, actual: object, what: str) -> None:
    """Raise :class:`Unmet` unless both are equal."""
    if expected != actual:
        raise Unmet(f"{what}: expected {_short(expected)}, found {_short(actual)}")


def require(holds: bool, problem: str) -> None:
    """Raise :class:`Unmet` with this problem unless it holds."""
    if not holds:
        raise Unmet(problem)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:60]}...{text[-50:]} ({len(text)} characters)"


async def ending(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """
    Wait for the error with which a call ends.

    Raises:
        Unmet: It ends without one.
        WireUnsuitable, MessageTooLarge: The wire says that it cannot carry the call.
    """
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        if isinstance(translate(error), WireUnsuitable):
            raise
        return error
    raise Unmet(f"the call ended without an error, with {_short(answer)}")


async def expect_code(call: Awaitable[Any], *codes: grpc.StatusCode) -> grpc.aio.AioRpcError:
    """Wait for the error of a call and see that it has one of these codes."""
    error = await ending(call)
    names = [code.name for code in codes]
    if error.code() not in codes:
        raise Unmet(
            f"the call ended with {error.code().name} ({error.details()}), "
            f"expected {' or '.join(names)}"
        )
    return error


async def within(awaited: Awaitable[Any], what: str, limit_s: float = CALL_LIMIT_S) -> Any:
    """Wait for something, and say what did not happen when it does not come in time."""
    try:
        return await asyncio.wait_for(awaited, limit_s)
    except TimeoutError:
        raise Unmet(f"{what} did not happen within {limit_s:g} s") from None


async def standing(read: Callable[[], int]) -> int:
    """Wait until a figure stands still, and return it."""
    last, still = read(), 0
    while still < STILL_POLLS:
        await asyncio.sleep(POLL_S)
        now = read()
        still = still + 1 if now == last else 0
        last = now
    return last


@asynccontextmanager
async def running(work: Awaitable[Any]) -> "AsyncIterator[asyncio.Future[Any]]":
    """Let something run beside; it is cancelled and awaited at the end."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_started(site: Site, call: Any) -> None:
    """Wait for the handler, or for the error with which the call ends before."""
    started = asyncio.ensure_future(site.echo.started.wait())
    ended = asyncio.ensure_future(call.code())
    await asyncio.wait([started, ended], return_when=asyncio.FIRST_COMPLETED, timeout=CALL_LIMIT_S)
    begun = started.done()
    started.cancel()
    ended.cancel()
    await asyncio.wait([started, ended])
    if not begun:
        await call
        raise Unmet("the call ended before its handler began")
