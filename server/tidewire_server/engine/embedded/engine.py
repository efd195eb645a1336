"""The engine as the services see it: everything on the event loop's side of the threads."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from tidewire import errors
from tidewire.v1 import checkpoint_pb2, common_pb2, state_pb2
from tidewire.wire.subject import SubjectIndex
from tidewire_server.engine.base import Committed, Listeners, MemberRecord, Transaction
from tidewire_server.engine.embedded import (
    checkpoints,
    compaction,
    maintenance,
    members,
    state,
    state_reads,
    transactions,
)
from tidewire_server.engine.embedded.opening import Store, open_store
from tidewire_server.engine.embedded.options import EngineOptions
from tidewire_server.engine.embedded.readers import Readers
from tidewire_server.engine.embedded.session import Effects, Session
from tidewire_server.engine.embedded.state_cache import StateCache
from tidewire_server.engine.embedded.stream_engine import StreamEngine
from tidewire_server.engine.embedded.writer import Job, Outcome, Writer

Result = TypeVar("Result")
Durability = common_pb2.Durability

_LOG = logging.getLogger(__name__)

FSYNC = common_pb2.DURABILITY_FSYNC
_TRANSACTION_BYTES = 256
"""What a transaction costs in memory besides its bodies, about."""


async def open_engine(
    path: Path, *, node_id: str = "", options: EngineOptions | None = None
) -> "EmbeddedEngine":
    """
    Open the store in a directory, making it when it is not there.

    Args:
        path: Directory of the store; nothing else should be in it.
        node_id: Name of the server, for the log only.
        options: Bounds; see `EngineOptions`.

    Raises:
        StoreLocked: Another process has it.
        StoreUnusable: It is of a newer format, of another application, or damaged. Nothing was
            touched.
    """
    chosen = options or EngineOptions()
    store = await asyncio.to_thread(open_store, path, chosen)
    return EmbeddedEngine(store, node_id)


class EmbeddedEngine(StreamEngine):
    """
    Streams, consumers, State, checkpoints, members and documents in one directory. See
    `tidewire_server.engine.base.Engine`.

    Attributes:
        writer: Its counters say what group commit does and costs.
        readers: Reader threads.
        state_cache: Current entries in memory.
        damaged: Tables that were found damaged at the start; absence in them is not believed.
        damaged_rows: Rows that were, for the log.
        groups_lost: Groups that a damaged write-ahead log has lost; 0 unless bytes of it changed.
    """

    name = "embedded"
    durability_max = FSYNC

    def __init__(self, store: Store, node_id: str) -> None:
        loop = asyncio.get_running_loop()
        self.listeners = Listeners()
        self.node_id = node_id
        self.cluster_id = store.cluster_id
        self.epoch = store.epoch
        self.options = store.session.options
        self.damaged = frozenset(store.damage.tables)
        self.damaged_rows = tuple(store.damage.rows)
        self.groups_lost = store.damage.groups_lost
        self._report_damage()
        self._store = store
        self._loop = loop
        self._views = store.views
        self._subjects: SubjectIndex[str] = SubjectIndex()
        self._quarantined = store.quarantined
        self._state_revision = store.session.number("state_revision")
        self._failure: asyncio.Future[BaseException] = loop.create_future()
        self._closed = False
        self._index()
        self.writer = Writer(
            store.session, store.ballast, store.reserved, loop, self._deliver, self._fail
        )
        self.state_cache = StateCache(self.options.state_cache_bytes)
        self.readers = Readers(
            store.readers,
            loop,
            self.options.reads_pending_max,
            lambda: self.state_cache.exposed(self.writer.state_turn),
        )
        self.writer.start()
        self.readers.start()
        self._sweeper = loop.create_task(self._sweep(), name="tidewire-engine-sweep")

    def _report_damage(self) -> None:
        if self.damaged:
            _LOG.error("damaged tables %s, rows %s", sorted(self.damaged), self.damaged_rows)
        if self.groups_lost:
            _LOG.error("a damaged log has lost %d acknowledged groups", self.groups_lost)

    # Life.

    @property
    def failure(self) -> BaseException | None:
        """Why the engine can no longer write; ``None`` while it can."""
        return self.writer.failure

    async def wait_failed(self) -> BaseException:
        """Wait until the engine can no longer write and return why."""
        return await asyncio.shield(self._failure)

    async def close(self) -> None:
        """Finish what was accepted, flush, release the store. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.state_cache.close()
        self._sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sweeper
        # The writer's connection goes last: it is the one that may copy the log.
        self.readers.stop()
        await asyncio.to_thread(self.readers.join)
        self.writer.stop()
        await asyncio.to_thread(self.writer.join)
        # What the threads answered last is still on its way through the loop.
        await asyncio.sleep(0)
        self._store.release()

    def _fail(self, error: BaseException) -> None:
        self.state_cache.close()
        if not self._failure.done():
            self._failure.set_result(error)

    # Writing.

    async def _write(
        self,
        run: Callable[[Session], Result],
        *,
        level: Durability.ValueType = FSYNC,
        size: int = 0,
        atomic: bool = False,
        frees: bool = False,
    ) -> Result:
        if self._closed:
            raise errors.Unavailable("the store is closed")
        job: Job[Result] = Job(
            run, self._loop.create_future(), level, size + _TRANSACTION_BYTES, atomic, frees
        )
        self.writer.submit(job)
        return await job.future

    def _deliver(self, outcome: Outcome) -> None:
        """Make a durable group visible, tell the listeners, then answer."""
        self.writer.settle(outcome.jobs)
        if outcome.replaced:
            self._views = outcome.views
            self._index()
        for name, counters in outcome.counters:
            if name in self._views:
                self._views[name].counters = counters
        self._state_revision = max(self._state_revision, outcome.state_revision)
        # What was not written has its effects in memory only: nobody hears of them.
        effects = [job.effects for job in outcome.jobs if job.effects and job.error is None]
        self.state_cache.learn(outcome.turn, effects)
        self._tell(effects)
        for job in outcome.jobs:
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)

    def _tell(self, effects: Sequence[Effects]) -> None:
        listeners = self.listeners
        appended = [batch for item in effects for batch in item.appended]
        for item in effects:
            for name in item.streams_changed:
                self._call(listeners.streams_changed, name)
        if appended:
            self._call(listeners.appended, appended)
        for item in effects:
            for changes, revision in item.changed:
                self._call(listeners.changed, changes, revision)
            if item.settled:
                self._call(listeners.settled, item.settled)

    def _call(self, listeners: Sequence[Callable[..., None]], *arguments: Any) -> None:
        for listener in listeners:
            try:
                listener(*arguments)
            except Exception as exc:  # noqa: BLE001 (one listener must not keep others from their answers)
                self._loop.call_exception_handler(
                    {"message": "a listener of the engine failed", "exception": exc}
                )

    async def commit(self, transaction: Transaction) -> Committed:
        """Do all of it or nothing. See `Transaction` for what can be refused."""
        level = self._level(transaction)
        if level > FSYNC:
            raise errors.DurabilityUnavailable(
                "this engine flushes to one disk (FSYNC); QUORUM needs a replicated engine"
            )
        frees = bool(transaction.settles) and not (
            transaction.appends or transaction.then or transaction.checkpoint
        )
        return await self._write(
            lambda session: transactions.perform(session, transaction),
            level=level,
            size=_size(transaction),
            atomic=transactions.is_atomic(transaction),
            frees=frees,
        )

    def _level(self, transaction: Transaction) -> Durability.ValueType:
        """The level asked for; when nothing is said, the strongest default of what is touched."""
        if transaction.durability != common_pb2.DURABILITY_UNSPECIFIED:
            return transaction.durability
        if transaction.then or transaction.otherwise or transaction.checkpoint:
            return FSYNC
        levels = []
        for item in transaction.appends:
            name = item.stream or self.stream_for(item.request.batch.subject)
            view = self._views.get(name or "")
            levels.append(view.config.durability if view is not None else FSYNC)
        return max(levels, default=FSYNC)

    async def _sweep(self) -> None:
        """Remove what is over, now and then; without a pause while there is much."""
        rounds = 0
        while True:
            await asyncio.sleep(self.options.sweep_interval_s)
            if self.failure is not None:
                return
            rounds += 1
            with contextlib.suppress(errors.TidewireError):  # Full or overloaded: the next round.
                removed = self.options.sweep_rows_max
                while removed >= self.options.sweep_rows_max:
                    removed = await self._write(maintenance.sweep, frees=True)
                if rounds % 60 == 0:
                    await self._write(maintenance.sweep_producers, frees=True)

    # State.

    @property
    def state_revision(self) -> int:
        """Store revision that readers see, from memory."""
        return self._state_revision

    def find_state(self, key: str) -> bytes | None:
        """Encoded ``GetResponse`` with the present entry of a key, when memory has it."""
        entry = self.state_cache.find(key)
        return None if entry is None else entry + _revision(self._state_revision)

    def find_states(self, keys: Sequence[str], bytes_max: int) -> bytes | None:
        """Encoded ``GetManyResponse`` with present entries, when memory has all and they fit."""
        entries = self.state_cache.find_all(keys)
        if entries is None or sum(map(len, entries)) > bytes_max:
            return None
        tail = state_pb2.GetManyResponse(revision=self._state_revision, read=len(keys))
        return b"".join(entries) + tail.SerializeToString()

    async def get_state(self, key: str, revision: int = 0) -> state_pb2.GetResponse:
        """The entry of a key, now or at a revision."""
        if revision:
            return await self.readers.read(lambda c: state_reads.get(c, key, revision))
        found = self.find_state(key)
        if found is not None:
            return state_pb2.GetResponse.FromString(found)
        ticket = self.state_cache.reading((key,))
        try:
            response = await self.readers.read(lambda c: state_reads.get(c, key, 0))
            entries = (response.entry,) if response.HasField("entry") else ()
            self.state_cache.keep(ticket, entries, (key,))
        finally:
            self.state_cache.forget(ticket)
        return response

    async def get_states(
        self, keys: Sequence[str], revision: int = 0, *, bytes_max: int
    ) -> state_pb2.GetManyResponse:
        """The entries of keys at one revision; fewer are read when they would be too large."""
        if not revision:
            found = self.find_states(keys, bytes_max)
            if found is not None:
                return state_pb2.GetManyResponse.FromString(found)
        ticket = self.state_cache.reading(() if revision else keys)
        try:
            response = await self.readers.read(
                lambda c: state_reads.get_many(c, keys, revision, bytes_max)
            )
            self.state_cache.keep(ticket, response.entries, keys[: response.read])
        finally:
            self.state_cache.forget(ticket)
        return response

    async def range_state(
        self,
        prefix: str,
        *,
        start_after: str = "",
        revision: int = 0,
        entries_max: int,
        bytes_max: int,
        keys_only: bool = False,
    ) -> tuple[Sequence[state_pb2.Entry], int, bool]:
        """Entries, the revision they show, and whether there are more."""
        return await self.readers.read(
            lambda c: state_reads.read_range(
                c, prefix, start_after, revision, entries_max, bytes_max, keys_only=keys_only
            )
        )

    async def state_history(
        self, key: str, *, before_revision: int = 0, changes_max: int, bytes_max: int
    ) -> tuple[Sequence[state_pb2.Change], int, bool]:
        """Changes of a key newest first, the oldest revision kept, and whether there are more."""
        return await self.readers.read(
            lambda c: state_reads.history(c, key, before_revision, changes_max, bytes_max)
        )

    async def state_changes(
        self,
        prefix: str,
        *,
        after_revision: int,
        changes_max: int,
        bytes_max: int,
        exact: bool = False,
        with_previous: bool = False,
    ) -> tuple[Sequence[state_pb2.Change], int]:
        """Changes after a revision, whole revisions only, and the revision to go on from."""
        return await self.readers.read(
            lambda c: state_reads.changes(
                c,
                prefix,
                after_revision,
                changes_max,
                bytes_max,
                exact=exact,
                with_previous=with_previous,
            )
        )

    async def touch_state(self, key: str, expected_revision: int | None) -> state_pb2.TouchResponse:
        """Give a key its full time to live again."""
        return await self._write(
            lambda session: state.StateWriter(session).touch(key, expected_revision), atomic=True
        )

    async def compact_state(self, revision: int) -> int:
        """Forget history before a revision."""
        return await self._write(
            lambda session: compaction.compact(session, revision), atomic=True, frees=True
        )

    async def expire_state(self, now_ns: int) -> int | None:
        """Remove what has expired; return when the next key expires, or ``None``."""
        following = await self._write(lambda session: state.expire(session, now_ns), frees=True)
        while following is not None and following <= now_ns:
            before = self._state_revision
            following = await self._write(lambda session: state.expire(session, now_ns), frees=True)
            if self._state_revision == before:
                break  # What is left is damaged, and stays.
        return following

    async def drop_leased_state(self, node_id: str, fencing_token: int) -> int:
        """
        Remove the keys on a lease of this member with this token or an older one; return how many.
        """
        total = 0
        while dropped := await self._write(
            lambda session: state.drop_leased(session, node_id, fencing_token), frees=True
        ):
            total += dropped
        return total

    # Members.

    async def join_member(
        self, node_id: str, lease_s: float, groups: Sequence[str]
    ) -> MemberRecord:
        """Give a node its next incarnation and a fencing token higher than any before."""
        return await self._write(lambda session: members.join(session, node_id, lease_s, groups))

    async def mark_member_gone(self, node_id: str, incarnation: int) -> None:
        """Record that this incarnation is gone."""
        await self._write(lambda session: members.mark_gone(session, node_id, incarnation))

    async def list_members(self) -> Sequence[MemberRecord]:
        """All members that ever joined."""
        return await self.readers.read(members.list_all)

    # Checkpoints.

    async def acquire_operator(
        self, operator: str, keep: int
    ) -> tuple[int, checkpoint_pb2.Checkpoint | None]:
        """Give an operator its next epoch; with it the last checkpoint, without its state."""
        return await self._write(lambda session: checkpoints.acquire(session, operator, keep))

    async def put_chunk(self, digest: bytes, data: bytes) -> bool:
        """Store a chunk; True when it was there."""
        return await self._write(
            lambda session: checkpoints.put_chunk(session, digest, data), size=len(data)
        )

    async def find_missing_chunks(self, digests: Sequence[bytes]) -> Sequence[bytes]:
        """Chunks that are not there; those that are stay for the grace."""
        return await self._write(lambda session: checkpoints.find_missing(session, digests))

    async def get_chunk(self, digest: bytes) -> bytes:
        """The bytes of a chunk, checked."""
        return await self.readers.read(lambda c: checkpoints.get_chunk(c, digest))

    async def load_checkpoint(
        self, operator: str, revision: int, *, with_state: bool
    ) -> checkpoint_pb2.Checkpoint | None:
        """A checkpoint (0: the last one); ``None`` when the operator has none."""
        return await self.readers.read(
            lambda c: checkpoints.load(c, operator, revision, with_state=with_state)
        )

    async def list_checkpoints(
        self, operator: str, *, before: str, checkpoints_max: int
    ) -> tuple[Sequence[checkpoint_pb2.Checkpoint], str]:
        """Checkpoints without state and the token to go on with."""
        return await self.readers.read(
            lambda c: checkpoints.list_checkpoints(c, operator, before, checkpoints_max)
        )

    async def delete_checkpoint(self, operator: str, revision: int) -> int:
        """Delete one checkpoint, or all of an operator (0); return how many."""
        return await self._write(
            lambda session: checkpoints.delete(session, operator, revision), frees=True
        )

    # Documents.

    async def put_document(self, kind: str, name: str, body: bytes, expires_ns: int) -> None:
        """Store a document; ``expires_ns`` 0 means never."""
        await self._write(
            lambda session: members.put_document(session, kind, name, body, expires_ns),
            size=len(body),
        )

    async def list_documents(self, kind: str) -> Sequence[tuple[str, bytes]]:
        """Names and bodies of the documents of a kind, by name."""
        return await self.readers.read(lambda c: members.list_documents(c, kind, time.time_ns()))

    async def delete_documents(self, kind: str, names: Sequence[str]) -> None:
        """Delete documents; those that are not there are no error."""
        await self._write(
            lambda session: members.delete_documents(session, kind, names), frees=True
        )


@lru_cache(maxsize=1)
def _revision(number: int) -> bytes:
    """The part of a ``GetResponse`` that says the store's revision."""
    return state_pb2.GetResponse(revision=number).SerializeToString()


def _size(transaction: Transaction) -> int:
    size = sum(len(item.request.batch.body) + _TRANSACTION_BYTES for item in transaction.appends)
    for operations in (transaction.then, transaction.otherwise):
        size += sum(operation.ByteSize() for operation in operations)
    checkpoint = transaction.checkpoint
    if checkpoint is not None:
        size += len(checkpoint.inline or b"") + 64 * len(checkpoint.chunks)
    return size


__all__ = ("EmbeddedEngine", "open_engine")
