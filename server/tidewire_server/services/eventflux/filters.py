"""Which events a reader of StreamEvents wants."""

from dataclasses import dataclass
from typing import Final

from tidewire.errors import InvalidSubject
from tidewire.eventflux import transport_pb2
from tidewire.wire.subject import check_pattern
from tidewire_server.services.eventflux.messages import (
    AHEAD_MS_MAX,
    MILLISECOND_NS,
    NODE_BYTES_MAX,
    MessageType,
    TransportMessage,
)
from tidewire_server.services.payload import bad_field

STREAM_NAMES_MAX: Final = 64
BATCH_SIZE_DEFAULT: Final = 100
BATCH_SIZE_MAX: Final = 10_000
EVERYTHING: Final = ">"
STREAMED: Final = (transport_pb2.MESSAGE_TYPE_EVENT, transport_pb2.MESSAGE_TYPE_METADATA)


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    What a reader asked for, checked.

    Attributes:
        patterns: Subjects, each once.
        start_ms: Earliest time, 0 for whatever comes.
        end_ms: Latest time, 0 for no end.
        stored_until_ms: Where there is an end: what was stored later does not count any more.
    """

    node_id: str
    patterns: tuple[str, ...]
    kinds: frozenset[int]
    start_ms: int
    end_ms: int
    stored_until_ms: int
    batch_size: int

    @property
    def seek_ns(self) -> int:
        """
        Where to begin in what is stored: a message may be ahead of the time it was stored at.
        """
        return max(0, self.start_ms - AHEAD_MS_MAX) * MILLISECOND_NS

    def takes(self, message: TransportMessage) -> bool:
        """Whether the reader gets this message; its subject was looked at before."""
        return (
            message.message_type in self.kinds
            and message.target_node in ("", self.node_id)
            and message.timestamp >= self.start_ms
            and not 0 < self.end_ms < message.timestamp
        )

    def is_past(self, stored_ms: int) -> bool:
        """Whether what was stored at this time and later is behind the end."""
        return 0 < self.stored_until_ms < stored_ms


def read_request(request: transport_pb2.EventRequest, now_ms: int) -> Wanted:
    """
    Check what a reader asks for.

    Args:
        request: As it came.
        now_ms: The server's time, milliseconds since 1970 UTC.

    Raises:
        InvalidArgument: A field cannot be, or nothing could ever come.
        InvalidSubject: A stream name is no subject and no pattern.
    """
    if len(request.node_id.encode()) > NODE_BYTES_MAX:
        raise bad_field("node_id", f"is over {NODE_BYTES_MAX} bytes")
    if not 0 <= request.batch_size <= BATCH_SIZE_MAX:
        raise bad_field("batch_size", f"is {request.batch_size}; 0 to {BATCH_SIZE_MAX} go")
    start_ms, end_ms = request.filter.start_timestamp, request.filter.end_timestamp
    for name, timestamp in (("start_timestamp", start_ms), ("end_timestamp", end_ms)):
        if timestamp < 0:
            raise bad_field(f"filter.{name}", f"is {timestamp}; milliseconds since 1970 are taken")
    if 0 < end_ms < start_ms:
        raise bad_field("filter.end_timestamp", f"is {end_ms}, before the start at {start_ms}")
    if 0 < end_ms < now_ms and not start_ms:
        raise bad_field(
            "filter.start_timestamp",
            f"is needed with an end in the past ({end_ms}); 1 begins with the first event",
        )
    return Wanted(
        node_id=request.node_id,
        patterns=_patterns(request.filter),
        kinds=_kinds(request.filter),
        start_ms=start_ms,
        end_ms=end_ms,
        stored_until_ms=max(end_ms, now_ms) if end_ms else 0,
        batch_size=request.batch_size or BATCH_SIZE_DEFAULT,
    )


def _patterns(asked: transport_pb2.EventFilter) -> tuple[str, ...]:
    names = asked.stream_names
    if len(names) > STREAM_NAMES_MAX:
        raise bad_field(
            "filter.stream_names", f"has {len(names)}; at most {STREAM_NAMES_MAX} are taken"
        )
    for index, name in enumerate(names):
        try:
            check_pattern(name)
        except InvalidSubject as error:
            field = f"filter.stream_names[{index}]"
            raise InvalidSubject(error.message, fields={field: "must be a subject"}) from None
    return tuple(dict.fromkeys(names)) or (EVERYTHING,)


def _kinds(asked: transport_pb2.EventFilter) -> frozenset[int]:
    if not asked.message_types:
        return frozenset(STREAMED)
    for index, kind in enumerate(asked.message_types):
        if kind not in MessageType.values() or not kind:
            raise bad_field(f"filter.message_types[{index}]", f"is {kind}, which is no type")
    kinds = frozenset(asked.message_types) & frozenset(STREAMED)
    if not kinds:
        raise bad_field(
            "filter.message_types", "has neither EVENT nor METADATA, and only those are streamed"
        )
    return kinds
