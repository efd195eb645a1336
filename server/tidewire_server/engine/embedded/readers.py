"""
Reader threads.

Each has a connection of its own and takes everything that waits, within one snapshot, and answers
it with one call into the event loop. A reader never waits for the writer, nor the writer for a
reader.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import apsw

from tidewire import errors
from tidewire_server.engine.embedded.connections import Connection
from tidewire_server.engine.embedded.faults import translate

Result = TypeVar("Result")
READS_PER_SNAPSHOT_MAX = 64


@dataclass(slots=True)
class Read(Generic[Result]):
    """One read that waits or is done."""

    run: Callable[[Connection], Result]
    future: asyncio.Future[Result]
    result: Result | None = None
    error: BaseException | None = None


class Readers:
    """
    A few reader threads behind one queue; used from one event loop. ``before_answers`` is called
    there before what threads have read is told.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        loop: asyncio.AbstractEventLoop,
        reads_pending_max: int,
        before_answers: Callable[[], None],
    ) -> None:
        self.reads = 0
        self.refused = 0
        self._stopped = False
        self._pending = 0
        self._pending_max = reads_pending_max
        self._loop = loop
        self._before_answers = before_answers
        self._queue: queue.SimpleQueue[Read[Any] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(
                target=self._run, args=(connection,), name=f"tidewire-reader-{index}", daemon=True
            )
            for index, connection in enumerate(connections)
        ]

    def start(self) -> None:
        """Begin to read."""
        for thread in self._threads:
            thread.start()

    async def read(self, run: Callable[[Connection], Result]) -> Result:
        """
        Run a function in a reader thread, within a snapshot that has everything acknowledged
        before.

        Raises:
            Overloaded: Too many reads wait already.
            Unavailable: The store is closed.
        """
        if self._stopped:
            raise errors.Unavailable("the store is closed")
        if self._pending >= self._pending_max:
            self.refused += 1
            raise errors.Overloaded(
                f"{self._pending} reads wait, and no more are taken", retry_after_s=0.1
            )
        self._pending += 1
        self.reads += 1
        read: Read[Result] = Read(run, self._loop.create_future())
        self._queue.put(read)
        return await read.future

    def stop(self) -> None:
        """Ask the threads to end after what is queued; no more is taken."""
        self._stopped = True
        for _ in self._threads:
            self._queue.put(None)

    def join(self) -> None:
        """Wait for the threads."""
        for thread in self._threads:
            thread.join()

    def _deliver(self, reads: Sequence[Read[Any]]) -> None:
        self._pending -= len(reads)
        self._before_answers()
        for read in reads:
            if read.future.done():
                continue
            if read.error is not None:
                read.future.set_exception(read.error)
            else:
                read.future.set_result(read.result)

    # Below: a reader thread.

    def _run(self, connection: Connection) -> None:
        while (read := self._queue.get()) is not None:
            reads = [read]
            self._take_more(reads)
            self._answer(connection, reads)
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody is left.
                self._loop.call_soon_threadsafe(self._deliver, reads)
        with contextlib.suppress(apsw.Error):
            connection.close(True)

    def _take_more(self, reads: list[Read[Any]]) -> None:
        while len(reads) < READS_PER_SNAPSHOT_MAX:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                return
            if more is None:
                # The end is for the next round, of this thread or another one.
                self._queue.put(None)
                return
            reads.append(more)

    def _answer(self, connection: Connection, reads: Sequence[Read[Any]]) -> None:
        try:
            connection.execute("BEGIN")
        except apsw.Error as exc:
            for read in reads:
                read.error = translate(exc)
            return
        for read in reads:
            if read.future.cancelled():
                continue
            try:
                read.result = read.run(connection)
            except Exception as exc:  # noqa: BLE001 (the caller is told, in our words)
                read.error = translate(exc)
        with contextlib.suppress(apsw.Error):  # A read that failed may have ended it already.
            connection.execute("COMMIT")
