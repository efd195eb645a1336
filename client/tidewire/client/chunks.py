"""States in chunks: named by their SHA-256, so that only those travel that are not there."""

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tidewire.client.session import PRIORITY_BULK, Session
from tidewire.errors import DataCorrupt, MessageTooLarge
from tidewire.v1 import checkpoint_pb2
from tidewire.v1.checkpoint_pb2_grpc import CheckpointServiceStub

CHUNK_BYTES: Final = 256 * 1024
CHUNK_BYTES_MAX: Final = 1024 * 1024
CHUNKS_MAX: Final = 3_000
"""A commit may have 10,000 fields, of which each chunk takes three."""
IN_FLIGHT_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a state and its name."""

    data: memoryview
    ref: checkpoint_pb2.ChunkRef


def cut(state: bytes) -> list[Chunk]:
    """
    Cut a state into chunks of one size, small ones while their number allows.

    A change of some bytes in place then changes one chunk.

    Raises:
        MessageTooLarge: It does not fit into `CHUNKS_MAX` chunks of 1 MiB.
    """
    size = CHUNK_BYTES if len(state) <= CHUNK_BYTES * CHUNKS_MAX else CHUNK_BYTES_MAX
    if len(state) > size * CHUNKS_MAX:
        raise MessageTooLarge(
            f"a state has {len(state)} bytes, at most {size * CHUNKS_MAX} go in one checkpoint"
        )
    view = memoryview(state)
    chunks: list[Chunk] = []
    for begin in range(0, len(state), size):
        data = view[begin : begin + size]
        digest = hashlib.sha256(data).digest()
        chunks.append(Chunk(data, checkpoint_pb2.ChunkRef(digest=digest, bytes=len(data))))
    return chunks


class ChunkStore:
    """Uploads and downloads chunks, a few at a time, behind other traffic."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stub = CheckpointServiceStub(session.channel)

    async def upload(self, chunks: Sequence[Chunk]) -> int:
        """Store those that are not there; returns how many."""
        by_digest = {chunk.ref.digest: chunk for chunk in chunks}
        request = checkpoint_pb2.FindMissingChunksRequest(digests=by_digest)
        found = await self._session.unary(
            self._stub.FindMissingChunks, request, metadata=PRIORITY_BULK
        )
        missing = [by_digest[digest] for digest in found.missing]
        await self._each([self._put(chunk) for chunk in missing])
        return len(missing)

    async def download(self, refs: Sequence[checkpoint_pb2.ChunkRef]) -> bytes:
        """Read chunks, verify each, and put them together."""
        parts: list[bytes] = [b""] * len(refs)

        async def get(index: int, ref: checkpoint_pb2.ChunkRef) -> None:
            request = checkpoint_pb2.GetChunkRequest(digest=ref.digest)
            response = await self._session.unary(
                self._stub.GetChunk, request, metadata=PRIORITY_BULK
            )
            if hashlib.sha256(response.data).digest() != ref.digest:
                raise DataCorrupt(f"chunk {index} of a checkpoint does not fit its digest")
            parts[index] = response.data

        await self._each([get(index, ref) for index, ref in enumerate(refs)])
        return b"".join(parts)

    async def _put(self, chunk: Chunk) -> None:
        request = checkpoint_pb2.PutChunkRequest(data=bytes(chunk.data), digest=chunk.ref.digest)
        await self._session.unary(self._stub.PutChunk, request, metadata=PRIORITY_BULK)

    async def _each(self, works: list[Coroutine[Any, Any, None]]) -> None:
        """Run them, so many at a time; the first failure stops the rest."""
        queue = iter(works)

        async def run() -> None:
            for work in queue:
                await work

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(IN_FLIGHT_MAX, len(works))):
                    group.create_task(run())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        finally:
            for work in queue:
                work.close()
