"""Load on a server, measured at its receiver: what ``tidewire bench`` runs."""

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import tidewire
from tidewire.errors import TidewireError

BUSY_CORES: Final = 0.85
"""From this share of a core on, one side is said to be the limit."""
DRAIN_S: Final = 2.0
"""How long messages that were sent may still arrive."""
POLL_S: Final = 0.005
SAMPLES_MAX: Final = 4_000_000
"""Latencies kept at most; further ones are counted and not kept."""
LATE_S: Final = 0.001
"""An open loop sleeps only for waits longer than this, so that it is not late by its own sleep."""


@dataclass(slots=True)
class Measured:
    """
    One measurement.

    Attributes:
        what: What was done.
        wire: Scheme of the wire.
        done: Answers, or messages that arrived.
        lost: Messages that did not arrive, and calls that failed.
        seconds: Time from the first to the last.
        took_s: Latencies; in an open loop from the time they were meant to go.
        client_cores: CPU this process used, in cores.
        server_cores: CPU the server says it used; ``None`` when it does not say.
        error: Why it could not be measured.
    """

    what: str
    wire: str
    done: int = 0
    lost: int = 0
    seconds: float = 0.0
    took_s: list[float] = field(default_factory=list)
    client_cores: float = 0.0
    server_cores: float | None = None
    error: str = ""

    @property
    def rate(self) -> float:
        """Answers or arrivals a second."""
        return self.done / self.seconds if self.seconds else 0.0

    def percentile_us(self, share: float) -> float | None:
        """A percentile of the latencies in microseconds; ``None`` without any."""
        if not self.took_s:
            return None
        rank = math.ceil(share * len(self.took_s)) - 1
        return sorted(self.took_s)[max(rank, 0)] * 1e6

    @property
    def limit(self) -> str:
        """Who had no more to give: the client, the server, both, or neither of them."""
        busy = [
            name
            for name, cores in (("client", self.client_cores), ("server", self.server_cores or 0))
            if cores >= BUSY_CORES
        ]
        return " and ".join(busy) or "neither: one waits for the other"


class Load:
    """
    Puts load on the server of a client.

    Args:
        client: Connected.
        wire: Scheme, for the results.
        seconds: Length of each measurement.
        size: Bytes of each payload.
        rate: Requests or messages a second of an open loop; 0 goes as fast as it can.
    """

    def __init__(
        self, client: tidewire.Client, wire: str, *, seconds: float, size: int, rate: float
    ) -> None:
        self._client = client
        self._wire = wire
        self._seconds = seconds
        self._payload = b"x" * size
        self._rate = rate
        self._subject = f"tidewire-bench.{uuid.uuid4().hex[:12]}"

    async def call(self, in_flight: int) -> Measured:
        """Read a key that is not there: one unary call, nothing stored."""
        return await self._calls(
            "call", in_flight, lambda: self._client.state.get(self._subject.replace(".", "/"))
        )

    async def query(self, in_flight: int) -> Measured:
        """Ask a responder of ours through the server."""
        serving = self._client.queries.serve(
            self._subject, lambda query: query.payload, in_flight_max=1_000
        )
        async with serving:
            return await self._calls(
                "query", in_flight, lambda: self._client.queries.ask(self._subject, self._payload)
            )

    async def events(self) -> Measured:
        """Publish to a subscription of ours through the server; nothing is stored."""
        measured = Measured("events", self._wire)
        intended: list[float] = []

        def handle(_message: tidewire.Message) -> None:
            if measured.done < len(intended) and len(measured.took_s) < SAMPLES_MAX:
                # One publisher and one subject: the n-th that arrives is the n-th that was sent.
                measured.took_s.append(time.perf_counter() - intended[measured.done])
            measured.done += 1

        async with (
            self._client.events.subscribe(self._subject, handler=handle),
            self._client.events.publisher() as publisher,
        ):
            await self._watched(measured, self._publish(publisher, intended, measured))
        return measured

    async def durable(self) -> Measured:
        """Publish into a stream made for this, acknowledged as the server does it; removed then."""
        measured = Measured("durable", self._wire)
        stream = self._client.events.stream(self._subject.replace(".", "-"))
        await stream.create([self._subject])
        try:
            async with self._client.events.publisher(acknowledge=True) as publisher:
                await self._watched(measured, self._publish_durable(publisher, measured))
        finally:
            await stream.delete()
        return measured

    # Loops ------------------------------------------------------------------------------------

    async def _calls(
        self, what: str, in_flight: int, call: Callable[[], Awaitable[object]]
    ) -> Measured:
        if self._rate:
            measured = Measured(f"{what} at {self._rate:g}/s", self._wire)
        else:
            measured = Measured(f"{what}, {in_flight} in flight", self._wire)

        async def timed(begun: float) -> None:
            try:
                await call()
            except TidewireError as error:
                measured.lost += 1
                measured.error = measured.error or error.message
                return
            measured.done += 1
            if len(measured.took_s) < SAMPLES_MAX:
                measured.took_s.append(time.perf_counter() - begun)

        await timed(time.perf_counter())
        measured.took_s.clear()
        measured.done = 0
        loop = self._open(timed) if self._rate else self._closed(timed, in_flight)
        await self._watched(measured, loop)
        return measured

    async def _closed(self, timed: Callable[[float], Awaitable[None]], in_flight: int) -> float:
        began = time.perf_counter()
        stop = began + self._seconds

        async def worker() -> None:
            while (now := time.perf_counter()) < stop:
                await timed(now)

        await asyncio.gather(*(worker() for _ in range(in_flight)))
        return time.perf_counter() - began

    async def _open(self, timed: Callable[[float], Awaitable[None]]) -> float:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(math.ceil(self._rate * self._seconds)):
                due = began + number / self._rate
                await _until(due)
                tasks.create_task(_as_coroutine(timed(due)))
        return time.perf_counter() - began

    async def _publish(
        self, publisher: tidewire.Publisher, intended: list[float], measured: Measured
    ) -> float:
        began = time.perf_counter()
        stop = began + self._seconds
        sent = 0
        while (now := time.perf_counter()) < stop:
            if self._rate:
                now = began + sent / self._rate
                if now >= stop:
                    break
                await _until(now)
            if sent < SAMPLES_MAX:
                intended.append(now)
            await publisher.publish(self._subject, self._payload)
            sent += 1
        await publisher.flush()
        last_s, seen = time.perf_counter(), measured.done
        while measured.done < sent and time.perf_counter() - last_s < DRAIN_S:
            await asyncio.sleep(POLL_S)
            if measured.done != seen:
                last_s, seen = time.perf_counter(), measured.done
        measured.lost = sent - measured.done
        return last_s - began

    async def _publish_durable(self, publisher: tidewire.Publisher, measured: Measured) -> float:
        began = time.perf_counter()
        stop = began + self._seconds
        sent = 0
        while time.perf_counter() < stop:
            if self._rate:
                await _until(began + sent / self._rate)
            await publisher.publish(self._subject, self._payload)
            sent += 1
        await publisher.flush()
        measured.done = sent
        return time.perf_counter() - began

    # Both sides' CPU --------------------------------------------------------------------------

    async def _watched(self, measured: Measured, work: Awaitable[float]) -> None:
        """Run a loop and note how much CPU both sides used meanwhile."""
        await self._server_cores()  # begins the server's sample
        cpu_s, began = time.process_time(), time.perf_counter()
        measured.seconds = await work
        passed_s = time.perf_counter() - began
        measured.client_cores = (time.process_time() - cpu_s) / passed_s
        measured.server_cores = await self._server_cores()

    async def _server_cores(self) -> float | None:
        """CPU the server used since it was last asked, in cores, if it tells and it was a while."""
        try:
            answer = await self._client.members.cluster()
        except TidewireError:
            return None
        return answer.server.cpu_cores if answer.server.HasField("cpu_cores") else None


async def _until(due: float) -> None:
    """Wait for a moment; the last bit by giving way, not by sleeping."""
    while (left := due - time.perf_counter()) > 0:  # noqa: ASYNC110 (time is what it waits for)
        await asyncio.sleep(left - LATE_S if left > LATE_S else 0)


async def _as_coroutine(work: Awaitable[None]) -> None:
    await work
