"""Checkpoints: durable state of operators, committed with its positions and outputs."""

import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from tidewire.client.chunks import ChunkStore, cut
from tidewire.client.naming import level_of
from tidewire.client.session import PRIORITY_BULK, Session, log
from tidewire.client.times import to_datetime
from tidewire.client.transaction import Operations, Transaction
from tidewire.errors import CheckpointNotFound, ChunksMissing, DigestMismatch, FailedPrecondition
from tidewire.v1 import checkpoint_pb2, common_pb2, event_pb2, state_pb2
from tidewire.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from tidewire.wire.batch import Headers, encode_messages, encode_payloads
from tidewire.wire.payload import Value, as_bytes
from tidewire.wire.subject import check_subject

INLINE_BYTES_MAX = 256 * 1024
"""States up to this travel in the commit; larger ones in chunks, of which only new ones travel."""
COMMIT_TRIES_MAX = 2

Positions: TypeAlias = (
    Mapping[str, int] | Mapping[tuple[str, str], int] | Sequence[checkpoint_pb2.Position]
)
"""Sequences by stream, or by (stream, durable consumer)."""
Output: TypeAlias = (
    tuple[str, Value] | tuple[str, Value, Headers] | event_pb2.PublishRequest | common_pb2.Batch
)

_Facts: TypeAlias = tuple[
    str, int, int, int, bytes, tuple[checkpoint_pb2.Position, ...], datetime | None, str
]


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """
    A checkpoint without its state.

    Attributes:
        operator: Operator.
        revision: Revision, from 1 for each operator.
        epoch: Epoch it was committed with.
        state_bytes: Size of the state.
        digest: SHA-256 of the state.
        positions: Where in the streams it stands.
        time: When it was committed.
        note: For people.
    """

    operator: str
    revision: int
    epoch: int
    state_bytes: int
    digest: bytes
    positions: tuple[checkpoint_pb2.Position, ...]
    time: datetime | None
    note: str

    def position(self, stream: str, consumer: str = "") -> int:
        """Sequence up to which a stream is processed; 0 when it says nothing of it."""
        for position in self.positions:
            if position.stream == stream and (not consumer or position.consumer == consumer):
                return position.through
        return 0


@dataclass(frozen=True, slots=True)
class Checkpoint(CheckpointInfo):
    """
    A checkpoint with its state, whose digest was verified.

    Attributes:
        state: The state.
    """

    state: bytes

    @property
    def info(self) -> CheckpointInfo:
        """What it is, for whom the state does not matter."""
        return self


@dataclass(frozen=True, slots=True)
class Committed:
    """
    What a commit did.

    Attributes:
        revision: Revision of the checkpoint.
        durability: Level reached; it prints as its word.
        outputs: Where the outputs went, in order.
        state_revision: Store revision of State after it.
        chunks_sent: Chunks that had to be uploaded.
    """

    revision: int
    durability: common_pb2.Durability.ValueType
    outputs: tuple[event_pb2.PublishResponse, ...]
    state_revision: int
    chunks_sent: int


class Operator:
    """
    An operator, by name. Acquire it before committing; whoever acquires it later fences this one.

    Attributes:
        name: Name: one or more subject tokens.
        epoch: Epoch of the last acquire; 0 before.
        revision: Revision of the last checkpoint seen; 0 when there is none.
    """

    def __init__(self, session: Session, name: str) -> None:
        check_subject(name)
        self.name = name
        self.epoch = 0
        self.revision = 0
        self._session = session
        self._stub = CheckpointServiceStub(session.channel)
        self._chunks = ChunkStore(session)

    async def acquire(self, *, keep: int = 0) -> Checkpoint | None:
        """
        Become the one incarnation that may commit; returns the last checkpoint with its state, if
        there is one.

        Args:
            keep: Checkpoints to keep; 0 means as before, 3 at first.

        Raises:
            DataCorrupt, DigestMismatch: The state is damaged. The operator is acquired all the
                same: `load` an older checkpoint.
        """
        request = checkpoint_pb2.AcquireRequest(operator=self.name, keep=keep)
        response = await self._session.unary(self._stub.Acquire, request)
        self.epoch = response.epoch
        self.revision = response.last.revision
        return await self.load(self.revision) if self.revision else None

    async def commit(
        self,
        state: Value = b"",
        *,
        positions: Positions = (),
        outputs: Sequence[Output] = (),
        changes: Transaction | Operations | Sequence[state_pb2.StateOperation] = (),
        expected_revision: int | None = None,
        note: str = "",
        timeout_s: float | None = None,
    ) -> Committed:
        """
        Commit state, positions, outputs and changes of State together, or nothing of it.

        Args:
            state: The state. A large one is cut into chunks, of which only new ones are uploaded.
            positions: What of the streams is processed; with a durable consumer it is moved too.
            outputs: Events published with the commit; each must be taken by a stream.
            changes: ``client.state.transact()`` with what is compared and done, not committed.
            expected_revision: Revision the last checkpoint must have; by default any.
            note: For people.
            timeout_s: Time for the commit itself, after the upload.

        Raises:
            OperatorFenced: Another incarnation has acquired the operator.
            RevisionMismatch, WrongLastSequence, NoStream, PositionBackwards: Nothing was done.
        """
        if not self.epoch:
            raise FailedPrecondition(f"operator {self.name} is not acquired; call acquire() first")
        raw = as_bytes(state)
        request = checkpoint_pb2.CommitRequest(
            operator=self.name,
            epoch=self.epoch,
            digest=hashlib.sha256(raw).digest(),
            positions=_positions(positions),
            outputs=[self._signed(self._output(output)) for output in outputs],
            request_id=uuid.uuid4().hex,
            note=note,
        )
        if expected_revision is not None:
            request.expected_revision = expected_revision
        _add_changes(request, changes)
        chunks = cut(raw) if len(raw) > INLINE_BYTES_MAX else None
        if chunks is None:
            request.inline = raw
        else:
            request.chunks.chunks.extend(chunk.ref for chunk in chunks)
        sent = 0
        for attempt in range(1, COMMIT_TRIES_MAX + 1):
            if chunks is not None:
                sent += await self._chunks.upload(chunks)
            try:
                response = await self._session.unary(
                    self._stub.Commit, request, timeout_s=timeout_s, metadata=PRIORITY_BULK
                )
                break
            except ChunksMissing as error:
                if attempt == COMMIT_TRIES_MAX:
                    raise
                log.warning("operator %s: uploading chunks again: %s", self.name, error)
        self.revision = response.revision
        return Committed(
            revision=response.revision,
            durability=level_of(response.durability),
            outputs=tuple(response.outputs),
            state_revision=response.state_revision,
            chunks_sent=sent,
        )

    async def load(self, revision: int = 0) -> Checkpoint | None:
        """
        Read a checkpoint with its state; ``None`` when the operator has none.

        Args:
            revision: Which; 0 means the last.

        Raises:
            CheckpointNotFound: There is none of this revision.
            DataCorrupt, DigestMismatch: The state is damaged.
        """
        request = checkpoint_pb2.LoadRequest(operator=self.name, revision=revision)
        response = await self._session.unary(self._stub.Load, request, metadata=PRIORITY_BULK)
        if not response.HasField("checkpoint"):
            if revision:
                raise CheckpointNotFound(f"operator {self.name} has no checkpoint {revision}")
            return None
        checkpoint = response.checkpoint
        if checkpoint.WhichOneof("state") == "chunks":
            state = await self._chunks.download(list(checkpoint.chunks.chunks))
        else:
            state = checkpoint.inline
        if checkpoint.digest and hashlib.sha256(state).digest() != checkpoint.digest:
            raise DigestMismatch(
                f"checkpoint {checkpoint.revision} of {self.name} does not fit its digest"
            )
        return Checkpoint(*_facts(checkpoint), state=state)

    async def list(self) -> Sequence[CheckpointInfo]:
        """The checkpoints that are kept, newest first."""
        return [info async for info in _listing(self._session, self.name)]

    async def delete(self, revision: int = 0) -> int:
        """Delete one checkpoint, or with 0 all of the operator; returns how many went."""
        request = checkpoint_pb2.DeleteCheckpointRequest(operator=self.name, revision=revision)
        response = await self._session.unary(self._stub.DeleteCheckpoint, request, repeatable=False)
        return int(response.deleted)

    def _signed(self, output: event_pb2.PublishRequest) -> event_pb2.PublishRequest:
        if self._session.options.signer is None or output.batch.signature:
            return output
        signed = event_pb2.PublishRequest()
        signed.CopyFrom(output)
        self._session.sign(signed.batch)
        return signed

    def _output(self, output: Output) -> event_pb2.PublishRequest:
        if isinstance(output, event_pb2.PublishRequest):
            return output
        if isinstance(output, common_pb2.Batch):
            return event_pb2.PublishRequest(batch=output)
        subject, data = output[0], as_bytes(output[1])
        check_subject(subject)
        codec = self._session.codec
        if len(output) == 3:
            batch = encode_messages(subject, [(data, output[2])], codec=codec)
        else:
            batch = encode_payloads(subject, [data], codec=codec)
        return event_pb2.PublishRequest(batch=batch)


class Checkpoints:
    """The checkpoint part of a client; see `tidewire.connect`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def operator(self, name: str) -> Operator:
        """An operator, by name; nothing is asked of the server before a call."""
        return Operator(self._session, name)

    async def list(self) -> Sequence[CheckpointInfo]:
        """The last checkpoint of every operator."""
        return [info async for info in _listing(self._session, "")]


async def _listing(session: Session, operator: str) -> AsyncIterator[CheckpointInfo]:
    stub = CheckpointServiceStub(session.channel)
    token = ""
    while True:
        request = checkpoint_pb2.ListCheckpointsRequest(operator=operator, page_token=token)
        page = await session.unary(stub.ListCheckpoints, request)
        for checkpoint in page.checkpoints:
            yield read_info(checkpoint)
        token = page.next_page_token
        if not token:
            return


def read_info(checkpoint: checkpoint_pb2.Checkpoint) -> CheckpointInfo:
    """What a checkpoint is, without its state."""
    return CheckpointInfo(*_facts(checkpoint))


def _facts(checkpoint: checkpoint_pb2.Checkpoint) -> _Facts:
    return (
        checkpoint.operator,
        checkpoint.revision,
        checkpoint.epoch,
        checkpoint.state_bytes,
        checkpoint.digest,
        tuple(checkpoint.positions),
        to_datetime(checkpoint.time) if checkpoint.HasField("time") else None,
        checkpoint.note,
    )


def _positions(positions: Positions) -> list[checkpoint_pb2.Position]:
    if not isinstance(positions, Mapping):
        return list(positions)
    made: list[checkpoint_pb2.Position] = []
    for place, through in positions.items():
        stream, consumer = (place, "") if isinstance(place, str) else place
        made.append(checkpoint_pb2.Position(stream=stream, consumer=consumer, through=through))
    return made


def _add_changes(
    request: checkpoint_pb2.CommitRequest,
    changes: Transaction | Operations | Sequence[state_pb2.StateOperation],
) -> None:
    if isinstance(changes, Transaction):
        if changes.otherwise.items:
            raise FailedPrecondition("a commit does nothing otherwise; leave `otherwise` empty")
        request.compare.extend(changes.compare)
    operations = changes.items if isinstance(changes, Operations) else changes
    request.state_operations.extend(operations)
