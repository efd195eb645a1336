"""
What happens on a wire of datagrams, which carries unary calls and no streams.

What needs a stream is tried all the same, and must be refused with the typed error that says so;
the cell shows it. Who answers and obeys is at the other end of a wire that has streams.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import tidewire
from tidewire.errors import MessageTooLarge, OperatorFenced, TidewireError, WireUnsuitable
from tidewire_server.demo import expected
from tidewire_server.demo.data import Dataset
from tidewire_server.demo.kinds.event import Readings
from tidewire_server.demo.kinds.heartbeat import BEATS
from tidewire_server.demo.kinds.state import Board
from tidewire_server.demo.names import LEASE_S, Names
from tidewire_server.demo.report import KINDS, Cell, Progress, Stopwatch, Unverified, require
from tidewire_server.demo.scenario import WIRE_TIMEOUT_S, refuse_strangers
from tidewire_server.demo.server import ENCRYPTED, HELPER, DemoServer
from tidewire_server.demo.summaries import DailySummaries

READINGS_MAX: Final = 2_000
MEASURED_MAX: Final = 200
RECORDS_MAX: Final = 200
OPERATIONS_MAX: Final = 2
"""Changes in one transaction: more do not fit a datagram of 1,200 bytes."""
PAGE_SIZE: Final = 3
"""Entries in one page of a listing, for the same reason."""
COMMITS: Final = 20
LARGE_BYTES: Final = 100_000


class DatagramScenario:
    """
    One wire's run.

    Attributes:
        cells: What was found, one for each kind.
    """

    def __init__(self, wire: str, server: DemoServer, dataset: Dataset, progress: Progress) -> None:
        self.cells = {kind: Cell(kind, wire) for kind in KINDS}
        self._wire = wire
        self._server = server
        self._dataset = replace(
            dataset,
            readings=dataset.readings[:READINGS_MAX],
            records=dict(list(dataset.records.items())[:RECORDS_MAX]),
            series=dataset.series[:RECORDS_MAX],
        )
        self._progress = progress
        self._names = Names.of(wire)
        self._client: tidewire.Client
        self._helper: tidewire.Client

    async def run(self) -> Sequence[Cell]:
        """Do everything, each kind by itself."""
        kinds = {
            "Event": self._event,
            "Query": self._query,
            "State": self._state,
            "Control": self._control,
            "Heartbeat": self._heartbeat,
            "Checkpoint": self._checkpoint,
        }
        try:
            async with asyncio.timeout(WIRE_TIMEOUT_S), self._connected():
                for kind, show in kinds.items():
                    cell = self.cells[kind]
                    with cell.judged():
                        await show(cell)
                    if not cell.ok:
                        self._say(f"{kind} failed: {cell.detail}")
        except (TidewireError, TimeoutError, OSError) as error:
            self._say(f"failed: {type(error).__name__}: {error}")
        return list(self.cells.values())

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        if self._wire in ENCRYPTED:
            await refuse_strangers(self._server.url(self._wire, None))
        async with (
            tidewire.connect(self._server.url(self._wire), name="demo driver") as self._client,
            tidewire.connect(self._server.url(HELPER), name="demo helper") as self._helper,
        ):
            self._say("unary calls, and what needs streams refused")
            yield

    async def _event(self, cell: Cell) -> None:
        """Readings are published and read back as on other wires, by unary calls below."""
        readings = Readings(self._client, self._names, cell)
        await readings.create_streams()
        rows = self._dataset.readings
        await readings.publish(rows[:-MEASURED_MAX])
        await readings.publish_measured(rows[-MEASURED_MAX:])
        await readings.publish_ends(self._dataset.cities)
        await readings.verify()
        subject = self._names.reading("large")
        await refused(self._client.events.publish(subject, bytes(LARGE_BYTES)), MessageTooLarge)
        cell.detail += f"; {LARGE_BYTES:,} bytes: MessageTooLarge"

    async def _query(self, cell: Cell) -> None:
        """Days are asked for over datagrams; the responder needs a stream, elsewhere."""
        summaries = DailySummaries()
        for reading in self._dataset.readings:
            summaries.take(reading.city, reading.day, Decimal(reading.temperature))

        def answer(query: tidewire.Query) -> str:
            city = query.subject.rpartition(".")[2]
            return json.dumps(summaries.find(city, query.payload.decode()))

        subject = self._names.question("*")
        await refused(self._serve(answer), WireUnsuitable)
        days = expected.compute(self._dataset.readings)
        watch = Stopwatch()
        async with self._helper.queries.serve(subject, answer):
            for (city, day), summary in days.items():
                with watch.measured():
                    reply = await self._client.queries.ask(self._names.question(city), day)
                told = expected.read(reply.payload)
                require(told == summary, f"{city} on {day} is {told}, not {summary}")
        cell.count, cell.p50_us = len(watch.durations_s), watch.p50_us
        cell.detail = "days asked for and compared; to serve: WireUnsuitable"

    async def _serve(self, answer: Any) -> None:
        async with self._client.queries.serve(self._names.status, answer):
            raise Unverified("a responder is served over datagrams")

    async def _state(self, cell: Cell) -> None:
        """Changes are written and watched as on other wires, by unary calls below."""
        board = Board(self._client, self._names, operations_max=OPERATIONS_MAX, page_size=PAGE_SIZE)
        await board.verify(self._dataset, cell)

    async def _control(self, cell: Cell) -> None:
        """Both ends of Control are streams: both are refused, and say so."""
        node_id = self._names.operator

        async def attend() -> None:
            async with self._client.control.attend(node_id, {}):
                raise Unverified("a node attends over datagrams")

        async def send() -> None:
            await self._client.control.send("pause", node_id=node_id)

        await refused(attend(), WireUnsuitable)
        await refused(send(), WireUnsuitable)
        cell.detail = "to send and to attend: WireUnsuitable"

    async def _heartbeat(self, cell: Cell) -> None:
        """A member joins, beats and is listed; to watch members needs a stream."""
        await refused(self._watch_members(), WireUnsuitable)
        watch = Stopwatch()
        node_id = f"driver-{self._names.run}"
        async with self._client.members.join(node_id, lease_s=LEASE_S) as membership:
            for _ in range(BEATS):
                with watch.measured():
                    await membership.beat()
            seen = {member.node_id for member in await self._helper.members.list()}
            require(node_id in seen, f"the members are {seen}")
        cell.count, cell.p50_us = len(watch.durations_s), watch.p50_us
        cell.detail = "beats of a member that others see; to watch: WireUnsuitable"

    async def _watch_members(self) -> None:
        watch = await self._client.members.watch("operators")
        await watch.close()

    async def _checkpoint(self, cell: Cell) -> None:
        """State, positions and outputs are committed, fenced and loaded; a large state is not."""
        operator = self._client.checkpoints.operator(self._names.operator)
        await operator.acquire()
        watch = Stopwatch()
        state = b""
        for number in range(1, COMMITS + 1):
            state = f"sum of {number}".encode() * 10
            with watch.measured():
                done = await operator.commit(
                    state,
                    positions={self._names.weather: number},
                    outputs=[(self._names.summary("all"), str(number))],
                )
            require(done.revision == number, f"commit {number} has revision {done.revision}")
        large = operator.commit(bytes(range(256)) * (LARGE_BYTES // 256))
        await refused(large, MessageTooLarge)
        other = self._helper.checkpoints.operator(self._names.operator)
        loaded = await other.acquire()
        require(loaded is not None and loaded.state == state, f"another one loads {loaded}")
        await refused(operator.commit(b"late"), OperatorFenced)
        daily = await self._client.events.stream(self._names.daily).info()
        require(daily.state.last_sequence == COMMITS, f"{daily.state.last_sequence} outputs")
        cell.count, cell.p50_us = COMMITS, watch.p50_us
        cell.durable(done.durability)
        cell.detail = f"commits, loaded by another, who fenced this one; {LARGE_BYTES:,} bytes: "
        cell.detail += "MessageTooLarge"

    def _say(self, text: str) -> None:
        self._progress.say(f"{self._wire}: {text}")


async def refused(work: Awaitable[Any], kind: type[TidewireError]) -> None:
    """See that something ends with this error. Error: Unverified."""
    try:
        await work
    except kind:
        return
    except TidewireError as error:
        raise Unverified(f"{type(error).__name__} instead of {kind.__name__}: {error}") from error
    raise Unverified(f"what must end with {kind.__name__} was done")
