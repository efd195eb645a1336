"""
The operator: a service that makes daily summaries of hourly temperatures.

It takes readings from a durable consumer and commits checkpoints. A checkpoint holds its state, how
far it is in the stream, and the summaries of the days that are over: all of it or nothing. It may
be killed at any moment; whoever starts it again gets every summary once.

Meanwhile it is a member that beats, answers queries and obeys commands. Run as a process::

    python -m tidewire_server.demo.operator URL RUN
"""

import asyncio
import json
import logging
import signal
import sys
import time
from collections import deque
from decimal import Decimal, InvalidOperation
from statistics import median
from typing import Any, Final

import uvloop

import tidewire
from tidewire.client.checkpoints import CheckpointInfo
from tidewire.errors import DeadlineExceeded, NotFound, TidewireError
from tidewire.v1 import common_pb2
from tidewire_server.demo.names import LEASE_S, Names
from tidewire_server.demo.ordering import InOrder
from tidewire_server.demo.summaries import DailySummaries

COMMIT_READINGS: Final = 500
"""Readings between two commits: half of what the consumer has delivered and not settled."""
COMMIT_SUMMARIES: Final = 100
"""Summaries in a commit; it takes 128."""
COMMIT_IDLE_S: Final = 0.1
"""When nothing comes for this long, what is there is committed."""
TIMES_KEPT: Final = 1_000

log = logging.getLogger(__name__)


async def run(url: str, names: Names) -> None:
    """Work until cancelled, or until somebody else has become this operator."""
    # The node id ties deliveries and queries to this member's life: when it dies they go on.
    async with (
        tidewire.connect(url, name=names.operator, node_id=names.operator) as client,
        client.members.join(names.operator, groups=["operators"], lease_s=LEASE_S),
    ):
        report = DailyReport(client, names)
        await report.restore()
        commands = {"pause": report.pause, "resume": report.resume}
        async with (
            client.queries.serve(names.question("*"), report.answer),
            client.queries.serve(names.status, report.tell_status),
            client.control.attend(names.operator, commands, groups=["operators"]),
        ):
            await report.work()


class DailyReport:
    """Readings in, summaries out, each once."""

    def __init__(self, client: tidewire.Client, names: Names) -> None:
        self._client = client
        self._names = names
        self._checkpoints = client.checkpoints.operator(names.operator)
        self._summaries = DailySummaries()
        self._readings: InOrder[tidewire.Message] = InOrder(0)
        self._committed = 0
        self._outputs: list[tuple[str, str]] = []
        self._running = asyncio.Event()
        self._running.set()
        # Told by `tell_status`.
        self._restored_from = 0
        self._delivered_again = 0
        self._unreadable = 0
        self._commands = 0
        self._durability = ""
        self._commit_s: deque[float] = deque(maxlen=TIMES_KEPT)

    async def restore(self) -> None:
        """Become the one who may commit, and go on from the last checkpoint."""
        last: CheckpointInfo | None = await self._checkpoints.acquire()
        checkpoint = await self._checkpoints.load()
        if last is None or checkpoint is None:
            log.info("no checkpoint: starting from nothing")
            return
        self._summaries = DailySummaries.from_bytes(checkpoint.state)
        self._committed = self._restored_from = last.position(self._names.weather)
        self._readings = InOrder(self._committed)
        log.info("checkpoint %d: going on behind %d", last.revision, self._committed)

    async def work(self) -> None:
        """Take readings until cancelled."""
        async with self._client.events.consume(self._names.weather, self._names.operator) as inbox:
            while True:
                message = await _next(inbox)
                if message is not None:
                    self._delivered_again += message.attempt > 1
                    self._readings.put(message.sequence, message)
                if message is None or not self._running.is_set():
                    await self._commit()
                await self._take_ready()

    # Events and checkpoints.

    async def _take_ready(self) -> None:
        """Take the readings whose turn it is, unless paused."""
        await self._running.wait()
        while (message := self._readings.pop()) is not None:
            self._take(message)
            if self._is_due:
                await self._commit()
                await self._running.wait()

    def _take(self, message: tidewire.Message) -> None:
        city = message.subject.rpartition(".")[2]
        try:
            reading = json.loads(message.payload)
            if reading.get("end"):
                over = self._summaries.end(city)
            else:
                temperature = Decimal(reading["temperature"])
                over = self._summaries.take(city, reading["time"][:10], temperature)
        except (ValueError, KeyError, TypeError, AttributeError, InvalidOperation) as error:
            # It would fail again whenever it came again: say so and go on behind it.
            self._unreadable += 1
            log.error("%r is no reading: %r", message, error)
            return
        if over is not None:
            self._outputs.append((self._names.summary(city), json.dumps(over)))

    @property
    def _is_due(self) -> bool:
        return (
            self._readings.position - self._committed >= COMMIT_READINGS
            or len(self._outputs) >= COMMIT_SUMMARIES
        )

    async def _commit(self) -> None:
        """
        Commit what was done since the last commit.

        The position settles the messages of the durable consumer: there is nothing to acknowledge.
        """
        position, outputs = self._readings.position, self._outputs
        if position == self._committed:
            return
        self._outputs = []
        began = time.perf_counter()
        committed = await self._checkpoints.commit(
            self._summaries.to_bytes(),
            positions={(self._names.weather, self._names.operator): position},
            outputs=outputs,
        )
        self._commit_s.append(time.perf_counter() - began)
        self._committed = position
        self._durability = common_pb2.Durability.Name(committed.durability)

    # Queries.

    def answer(self, query: tidewire.Query) -> str:
        """Answer a query for a day of a city."""
        city, day = query.subject.rpartition(".")[2], query.text
        summary = self._summaries.find(city, day)
        if summary is None:
            raise NotFound(f"nothing is known of {city} on {day!r}")
        return json.dumps(summary)

    def tell_status(self, query: tidewire.Query) -> str:
        """Tell how far this process is."""
        status: dict[str, Any] = {
            "processed": self._readings.position,
            "committed": self._committed,
            "restored_from": self._restored_from,
            "delivered_again": self._delivered_again,
            "unreadable": self._unreadable + self._summaries.late,
            "commands": self._commands,
            "paused": not self._running.is_set(),
            "durability": self._durability,
            "commit_p50_s": median(self._commit_s) if self._commit_s else None,
            "asked_by": query.principal,
        }
        return json.dumps(status)

    # Commands.

    def pause(self, command: tidewire.Command) -> dict[str, int]:
        """Stand still until told otherwise; beats and queries go on."""
        log.info("%s by %s", command.verb, command.principal or "somebody")
        self._running.clear()
        self._commands += 1
        return {"processed": self._readings.position}

    def resume(self, command: tidewire.Command) -> dict[str, int]:
        """Go on."""
        log.info("%s by %s", command.verb, command.principal or "somebody")
        self._running.set()
        self._commands += 1
        return {"processed": self._readings.position}


async def _next(inbox: tidewire.Subscription) -> tidewire.Message | None:
    """The next message; ``None`` when none comes for a while."""
    try:
        return await inbox.next(timeout_s=COMMIT_IDLE_S)
    except DeadlineExceeded:
        return None


async def _run_until_told(url: str, names: Names) -> None:
    work = asyncio.ensure_future(run(url, names))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    await asyncio.wait([work])
    if not work.cancelled():
        work.result()


def main(words: list[str]) -> int:
    """Run the process; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if len(words) != 2:
        log.error("usage: python -m tidewire_server.demo.operator URL RUN")
        return 2
    url, name = words
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run_until_told(url, Names(name)))
    except TidewireError as error:
        log.error("the operator ends: %s: %s", type(error).__name__, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
