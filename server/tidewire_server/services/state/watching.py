"""One watcher: a snapshot, then every change in order, without a gap."""

import asyncio
from collections.abc import Sequence
from itertools import chain
from typing import Final

from tidewire import errors
from tidewire.v1 import state_pb2
from tidewire_server.core import Context, Core
from tidewire_server.services.state.alarm import Alarm
from tidewire_server.services.state.checks import check_watch
from tidewire_server.services.state.feed import Feed, KeyFilter, Tail, to_response

RESPONSE_BYTES_TARGET: Final = 1024 * 1024
"""
A response of a watch is cut here, so that one watcher never holds more than about this beyond its
tail.
"""
RESPONSE_CHANGES_MAX: Final = 1000


class Watcher:
    """
    Serves one call of Watch; made for it and gone with it.

    The position is the revision up to which everything was sent, or is not for this watch.
    """

    def __init__(
        self, core: Core, feed: Feed, request: state_pb2.WatchRequest, context: Context
    ) -> None:
        self._idle_s = check_watch(request)
        self._core = core
        self._feed = feed
        self._request = request
        self._context = context
        self._keys = KeyFilter(request.prefix, request.exact)
        self._wake = asyncio.Event()
        self._idle = Alarm(self._rang_idle)
        self._is_idle = False
        self._stall = Alarm(self._rang_stall)
        self._stalled = False
        self._task = asyncio.current_task()
        self._bytes_max = min(core.limits.response_bytes_max, RESPONSE_BYTES_TARGET)
        self._position = 0
        self._told = 0

    async def run(self) -> None:
        """
        Serve until the caller goes, the server drains, or history is gone under a slow watcher.

        Raises:
            RevisionCompacted: The position is older than the history kept.
            RevisionInFuture: ``after_revision`` has not been given yet.
            SlowConsumer: A response was not taken for ``subscriber_stall_s``.
        """
        tail = self._attach()
        try:
            if self._request.after_revision:
                await self._take_position()
            await self._send(state_pb2.WatchResponse(opened=self._core.opened()))
            await self._begin(tail)
            while not self._core.drain.started.is_set():
                self._wake.clear()
                if not await self._advance(tail):
                    await self._wait()
            await self._farewell(tail)
        finally:
            self._feed.detach(tail)
            self._idle.close()
            self._stall.close()

    def _attach(self) -> Tail:
        # Changes as they are handed out do not carry the entry before: such a watch reads them from
        # history, and its tail, which keeps nothing, only says when.
        keeps = not self._request.with_previous
        limits = self._core.limits
        return self._feed.attach(
            self._keys,
            self._wake.set,
            changes_max=limits.subscriber_pending_messages_max if keeps else 0,
            bytes_max=limits.subscriber_pending_bytes_max if keeps else 0,
        )

    async def _take_position(self) -> None:
        """
        Begin behind ``after_revision``; refused before the greeting, so that opening a watch fails
        where it cannot begin.
        """
        self._position = self._told = self._request.after_revision
        await self._read_history(changes_max=1)

    async def _begin(self, tail: Tail) -> None:
        request = self._request
        if request.after_revision:
            return
        if request.changes_only:
            self._position = tail.base
            await self._bookmark()
        elif request.exact:
            await self._send_one_key()
        else:
            await self._send_snapshot()

    async def _send_snapshot(self) -> None:
        revision, last_key, more = 0, "", True
        while more:
            entries, revision, more = await self._core.engine.range_state(
                self._request.prefix,
                start_after=last_key,
                revision=revision,
                entries_max=RESPONSE_CHANGES_MAX,
                bytes_max=self._bytes_max,
            )
            last_key = entries[-1].key if entries else ""
            await self._send_part(
                state_pb2.WatchSnapshot(entries=entries, revision=revision, last=not more)
            )

    async def _send_one_key(self) -> None:
        got = await self._core.engine.get_state(self._request.prefix)
        part = state_pb2.WatchSnapshot(revision=got.revision, last=True)
        if got.HasField("entry"):
            part.entries.append(got.entry)
        await self._send_part(part)

    async def _send_part(self, part: state_pb2.WatchSnapshot) -> None:
        await self._send(state_pb2.WatchResponse(snapshot=part))
        self._position = self._told = part.revision

    async def _advance(self, tail: Tail) -> bool:
        """Send the next changes; False when all there is was sent."""
        if tail.overflowed:
            if not self._request.with_previous:
                self._core.counters.add("state_watch_catch_ups_total")
            tail.restart(self._feed.revision)
        if self._position < tail.base:
            return await self._advance_in_history()
        taken = tail.take(
            self._position, changes_max=RESPONSE_CHANGES_MAX, bytes_max=self._bytes_max
        )
        if not taken:
            # What else came since was not for this watch.
            self._position = max(self._position, self._feed.revision)
            return False
        if len(taken) == 1:
            response = taken[0].response()
        else:
            changes = chain.from_iterable(revised.changes for revised in taken)
            response = to_response(changes, taken[-1].revision)
        await self._send(response)
        self._position = self._told = taken[-1].revision
        return True

    async def _advance_in_history(self) -> bool:
        changes, position = await self._read_history()
        if changes:
            await self._send(to_response(changes, position))
            self._told = position
        self._position = position
        return True

    async def _read_history(
        self, changes_max: int = RESPONSE_CHANGES_MAX
    ) -> tuple[Sequence[state_pb2.Change], int]:
        return await self._core.engine.state_changes(
            self._request.prefix,
            after_revision=self._position,
            changes_max=changes_max,
            bytes_max=self._bytes_max,
            exact=self._request.exact,
            with_previous=self._request.with_previous,
        )

    async def _wait(self) -> None:
        self._is_idle = False
        self._idle.set(self._idle_s)
        await self._wake.wait()
        self._idle.put_off()
        if self._is_idle:
            await self._bookmark()

    def _rang_idle(self) -> None:
        self._is_idle = True
        self._wake.set()

    async def _bookmark(self) -> None:
        bookmark = state_pb2.WatchBookmark(revision=self._position)
        await self._send(state_pb2.WatchResponse(bookmark=bookmark))
        self._told = self._position

    async def _farewell(self, tail: Tail) -> None:
        until = self._feed.revision
        while self._position < until and not tail.overflowed and self._position >= tail.base:
            await self._advance(tail)
        if self._position > self._told:
            await self._bookmark()
        await self._send(state_pb2.WatchResponse(draining=self._core.drain.message()))

    async def _send(self, response: state_pb2.WatchResponse) -> None:
        self._stall.set(self._core.limits.subscriber_stall_s)
        try:
            await self._context.write(response)
        except asyncio.CancelledError:
            # Ours, unless somebody else wants the end too; as asyncio.timeout does it.
            if self._stalled and self._task is not None and self._task.uncancel() == 0:
                raise self._slow() from None
            raise
        finally:
            self._stall.put_off()

    def _rang_stall(self) -> None:
        if self._task is not None:
            self._stalled = True
            self._task.cancel()

    def _slow(self) -> errors.SlowConsumer:
        stall_s = self._core.limits.subscriber_stall_s
        self._core.counters.add("state_watch_stalls_total")
        return errors.SlowConsumer(
            f"a response was not taken for {stall_s:g} s; resume after revision {self._told}",
            metadata={"revision": self._told, "stall_s": f"{stall_s:g}"},
        )
