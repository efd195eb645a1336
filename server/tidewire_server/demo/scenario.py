"""
What happens on one wire.

The operator is a process of its own, started here, killed when it has made half of the summaries,
and started again when the members' view says that it is dead.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import tidewire
from tidewire.certs import TRUST_DOMAIN
from tidewire.errors import TidewireError
from tidewire_server.demo import expected
from tidewire_server.demo.data import Dataset, Reading
from tidewire_server.demo.kinds.checkpoint import DailyStream
from tidewire_server.demo.kinds.control import Switch
from tidewire_server.demo.kinds.event import Readings
from tidewire_server.demo.kinds.heartbeat import OperatorWatch
from tidewire_server.demo.kinds.query import Questions
from tidewire_server.demo.kinds.state import Board
from tidewire_server.demo.names import LEASE_S, Names
from tidewire_server.demo.processes import Child, Children
from tidewire_server.demo.report import KINDS, NOT_REACHED, Cell, Progress, Unverified
from tidewire_server.demo.server import DRIVER, ENCRYPTED, OPERATOR, DemoServer

WIRE_TIMEOUT_S: Final = 120.0
START_TIMEOUT_S: Final = 20.0
DEAD_TIMEOUT_S: Final = LEASE_S + 10.0
BEFORE_KILL: Final = 0.6
"""Part of the readings that is published before the operator is killed."""
BEFORE_PAUSE: Final = 0.9
"""Part of the readings that is published before the operator is paused."""
MEASURED_MAX: Final = 200
"""Readings published one by one at the end, each acknowledged before the next."""
REFUSED_TIMEOUT_S: Final = 3.0


class Scenario:
    """
    One wire's run.

    Attributes:
        cells: What was found, one for each kind.
    """

    def __init__(
        self,
        wire: str,
        server: DemoServer,
        dataset: Dataset,
        children: Children,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.cells = {kind: Cell(kind, wire) for kind in KINDS}
        self._wire = wire
        self._server = server
        self._dataset = dataset
        self._children = children
        self._folder = folder
        self._progress = progress
        self._names = Names.of(wire)
        self._expected = expected.compute(dataset.readings)

    async def run(self) -> Sequence[Cell]:
        """Do everything; a failure is told by the cells that it leaves unverified."""
        try:
            async with asyncio.timeout(WIRE_TIMEOUT_S):
                await self._run()
        except (TidewireError, TimeoutError, ValueError, OSError) as error:
            reason = str(error) or f"not done within {WIRE_TIMEOUT_S:g} s"
            self._say(f"failed: {type(error).__name__}: {reason}")
            for cell in self.cells.values():
                if cell.detail == NOT_REACHED:
                    cell.detail = f"{NOT_REACHED}: {type(error).__name__}: {reason}".split("\n")[0]
        return list(self.cells.values())

    async def _run(self) -> None:
        if self._wire in ENCRYPTED:
            await refuse_strangers(self._server.url(self._wire, None))
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                tidewire.connect(self._server.url(self._wire), name="demo driver")
            )
            readings = Readings(client, self._names, self.cells["Event"])
            await readings.create_streams()
            watch = await stack.enter_async_context(OperatorWatch(client, self._names))
            inbox = await stack.enter_async_context(client.events.read(self._names.daily))
            daily = DailyStream(client, self._names, inbox)
            await self._kill_halfway(readings, watch, daily)
            with self.cells["State"].judged():
                await Board(client, self._names).verify(self._dataset, self.cells["State"])
            await watch.wait("dead", DEAD_TIMEOUT_S)
            await self._finish(client, readings, watch, daily)

    async def _kill_halfway(
        self, readings: Readings, watch: OperatorWatch, daily: DailyStream
    ) -> None:
        """Start the operator, kill it at its work, and publish more while it is dead."""
        before, meanwhile, _ = self._parts()
        operator = self._start_operator()
        await watch.wait("alive", START_TIMEOUT_S, child=operator)
        self._say(f"publishing {len(before):,} readings")
        await readings.publish(before)
        await daily.read_until(min(len(self._expected) // 2, expected.days_over(before)))
        operator.require_running()
        operator.kill()
        watch.killed()
        self._say("operator killed (SIGKILL), publishing more; State meanwhile")
        await readings.publish(meanwhile)

    async def _finish(
        self,
        client: tidewire.Client,
        readings: Readings,
        watch: OperatorWatch,
        daily: DailyStream,
    ) -> None:
        """Start the operator again, pause it, resume it, and verify what it made of everything."""
        operator = self._start_operator()
        await watch.wait("alive", START_TIMEOUT_S, above=watch.incarnation, child=operator)
        self._say("operator started again")
        questions = Questions(client, self._names)
        await questions.status()
        with self.cells["Heartbeat"].judged():
            await watch.verify(self.cells["Heartbeat"])
        await daily.wait_committed(await readings.last_sequence())
        await self._pause_and_resume(client, readings, questions)
        await daily.read_until(len(self._expected))
        await daily.wait_committed(await readings.last_sequence())
        self._say("all summaries are there; verifying")
        with self.cells["Event"].judged():
            await readings.verify()
        with self.cells["Query"].judged():
            await questions.verify(self._expected, self._principal, self.cells["Query"])
        with self.cells["Checkpoint"].judged():
            status = await questions.status()
            await daily.verify(self._expected, status, self.cells["Checkpoint"])
        await operator.end()

    async def _pause_and_resume(
        self, client: tidewire.Client, readings: Readings, questions: Questions
    ) -> None:
        cell = self.cells["Control"]
        *_, rest = self._parts()
        self._say(f"operator paused, publishing the last {len(rest):,} readings")
        switch = Switch(client, self._names, questions)
        with cell.judged():
            await switch.pause()
        await readings.publish(rest[:-MEASURED_MAX])
        await readings.publish_measured(rest[-MEASURED_MAX:])
        await readings.publish_ends(self._dataset.cities)
        if cell.ok:
            with cell.judged():
                await switch.verify(await readings.last_sequence(), cell)
        if not cell.ok:
            await client.control.send("resume", node_id=self._names.operator)

    def _parts(self) -> tuple[Sequence[Reading], Sequence[Reading], Sequence[Reading]]:
        rows = self._dataset.readings
        first, second = (int(len(rows) * part) for part in (BEFORE_KILL, BEFORE_PAUSE))
        return rows[:first], rows[first:second], rows[second:]

    def _start_operator(self) -> Child:
        url = self._server.url(self._wire, OPERATOR)
        command = [sys.executable, "-m", "tidewire_server.demo.operator", url, self._names.run]
        return self._children.start(self._names.operator, command, self._folder)

    @property
    def _principal(self) -> str:
        """Who the driver is to the server: by its certificate, or as the kernel says."""
        if self._wire == "unix":
            return f"unix://uid={os.getuid()}"
        return f"spiffe://{TRUST_DOMAIN}/client/{DRIVER}" if self._wire in ENCRYPTED else ""

    def _say(self, text: str) -> None:
        self._progress.say(f"{self._wire}: {text}")


async def refuse_strangers(url: str) -> None:
    """The server must not talk to a client without a certificate. Error: Unverified."""
    try:
        async with tidewire.connect(url, connect_timeout_s=REFUSED_TIMEOUT_S) as client:
            await client.members.list()
    except TidewireError:
        return
    raise Unverified("the server talks to clients that have no certificate")
