"""Errors of queries that come from the responder's side."""

from typing import Final

from google.rpc import status_pb2

from tidewire import errors

CAUSE_BYTES_MAX: Final = 4096
"""
A larger status of a responder travels without its details: every wire's metadata has to hold it.
"""
CAUSE_TEXT_MAX: Final = 1024


class ResponderFailedWith(errors.ResponderFailed):
    """A responder's own error, with its status among the details."""

    def __init__(self, message: str, cause: errors.TidewireError, metadata: dict[str, str]) -> None:
        super().__init__(message, metadata=metadata)
        self.cause = cause

    def to_status(self) -> status_pb2.Status:
        """Encode with the responder's status as one more detail."""
        status = super().to_status()
        cause = self.cause.to_status()
        if cause.ByteSize() > CAUSE_BYTES_MAX:
            cause = status_pb2.Status(code=cause.code, message=cause.message[:CAUSE_TEXT_MAX])
        status.details.add().Pack(cause)
        return status


def responder_failed(
    responder: str, request_id: str, cause: errors.TidewireError
) -> errors.ResponderFailed:
    """Make the error for a responder that answered with one."""
    return ResponderFailedWith(
        f"responder {responder!r} failed: {cause.message[:CAUSE_TEXT_MAX]}",
        cause,
        {
            "responder": responder,
            "request_id": request_id,
            "code": str(cause.code),
            "cause": errors.reason_name(cause.reason),
        },
    )


def no_reply(responder: str, request_id: str) -> errors.ResponderFailed:
    """Make the error for a responder that ended the query without answering it."""
    return errors.ResponderFailed(
        f"responder {responder!r} ended the query without a reply",
        metadata={"responder": responder, "request_id": request_id},
    )


def outcome_unknown(responder: str, request_id: str, why: str) -> errors.OutcomeUnknown:
    """Make the error for a query whose responder was lost after it had it."""
    return errors.OutcomeUnknown(
        f"responder {responder!r} {why} after it got query {request_id!r}; it may have done"
        " what was asked or not",
        metadata={"responder": responder, "request_id": request_id},
    )


def asker_too_slow(request_id: str, stall_s: float) -> errors.SlowConsumer:
    """Make the error for an asker that lets replies wait."""
    return errors.SlowConsumer(
        f"the replies to {request_id!r} were not read for {stall_s:g} s",
        metadata={"request_id": request_id},
    )


def deadline_passed(request_id: str, why: str) -> errors.DeadlineExceeded:
    """Make the error for a query that was not answered in time."""
    return errors.DeadlineExceeded(
        f"query {request_id!r} was not answered within {why}", metadata={"request_id": request_id}
    )
