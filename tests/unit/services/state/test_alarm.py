"""The alarm rings at the last deadline it was set for, and only then."""

import asyncio

from support.store import WAIT_S
from tidewire_server.services.state.alarm import Alarm


async def test_it_rings_at_the_last_deadline() -> None:
    """Moved on again and again, it rings once, not before the last deadline."""
    loop = asyncio.get_running_loop()
    rang: list[float] = []
    done = asyncio.Event()

    def ring() -> None:
        rang.append(loop.time())
        done.set()

    alarm = Alarm(ring)
    for _ in range(5):
        alarm.set(0.5)
        await asyncio.sleep(0.01)
    alarm.set(0.5)
    deadline = loop.time() + 0.49
    async with asyncio.timeout(WAIT_S):
        await done.wait()
    await asyncio.sleep(0.05)

    assert 1 == len(rang)
    assert rang[0] > deadline


async def test_a_sooner_deadline_counts() -> None:
    """Set for later first, it does not sleep through the sooner one."""
    done = asyncio.Event()
    alarm = Alarm(done.set)
    alarm.set(3600)
    alarm.set(0.01)
    async with asyncio.timeout(WAIT_S):
        await done.wait()


async def test_put_off_or_closed_it_stays_silent() -> None:
    """Nothing rings that nobody waits for any more."""
    rang: list[int] = []
    put_off, closed = Alarm(lambda: rang.append(1)), Alarm(lambda: rang.append(2))
    put_off.set(0.01)
    put_off.put_off()
    closed.set(0.01)
    closed.close()
    await asyncio.sleep(0.05)

    assert [] == rang
