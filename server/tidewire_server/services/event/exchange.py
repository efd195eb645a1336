"""
What the event service holds in memory: who listens live, who follows which stream, which consumers
run.

It hears from the engine what became durable and tells those it concerns. Nothing reaches a reader
by another way, so nobody sees a record before it is as durable as its acknowledgement says.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from tidewire.errors import ConsumerNotFound, StreamNotFound, TidewireError
from tidewire_server.core import Core
from tidewire_server.engine.base import Settle, StoredBatch
from tidewire_server.members import Life
from tidewire_server.services.event.consumer import ConsumerRunner
from tidewire_server.services.event.follow import StreamFollower
from tidewire_server.services.event.live import LiveHub

log = logging.getLogger(__name__)

TIDY_S: Final = 5.0
"""How often consumers nobody uses are put away."""
DRAIN_SHARE: Final = 0.9
"""Part of the grace after which streams end by themselves, before they are cut."""

Key = tuple[str, str]


class Session(Protocol):
    """An open stream of the event service."""

    def drain(self) -> None:
        """Tell the client that the server is going, and end when what was begun is done."""
        ...

    def end(self) -> None:
        """End now, cleanly."""
        ...

    def wake(self) -> None:
        """Look again whether to end."""
        ...


class Exchange:
    """Connects publishers, the engine and subscribers of one server."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.live = LiveHub()
        self.publishers = 0
        self.is_draining = False
        self._followers: dict[str, list[StreamFollower]] = {}
        self._runners: dict[Key, ConsumerRunner] = {}
        self._opening = asyncio.Lock()
        self._moved_meanwhile: dict[Key, int] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._sessions: set[Session] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to hear from the engine and of the members, and watch for the end."""
        listeners = self.core.engine.listeners
        listeners.appended.append(self._appended)
        listeners.settled.append(self._settled)
        listeners.streams_changed.append(self._stream_changed)
        self.core.members.listen(self._member_changed)
        self._tasks = [asyncio.create_task(self._tidy()), asyncio.create_task(self._drain())]

    async def close(self) -> None:
        """Stop; what consumers have settled is stored."""
        listeners = self.core.engine.listeners
        if self._tasks:
            listeners.appended.remove(self._appended)
            listeners.settled.remove(self._settled)
            listeners.streams_changed.remove(self._stream_changed)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._closing, return_exceptions=True)
        self._tasks = []
        runners, self._runners = list(self._runners.values()), {}
        for runner in runners:
            await self._close_runner(runner)

    # Who is there.

    def add_session(self, session: Session) -> None:
        """Let a stream hear of the end of the server."""
        self._sessions.add(session)
        if self.is_draining:
            session.drain()

    def remove_session(self, session: Session) -> None:
        """A stream is over."""
        self._sessions.discard(session)

    def publisher_opened(self) -> None:
        """A publishing stream was opened: live subscribers outlast it when the server drains."""
        self.publishers += 1

    def publisher_closed(self) -> None:
        """A publishing stream is over."""
        self.publishers -= 1
        if self.is_draining and not self.publishers:
            for session in self._sessions:
                session.wake()

    def follow(self, follower: StreamFollower) -> None:
        """Tell a follower what is stored in its stream from now on."""
        self._followers.setdefault(follower.stream, []).append(follower)

    def unfollow(self, follower: StreamFollower) -> None:
        """Stop telling it."""
        followers = self._followers.get(follower.stream, [])
        if follower in followers:
            followers.remove(follower)
        if not followers:
            self._followers.pop(follower.stream, None)

    def running(self, stream: str, consumer: str) -> ConsumerRunner | None:
        """The consumer, when somebody uses it."""
        return self._runners.get((stream, consumer))

    async def runner(self, stream: str, consumer: str) -> ConsumerRunner:
        """
        The consumer at work, started when it is not.

        Raises:
            StreamNotFound: No such stream.
            ConsumerNotFound: No such consumer.
        """
        key = (stream, consumer)
        if key in self._runners:
            return self._runners[key]
        async with self._opening:
            if key in self._runners:
                return self._runners[key]
            self._moved_meanwhile[key] = 0
            try:
                stored = await self.core.engine.get_consumer(stream, consumer)
            finally:
                moved = self._moved_meanwhile.pop(key)
            runner = ConsumerRunner(self.core, stored)
            runner.advance(moved)
            self._runners[key] = runner
            self.follow(runner.follower)
            runner.start()
            return runner

    # What happens.

    def _appended(self, batches: Sequence[StoredBatch]) -> None:
        now = self.core.clock()
        for stored in batches:
            for follower in self._followers.get(stored.stream, ()):
                follower.appended(stored)
            if stored.dead_letter is None:  # it is no event again, only a record of one
                fanout = self.live.deliver(
                    stored.batch, now=now, time_ns=stored.time_ns, stream=stored.stream
                )
                if fanout.lost:
                    self.core.counters.add("events_lost", fanout.lost)

    def _settled(self, settles: Sequence[Settle]) -> None:
        for settle in settles:
            if settle.through is None:
                continue
            key = (settle.stream, settle.consumer)
            if key in self._moved_meanwhile:
                self._moved_meanwhile[key] = max(self._moved_meanwhile[key], settle.through)
            runner = self._runners.get(key)
            if runner is not None:
                runner.advance(settle.through)

    def _stream_changed(self, stream: str) -> None:
        is_gone = self.core.engine.stream_config(stream) is None
        for follower in self._followers.get(stream, ()):
            follower.is_gone = is_gone
            follower.signal.set()
        if is_gone:
            for key in [key for key in self._runners if key[0] == stream]:
                self.drop(*key, StreamNotFound(f"stream {stream!r} was deleted"))

    def drop(self, stream: str, consumer: str, error: TidewireError | None = None) -> None:
        """A consumer was deleted: end those who use it."""
        runner = self._runners.pop((stream, consumer), None)
        if runner is not None:
            runner.fail(
                error or ConsumerNotFound(f"consumer {consumer!r} of {stream!r} was deleted")
            )
            task = asyncio.get_running_loop().create_task(self._close_runner(runner))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _member_changed(self, node_id: str, life: Life, _token: int) -> None:
        if life in (Life.DEAD, Life.LEFT):
            for runner in self._runners.values():
                runner.member_gone(node_id, dead=life is Life.DEAD)
        else:
            for runner in self._runners.values():
                runner.signal.set()

    async def _close_runner(self, runner: ConsumerRunner) -> None:
        self.unfollow(runner.follower)
        try:
            await runner.close()
        except TidewireError:
            log.exception("progress of consumer %s was not stored", runner.config.name)

    async def _tidy(self) -> None:
        """Put away consumers that nobody uses, and those that failed."""
        while True:
            await asyncio.sleep(TIDY_S)
            for key, runner in list(self._runners.items()):
                if runner.error is not None or runner.is_idle:
                    del self._runners[key]
                    await self._close_runner(runner)

    async def _drain(self) -> None:
        await self.core.drain.started.wait()
        self.is_draining = True
        for session in list(self._sessions):
            session.drain()
        await asyncio.sleep(self.core.drain.grace_s * DRAIN_SHARE)
        for session in list(self._sessions):
            session.end()
