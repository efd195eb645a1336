"""
The Checkpoint service: durable state of operators, committed with their positions and outputs.
"""

from typing import Final

from tidewire import errors
from tidewire.v1 import checkpoint_pb2, checkpoint_pb2_grpc, common_pb2
from tidewire_server.core import Context, Core, principal
from tidewire_server.engine.base import (
    Append,
    CheckpointWrite,
    Committed,
    RequestKey,
    Settle,
    Transaction,
)
from tidewire_server.services.checkpoint.checks import (
    DIGESTS_MAX,
    KEEP_MAX,
    check_commit,
    check_content,
    check_digest,
    check_operator,
)
from tidewire_server.services.payload import bad_field
from tidewire_server.services.state.checks import check_durability
from tidewire_server.services.state.pages import decode_token, encode_token

LIST_CHECKPOINTS: Final = 100
LIST_CHECKPOINTS_MAX: Final = 1000


class CheckpointService(checkpoint_pb2_grpc.CheckpointServiceServicer):
    """
    Serves checkpoints from the engine. A commit is one transaction there, so all of it happens or
    nothing.

    It keeps nothing of its own: there is nothing to start and nothing to close.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._engine = core.engine

    async def start(self) -> None:
        """Nothing is to be loaded."""

    async def close(self) -> None:
        """Nothing is left to do."""

    async def Acquire(
        self, request: checkpoint_pb2.AcquireRequest, context: Context
    ) -> checkpoint_pb2.AcquireResponse:
        """Give an operator its next epoch; those before are fenced."""
        check_operator(request.operator)
        if request.keep > KEEP_MAX:
            raise bad_field("keep", f"is {request.keep}; at most {KEEP_MAX} are kept")
        epoch, last = await self._engine.acquire_operator(request.operator, request.keep)
        return checkpoint_pb2.AcquireResponse(epoch=epoch, last=last)

    async def PutChunk(
        self, request: checkpoint_pb2.PutChunkRequest, context: Context
    ) -> checkpoint_pb2.PutChunkResponse:
        """Store a chunk ahead of a commit."""
        most = self._core.limits.chunk_bytes_max
        if not request.data:
            raise bad_field("data", "is empty; a chunk has at least one byte")
        if len(request.data) > most:
            raise errors.MessageTooLarge(
                f"the chunk has {len(request.data)} bytes; at most {most} are taken",
                metadata={"size": len(request.data), "limit": most},
            )
        check_digest(request.digest, "digest")
        digest = await check_content(request.data, request.digest, "digest")
        existed = await self._engine.put_chunk(digest, request.data)
        return checkpoint_pb2.PutChunkResponse(existed=existed)

    async def FindMissingChunks(
        self, request: checkpoint_pb2.FindMissingChunksRequest, context: Context
    ) -> checkpoint_pb2.FindMissingChunksResponse:
        """Say which chunks must be put before a commit can name them."""
        if len(request.digests) > DIGESTS_MAX:
            raise bad_field(
                "digests", f"has {len(request.digests)}; at most {DIGESTS_MAX} are taken"
            )
        for index, digest in enumerate(request.digests):
            check_digest(digest, f"digests[{index}]")
        missing = await self._engine.find_missing_chunks(request.digests)
        return checkpoint_pb2.FindMissingChunksResponse(missing=missing)

    async def GetChunk(
        self, request: checkpoint_pb2.GetChunkRequest, context: Context
    ) -> checkpoint_pb2.GetChunkResponse:
        """Read a chunk."""
        check_digest(request.digest, "digest")
        return checkpoint_pb2.GetChunkResponse(data=await self._engine.get_chunk(request.digest))

    async def Commit(
        self, request: checkpoint_pb2.CommitRequest, context: Context
    ) -> checkpoint_pb2.CommitResponse:
        """Commit state, positions, outputs and state changes, all or nothing."""
        check_commit(request, self._core)
        digest = request.digest
        if request.WhichOneof("state") != "chunks":
            digest = await check_content(request.inline, request.digest, "digest")
        key = None
        if request.request_id:
            scope = f"checkpoint.Commit/{principal(context)}/{request.operator}"
            key = RequestKey(scope, request.request_id)
        committed = await self._engine.commit(self._transaction(request, digest, key))
        self._core.counters.add("checkpoint_commits_total")
        if committed.repeated:
            digest = await self._digest_of(request.operator, committed, digest)
        return checkpoint_pb2.CommitResponse(
            revision=committed.checkpoint_revision,
            durability=committed.durability,
            outputs=committed.appends,
            state_revision=committed.state_revision,
            digest=digest,
        )

    def _transaction(
        self, request: checkpoint_pb2.CommitRequest, digest: bytes, key: RequestKey | None
    ) -> Transaction:
        asked = [check_durability(output.durability, self._core) for output in request.outputs]
        expected = request.expected_revision if request.HasField("expected_revision") else None
        chunked = request.WhichOneof("state") == "chunks"
        write = CheckpointWrite(
            operator=request.operator,
            epoch=request.epoch,
            expected_revision=expected,
            inline=None if chunked else request.inline,
            chunks=[(chunk.digest, chunk.bytes) for chunk in request.chunks.chunks],
            digest=digest,
            positions=request.positions,
            note=request.note,
        )
        return Transaction(
            durability=max((common_pb2.DURABILITY_FSYNC, *asked)),
            appends=[Append(output) for output in request.outputs],
            compare=request.compare,
            compare_required=True,
            then=request.state_operations,
            settles=[
                Settle(position.stream, position.consumer, through=position.through)
                for position in request.positions
                if position.consumer
            ],
            checkpoint=write,
            request=key,
        )

    async def _digest_of(self, operator: str, committed: Committed, digest: bytes) -> bytes:
        """Digest of what the first request with this id committed, as long as it is kept."""
        try:
            first = await self._engine.load_checkpoint(
                operator, committed.checkpoint_revision, with_state=False
            )
        except errors.CheckpointNotFound:
            first = None  # not kept any more: then what the caller says is all there is
        return digest if first is None else first.digest

    async def Load(
        self, request: checkpoint_pb2.LoadRequest, context: Context
    ) -> checkpoint_pb2.LoadResponse:
        """Read the last checkpoint, or an older one that is kept."""
        check_operator(request.operator)
        found = await self._engine.load_checkpoint(
            request.operator, request.revision, with_state=not request.metadata_only
        )
        if found is None and request.revision:
            raise errors.CheckpointNotFound(
                f"operator {request.operator!r} has no checkpoint {request.revision}; list those it"
                " has",
                metadata={"subject": request.operator, "revision": request.revision},
            )
        return checkpoint_pb2.LoadResponse(checkpoint=found)

    async def ListCheckpoints(
        self, request: checkpoint_pb2.ListCheckpointsRequest, context: Context
    ) -> checkpoint_pb2.ListCheckpointsResponse:
        """List the last checkpoint of every operator, or those of one."""
        if request.operator:
            check_operator(request.operator)
        _, before = decode_token(request.operator, request.page_token)
        found, token = await self._engine.list_checkpoints(
            request.operator,
            before=before,
            checkpoints_max=min(request.page_size or LIST_CHECKPOINTS, LIST_CHECKPOINTS_MAX),
        )
        return checkpoint_pb2.ListCheckpointsResponse(
            checkpoints=found,
            next_page_token=encode_token(request.operator, 0, token) if token else "",
        )

    async def DeleteCheckpoint(
        self, request: checkpoint_pb2.DeleteCheckpointRequest, context: Context
    ) -> checkpoint_pb2.DeleteCheckpointResponse:
        """Delete one checkpoint, or all of an operator."""
        check_operator(request.operator)
        deleted = await self._engine.delete_checkpoint(request.operator, request.revision)
        return checkpoint_pb2.DeleteCheckpointResponse(deleted=deleted)
