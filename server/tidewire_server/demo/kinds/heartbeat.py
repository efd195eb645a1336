"""Heartbeat: what the members' view shows of the operator, and what a beat costs."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

import tidewire
from tidewire.client.members import MemberWatch
from tidewire.errors import DeadlineExceeded
from tidewire_server.demo.names import LEASE_S, Names
from tidewire_server.demo.processes import Child
from tidewire_server.demo.report import Cell, Stopwatch, require

BEATS: Final = 100
LOOK_S: Final = 0.2
"""How often the operator's process is looked at while its status is waited for."""


class Sight(NamedTuple):
    """What was seen of the operator."""

    status: str
    incarnation: int
    time_s: float


class OperatorWatch:
    """Watches the operator among the members: ``async with OperatorWatch(...) as watch``."""

    def __init__(self, client: tidewire.Client, names: Names) -> None:
        self._client = client
        self._names = names
        self._sights: list[Sight] = []
        self._changed = asyncio.Event()
        self._killed_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        watch = await self._client.members.watch("operators")
        self._task = asyncio.create_task(self._look(watch))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    @property
    def incarnation(self) -> int:
        """The last incarnation seen; 0 before."""
        return self._sights[-1].incarnation if self._sights else 0

    def killed(self) -> None:
        """Note that it is killed now."""
        self._killed_s = time.monotonic()

    async def wait(
        self, status: str, limit_s: float, *, above: int = 0, child: Child | None = None
    ) -> None:
        """
        Wait until the operator was seen with a status.

        Args:
            status: "alive", "suspect", "dead" or "left".
            limit_s: How long.
            above: Only of an incarnation above this.
            child: Its process, which must go on.

        Raises:
            DeadlineExceeded: It was not.
            ChildFailed: The process ended.
        """
        ends_s = time.monotonic() + limit_s
        while not any(s.status == status and s.incarnation > above for s in self._sights):
            if child is not None:
                child.require_running()
            if self._task is not None and self._task.done():
                self._task.result()
            if time.monotonic() > ends_s:
                raise DeadlineExceeded(f"the operator was not {status} within {limit_s:g} s")
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()

    async def verify(self, cell: Cell) -> None:
        """It was alive, then suspect, then dead, and then alive as the next incarnation."""
        suspect, dead, back = self._turns()
        suspect_s, dead_s = suspect.time_s - self._killed_s, dead.time_s - self._killed_s
        require(suspect_s > 0, "the operator was suspect and dead before it was killed")
        watch = Stopwatch()
        node_id = f"driver-{self._names.run}"
        async with self._client.members.join(node_id, lease_s=LEASE_S) as membership:
            for _ in range(BEATS):
                with watch.measured():
                    await membership.beat()
            members = {member.node_id for member in await self._client.members.list()}
        require({node_id, self._names.operator} <= members, f"the members are {members}")
        cell.count = len(watch.durations_s)
        cell.p50_us = watch.p50_us
        cell.detail = (
            f"beats; operator killed, SUSPECT after {suspect_s:.1f} s, DEAD after {dead_s:.1f} s, "
            f"back as incarnation {back.incarnation}"
        )

    def _turns(self) -> Sequence[Sight]:
        """
        The sights of the two incarnations' turn: suspect, dead, alive again.

        A busy machine may delay a beat, so either may have been suspect in between, and alive again
        by itself.
        """
        seen = [(sight.status, sight.incarnation) for sight in self._sights]
        at = next((index for index, (status, _) in enumerate(seen) if status == "dead"), 0)
        require(2 <= at < len(seen) - 1, f"the operator was seen as {seen}")
        first = seen[0][1]
        lives = [("alive", first), ("suspect", first)] * (at // 2)
        second = [("alive", first + 1), ("suspect", first + 1)] * len(seen)
        expected = [*lives, ("dead", first), *second][: len(seen)]
        require(seen == expected, f"the operator was seen as {seen}, expected was {expected}")
        return self._sights[at - 1 : at + 2]

    async def _look(self, watch: MemberWatch) -> None:
        try:
            async for event in watch:
                sight = Sight(event.status, event.member.incarnation, time.monotonic())
                told_again = self._sights and self._sights[-1][:2] == sight[:2]
                if event.member.node_id == self._names.operator and not told_again:
                    self._sights.append(sight)
                    self._changed.set()
        finally:
            await watch.close()
