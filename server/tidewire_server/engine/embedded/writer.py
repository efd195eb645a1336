"""
The writer thread: group commit.

It takes everything that waits (within `EngineOptions.group_transactions_max` and
``group_bytes_max``), does it in one SQLite transaction, commits once, and answers all of it with
one call into the event loop. There is no linger: while one group is flushed, the next one gathers.

When a group fails it is taken back whole, and each of its transactions is tried alone, so that one
that cannot be done does not spoil the others. After a failed write or flush nothing is tried again:
the engine has failed, and only ending helps.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import apsw

from tidewire import errors
from tidewire.v1 import common_pb2
from tidewire_server.engine.embedded.faults import (
    is_fatal,
    outcome_unknown,
    translate,
    unavailable,
)
from tidewire_server.engine.embedded.files import Ballast
from tidewire_server.engine.embedded.full_disk import FullDisk
from tidewire_server.engine.embedded.log_damage import LogWatch
from tidewire_server.engine.embedded.reserved import FENCING_TOKEN, STATE_REVISION, Reserved
from tidewire_server.engine.embedded.session import Effects, Session
from tidewire_server.engine.embedded.trimming import trim
from tidewire_server.engine.embedded.views import StreamView, views_of

_LOG = logging.getLogger(__name__)

Result = TypeVar("Result")
Durability = common_pb2.Durability


@dataclass(slots=True)
class Job(Generic[Result]):
    """
    One transaction that waits or is done.

    Attributes:
        run: Does it.
        level: Durability it asks for.
        size: Bytes it brings, about.
        atomic: It judges everything before it writes, and needs no savepoint.
        frees: It makes room, and may use the ballast when the disk is full.
    """

    run: Callable[[Session], Result]
    future: asyncio.Future[Result]
    level: Durability.ValueType
    size: int
    atomic: bool = False
    frees: bool = False
    result: Result | None = None
    error: BaseException | None = None
    effects: Effects | None = None


@dataclass(slots=True)
class Outcome:
    """What a group did, as the event loop gets it."""

    jobs: Sequence[Job[Any]]
    counters: Sequence[tuple[str, tuple[int, ...]]]
    views: dict[str, StreamView]
    replaced: bool
    state_revision: int
    turn: int


@dataclass(slots=True)
class WriterCounters:
    """What writing cost. Written by the writer thread; plain numbers, read by the metrics."""

    groups: int = 0
    transactions: int = 0
    messages: int = 0
    bytes: int = 0
    refused: int = 0
    isolated: int = 0
    log_copies: int = 0
    commit_s: float = 0.0
    commit_s_max: float = 0.0
    group_transactions_last: int = 0
    store_full: int = 0


@dataclass(slots=True)
class Pending:
    """What waits for the writer; touched by the event loop only."""

    transactions: int = 0
    bytes: int = 0
    refused: int = field(default=0)


class Writer:
    """
    Owns the writing connection. `submit` and `stop` are for the event loop; ``deliver`` is called
    there.

    Attributes:
        failure: Why nothing is written any more; ``None`` while it can be.
        state_turn: Last turn that has begun to commit changes of State. Until its outcome is
            delivered, readers may see them or not.
    """

    def __init__(
        self,
        session: Session,
        ballast: Ballast,
        reserved: Reserved,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[Outcome], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.counters = WriterCounters()
        self.pending = Pending()
        self.failure: BaseException | None = None
        self.state_turn = 0
        self._turn = 0
        self._session = session
        self._reserved = reserved
        self._options = session.options
        self._full = FullDisk(session.connection, ballast)
        self._loop = loop
        self._deliver = deliver
        self._failed = failed
        self._queue: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._synchronous = self._options.synchronous
        self._unflushed = False
        self._unflushing = False
        self._log_pages = 0
        self._log_frames = 0
        self._log = LogWatch(Path(session.connection.filename_wal), reserved)
        session.connection.set_wal_hook(self._count_log_pages)
        self._thread = threading.Thread(target=self._run, name="tidewire-writer", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def submit(self, job: Job[Any]) -> None:
        """
        Queue a transaction.

        Raises:
            Overloaded: Too much waits already.
            Unavailable: The engine has failed.
        """
        if self.failure is not None:
            raise unavailable()
        pending = self.pending
        if (
            pending.transactions >= self._options.pending_transactions_max
            or pending.bytes + job.size > self._options.pending_bytes_max + self._single(pending)
        ):
            pending.refused += 1
            raise errors.Overloaded(
                f"{pending.transactions} transactions of {pending.bytes} bytes wait for the disk, "
                "and no more are taken",
                retry_after_s=0.1,
            )
        pending.transactions += 1
        pending.bytes += job.size
        self._queue.put(job)

    def _single(self, pending: Pending) -> int:
        """A transaction that is larger than the whole bound is taken when nothing else waits."""
        return 0 if pending.transactions else 2**62

    def settle(self, jobs: Sequence[Job[Any]]) -> None:
        """Say, in the event loop, that these no longer wait."""
        self.pending.transactions -= len(jobs)
        self.pending.bytes -= sum(job.size for job in jobs)

    def stop(self) -> None:
        """Ask the thread to end after what is queued."""
        self._queue.put(None)

    def join(self) -> None:
        """Wait for the thread."""
        self._thread.join()

    # Below: the writer thread.

    def _run(self) -> None:
        running = True
        while running:
            jobs, running = self._take()
            self._turn += 1
            live = [job for job in jobs if not job.future.cancelled()]
            for job in jobs:
                if job.future.cancelled():
                    job.error = asyncio.CancelledError()
            if self.failure is None:
                self._commit_or_isolate(self._refuse_without_room(live))
            else:
                for job in live:
                    job.error = unavailable()
            self._answer(jobs)
            if self._log_pages >= self._options.wal_pages_max and self.failure is None:
                self._copy_log()
        self._finish()

    def _count_log_pages(self, _connection: object, _name: str, pages: int) -> int:
        self._log_pages = self._log_frames = pages
        return apsw.SQLITE_OK

    def _copy_log(self) -> None:
        """Copy the write-ahead log into the database, as far as readers let it."""
        self._log_pages = 0
        self.counters.log_copies += 1
        try:
            self._session.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except (apsw.FullError, apsw.BusyError):
            # Everything is still in the log; the next group asks again.
            self.counters.store_full += 1
        except apsw.Error as exc:
            self._fail(exc)

    def _finish(self) -> None:
        connection = self._session.connection
        if self.failure is None:
            with contextlib.suppress(apsw.Error):  # The log stays and is read at the next start.
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        with contextlib.suppress(apsw.Error):
            connection.close(True)
        self._log.close()
        self._reserved.close()

    def _take(self) -> tuple[list[Job[Any]], bool]:
        """Everything that waits, at least one; False when it was asked to end."""
        options = self._options
        jobs: list[Job[Any]] = []
        size = 0
        job = self._queue.get()
        while job is not None:
            jobs.append(job)
            size += job.size
            if len(jobs) >= options.group_transactions_max or size >= options.group_bytes_max:
                return jobs, True
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return jobs, True
        return jobs, False

    def _commit_or_isolate(self, jobs: Sequence[Job[Any]]) -> None:
        if not jobs:
            return
        if self._try(jobs) is None:
            return
        for job in jobs:
            if self.failure is not None:
                job.error = outcome_unknown()
                continue
            self.counters.isolated += 1
            self._alone(job)

    def _alone(self, job: Job[Any]) -> None:
        """Try one transaction by itself, with the ballast's help when it makes room."""
        error = self._try([job])
        if isinstance(error, apsw.FullError) and job.frees and self._full.give_up_ballast():
            error = self._try([job])
            self._recover()
        if error is not None:
            job.error = outcome_unknown() if is_fatal(error) else translate(error)

    def _recover(self) -> None:
        if self.failure is None:
            try:
                self._full.recover()
            except apsw.Error as exc:
                self._fail(exc)

    def _refuse_without_room(self, jobs: list[Job[Any]]) -> list[Job[Any]]:
        """While the disk is full only what makes room is done."""
        if not self._full.refuses():
            return jobs
        for job in jobs:
            if not job.frees:
                job.error = translate(apsw.FullError())
        return [job for job in jobs if job.frees]

    def _try(self, jobs: Sequence[Job[Any]]) -> Exception | None:
        """Do a group. On an error everything is taken back, and nobody has an answer."""
        session = self._session
        for job in jobs:
            job.error = job.result = job.effects = None
        try:
            self._begin(jobs)
            for job in jobs:
                self._perform(job)
            if self._options.acknowledge_early:
                self._answer_early(jobs)
            for stream in list(session.dirty_streams.values()):
                trim(session, stream)
            session.flush()
            self._reserved.cover(_numbers(session))
            if session.state_changed:
                self.state_turn = self._turn
            self._commit()
            self._unflushed = self._unflushing
        except Exception as exc:  # noqa: BLE001 (each kind is judged by translate and is_fatal)
            self._take_back(exc)
            return exc
        self._count(jobs)
        return None

    def _count(self, jobs: Sequence[Job[Any]]) -> None:
        counters = self.counters
        counters.groups += 1
        counters.transactions += len(jobs)
        counters.bytes += sum(job.size for job in jobs)
        counters.group_transactions_last = len(jobs)
        for job in jobs:
            if job.effects is not None:
                for batch in job.effects.appended:
                    counters.messages += batch.last_sequence - batch.first_sequence + 1

    def _begin(self, jobs: Sequence[Job[Any]]) -> None:
        session = self._session
        session.now_ns = time.time_ns()
        session.state_changed = False
        session.level = max(job.level for job in jobs)
        synchronous = "NORMAL"
        if session.level >= common_pb2.DURABILITY_FSYNC:
            synchronous = self._options.synchronous
        else:
            session.level = common_pb2.DURABILITY_OS
        if synchronous != self._synchronous:
            session.execute(f"PRAGMA synchronous={synchronous}")
            self._synchronous = synchronous
        session.execute("BEGIN IMMEDIATE")
        if synchronous != "NORMAL" and self._unflushed:
            # An answer may rest on what an earlier, unflushed group wrote (a copy, a repeated
            # request). A group that writes nothing would not flush; this one writes something.
            session.set_number("flushes", session.number("flushes") + 1)
        self._unflushing = synchronous == "NORMAL"

    def _perform(self, job: Job[Any]) -> None:
        session = self._session
        session.begin()
        if not job.atomic:
            session.execute("SAVEPOINT one")
        try:
            job.result = job.run(session)
        except errors.TidewireError as exc:
            job.error = exc
            self.counters.refused += 1
            session.undo()
            if not job.atomic:
                session.execute("ROLLBACK TO one")
                session.execute("RELEASE one")
            return
        if not job.atomic:
            session.execute("RELEASE one")
        job.effects = session.effects

    def _commit(self) -> None:
        before = time.perf_counter()
        self._session.execute("COMMIT")
        spent = time.perf_counter() - before
        if self._log_frames:
            self._log.note(self._log_frames)
            self._log_frames = 0
        self.counters.commit_s += spent
        self.counters.commit_s_max = max(self.counters.commit_s_max, spent)

    def _take_back(self, error: Exception) -> None:
        if is_fatal(error):
            self._fail(error)
            return
        if isinstance(error, apsw.FullError):
            self.counters.store_full += 1
        try:
            if self._session.connection.in_transaction:
                self._session.execute("ROLLBACK")
            self._session.reload()
        except apsw.Error as exc:
            self._fail(exc)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        # Closing must not try the disk again by copying the log.
        self._session.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        _LOG.critical("the disk failed, nothing is written any more", exc_info=error)
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody is left to tell.
            self._loop.call_soon_threadsafe(self._failed, error)

    def _answer(self, jobs: Sequence[Job[Any]]) -> None:
        session = self._session
        replaced = session.view_changed
        session.view_changed = False
        views: dict[str, StreamView] = {}
        if replaced and self.failure is None:
            views = views_of(session)
        outcome = Outcome(
            jobs,
            [] if self.failure is not None else session.take_changed_counters(),
            views,
            replaced and self.failure is None,
            session.number("state_revision") if self.failure is None else 0,
            self._turn,
        )
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody is left to answer.
            self._loop.call_soon_threadsafe(self._deliver, outcome)

    def _answer_early(self, jobs: Sequence[Job[Any]]) -> None:
        for job in jobs:
            if job.error is None:
                self._loop.call_soon_threadsafe(_set_early, job)


def _numbers(session: Session) -> Iterator[tuple[int, int]]:
    """Numbers that the group may have given, which must be reserved before."""
    yield STATE_REVISION, session.number("state_revision")
    yield FENCING_TOKEN, session.number("fencing_token")
    for stream in session.dirty_streams.values():
        yield stream.number, stream.last_sequence


def _set_early(job: Job[Any]) -> None:
    if not job.future.done():
        job.future.set_result(job.result)
