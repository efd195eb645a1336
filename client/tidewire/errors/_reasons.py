"""One exception class for each reason of the registry (``proto/tidewire/v1/error.proto``)."""

from tidewire.errors._root import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from tidewire.v1.error_pb2 import Reason


class MalformedRequest(InvalidArgument):
    """The request is not a valid protobuf message of its type."""

    reason = Reason.REASON_MALFORMED_REQUEST


class InvalidSubject(InvalidArgument):
    """A subject, or name, breaks the rules."""

    reason = Reason.REASON_INVALID_SUBJECT


class InvalidKey(InvalidArgument):
    """A key breaks the rules."""

    reason = Reason.REASON_INVALID_KEY


class ChecksumMismatch(InvalidArgument):
    """The checksum of a body does not fit."""

    reason = Reason.REASON_CHECKSUM_MISMATCH


class DigestMismatch(InvalidArgument):
    """The digest of a state or chunk does not fit."""

    reason = Reason.REASON_DIGEST_MISMATCH


class CodecUnsupported(InvalidArgument):
    """A codec the server does not let bodies use, or the client cannot read."""

    reason = Reason.REASON_CODEC_UNSUPPORTED


class BodyCorrupt(InvalidArgument):
    """A body does not decompress to what it says it is."""

    reason = Reason.REASON_BODY_CORRUPT


class ProtocolOrder(InvalidArgument):
    """The first message of a stream was not `open`, or `open` came twice."""

    reason = Reason.REASON_PROTOCOL_ORDER


class MessageTooLarge(ResourceExhausted):
    """A message, payload or answer is over its limit."""

    reason = Reason.REASON_MESSAGE_TOO_LARGE


class TooManyCalls(ResourceExhausted):
    """Too many calls on a connection."""

    reason = Reason.REASON_TOO_MANY_CALLS


class TooManyConnections(ResourceExhausted):
    """Too many connections."""

    reason = Reason.REASON_TOO_MANY_CONNECTIONS


class TooManyPings(ResourceExhausted):
    """Too many pings."""

    reason = Reason.REASON_TOO_MANY_PINGS


class StreamFull(ResourceExhausted):
    """The stream is full and does not discard."""

    reason = Reason.REASON_STREAM_FULL


class StoreFull(ResourceExhausted):
    """The disk is full: writes are refused, reads go on."""

    reason = Reason.REASON_STORE_FULL


class SlowConsumer(ResourceExhausted):
    """A subscriber did not read for too long."""

    reason = Reason.REASON_SLOW_CONSUMER


class RespondersBusy(ResourceExhausted):
    """Every responder has its hands full."""

    reason = Reason.REASON_RESPONDERS_BUSY


class Overloaded(ResourceExhausted):
    """The server has as much to do as it takes; try again after the hint."""

    reason = Reason.REASON_OVERLOADED


class PeerTooSlow(ResourceExhausted):
    """Nothing came for too long, or came too slowly."""

    reason = Reason.REASON_PEER_TOO_SLOW


class StreamNotFound(NotFound):
    """No such stream."""

    reason = Reason.REASON_STREAM_NOT_FOUND


class ConsumerNotFound(NotFound):
    """No such consumer."""

    reason = Reason.REASON_CONSUMER_NOT_FOUND


class KeyNotFound(NotFound):
    """No such key."""

    reason = Reason.REASON_KEY_NOT_FOUND


class CommandNotFound(NotFound):
    """No such command."""

    reason = Reason.REASON_COMMAND_NOT_FOUND


class ChunkNotFound(NotFound):
    """No such chunk."""

    reason = Reason.REASON_CHUNK_NOT_FOUND


class CheckpointNotFound(NotFound):
    """No such operator or checkpoint."""

    reason = Reason.REASON_CHECKPOINT_NOT_FOUND


class NoTargets(NotFound):
    """Nobody to send a command to."""

    reason = Reason.REASON_NO_TARGETS


class StreamExists(AlreadyExists):
    """A stream of this name has another configuration."""

    reason = Reason.REASON_STREAM_EXISTS


class ConsumerExists(AlreadyExists):
    """A consumer of this name has another configuration."""

    reason = Reason.REASON_CONSUMER_EXISTS


class CommandConflict(AlreadyExists):
    """A command of this id has another content."""

    reason = Reason.REASON_COMMAND_CONFLICT


class NoStream(FailedPrecondition):
    """No stream takes the subject, and a durable acknowledgement was asked for."""

    reason = Reason.REASON_NO_STREAM


class SubjectOverlap(FailedPrecondition):
    """The subjects of two streams overlap."""

    reason = Reason.REASON_SUBJECT_OVERLAP


class StreamPaused(FailedPrecondition):
    """The stream is paused."""

    reason = Reason.REASON_STREAM_PAUSED


class DurabilityUnavailable(FailedPrecondition):
    """The level asked for is not to be had here."""

    reason = Reason.REASON_DURABILITY_UNAVAILABLE


class LeaseNotHeld(FailedPrecondition):
    """The lease does not exist or is not of this incarnation."""

    reason = Reason.REASON_LEASE_NOT_HELD


class PositionBackwards(FailedPrecondition):
    """A position lies before the one the consumer has."""

    reason = Reason.REASON_POSITION_BACKWARDS


class ChunksMissing(FailedPrecondition):
    """Chunks of a checkpoint are not there."""

    reason = Reason.REASON_CHUNKS_MISSING


class NotAMember(FailedPrecondition):
    """Not a member: join first."""

    reason = Reason.REASON_NOT_A_MEMBER


class EngineUnsupported(FailedPrecondition):
    """The engine cannot do this."""

    reason = Reason.REASON_ENGINE_UNSUPPORTED


class WireVersionUnsupported(FailedPrecondition):
    """No version of the wire in common."""

    reason = Reason.REASON_WIRE_VERSION_UNSUPPORTED


class CreditExceeded(FailedPrecondition):
    """More was sent than there was credit for."""

    reason = Reason.REASON_CREDIT_EXCEEDED


class TooFewResponders(FailedPrecondition):
    """Fewer responders than the request wants."""

    reason = Reason.REASON_TOO_FEW_RESPONDERS


class NotDelivered(FailedPrecondition):
    """The delivery was never made, or is settled."""

    reason = Reason.REASON_NOT_DELIVERED


class ProducerGap(FailedPrecondition):
    """A producer left out a sequence."""

    reason = Reason.REASON_PRODUCER_GAP


class NodeInUse(FailedPrecondition):
    """Another client beats under this node id."""

    reason = Reason.REASON_NODE_IN_USE


class StoreUnusable(FailedPrecondition):
    """The store is of a newer format, of another application, or damaged; nothing was touched."""

    reason = Reason.REASON_STORE_UNUSABLE


class StoreLocked(FailedPrecondition):
    """Another process holds the store."""

    reason = Reason.REASON_STORE_LOCKED


class WireUnsuitable(FailedPrecondition):
    """The wire cannot carry this call."""

    reason = Reason.REASON_WIRE_UNSUITABLE


class RevisionMismatch(Aborted):
    """A compare-and-set or comparison did not hold; PreconditionFailure has the actual revision."""

    reason = Reason.REASON_REVISION_MISMATCH


class WrongLastSequence(Aborted):
    """The stream has another last sequence."""

    reason = Reason.REASON_WRONG_LAST_SEQUENCE


class OperatorFenced(Aborted):
    """A newer incarnation of the operator has acquired it."""

    reason = Reason.REASON_OPERATOR_FENCED


class MemberFenced(Aborted):
    """A newer incarnation of the member has joined."""

    reason = Reason.REASON_MEMBER_FENCED


class ProducerFenced(Aborted):
    """A newer epoch of the producer has published."""

    reason = Reason.REASON_PRODUCER_FENCED


class StaleAck(Aborted):
    """The acknowledgement answers an older delivery."""

    reason = Reason.REASON_STALE_ACK


class AttendanceTaken(Aborted):
    """Another stream attends as this node now."""

    reason = Reason.REASON_ATTENDANCE_TAKEN


class RevisionCompacted(OutOfRange):
    """History before a revision is forgotten."""

    reason = Reason.REASON_REVISION_COMPACTED


class RevisionInFuture(OutOfRange):
    """A revision or sequence that does not exist yet."""

    reason = Reason.REASON_REVISION_IN_FUTURE


class NoResponders(Unavailable):
    """Nobody serves the subject."""

    reason = Reason.REASON_NO_RESPONDERS


class Draining(Unavailable):
    """The server is draining."""

    reason = Reason.REASON_DRAINING


class ConnectionLost(Unavailable):
    """
    The connection could not be made, or was lost. A request that was under way may have been
    done.
    """

    retry_safe = False
    reason = Reason.REASON_CONNECTION_LOST


class PeerVanished(Unavailable):
    """The peer did not answer pings. A request that was under way may have been done."""

    retry_safe = False
    reason = Reason.REASON_PEER_VANISHED


class TlsFailed(Unavailable):
    """
    TLS failed: certificate missing, expired, of another authority or for another name; or the
    peer does not speak it.
    """

    retry_safe = False
    reason = Reason.REASON_TLS_FAILED


class SignatureMissing(Unauthenticated):
    """A batch has no signature where one is required."""

    reason = Reason.REASON_SIGNATURE_MISSING


class SignatureInvalid(Unauthenticated):
    """
    The signature of a batch does not fit its content or its key, or the key's certificate is not
    valid.
    """

    reason = Reason.REASON_SIGNATURE_INVALID


class UnknownKey(Unauthenticated):
    """A batch is signed with a key the receiver does not trust."""

    reason = Reason.REASON_UNKNOWN_KEY


class Replayed(Unauthenticated):
    """A signed batch was there before, or its signature is not of the time it was published."""

    reason = Reason.REASON_REPLAYED


class WrongRecipient(Unauthenticated):
    """A batch was signed for somebody else."""

    reason = Reason.REASON_WRONG_RECIPIENT


class OutcomeUnknown(Unknown):
    """It may have happened or not; the request id is in the metadata."""

    reason = Reason.REASON_OUTCOME_UNKNOWN


class ResponderFailed(Unknown):
    """The responder of a query failed; its status is in the details."""

    reason = Reason.REASON_RESPONDER_FAILED


class MethodNotFound(Unimplemented):
    """No such method."""

    reason = Reason.REASON_METHOD_NOT_FOUND


class DataCorrupt(DataLoss):
    """Stored bytes do not fit their checksum; the range is quarantined."""

    reason = Reason.REASON_DATA_CORRUPT


class ProtocolViolation(Internal):
    """A peer broke the rules of the wire."""

    reason = Reason.REASON_PROTOCOL_VIOLATION
