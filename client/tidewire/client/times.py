"""Durations and timestamps, between Python and protobuf."""

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tidewire.errors import InvalidArgument

SECONDS_MAX = 1e10
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_duration(seconds: float) -> Duration:
    """Return the duration of so many seconds; `InvalidArgument` when it is negative or absurd."""
    if not 0.0 <= seconds <= SECONDS_MAX:
        raise InvalidArgument(f"a time of {seconds} s cannot be; it must be 0 to {SECONDS_MAX:g}")
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def to_seconds(duration: Duration) -> float:
    """Return a duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def to_datetime(timestamp: Timestamp) -> datetime:
    """Return a timestamp as UTC, to the microsecond."""
    micros = timestamp.nanos // 1_000
    return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=micros)


def to_timestamp(time: datetime) -> Timestamp:
    """Return a time as it travels; `InvalidArgument` when it does not say its zone."""
    if time.tzinfo is None:
        raise InvalidArgument("a time needs its zone; use datetime.now(timezone.utc) or similar")
    timestamp = Timestamp()
    timestamp.FromDatetime(time.astimezone(UTC))
    return timestamp
