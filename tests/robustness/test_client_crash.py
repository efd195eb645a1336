"""A client over servers that are killed under it: nothing is lost, repeated or out of order."""

import asyncio
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import tidewire
from support.process import ServerProcess
from support.scripted import eventually
from tidewire.client.client import Client
from tidewire.client.lanes import Item, Lanes
from tidewire.client.retry import RetryPolicy

KILLS = 3
QUICK = RetryPolicy(delay_first_s=0.01, delay_s_max=0.1, budget_burst=100_000, attempts_max=1_000)


class Load:
    """What was published, and what came back."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.sent: list[int] = []
        self.read: list[int] = []
        self.consumed: set[int] = set()
        self.revisions: list[int] = []
        self.stopped = False

    async def goes_on(self) -> None:
        """Wait until something more is read."""
        before = len(self.read)
        await eventually(lambda: len(self.read) > before)

    async def publish(self) -> None:
        """Publish numbers in order, a few in a turn, until it is stopped."""
        async with self.client.events.publisher() as publisher:
            while not self.stopped:
                for _ in range(20):
                    self.sent.append(len(self.sent))
                    await publisher.publish("s.a", str(self.sent[-1]))
                await asyncio.sleep(0.001)
            await publisher.flush()

    async def watch(self) -> None:
        """Collect the revisions of a key that is written all the time."""
        async with self.client.state.watch("k", changes_only=True) as watch:
            async for event in watch:
                self.revisions.append(event.revision)

    async def write(self) -> None:
        """Write a key until it is stopped."""
        while not self.stopped:
            await self.client.state.put("k", "x")
            await asyncio.sleep(0.001)


async def run_over_kills(folder: Path, wire: str) -> Load:
    """Run the load while the server is killed and started again on the same port and store."""
    loop = asyncio.get_running_loop()
    server = await _start(folder, f"{wire}://127.0.0.1:0")
    url = str(server.ready["listeners"][0])
    source = random.Random(7)
    async with tidewire.connect(url, timeout_s=30.0, retry=QUICK) as client:
        load = Load(client)
        await client.events.stream("s").create("s.>")
        await client.events.stream("s").consumer("c").create()
        reading = client.events.read("s", handler=_into(load.read.append))
        consuming = client.events.consume("s", "c", handler=_into(load.consumed.add))
        async with reading, consuming:
            work = [asyncio.create_task(part()) for part in (load.publish, load.write)]
            watching = asyncio.create_task(load.watch())
            for _ in range(KILLS):
                await load.goes_on()
                await asyncio.sleep(source.uniform(0.05, 0.3))
                await loop.run_in_executor(None, server.end, signal.SIGKILL)
                server = await _start(folder, url)
            await load.goes_on()
            load.stopped = True
            await asyncio.gather(*work)
            await eventually(lambda: len(load.consumed) >= len(load.sent))
            await eventually(lambda: len(load.read) >= len(load.sent))
        watching.cancel()
        await asyncio.wait([watching])
    await loop.run_in_executor(None, server.end, signal.SIGKILL)
    return load


async def _start(folder: Path, url: str) -> ServerProcess:
    server = ServerProcess(folder, wires=(), flags=("--listen", url))
    await asyncio.get_running_loop().run_in_executor(None, server.wait_ready)
    return server


def _into(take: Callable[[int], None]) -> Callable[[tidewire.Message], None]:
    return lambda message: take(int(message.payload))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("wire", ["grpc", "tcp"])
async def test_a_client_survives_kills_of_its_server(wire: str, tmp_path: Path) -> None:
    """Each number is stored once and in order, consumed at least once; watches have no gap."""
    load = await run_over_kills(tmp_path, wire)

    assert load.sent == load.read
    assert set(load.sent) <= load.consumed
    first, last = load.revisions[0], load.revisions[-1]
    assert list(range(first, last + 1)) == load.revisions


@pytest.mark.timeout(300)
async def test_without_sequences_something_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: a publisher that sends again without sequences stores messages twice."""

    def unnumbered(lanes: Lanes, item: Item) -> bool:
        return True

    monkeypatch.setattr(Lanes, "enter", unnumbered)
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        load = await run_over_kills(folder, "tcp")
        assert set(load.sent) == set(load.read)
        if load.sent != load.read:
            return
    pytest.fail("no message was repeated, so the test beside this one proves nothing")
