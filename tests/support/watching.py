"""Read watches of State as far as a test needs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from support.store import WAIT_S, Store
from tidewire.v1 import state_pb2

Seen = tuple[state_pb2.ChangeKind.ValueType, str, int]
"""Kind, key and revision of a change."""


def figures(change: state_pb2.Change) -> Seen:
    """What a test compares of a change."""
    return change.kind, change.entry.key, change.entry.revision


class Reader:
    """One watch, read as far as a test needs."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def response(self) -> state_pb2.WatchResponse:
        """Next response; fails when none comes."""
        async with asyncio.timeout(WAIT_S):
            response = await self.call.read()
        assert isinstance(response, state_pb2.WatchResponse), "the watch ended"
        return response

    async def opened(self) -> "Reader":
        assert "opened" == (await self.response()).WhichOneof("kind")
        return self

    async def snapshot(self) -> tuple[list[state_pb2.Entry], int]:
        """All parts of the snapshot and its revision."""
        entries: list[state_pb2.Entry] = []
        revisions = set()
        while True:
            part = (await self.response()).snapshot
            entries += part.entries
            revisions.add(part.revision)
            if part.last:
                assert 1 == len(revisions)
                return entries, part.revision

    async def changes(self, count: int) -> list[state_pb2.Change]:
        """The next changes, over as many responses as they take; bookmarks are passed over."""
        changes: list[state_pb2.Change] = []
        while len(changes) < count:
            response = await self.response()
            if response.HasField("bookmark"):
                continue
            assert response.HasField("changes"), response
            assert response.changes.changes[-1].entry.revision == response.changes.revision
            changes += response.changes.changes
        assert count == len(changes)
        return changes

    async def seen(self, count: int) -> list[Seen]:
        return list(map(figures, await self.changes(count)))


@asynccontextmanager
async def watching_store(store: Store, **request: Any) -> AsyncIterator[Reader]:
    """Open a watch, past its greeting."""
    call = store.state.Watch(state_pb2.WatchRequest(**request))
    try:
        yield await Reader(call).opened()
    finally:
        call.cancel()
