"""The State service: shared versioned values, kept in sync."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from tidewire import errors
from tidewire.transport.context import ServerCall
from tidewire.transport.direct import served_directly_by
from tidewire.v1 import state_pb2, state_pb2_grpc
from tidewire_server.core import Context, Core, principal
from tidewire_server.engine.base import Committed, RequestKey, Transaction
from tidewire_server.services.payload import bad_field
from tidewire_server.services.state.checks import (
    KEYS_MAX,
    check_compare,
    check_durability,
    check_key,
    check_keys,
    check_operations,
    check_operations_count,
    check_prefix,
    check_put,
    check_request_id,
    duration_s,
)
from tidewire_server.services.state.expiry import ExpiryTimer, LeaseSweep
from tidewire_server.services.state.feed import Feed, KeyFilter
from tidewire_server.services.state.pages import decode_token, encode_token
from tidewire_server.services.state.watching import Watcher

log = logging.getLogger(__name__)

RANGE_ENTRIES: Final = 1000
RANGE_ENTRIES_MAX: Final = 10_000
HISTORY_CHANGES: Final = 64
HISTORY_CHANGES_MAX: Final = 1000
CHANGES: Final = 1000
CHANGES_MAX: Final = 10_000


class StateService(state_pb2_grpc.StateServiceServicer):
    """
    Serves State from the engine. Every change, also of other services and of timers, reaches the
    watchers.

    Reads and writes go to the engine at once; nothing is cached here, so what it promises holds
    here. What the engine has in memory is answered without a task.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._engine = core.engine
        self._feed = Feed(0)
        self._expiry = ExpiryTimer(core)
        self._leases = LeaseSweep(core)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Follow the engine's changes, and begin to expire keys and to end leases."""
        self._feed.revision = self._engine.state_revision
        self._engine.listeners.changed.append(self._changed)
        self._core.members.listen(self._leases.heard)
        for member in await self._engine.list_members():
            if member.gone:
                self._leases.end(member.node_id, member.fencing_token)
        for work in (self._expiry.run(), self._leases.run(), self._wake_on_drain()):
            task = asyncio.create_task(work)
            task.add_done_callback(_report)
            self._tasks.append(task)

    async def close(self) -> None:
        """Stop the timers. What they had begun in the engine is done or not, never half."""
        if self._changed in self._engine.listeners.changed:
            self._engine.listeners.changed.remove(self._changed)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def _changed(self, changes: Sequence[state_pb2.Change], revision: int) -> None:
        self._feed.offer(changes, revision)
        self._expiry.note(changes)

    async def _wake_on_drain(self) -> None:
        await self._core.drain.started.wait()
        self._feed.wake_all()

    # Reading.

    @served_directly_by("get_directly")
    async def Get(self, request: state_pb2.GetRequest, context: Context) -> state_pb2.GetResponse:
        """Read one key, now or as it was at a revision."""
        check_key(request.key)
        return await self._engine.get_state(request.key, request.revision)

    def get_directly(self, request: state_pb2.GetRequest, call: ServerCall) -> bool:
        """Do what `Get` does when the entry is in memory; True: it is not."""
        # A key that is in memory is a key: it was checked when it was read first.
        found = None if request.revision else self._engine.find_state(request.key)
        if found is None:
            return True
        call.answer_encoded(found)
        return False

    @served_directly_by("get_many_directly")
    async def GetMany(
        self, request: state_pb2.GetManyRequest, context: Context
    ) -> state_pb2.GetManyResponse:
        """Read several keys at one revision, now or as they were."""
        check_keys(request.keys)
        return await self._engine.get_states(
            request.keys, request.revision, bytes_max=self._core.limits.response_bytes_max
        )

    def get_many_directly(self, request: state_pb2.GetManyRequest, call: ServerCall) -> bool:
        """Do what `GetMany` does when all entries are in memory; True: they are not."""
        found = None
        if not request.revision and 0 < len(request.keys) <= KEYS_MAX:
            bytes_max = self._core.limits.response_bytes_max
            found = self._engine.find_states(request.keys, bytes_max)
        if found is None:
            return True
        call.answer_encoded(found)
        return False

    async def Range(
        self, request: state_pb2.RangeRequest, context: Context
    ) -> state_pb2.RangeResponse:
        """Read the keys with a prefix, by pages of one revision."""
        check_prefix(request.prefix)
        revision, start_after = decode_token(request.prefix, request.page_token)
        entries, revision, more = await self._engine.range_state(
            request.prefix,
            start_after=start_after,
            revision=revision,
            entries_max=min(request.page_size or RANGE_ENTRIES, RANGE_ENTRIES_MAX),
            bytes_max=self._core.limits.response_bytes_max,
            keys_only=request.keys_only,
        )
        token = encode_token(request.prefix, revision, entries[-1].key) if more else ""
        return state_pb2.RangeResponse(entries=entries, revision=revision, next_page_token=token)

    async def History(
        self, request: state_pb2.HistoryRequest, context: Context
    ) -> state_pb2.HistoryResponse:
        """Read the versions of one key that are kept, newest first."""
        check_key(request.key)
        before, _ = decode_token(request.key, request.page_token)
        revision = self._engine.state_revision
        changes, compacted, more = await self._engine.state_history(
            request.key,
            before_revision=before,
            changes_max=min(request.page_size or HISTORY_CHANGES, HISTORY_CHANGES_MAX),
            bytes_max=self._core.limits.response_bytes_max,
        )
        token = encode_token(request.key, changes[-1].entry.revision) if more else ""
        return state_pb2.HistoryResponse(
            changes=changes,
            revision=max(revision, changes[0].entry.revision if changes else 0),
            compacted_revision=compacted,
            next_page_token=token,
        )

    # Writing.

    async def Put(self, request: state_pb2.PutRequest, context: Context) -> state_pb2.PutResponse:
        """Write one key."""
        check_put(request, "", self._core)
        operation = state_pb2.StateOperation(put=request)
        committed = await self._commit(
            Transaction(
                durability=check_durability(request.durability, self._core),
                then=(operation,),
                request=self._request_key("Put", request.request_id, context),
            )
        )
        response = _result(committed, 0).put
        if response.entry.key != request.key:
            raise _other_request(request.request_id, response.entry.key)
        response.revision = committed.state_revision
        response.durability = committed.durability
        return response

    async def Delete(
        self, request: state_pb2.DeleteRequest, context: Context
    ) -> state_pb2.DeleteResponse:
        """Delete one key."""
        check_key(request.key)
        committed = await self._commit(
            Transaction(
                durability=check_durability(request.durability, self._core),
                then=(state_pb2.StateOperation(delete=request),),
                request=self._request_key("Delete", request.request_id, context),
            )
        )
        response = _result(committed, 0).delete
        response.revision = committed.state_revision
        response.durability = committed.durability
        return response

    async def Transact(
        self, request: state_pb2.TransactRequest, context: Context
    ) -> state_pb2.TransactResponse:
        """Compare, then do one of two lists, under one revision."""
        most = self._core.limits.transaction_operations_max
        check_compare(request.compare, most)
        check_operations_count(len(request.then) + len(request.otherwise), "then", most)
        check_operations(request.then, "then", self._core)
        check_operations(request.otherwise, "otherwise", self._core)
        committed = await self._commit(
            Transaction(
                durability=check_durability(request.durability, self._core),
                compare=request.compare,
                then=request.then,
                otherwise=request.otherwise,
                request=self._request_key("Transact", request.request_id, context),
            )
        )
        response = committed.state or state_pb2.TransactResponse(succeeded=True)
        response.revision = committed.state_revision
        response.durability = committed.durability
        return response

    async def Touch(
        self, request: state_pb2.TouchRequest, context: Context
    ) -> state_pb2.TouchResponse:
        """Give a key its full time to live again."""
        check_key(request.key)
        expected = request.expected_revision if request.HasField("expected_revision") else None
        return await self._engine.touch_state(request.key, expected)

    async def Compact(
        self, request: state_pb2.CompactRequest, context: Context
    ) -> state_pb2.CompactResponse:
        """Forget history before a revision."""
        current = self._engine.state_revision
        if request.revision > current:
            raise errors.RevisionInFuture(
                f"revision {request.revision} has not been given yet; the store is at {current}",
                metadata={"revision": current},
            )
        compacted = await self._engine.compact_state(request.revision)
        return state_pb2.CompactResponse(compacted_revision=compacted)

    # Following.

    async def Watch(self, request: state_pb2.WatchRequest, context: Context) -> None:  # type: ignore[override]
        """
        Send a snapshot, then every change. The handler writes to the context, which tells it when a
        reader stalls.
        """
        await Watcher(self._core, self._feed, request, context).run()

    async def Changes(
        self, request: state_pb2.ChangesRequest, context: Context
    ) -> state_pb2.ChangesResponse:
        """Read the changes after a revision, waiting for the first when there is none."""
        check_prefix(request.prefix)
        wait_s = 0.0
        if request.HasField("wait"):
            wait_s = duration_s(request.wait, "wait", 0.0, self._core.limits.unary_wait_s_max)
        wake = asyncio.Event()
        # The tail keeps nothing; it only tells when something for this caller came.
        tail = self._feed.attach(KeyFilter(request.prefix), wake.set, changes_max=0, bytes_max=0)
        try:
            response = await self._read_changes(request)
            if not response.changes and wait_s and not self._core.drain.started.is_set():
                try:
                    async with asyncio.timeout(wait_s):
                        await wake.wait()
                except TimeoutError:
                    wake.clear()  # nothing came; what history says now is the answer
                response = await self._read_changes(request)
        finally:
            self._feed.detach(tail)
        return response

    async def _read_changes(self, request: state_pb2.ChangesRequest) -> state_pb2.ChangesResponse:
        changes, revision = await self._engine.state_changes(
            request.prefix,
            after_revision=request.after_revision,
            changes_max=min(request.changes_max or CHANGES, CHANGES_MAX),
            bytes_max=self._core.limits.response_bytes_max,
        )
        return state_pb2.ChangesResponse(changes=changes, revision=revision)

    # Shared by the writers.

    async def _commit(self, transaction: Transaction) -> Committed:
        self._core.counters.add("state_transactions_total")
        return await self._engine.commit(transaction)

    def _request_key(self, method: str, request_id: str, context: Context) -> RequestKey | None:
        if not check_request_id(request_id):
            return None
        return RequestKey(f"state.{method}/{principal(context)}", request_id)


def _report(task: asyncio.Task[None]) -> None:
    """Say that a timer ended by a mistake: nothing else would notice."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a timer of State ended", exc_info=error)


def _result(committed: Committed, index: int) -> state_pb2.StateOperationResult:
    if committed.state is None or len(committed.state.results) <= index:
        raise errors.Internal("the engine answered a write without its outcome")
    return committed.state.results[index]


def _other_request(request_id: str, key: str) -> errors.InvalidArgument:
    return bad_field(
        "request_id", f"{request_id!r} was used for key {key!r} already; use a new one"
    )
