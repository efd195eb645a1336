"""
The interface between the services and what stores their data.

All writing goes through one door, `Engine.commit`: a `Transaction` names everything that happens
together, of whatever kind, and either all of it is durable and visible afterwards or none of it. A
publish is a transaction with one append; a checkpoint is one with a state, positions, outputs and
state changes. An engine that cannot combine kinds refuses with `errors.EngineUnsupported` and never
does a part.

Visibility: listeners are called, and readers see a record, only when it is as durable as its
acknowledgement says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tidewire.v1 import checkpoint_pb2, event_pb2, state_pb2
from tidewire_server.engine.records import (
    REQUEST_WINDOW_S,
    Append,
    CheckpointWrite,
    Committed,
    Durability,
    MemberRecord,
    RequestKey,
    Settle,
    StoredBatch,
    StreamSlice,
    Transaction,
)

__all__ = (
    "REQUEST_WINDOW_S",
    "Append",
    "CheckpointWrite",
    "Committed",
    "Durability",
    "Engine",
    "Listeners",
    "MemberRecord",
    "RequestKey",
    "Settle",
    "StoredBatch",
    "StreamSlice",
    "Transaction",
)


@dataclass(slots=True)
class Listeners:
    """
    Who hears of what became durable. Called in the event loop, in commit order, before the
    committer's own answer.

    Attributes:
        appended: Batches that were stored.
        changed: State changes of one transaction, and the store revision after it.
        settled: Consumer progress that did not come from the event service's own acknowledgements
            (``through``).
        streams_changed: A stream or consumer was made, changed, deleted or purged; argument is the
            stream.
    """

    appended: list[Callable[[Sequence[StoredBatch]], None]] = field(default_factory=list)
    changed: list[Callable[[Sequence[state_pb2.Change], int], None]] = field(default_factory=list)
    settled: list[Callable[[Sequence[Settle]], None]] = field(default_factory=list)
    streams_changed: list[Callable[[str], None]] = field(default_factory=list)


class Engine(Protocol):
    """
    Stores streams, consumers, state, checkpoints, members and documents.

    All methods are called from one event loop. They raise `tidewire.errors` only; every one can
    raise `errors.StoreFull` (writes) and `errors.DataCorrupt` (reads), and after a failed flush
    every write raises and `failed` is set: the process must end. Cancelling a write leaves it
    undone or done, never half done.
    """

    name: str
    cluster_id: str
    epoch: int
    durability_max: Durability.ValueType
    listeners: Listeners

    @property
    def failure(self) -> BaseException | None:
        """Why the engine can no longer write; ``None`` while it can."""
        ...

    async def wait_failed(self) -> BaseException:
        """Wait until the engine can no longer write and return why."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, flush, release the store."""
        ...

    # Everything that is written together.

    async def commit(self, transaction: Transaction) -> Committed:
        """Do all of it or nothing. See `Transaction` for what can be refused."""
        ...

    # Streams and consumers.

    def stream_for(self, subject: str) -> str | None:
        """
        Name of the stream that takes this subject; ``None`` when none does. From memory, never
        blocks.
        """
        ...

    def stream_config(self, name: str) -> event_pb2.StreamConfig | None:
        """Configuration of a stream, from memory; ``None`` when there is none of this name."""
        ...

    def last_sequence(self, stream: str) -> int:
        """Last durable sequence of a stream, from memory; 0 for an empty one."""
        ...

    async def create_stream(self, config: event_pb2.StreamConfig) -> event_pb2.Stream:
        """Make a stream; `errors.StreamExists`, `errors.SubjectOverlap`."""
        ...

    async def update_stream(self, config: event_pb2.StreamConfig) -> event_pb2.Stream:
        """Replace the configuration of a stream; `errors.StreamNotFound`."""
        ...

    async def get_stream(self, name: str) -> event_pb2.Stream:
        """Configuration and state of a stream; `errors.StreamNotFound`."""
        ...

    async def list_streams(self) -> Sequence[event_pb2.Stream]:
        """All streams, by name."""
        ...

    async def delete_stream(self, name: str) -> int:
        """Delete a stream with its consumers and return how many messages it had."""
        ...

    async def purge_stream(self, name: str, through: int) -> int:
        """Delete messages up to a sequence (0: all) and return how many."""
        ...

    async def read_stream(
        self,
        stream: str,
        first_sequence: int,
        *,
        messages_max: int,
        bytes_max: int,
        subjects: Sequence[str] = (),
    ) -> StreamSlice:
        """
        Batches from ``first_sequence`` on, at least one when there is one. Ends before a range that
        is quarantined; the read that would begin with it raises `errors.DataCorrupt` (metadata
        ``first_sequence``, ``last_sequence``).
        """
        ...

    async def sequence_at(self, stream: str, time_ns: int) -> int:
        """
        Sequence of the first message stored at or after this time; last sequence + 1 when there is
        none.
        """
        ...

    async def count_pending(self, stream: str, after: int, subjects: Sequence[str] = ()) -> int:
        """Messages kept after this sequence that match."""
        ...

    async def create_consumer(
        self, stream: str, config: event_pb2.ConsumerConfig
    ) -> event_pb2.Consumer:
        """Make a durable consumer; `errors.ConsumerExists`, `errors.StreamNotFound`."""
        ...

    async def get_consumer(self, stream: str, name: str) -> event_pb2.Consumer:
        """Configuration and stored state; `errors.ConsumerNotFound`."""
        ...

    async def list_consumers(self, stream: str) -> Sequence[event_pb2.Consumer]:
        """All consumers of a stream, by name."""
        ...

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer; `errors.ConsumerNotFound`."""
        ...

    # State.

    @property
    def state_revision(self) -> int:
        """Store revision that readers see, from memory."""
        ...

    def find_state(self, key: str) -> bytes | None:
        """
        Encoded ``GetResponse`` with the entry of a key as it is now, from memory; ``None`` when it
        must be read by `get_state`. Never blocks.
        """
        ...

    def find_states(self, keys: Sequence[str], bytes_max: int) -> bytes | None:
        """
        Encoded ``GetManyResponse`` with the entries of keys as they are now, from memory; ``None``
        when they must be read by `get_states`. Never blocks.
        """
        ...

    async def get_states(
        self, keys: Sequence[str], revision: int = 0, *, bytes_max: int
    ) -> state_pb2.GetManyResponse:
        """
        The entries of keys now, or at a revision, all of one revision, from the first key on as far
        as they fit into ``bytes_max``, one at least; `errors.RevisionCompacted`.
        """
        ...

    async def get_state(self, key: str, revision: int = 0) -> state_pb2.GetResponse:
        """The entry of a key now, or at a revision; `errors.RevisionCompacted`."""
        ...

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
        ...

    async def state_history(
        self, key: str, *, before_revision: int = 0, changes_max: int, bytes_max: int
    ) -> tuple[Sequence[state_pb2.Change], int, bool]:
        """
        Changes of a key newest first, at least one when there is one; the oldest revision kept,
        and whether there are more.
        """
        ...

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
        """
        Changes after a revision, whole revisions only (at least one, so the limits may be passed by
        one revision), and the revision to go on from.

        Raises:
            RevisionCompacted: ``after_revision`` is older than the history kept (metadata
                ``compacted_revision``).
            RevisionInFuture: ``after_revision`` has not been given yet.
        """
        ...

    async def touch_state(self, key: str, expected_revision: int | None) -> state_pb2.TouchResponse:
        """Give a key its full time to live again; `errors.KeyNotFound`."""
        ...

    async def compact_state(self, revision: int) -> int:
        """Forget history before a revision and return the oldest one kept."""
        ...

    async def expire_state(self, now_ns: int) -> int | None:
        """
        Remove what has expired (changes go to the listeners); return when the next key expires, or
        ``None``.
        """
        ...

    async def drop_leased_state(self, node_id: str, fencing_token: int) -> int:
        """
        Remove the keys on a lease of this member with this token or an older one; return how many.
        """
        ...

    # Members.

    async def join_member(
        self, node_id: str, lease_s: float, groups: Sequence[str]
    ) -> MemberRecord:
        """Give a node its next incarnation and a fencing token higher than any before."""
        ...

    async def mark_member_gone(self, node_id: str, incarnation: int) -> None:
        """Record that this incarnation is DEAD or has LEFT."""
        ...

    async def list_members(self) -> Sequence[MemberRecord]:
        """All members that were ever joined and not forgotten."""
        ...

    # Checkpoints.

    async def acquire_operator(
        self, operator: str, keep: int
    ) -> tuple[int, checkpoint_pb2.Checkpoint | None]:
        """Give the operator its next epoch; returns it and the last checkpoint."""
        ...

    async def put_chunk(self, digest: bytes, data: bytes) -> bool:
        """
        Store a chunk; True when it was there. It is kept for 10 min, or as long as a checkpoint
        needs it.
        """
        ...

    async def find_missing_chunks(self, digests: Sequence[bytes]) -> Sequence[bytes]:
        """Which of these are not stored; those that are stay for 10 min."""
        ...

    async def get_chunk(self, digest: bytes) -> bytes:
        """The bytes, verified; `errors.ChunkNotFound`, `errors.DataCorrupt`."""
        ...

    async def load_checkpoint(
        self, operator: str, revision: int, *, with_state: bool
    ) -> checkpoint_pb2.Checkpoint | None:
        """A checkpoint (revision 0: the last), verified; ``None`` when there is none."""
        ...

    async def list_checkpoints(
        self, operator: str, *, before: str, checkpoints_max: int
    ) -> tuple[Sequence[checkpoint_pb2.Checkpoint], str]:
        """
        Checkpoints without state and the token to go on with (empty at the end); see
        ListCheckpoints.
        """
        ...

    async def delete_checkpoint(self, operator: str, revision: int) -> int:
        """Delete one checkpoint, or all with revision 0; return how many."""
        ...

    # Documents: small durable records of the services themselves (commands).

    async def put_document(self, kind: str, name: str, body: bytes, expires_ns: int) -> None:
        """Store or replace a document; it is removed some time after it expires."""
        ...

    async def list_documents(self, kind: str) -> Sequence[tuple[str, bytes]]:
        """All documents of a kind that have not expired, by name."""
        ...

    async def delete_documents(self, kind: str, names: Sequence[str]) -> None:
        """Delete documents; names that are not there are ignored."""
        ...
