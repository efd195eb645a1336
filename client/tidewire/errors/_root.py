"""
The root of all errors, one family for each status code, and the way to and from
``google.rpc.Status``.

This module knows nothing of gRPC's Python package: a status code is its number
(``google.rpc.Code``), which is the same on every wire.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tidewire.v1.error_pb2 import Reason

DOMAIN: Final = "tidewire.dev"
STATUS_TRAILER: Final = "grpc-status-details-bin"
"""Metadata key under which gRPC carries a serialized ``google.rpc.Status``."""

_PREFIX = "REASON_"


class TidewireError(Exception):
    """
    Anything that can go wrong in tidewire, on either side of a wire.

    Attributes:
        code: Number of the status code (``google.rpc.Code``).
        reason: Entry of the published registry; ``REASON_UNSPECIFIED`` when the peer gave none we
            know.
        message: What happened, what was expected, what to do.
        metadata: Figures of the error by name, such as ``{"actual_revision": "7"}``.
        retry_after_s: When it makes sense to try again; ``None`` when the peer did not say.
        fields: For bad requests: what is wrong, by field path.
        request_id: For outcome unknown: the request whose outcome it is.

    """

    code: ClassVar[int] = code_pb2.UNKNOWN
    reason: Reason.ValueType = Reason.REASON_UNSPECIFIED
    retry_safe: ClassVar[bool] = False
    """True when the request certainly did nothing, or may be done twice."""

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str | int] | None = None,
        retry_after_s: float | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.retry_after_s = retry_after_s
        self.fields = dict(fields or {})

    @property
    def request_id(self) -> str:
        """Identifier of the request this is about; empty when the error has none."""
        return self.metadata.get("request_id", "")

    def figure(self, name: str) -> int | None:
        """A number of the metadata, such as ``actual_revision``; ``None`` when it is not there."""
        text = self.metadata.get(name, "")
        return int(text) if text.isdigit() else None

    def to_status(self) -> status_pb2.Status:
        """Encode this error as it travels: code, message, ErrorInfo and the details that fit."""
        status = status_pb2.Status(code=self.code, message=self.message)
        info = error_details_pb2.ErrorInfo(
            reason=reason_name(self.reason), domain=DOMAIN, metadata=self.metadata
        )
        status.details.append(_pack(info))
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            status.details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
        if self.fields:
            status.details.append(_pack(_bad_request(self.fields)))
        if self.code in (code_pb2.ABORTED, code_pb2.FAILED_PRECONDITION):
            status.details.append(_pack(self._precondition_failure()))
        return status

    def _precondition_failure(self) -> error_details_pb2.PreconditionFailure:
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=reason_name(self.reason),
            subject=self.metadata.get("subject", ""),
            description=self.message,
        )
        return error_details_pb2.PreconditionFailure(violations=[violation])


class Cancelled(TidewireError):
    """The caller went away."""

    code = code_pb2.CANCELLED
    reason = Reason.REASON_CANCELLED


class Unknown(TidewireError):
    """It cannot be said what happened."""

    code = code_pb2.UNKNOWN


class InvalidArgument(TidewireError):
    """The request is wrong whatever the server's state; repeating it will not help."""

    code = code_pb2.INVALID_ARGUMENT
    reason = Reason.REASON_INVALID_ARGUMENT


class DeadlineExceeded(TidewireError):
    """The deadline passed; what was asked may have happened."""

    code = code_pb2.DEADLINE_EXCEEDED
    reason = Reason.REASON_DEADLINE_EXPIRED


class NotFound(TidewireError):
    """What the request names is not there."""

    code = code_pb2.NOT_FOUND


class AlreadyExists(TidewireError):
    """What the request would make is there already, and different."""

    code = code_pb2.ALREADY_EXISTS


class PermissionDenied(TidewireError):
    """The caller is known and may not do this."""

    code = code_pb2.PERMISSION_DENIED
    reason = Reason.REASON_PERMISSION_DENIED


class ResourceExhausted(TidewireError):
    """A limit was reached; the message says which and how large it is."""

    code = code_pb2.RESOURCE_EXHAUSTED


class FailedPrecondition(TidewireError):
    """The server is not in a state to do this; repeating it unchanged will not help."""

    code = code_pb2.FAILED_PRECONDITION


class Aborted(TidewireError):
    """Somebody else was first: read again, decide again."""

    code = code_pb2.ABORTED


class OutOfRange(TidewireError):
    """A position that is no longer, or not yet, there."""

    code = code_pb2.OUT_OF_RANGE


class Unimplemented(TidewireError):
    """The server does not know this method."""

    code = code_pb2.UNIMPLEMENTED


class Internal(TidewireError):
    """A mistake of the other side."""

    code = code_pb2.INTERNAL
    reason = Reason.REASON_INTERNAL


class Unavailable(TidewireError):
    """The peer or the network cannot do it now; try again later."""

    code = code_pb2.UNAVAILABLE
    retry_safe = True


class DataLoss(TidewireError):
    """Stored bytes are damaged."""

    code = code_pb2.DATA_LOSS


class Unauthenticated(TidewireError):
    """The caller did not prove who it is."""

    code = code_pb2.UNAUTHENTICATED
    reason = Reason.REASON_UNAUTHENTICATED


FAMILIES: Final[dict[int, type[TidewireError]]] = {
    family.code: family for family in TidewireError.__subclasses__()
}


def reason_name(reason: Reason.ValueType) -> str:
    """The reason as ErrorInfo carries it, such as ``NO_RESPONDERS``."""
    return Reason.Name(reason).removeprefix(_PREFIX)


def from_status(status: status_pb2.Status) -> TidewireError:
    """
    The exception for a status of a peer, with its figures.

    A reason this version does not know becomes the family of its code; a status without ErrorInfo
    (of a proxy, or of the wire itself) too.
    """
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad_request = error_details_pb2.BadRequest()
    for detail in status.details:
        _unpack(detail, info, retry, bad_request)
    number = (
        Reason.Value(_PREFIX + info.reason)
        if info.domain == DOMAIN and _PREFIX + info.reason in Reason.keys()  # noqa: SIM118 (not a dict)
        else Reason.REASON_UNSPECIFIED
    )
    family = FAMILIES.get(status.code, Unknown)
    kind = _by_reason().get(number, family)
    if kind.code != status.code:
        kind = family
    return kind(
        status.message,
        metadata=dict(info.metadata),
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9
        if retry.HasField("retry_delay")
        else None,
        fields={v.field: v.description for v in bad_request.field_violations},
    )


def _by_reason() -> dict[Reason.ValueType, type[TidewireError]]:
    if not _REASONS:
        for family in FAMILIES.values():
            below: list[type[TidewireError]] = family.__subclasses__()
            for kind in (family, *below):
                if kind.reason != Reason.REASON_UNSPECIFIED:
                    _REASONS.setdefault(kind.reason, kind)
    return _REASONS


_REASONS: dict[Reason.ValueType, type[TidewireError]] = {}


def _bad_request(fields: Mapping[str, str]) -> error_details_pb2.BadRequest:
    violation = error_details_pb2.BadRequest.FieldViolation
    return error_details_pb2.BadRequest(
        field_violations=[violation(field=name, description=text) for name, text in fields.items()]
    )


def _pack(
    message: error_details_pb2.ErrorInfo
    | error_details_pb2.RetryInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.PreconditionFailure,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _unpack(
    detail: any_pb2.Any,
    info: error_details_pb2.ErrorInfo,
    retry: error_details_pb2.RetryInfo,
    bad_request: error_details_pb2.BadRequest,
) -> None:
    for target in (info, retry, bad_request):
        if detail.TypeName() == target.DESCRIPTOR.full_name:
            detail.Unpack(target)
            return
