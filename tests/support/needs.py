"""
What a wire cannot carry is shown too: ``@pytest.mark.needs("streams")``.

On a wire that lacks what a test needs the test still runs, and must end with the typed error that
says so. A test that passes there is a fault as well: then the wire carries it, and the table of
``support.wires`` is wrong.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from support.wires import LACKS
from tidewire.client.translate import translate
from tidewire.errors import MessageTooLarge, TidewireError, WireUnsuitable

REASONS: Final[dict[str, tuple[type[TidewireError], ...]]] = {
    "streams": (WireUnsuitable,),
    "large": (WireUnsuitable, MessageTooLarge),
}
"""What a wire can lack, and how it says so."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    known = ", ".join(REASONS)
    config.addinivalue_line("markers", f"needs(*abilities): what a wire must carry: {known}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Turn tests around on wires that lack what they need."""
    for item in items:
        lacking = sorted(needed(item) & lacked(item))
        if isinstance(item, pytest.Function) and lacking:
            allowed = tuple(kind for ability in lacking for kind in REASONS[ability])
            item.obj = refused(item.obj, allowed)
            item.user_properties.append(("refused", True))


def needed(item: pytest.Item) -> set[str]:
    """Return what the marks of a test name; an ability nobody knows is a mistake."""
    names = {name for mark in item.iter_markers("needs") for name in mark.args}
    if names - REASONS.keys():
        raise pytest.UsageError(f"{item.nodeid}: there are the needs {', '.join(REASONS)}")
    return names


def lacked(item: pytest.Item) -> frozenset[str]:
    """Return what the wire of a test does not carry."""
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec is not None else ()
    return frozenset().union(*(LACKS.get(value, ()) for value in values if isinstance(value, str)))


def refused(
    test: Callable[..., Any], allowed: tuple[type[TidewireError], ...]
) -> Callable[..., Any]:
    """Return a test that passes when ``test`` ends with one of these errors, and only then."""
    assert inspect.iscoroutinefunction(test), "only coroutines talk to wires"

    @functools.wraps(test)
    async def run(*arguments: Any, **named: Any) -> None:
        try:
            await test(*arguments, **named)
        except Exception as error:
            found = [translate(each) for each in leaves(error) if translatable(each)]
            if any(isinstance(each, allowed) for each in found):
                return
            raise
        pytest.fail("the wire carries what support.wires says that it lacks")

    return run


def translatable(error: BaseException) -> bool:
    """Whether an error is one that a wire reports: an assertion of the test never is."""
    return isinstance(error, TidewireError) or hasattr(error, "trailing_metadata")


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and what it stands for when it is a group."""
    yield error
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
