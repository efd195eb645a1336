"""
What ends keys without a client: their time to live, and the lease they hang on.

What is stored is wall-clock time; waiting is done on the monotonic clock, in steps short enough to
notice that the wall clock was set.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from tidewire import errors
from tidewire.v1 import state_pb2
from tidewire_server.core import Core
from tidewire_server.members import Life

log = logging.getLogger(__name__)

WALL_CHECK_S: Final = 10.0
"""The wall clock is looked at this often while a key is waiting to expire."""
RETRY_S: Final = 1.0


class Schedule:
    """
    When the next key expires, as far as is known; wall-clock nanoseconds. Sans-IO.

    A sweep answers what it found; a key written while it ran may expire sooner.
    """

    def __init__(self) -> None:
        self._swept: int | None = None
        self._noted: int | None = None

    @property
    def next_ns(self) -> int | None:
        """When the next key expires; ``None`` when none will."""
        known = [at for at in (self._swept, self._noted) if at is not None]
        return min(known, default=None)

    def sweep_begins(self) -> None:
        """Forget what the sweep will find; what is noted from now on it may miss."""
        self._noted = None

    def sweep_ended(self, next_ns: int | None) -> None:
        """Take what the sweep found."""
        self._swept = next_ns

    def note(self, changes: Iterable[state_pb2.Change]) -> bool:
        """Look at new changes; True when one of them makes the next expiry sooner."""
        before = self.next_ns
        for change in changes:
            if change.entry.HasField("expires"):
                at = change.entry.expires.ToNanoseconds()
                self._noted = at if self._noted is None else min(self._noted, at)
        after = self.next_ns
        return after is not None and (before is None or after < before)

    def delay_s(self, now_ns: int) -> float | None:
        """
        How long to wait before looking again; 0 when a sweep is due, ``None`` when nothing will
        expire.
        """
        if self.next_ns is None:
            return None
        return min(max(0, self.next_ns - now_ns) / 1e9, WALL_CHECK_S)

    def is_due(self, now_ns: int) -> bool:
        """Whether a key has expired."""
        return self.next_ns is not None and self.next_ns <= now_ns


class ExpiryTimer:
    """The one timer that removes what has expired."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._schedule = Schedule()
        self._wake = asyncio.Event()

    def note(self, changes: Iterable[state_pb2.Change]) -> None:
        """Hear of changes that became durable."""
        if self._schedule.note(changes):
            self._wake.set()

    async def run(self) -> None:
        """
        Sweep whenever a key has expired, until cancelled. The first sweep is at once: keys may have
        expired while we were away.
        """
        while True:
            self._wake.clear()
            self._schedule.sweep_begins()
            if not await self._sweep():
                await asyncio.sleep(RETRY_S)
                continue
            while not self._schedule.is_due(self._core.wall_ns()):
                await self._wait()

    async def _sweep(self) -> bool:
        now_ns = self._core.wall_ns()
        try:
            next_ns = await self._core.engine.expire_state(now_ns)
        except errors.TidewireError as error:
            self._core.counters.add("state_expiry_failures_total")
            log.warning("expiring keys failed; trying again", extra={"error": str(error)})
            return False
        if next_ns is not None and next_ns <= now_ns:
            # The engine could not remove it (a damaged record): look again, but not in a circle.
            next_ns = now_ns + int(RETRY_S * 1e9)
        self._schedule.sweep_ended(next_ns)
        return True

    async def _wait(self) -> None:
        delay_s = self._schedule.delay_s(self._core.wall_ns())
        try:
            async with asyncio.timeout(delay_s):
                await self._wake.wait()
        except TimeoutError:
            return  # time to look at the clock
        self._wake.clear()


class LeaseSweep:
    """
    Removes the keys of members whose lease is over.

    One entry per node waits at most; a later token covers the earlier ones.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._over: dict[str, int] = {}
        self._wake = asyncio.Event()

    def heard(self, node_id: str, life: Life, fencing_token: int) -> None:
        """Hear what became of a member."""
        if life in (Life.DEAD, Life.LEFT):
            self.end(node_id, fencing_token)
        elif life is Life.ALIVE and fencing_token > 1:
            # A new incarnation: the leases of those before are over. Nothing is there to drop when
            # it is not new.
            self.end(node_id, fencing_token - 1)

    def end(self, node_id: str, fencing_token: int) -> None:
        """Leases of this member up to this token are over."""
        self._over[node_id] = max(fencing_token, self._over.get(node_id, 0))
        self._wake.set()

    async def run(self) -> None:
        """Drop keys as leases end, until cancelled."""
        while True:
            if not self._over:
                self._wake.clear()
                await self._wake.wait()
            node_id, fencing_token = self._over.popitem()
            try:
                dropped = await self._core.engine.drop_leased_state(node_id, fencing_token)
            except errors.TidewireError as error:
                self._core.counters.add("state_lease_failures_total")
                log.warning(
                    "dropping leased keys failed; trying again", extra={"error": str(error)}
                )
                self.end(node_id, fencing_token)
                await asyncio.sleep(RETRY_S)
            else:
                self._core.counters.add("state_lease_lost_keys_total", dropped)
