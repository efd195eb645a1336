"""The queue of one stream's writer."""

import asyncio

import pytest

from tidewire import errors
from tidewire_server.services.outbox import Outbox, OutboxClosed

WAIT_S = 10.0


def outbox(items_max: int = 3, bytes_max: int = 100) -> Outbox[str]:
    return Outbox(items_max, bytes_max)


async def test_items_come_out_in_order_and_then_the_end() -> None:
    """What was put before the close is taken first; what comes after it is dropped."""
    box = outbox()
    box.put("a")
    box.put("b", 10)
    box.close()
    box.put("c")

    assert ["a", "b"] == [await box.take(), await box.take()]
    with pytest.raises(OutboxClosed):
        await box.take()
    assert 0 == box.bytes


async def test_an_error_comes_after_the_rest_or_instead_of_it() -> None:
    """`close` with an error keeps what waits, `fail` drops it."""
    closed, failed = outbox(), outbox()
    for box in (closed, failed):
        box.put("a")
    closed.close(errors.Draining("later"))
    failed.fail(errors.Draining("now"))

    assert "a" == await closed.take()
    for box in (closed, failed):
        with pytest.raises(errors.Draining):
            await box.take()


async def test_the_first_end_counts() -> None:
    """A failure after an orderly close drops the rest; a close after a failure changes nothing."""
    box = outbox()
    box.fail(errors.Draining("first"))
    box.close(errors.SlowConsumer("second"))
    with pytest.raises(errors.Draining):
        await box.take()


async def test_a_waiting_taker_is_woken() -> None:
    """By an item, and by the end."""
    box = outbox()
    taking = asyncio.create_task(box.take())
    await asyncio.sleep(0)
    box.put("a")
    async with asyncio.timeout(WAIT_S):
        assert "a" == await taking
    taking = asyncio.create_task(box.take())
    await asyncio.sleep(0)
    box.close()
    with pytest.raises(OutboxClosed):
        async with asyncio.timeout(WAIT_S):
            await taking


async def test_a_cancelled_taker_takes_nothing() -> None:
    """Even when it is cancelled after it was woken."""
    box = outbox()
    taking = asyncio.create_task(box.take())
    await asyncio.sleep(0)
    box.put("a")
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking

    assert "a" == await box.take()


@pytest.mark.parametrize(("size", "number"), [(0, 3), (50, 2), (1000, 1)])
def test_it_is_full_by_items_and_by_bytes(size: int, number: int) -> None:
    """Whichever comes first."""
    box = outbox()
    for _ in range(number):
        assert not box.full
        box.put("a", size)

    assert box.full


async def test_waiting_for_room_ends_when_there_is_some() -> None:
    """Several may wait."""
    box = outbox()
    for _ in range(3):
        box.put("a")
    waiting = [asyncio.create_task(box.wait_room(WAIT_S)) for _ in range(2)]
    await asyncio.sleep(0)
    await box.take()

    assert [True, True] == await asyncio.gather(*waiting)


async def test_waiting_for_room_gives_up_without_progress() -> None:
    """When nothing at all is taken; an outbox that is closed is not waited for."""
    box = outbox(items_max=1)
    box.put("a")
    assert not await box.wait_room(0.01)
    box.close()

    assert await box.wait_room(0.01)
