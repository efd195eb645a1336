"""Controls of the mark that shows what a wire cannot carry."""

from typing import Any

import pytest

from support.needs import refused
from tidewire.errors import ConnectionLost, MessageTooLarge, WireUnsuitable

STREAMS = (WireUnsuitable,)


def ending_with(error: Exception | None) -> Any:
    async def test() -> None:
        if error is not None:
            raise error

    return test


@pytest.mark.parametrize(
    "error",
    [WireUnsuitable("no streams"), ExceptionGroup("of a task", [WireUnsuitable("no streams")])],
)
async def test_the_typed_error_is_what_is_asked_for(error: Exception) -> None:
    """A test that ends with it is shown, also when a group of tasks does."""
    await refused(ending_with(error), STREAMS)()


@pytest.mark.parametrize(
    "error", [ConnectionLost("gone"), MessageTooLarge("too large"), AssertionError(), OSError()]
)
async def test_no_other_error_will_do(error: Exception) -> None:
    """A wire that only breaks is not excused."""
    with pytest.raises(type(error)):
        await refused(ending_with(error), STREAMS)()


async def test_a_wire_that_carries_it_is_a_fault() -> None:
    """What is listed as lacking and works is listed wrongly."""
    with pytest.raises(pytest.fail.Exception):
        await refused(ending_with(None), STREAMS)()
