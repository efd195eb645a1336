"""What concurrent clients of State see could have happened one operation after the other."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest
from google.rpc import status_pb2

from support.linearizability import Operation, find_violations, find_wrong_reads
from support.store import Store, get_operation, open_store, put, put_operation
from tidewire import errors
from tidewire.v1 import state_pb2
from tidewire_server.core import Context
from tidewire_server.services.state import StateService

CLIENTS = 20
OPERATIONS = 60
KEYS = [f"k{n}" for n in range(5)]

Place = tuple[str, int, bytes | None]
"""A key, a store revision, and the value there or ``None``."""


class Recorder:
    """The history of all clients: who took or saw which store revision when, and which values."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.rng = random.Random(seed)
        self.history: list[Operation] = []
        self.writes: list[Place] = []
        self.reads: list[Place] = []
        self.counter = 0

    def value(self) -> bytes:
        self.counter += 1
        return b"v%d" % self.counter

    def note(self, called: float, revision: int, *, wrote: bool) -> None:
        self.history.append(Operation("store", revision, wrote, called, time.monotonic()))

    async def client(self) -> None:
        steps: list[Callable[[str, float], Awaitable[object]]] = [self.get, self.get, self.get]
        steps += [self.put, self.compare_and_set, self.delete, self.transact, self.list_all]
        steps += [self.get_many, self.get_many]
        for _ in range(OPERATIONS):
            await self.rng.choice(steps)(self.rng.choice(KEYS), time.monotonic())

    async def get(self, key: str, called: float) -> state_pb2.Entry:
        answer = await self.store.state.Get(state_pb2.GetRequest(key=key))
        self.note(called, answer.revision, wrote=False)
        self.see(key, answer)
        return answer.entry

    async def get_many(self, key: str, called: float) -> None:
        keys = [key, *self.rng.sample(KEYS, 2)]
        answer = await self.store.state.GetMany(state_pb2.GetManyRequest(keys=keys))
        self.note(called, answer.revision, wrote=False)
        assert len(keys) == answer.read
        found = {entry.key: entry.value.data for entry in answer.entries}
        self.reads.extend((each, answer.revision, found.get(each)) for each in keys)

    def see(self, key: str, answer: state_pb2.GetResponse) -> None:
        value = answer.entry.value.data if answer.HasField("entry") else None
        self.reads.append((key, answer.revision, value))

    async def put(self, key: str, called: float) -> None:
        value = self.value()
        answer = await self.store.state.Put(put(key, value))
        self.note(called, answer.revision, wrote=True)
        self.writes.append((key, answer.revision, value))

    async def compare_and_set(self, key: str, called: float) -> None:
        entry = await self.get(key, called)
        await asyncio.sleep(0)  # somebody may be faster
        value, called = self.value(), time.monotonic()
        try:
            answer = await self.store.state.Put(put(key, value, expected_revision=entry.revision))
        except grpc.aio.AioRpcError as failure:
            error = typed(failure)
            assert isinstance(error, errors.RevisionMismatch)
            assert entry.revision != error.figure("actual_revision")
            self.note(called, error.figure("store_revision") or 0, wrote=False)
        else:
            self.note(called, answer.revision, wrote=True)
            self.writes.append((key, answer.revision, value))

    async def delete(self, key: str, called: float) -> None:
        answer = await self.store.state.Delete(state_pb2.DeleteRequest(key=key))
        self.note(called, answer.revision, wrote=answer.deleted)
        if answer.deleted:
            self.writes.append((key, answer.revision, None))

    async def transact(self, key: str, called: float) -> None:
        other = self.rng.choice([name for name in KEYS if name != key])
        value = self.value()
        request = state_pb2.TransactRequest(
            compare=[state_pb2.Compare(key=key, exists=True)],
            then=[put_operation(other, value), get_operation(key)],
            otherwise=[get_operation(other)],
        )
        answer = await self.store.state.Transact(request)
        self.note(called, answer.revision, wrote=answer.succeeded)
        if answer.succeeded:
            self.writes.append((other, answer.revision, value))
        read = answer.results[-1].get
        shown = read.entry.value.data if read.HasField("entry") else None
        self.reads.append((key if answer.succeeded else other, answer.revision, shown))

    async def list_all(self, _key: str, called: float) -> None:
        answer = await self.store.state.Range(state_pb2.RangeRequest(prefix="k"))
        self.note(called, answer.revision, wrote=False)
        found = {entry.key: entry.value.data for entry in answer.entries}
        self.reads.extend((key, answer.revision, found.get(key)) for key in KEYS)

    async def run(self) -> list[str]:
        await asyncio.gather(*(self.client() for _ in range(CLIENTS)))
        revisions = sorted(op.version or 0 for op in self.history if op.wrote)
        assert list(range(1, self.store.engine.state_revision + 1)) == revisions
        found = find_violations(self.history, complete=False)
        return found + find_wrong_reads(self.writes, self.reads)


def typed(error: grpc.aio.AioRpcError) -> errors.TidewireError:
    details = dict(error.trailing_metadata())
    packed = details[errors.STATUS_TRAILER]
    assert isinstance(packed, bytes)
    return errors.from_status(status_pb2.Status.FromString(packed))


class StaleService(StateService):
    """A service as it must not be: now and then a read is answered from what it was before."""

    last: state_pb2.GetResponse | None = None
    count = 0

    async def Get(self, request: state_pb2.GetRequest, context: Context) -> state_pb2.GetResponse:
        self.count += 1
        if self.last is None or self.count % 50:
            fresh = await super().Get(request, context)
            if self.last is None or self.count % 50 == 1:
                self.last = fresh
            return fresh
        return self.last


@pytest.mark.parametrize(("seed", "wire"), [(0, "grpc"), (1, "tcp")])
async def test_state_is_linearizable(tmp_path: Path, seed: int, wire: str) -> None:
    """
    1,200 operations of 20 clients: puts, deletes, compare-and-sets, transactions, listings, reads
    of one key and of several, from memory and from the store. Every
    answer, of a failed compare-and-set too, fits one order of store revisions that real time
    allows, every read shows what was written last before it, and no revision has two writers.
    """
    async with open_store(tmp_path, wire=wire) as store:
        assert [] == await Recorder(store, seed).run()


async def test_a_service_that_serves_stale_reads_is_caught(tmp_path: Path) -> None:
    """Control: one read in fifty answered from a cache."""
    async with open_store(tmp_path, state_service=StaleService) as store:
        assert [] != await Recorder(store, 0).run()
