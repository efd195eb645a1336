"""What is given to an engine and what it gives back; see `tidewire_server.engine.base`."""

from collections.abc import Sequence
from dataclasses import dataclass

from tidewire.v1 import checkpoint_pb2, common_pb2, event_pb2, state_pb2

Durability = common_pb2.Durability


@dataclass(frozen=True, slots=True)
class Append:
    """
    One batch to store in the stream that takes its subject.

    Attributes:
        request: The batch and its conditions, already validated for form (subject, sizes,
            checksum).
        stream: Stream to store it in whatever its subject; used for dead letters. ``None``: by
            subject.
        dead_letter: Why a message was given up, when this stores one in a dead-letter stream.
        stream_required: False: a subject that no stream takes is not an error, and stores nothing.
    """

    request: event_pb2.PublishRequest
    stream: str | None = None
    dead_letter: event_pb2.DeadLetter | None = None
    stream_required: bool = True


@dataclass(frozen=True, slots=True)
class Settle:
    """
    Progress of one durable consumer; merged with what is stored, so it may be repeated.

    Attributes:
        settled: Sequences that are done, or given up.
        attempts: Deliveries made, by sequence, of messages delivered more than once.
        delivered_through: Last sequence ever delivered; the highest one said counts.
        given_up: Messages given up since the last settle; added.
        through: Moves the consumer to this sequence; lower than its floor is
            `errors.PositionBackwards`.
    """

    stream: str
    consumer: str
    settled: Sequence[tuple[int, int]] = ()
    attempts: Sequence[tuple[int, int]] = ()
    delivered_through: int = 0
    given_up: int = 0
    through: int | None = None


@dataclass(frozen=True, slots=True)
class CheckpointWrite:
    """A checkpoint to write; the state is ``inline`` or ``chunks`` (stored before)."""

    operator: str
    epoch: int
    expected_revision: int | None
    inline: bytes | None
    chunks: Sequence[tuple[bytes, int]]
    digest: bytes
    positions: Sequence[checkpoint_pb2.Position]
    note: str = ""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """
    Names a request, so that doing it twice gives the first answer. Kept for `REQUEST_WINDOW_S`.
    """

    scope: str
    request_id: str


REQUEST_WINDOW_S = 120.0


@dataclass(frozen=True, slots=True)
class Transaction:
    """
    What happens together.

    Attributes:
        durability: Level to reach at least.
        appends: Batches to store, in order.
        compare: Conditions on State; when they do not all hold, ``otherwise`` is done instead of
            ``then``.
        compare_required: True: conditions that do not hold are `errors.RevisionMismatch`, and
            nothing happens.
        then: Operations on State.
        otherwise: Operations on State when the comparison fails.
        settles: Progress of consumers.
        checkpoint: A checkpoint to write.
        request: Makes the transaction safe to repeat.
    """

    durability: Durability.ValueType = common_pb2.DURABILITY_FSYNC
    appends: Sequence[Append] = ()
    compare: Sequence[state_pb2.Compare] = ()
    compare_required: bool = False
    then: Sequence[state_pb2.StateOperation] = ()
    otherwise: Sequence[state_pb2.StateOperation] = ()
    settles: Sequence[Settle] = ()
    checkpoint: CheckpointWrite | None = None
    request: RequestKey | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """
    What a transaction did. Repeating a request gives the same figures and ``repeated``.

    Attributes:
        durability: Level reached, at least the one asked for.
        appends: For each append: where it went (``stored`` absent when nothing was).
        state: Outcome of the operations on State; ``None`` when there were none. ``revision`` is
            always set.
        checkpoint_revision: Revision of the checkpoint; 0 when there was none.
        repeated: True when the request had been done before.
    """

    durability: Durability.ValueType
    appends: Sequence[event_pb2.PublishResponse] = ()
    state: state_pb2.TransactResponse | None = None
    state_revision: int = 0
    checkpoint_revision: int = 0
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """
    A batch as it is stored.

    Attributes:
        batch: The batch; ``selected`` says which messages of its body are stored.
        first_sequence: Sequence of the first selected message; the others follow without gaps.
        last_sequence: Sequence of the last one.
        time_ns: When it was stored, nanoseconds since 1970 UTC.
    """

    stream: str
    batch: common_pb2.Batch
    first_sequence: int
    last_sequence: int
    time_ns: int
    dead_letter: event_pb2.DeadLetter | None = None


@dataclass(frozen=True, slots=True)
class StreamSlice:
    """
    Part of a stream.

    Attributes:
        batches: In order; the first one may begin before the sequence that was asked for.
        next_sequence: Where to read on.
        last_sequence: Last sequence of the stream when this was read.
    """

    batches: Sequence[StoredBatch]
    next_sequence: int
    last_sequence: int


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """
    A member as it is stored: who may come back without joining again, and whose lease keys hang on.
    """

    node_id: str
    incarnation: int
    fencing_token: int
    lease_s: float
    groups: tuple[str, ...]
    gone: bool = False
