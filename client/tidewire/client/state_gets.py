"""
Reads of State that go together.

Reads that come while another one is on its way leave at the end of the turn of the event loop, as
one `GetMany` instead of a call each; the first one, and one that comes alone, is a `Get` that
leaves at once. Each read still has its own answer from the server and its own errors, and each
began before the server looked.
"""

import asyncio
import copy
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tidewire.client.entries import Entry, read_entry
from tidewire.client.polled import Sizing, carries_streams
from tidewire.client.session import Session, log
from tidewire.errors import (
    DataLoss,
    Internal,
    InvalidArgument,
    MessageTooLarge,
    PermissionDenied,
    RevisionCompacted,
    TidewireError,
    Unimplemented,
)
from tidewire.v1 import state_pb2

KEYS_MAX: Final = 1024
"""Keys of one request, as the server takes them."""
KEYS_BYTES_MAX: Final = 64 * 1024
"""Characters of the keys of one request: far below what a server takes beside payloads."""
TOGETHER_MAX: Final = 128
"""Reads that go together at most, so that the answer to the first does not wait for many."""
KEY_CHARACTERS_MAX: Final = 512
"""Longer ones are no keys: they are asked for alone, and refused alone."""
ATTEMPTS_MAX: Final = 3
"""Times several keys are read anew when their revision is forgotten between two answers."""

_OF_ONE_KEY: Final = (InvalidArgument, DataLoss, MessageTooLarge)
"""Errors that a single key of many may cause: which one it is, asking for each alone tells."""


class _Batch:
    """Reads that go together."""

    __slots__ = ("keys", "left", "task", "waiters")

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.waiters: list[asyncio.Future[Entry | None]] = []
        self.left = 0
        self.task: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """A reader was cancelled; the call ends with the last of them."""
        self.left += 1
        if self.left == len(self.waiters) and self.task is not None:
            self.task.cancel()


class Gets:
    """The present entries of keys, asked for one by one and read together."""

    def __init__(self, session: Session, stub: Any) -> None:
        self._session = session
        self._stub = stub
        self._loop = session.loop
        # An answer to many does not fit a datagram.
        self._together = carries_streams(session.channel)
        self._on_the_way = 0
        self._batch: _Batch | None = None

    async def get(self, key: str) -> Entry | None:
        """Read a key as it is now; errors: see `State.get`."""
        if not (self._on_the_way and self._together) or len(key) > KEY_CHARACTERS_MAX:
            self._on_the_way += 1
            try:
                return await self.alone(key)
            finally:
                self._on_the_way -= 1
        batch = self._batch
        if batch is None or len(batch.keys) >= TOGETHER_MAX:
            batch = self._batch = _Batch()
            self._loop.call_soon(self._send, batch)
        waiter: asyncio.Future[Entry | None] = self._loop.create_future()
        batch.keys.append(key)
        batch.waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            batch.leave()
            raise

    async def alone(self, key: str, revision: int = 0) -> Entry | None:
        """Read a key by a call of its own."""
        request = state_pb2.GetRequest(key=key, revision=revision)
        response = await self._session.unary(self._stub.Get, request)
        return read_entry(response.entry) if response.HasField("entry") else None

    async def many(self, keys: Iterable[str], revision: int) -> dict[str, Entry]:
        """Read keys at one revision; see `State.get_many`."""
        if isinstance(keys, str):
            raise InvalidArgument("several keys are needed; for one there is `get`")
        wanted = list(dict.fromkeys(keys))
        attempt = 1
        while True:
            try:
                return await self._read_all(wanted, revision)
            except RevisionCompacted:
                # The revision of the first answer was forgotten before the last one: begin anew.
                if revision or attempt == ATTEMPTS_MAX:
                    raise
            attempt += 1

    async def _read_all(self, keys: Sequence[str], revision: int) -> dict[str, Entry]:
        session = self._session
        sizing = None if carries_streams(session.channel) else Sizing(session.channel)
        found: dict[str, Entry] = {}
        start = 0

        async def ask(count: int) -> Any:
            request = state_pb2.GetManyRequest(keys=part[:count], revision=revision)
            return await session.unary(self._stub.GetMany, request)

        while start < len(keys):
            part = keys[start : start + _fitting(keys, start)]
            response = await (ask(len(part)) if sizing is None else sizing.ask(ask))
            revision = response.revision
            start += _read(response, len(part))
            for entry in response.entries:
                found[entry.key] = read_entry(entry)
        return found

    # Reads that go together -------------------------------------------------------------------

    def _send(self, batch: _Batch) -> None:
        """Let a batch go, at the end of the turn it was begun in."""
        if self._batch is batch:
            self._batch = None
        if batch.left < len(batch.waiters):
            self._on_the_way += 1
            batch.task = self._loop.create_task(self._run(batch), name="tidewire reads")

    async def _run(self, batch: _Batch) -> None:
        try:
            await self._answer(batch)
        except asyncio.CancelledError:
            # By the last reader that left, or with the event loop: nobody may wait for ever.
            for waiter in batch.waiters:
                waiter.cancel()
            raise
        except TidewireError as error:
            _fail(batch.waiters, error)
        except Exception as error:  # noqa: BLE001 (nobody must wait for ever)
            log.exception("reading several keys failed")
            _fail(batch.waiters, Internal(f"reading failed by a mistake of the client: {error!r}"))
        finally:
            self._on_the_way -= 1
            batch.task = None

    async def _answer(self, batch: _Batch) -> None:
        keys, waiters = batch.keys, batch.waiters
        start = 0
        while start < len(keys):
            count = _fitting(keys, start) if self._together else 1
            part, waiting = keys[start : start + count], waiters[start : start + count]
            if count == 1 or not self._together:
                await self._each(keys[start:], waiters[start:])
                return
            request = state_pb2.GetManyRequest(keys=part)
            try:
                response = await self._session.unary(self._stub.GetMany, request)
            except (Unimplemented, PermissionDenied) as error:
                log.info("keys are read by a call each: %s", error)
                self._together = False
            except _OF_ONE_KEY:
                await self._each(part, waiting)
                start += count
            else:
                start += _settle(part, waiting, response)

    async def _each(
        self, keys: Sequence[str], waiters: "Sequence[asyncio.Future[Entry | None]]"
    ) -> None:
        """Read keys by a call each."""
        pairs = zip(keys, waiters, strict=True)
        await asyncio.gather(*(self._one(*pair) for pair in pairs if not pair[1].done()))

    async def _one(self, key: str, waiter: "asyncio.Future[Entry | None]") -> None:
        try:
            found = await self.alone(key)
        except TidewireError as error:
            _fail([waiter], error)
        else:
            if not waiter.done():
                waiter.set_result(found)


def _fitting(keys: Sequence[str], start: int) -> int:
    """How many keys from one on fit a request, one at least."""
    size = 0
    end = min(len(keys), start + KEYS_MAX)
    for index in range(start, end):
        size += len(keys[index])
        if size > KEYS_BYTES_MAX and index > start:
            return index - start
    return end - start


def _read(response: state_pb2.GetManyResponse, asked: int) -> int:
    """How many keys an answer is about."""
    if not 0 < response.read <= asked:
        raise Internal(f"the server read {response.read} of {asked} keys; 1 to {asked} fit")
    return int(response.read)


def _settle(
    keys: Sequence[str],
    waiters: "Sequence[asyncio.Future[Entry | None]]",
    response: state_pb2.GetManyResponse,
) -> int:
    """Give every reader its own entry; return how many keys are done."""
    read = _read(response, len(keys))
    entries = iter(response.entries)
    entry = next(entries, None)
    for index in range(read):
        found = None
        if entry is not None and entry.key == keys[index]:
            found, entry = entry, next(entries, None)
        waiter = waiters[index]
        if waiter.done():
            continue
        try:
            waiter.set_result(None if found is None else read_entry(found))
        except TidewireError as error:  # its value cannot be read here
            waiter.set_exception(error)
    return read


def _fail(waiters: "Iterable[asyncio.Future[Entry | None]]", error: TidewireError) -> None:
    """Tell readers why, each by an error of its own: each adds where it was raised."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(copy.copy(error))
