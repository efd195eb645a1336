"""What requests of the event service may say; everything else is refused with the field's name."""

from collections.abc import Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration

from tidewire.errors import CodecUnsupported, DurabilityUnavailable, InvalidArgument, InvalidSubject
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.subject import check_name, check_pattern

SUBJECTS_MAX: Final = 64
DESCRIPTION_BYTES_MAX: Final = 1024
REASON_BYTES_MAX: Final = 1024
CLIENT_ID_BYTES_MAX: Final = 64
ACK_ITEMS_MAX: Final = 1024
BACKOFFS_MAX: Final = 64
PAGE_SIZE_MAX: Final = 1000
PAGE_SIZE_DEFAULT: Final = 100
ACK_PENDING_DEFAULT: Final = 1000
ACK_WAIT_S_DEFAULT: Final = 30.0
ACK_WAIT_S_MIN: Final = 0.1
IDLE_BOOKMARK_S_DEFAULT: Final = 5.0
IDLE_BOOKMARK_S_MIN: Final = 0.1
DEDUP_WINDOW_S_DEFAULT: Final = 120
DEDUP_WINDOW_S_MAX: Final = 24 * 3600
DURATION_S_MAX: Final = 10 * 365 * 24 * 3600
DELAY_S_MAX: Final = 30 * 24 * 3600


def invalid(field: str, why: str) -> InvalidArgument:
    """The error for one field."""
    return InvalidArgument(f"{field}: {why}", fields={field: why})


def seconds(
    duration: Duration, field: str, *, at_least: float = 0.0, at_most: float = DURATION_S_MAX
) -> float:
    """A duration in seconds, within its bounds; else `InvalidArgument`."""
    value = duration.seconds + duration.nanos / 1e9
    if not at_least <= value <= at_most:
        raise invalid(field, f"it is {value:g} s, it must be {at_least:g} s to {at_most:g} s")
    return value


def check_text(text: str, field: str, bytes_max: int) -> None:
    """Raise `InvalidArgument` when a text is too long."""
    if len(text.encode()) > bytes_max:
        raise invalid(field, f"it has {len(text.encode())} bytes, at most {bytes_max} go")


def named(name: str, field: str) -> str:
    """A name in a request; else `InvalidSubject` with the field."""
    try:
        return check_name(name, field)
    except InvalidSubject as error:
        raise InvalidSubject(error.message, fields={field: "must be 1 token"}) from None


def patterns(subjects: Sequence[str], field: str, *, at_least: int) -> tuple[str, ...]:
    """
    Patterns in a request, each once; else `InvalidSubject` or `InvalidArgument` with the field.
    """
    if not at_least <= len(subjects) <= SUBJECTS_MAX:
        raise invalid(field, f"{len(subjects)} subjects, {at_least} to {SUBJECTS_MAX} go")
    for index, subject in enumerate(subjects):
        try:
            check_pattern(subject)
        except InvalidSubject as error:
            rule = "must be a subject or pattern"
            raise InvalidSubject(error.message, fields={f"{field}[{index}]": rule}) from None
    return tuple(dict.fromkeys(subjects))


def check_codecs(
    codecs: Sequence[common_pb2.Codec.ValueType], needed: Sequence[common_pb2.Codec.ValueType]
) -> None:
    """Raise `CodecUnsupported` when a client cannot read every codec that bodies may use."""
    missing = set(needed) - set(codecs) - {common_pb2.CODEC_NONE}
    if missing:
        names = ", ".join(common_pb2.Codec.Name(codec) for codec in sorted(missing))
        raise CodecUnsupported(
            f"bodies here may use {names}, which this client does not list; subscribe with a "
            "client that reads them",
            fields={"open.codecs": f"{names} missing"},
        )


def stream_config(
    given: event_pb2.StreamConfig, durability_max: common_pb2.Durability.ValueType
) -> event_pb2.StreamConfig:
    """A stream's configuration with the defaults filled in; raises what `CreateStream` states."""
    config = event_pb2.StreamConfig()
    config.CopyFrom(given)
    named(config.name, "config.name")
    config.subjects[:] = patterns(config.subjects, "config.subjects", at_least=1)
    if config.HasField("age_max"):
        seconds(config.age_max, "config.age_max", at_least=1e-3)
    if config.HasField("dedup_window"):
        seconds(config.dedup_window, "config.dedup_window", at_most=DEDUP_WINDOW_S_MAX)
    else:
        config.dedup_window.seconds = DEDUP_WINDOW_S_DEFAULT
    if config.discard not in event_pb2.Discard.values():
        raise invalid("config.discard", f"{config.discard} is unknown")
    config.discard = config.discard or event_pb2.DISCARD_OLD
    check_durability(config.durability, durability_max, "config.durability")
    config.durability = config.durability or min(common_pb2.DURABILITY_FSYNC, durability_max)
    check_text(config.description, "config.description", DESCRIPTION_BYTES_MAX)
    return config


def check_durability(
    level: common_pb2.Durability.ValueType,
    durability_max: common_pb2.Durability.ValueType,
    field: str,
) -> None:
    """
    Raise when a level is unknown, or higher than the engine reaches (`DurabilityUnavailable`).
    """
    if not 0 <= level <= common_pb2.DURABILITY_QUORUM:
        raise invalid(field, f"{level} is unknown")
    if level > durability_max:
        asked, best = map(common_pb2.Durability.Name, (level, durability_max))
        raise DurabilityUnavailable(
            f"{asked} was asked for, this server reaches {best}; ask for that or less",
            metadata={"subject": field, "durability_max": best},
        )


def consumer_config(
    given: event_pb2.ConsumerConfig, ack_pending_max: int
) -> event_pb2.ConsumerConfig:
    """
    A consumer's configuration with the defaults filled in; raises what `CreateConsumer` states.
    """
    config = event_pb2.ConsumerConfig()
    config.CopyFrom(given)
    named(config.name, "config.name")
    config.subjects[:] = patterns(config.subjects, "config.subjects", at_least=0)
    check_start(config.start, "config.start")
    if config.start.WhichOneof("position") is None:
        config.start.next = True
    if not config.HasField("ack_wait"):
        config.ack_wait.seconds = int(ACK_WAIT_S_DEFAULT)
    seconds(config.ack_wait, "config.ack_wait", at_least=ACK_WAIT_S_MIN)
    if len(config.backoff) > BACKOFFS_MAX:
        raise invalid("config.backoff", f"{len(config.backoff)} entries, at most {BACKOFFS_MAX} go")
    for index, wait in enumerate(config.backoff):
        seconds(wait, f"config.backoff[{index}]", at_most=DELAY_S_MAX)
    if config.dead_letter_stream:
        named(config.dead_letter_stream, "config.dead_letter_stream")
    config.ack_pending_max = config.ack_pending_max or min(ACK_PENDING_DEFAULT, ack_pending_max)
    if config.ack_pending_max > ack_pending_max:
        why = f"it is {config.ack_pending_max}, at most {ack_pending_max} go"
        raise invalid("config.ack_pending_max", why)
    check_text(config.description, "config.description", DESCRIPTION_BYTES_MAX)
    return config


def check_start(start: event_pb2.StartPosition, field: str) -> None:
    """Raise `InvalidArgument` when a position cannot be."""
    if start.WhichOneof("position") == "sequence" and start.sequence < 1:
        raise invalid(f"{field}.sequence", "sequences begin at 1")
    if start.WhichOneof("position") == "time" and not 0 <= start.time.nanos < 1_000_000_000:
        raise invalid(f"{field}.time", "nanos must be 0 to 999,999,999")


def page_size(asked: int) -> int:
    """How many entries a page has."""
    if asked > PAGE_SIZE_MAX:
        raise invalid("page_size", f"it is {asked}, at most {PAGE_SIZE_MAX} go")
    return asked or PAGE_SIZE_DEFAULT


def check_ack(ack: event_pb2.Ack) -> None:
    """Raise `InvalidArgument` when an acknowledgement as a whole cannot be."""
    if len(ack.items) > ACK_ITEMS_MAX:
        raise invalid("ack.items", f"{len(ack.items)} items, at most {ACK_ITEMS_MAX} go")
    for index, item in enumerate(ack.items):
        field = f"ack.items[{index}]"
        if not 1 <= item.range.first <= item.range.last:
            why = f"{item.range.first} to {item.range.last} is no range of sequences"
            raise invalid(f"{field}.range", why)
        if not event_pb2.SETTLEMENT_DONE <= item.settlement <= event_pb2.SETTLEMENT_TERMINATE:
            raise invalid(f"{field}.settlement", "it must be DONE, RETRY, EXTEND or TERMINATE")
        if item.HasField("delay"):
            seconds(item.delay, f"{field}.delay", at_most=DELAY_S_MAX)
        if item.reason:
            check_text(item.reason, f"{field}.reason", REASON_BYTES_MAX)
