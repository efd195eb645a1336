"""Making, changing, deleting and trimming streams."""

from collections.abc import Sequence

from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.subject import overlaps
from tidewire_server.engine.embedded import schema
from tidewire_server.engine.embedded.appends import find_stream
from tidewire_server.engine.embedded.facts import Stream
from tidewire_server.engine.embedded.session import Session
from tidewire_server.engine.embedded.trimming import remove_through


def create(session: Session, config: event_pb2.StreamConfig) -> Stream:
    """Make a stream; the same one again is no error."""
    config = normal(config)
    known = session.streams.by_name.get(config.name)
    if known is not None:
        if known.config != config:
            raise errors.StreamExists(
                f"stream {config.name!r} is there with another configuration; update it instead",
                metadata={"stream": config.name},
            )
        return known
    session.connection.check_absence("streams", f"stream {config.name!r}")
    _check_overlap(session, config)
    number = session.number("stream_number") + 1
    if number > schema.STREAM_NUMBER_MAX:
        raise errors.Overloaded("as many streams were made as this store can ever number")
    session.set_number("stream_number", number)
    stream = Stream(number, config.name, config, session.now_ns)
    stream.save(session.connection)
    session.streams.by_name[config.name] = stream
    session.on_undo(lambda: _forget(session, config.name))
    _changed(session, stream)
    return stream


def _forget(session: Session, name: str) -> None:
    session.streams.by_name.pop(name, None)
    session.index_subjects()


def update(session: Session, config: event_pb2.StreamConfig) -> Stream:
    """Change the configuration of a stream."""
    config = normal(config)
    stream = find_stream(session, config.name)
    _check_overlap(session, config)
    before = stream.config

    def restore() -> None:
        stream.config = before
        session.index_subjects()

    session.on_undo(restore)
    stream.config = config
    if not stream.dedup_window_ns:
        stream.message_ids.forget(session.now_ns + 1, 0)
    session.dirty_streams[stream.number] = stream
    _changed(session, stream)
    return stream


def delete(session: Session, name: str) -> int:
    """Delete a stream with its consumers; its batches go with the following sweeps."""
    stream = find_stream(session, name)
    stream.deleted = True
    stream.save(session.connection)
    session.dirty_streams.pop(stream.number, None)
    del session.streams.by_name[name]

    def restore() -> None:
        stream.deleted = False
        session.streams.by_name[name] = stream
        session.index_subjects()

    session.on_undo(restore)
    for key in [key for key in session.consumers if key[0] == stream.number]:
        del session.consumers[key]
        session.dirty_consumers.pop(key, None)
    session.execute("DELETE FROM consumers WHERE stream=?", stream.number)
    _changed(session, stream)
    return stream.messages


def purge(session: Session, name: str, through: int) -> tuple[int, int]:
    """
    Delete whole batches up to a sequence (0: all), a bounded number of them.

    Returns:
        Messages deleted, and the sequence to purge on to; 0 when it is done.
    """
    stream = find_stream(session, name)
    through = min(through or stream.last_sequence, stream.last_sequence)
    first = stream.first_sequence
    remove_through(session, stream, through, session.options.sweep_rows_max)
    session.effects.streams_changed.append(name)
    removed = stream.first_sequence - first
    more = removed > 0 and stream.first_sequence <= through
    return removed, through if more else 0


def _changed(session: Session, stream: Stream) -> None:
    session.index_subjects()
    session.effects.streams_changed.append(stream.name)


def _check_overlap(session: Session, config: event_pb2.StreamConfig) -> None:
    for other in session.streams.by_name.values():
        if other.name == config.name:
            continue
        for ours in config.subjects:
            for theirs in other.config.subjects:
                if overlaps(ours, theirs):
                    raise errors.SubjectOverlap(
                        f"subject {ours!r} overlaps {theirs!r} of stream {other.name!r}",
                        metadata={"subject": ours, "stream": other.name, "other": theirs},
                    )


def normal(config: event_pb2.StreamConfig) -> event_pb2.StreamConfig:
    """The configuration with its defaults written out, so that equal ones compare equal."""
    full = event_pb2.StreamConfig()
    full.CopyFrom(config)
    full.discard = full.discard or event_pb2.DISCARD_OLD
    full.durability = full.durability or common_pb2.DURABILITY_FSYNC
    if full.durability > common_pb2.DURABILITY_FSYNC:
        raise errors.DurabilityUnavailable(
            "this engine flushes to one disk; QUORUM needs a replicated engine"
        )
    if not full.HasField("dedup_window"):
        full.dedup_window.FromSeconds(120)
    return full


def describe(
    stream: Stream, consumers: int, quarantined: Sequence[tuple[int, int]]
) -> event_pb2.Stream:
    """The stream as it is told."""
    state = event_pb2.StreamState(
        messages=stream.messages,
        bytes=stream.bytes,
        first_sequence=stream.first_sequence,
        last_sequence=stream.last_sequence,
        consumers=consumers,
        quarantined=[common_pb2.SequenceRange(first=a, last=b) for a, b in quarantined],
    )
    if stream.messages:
        state.first_time.FromNanoseconds(stream.first_time_ns)
    if stream.last_time_ns:
        state.last_time.FromNanoseconds(stream.last_time_ns)
    described = event_pb2.Stream(config=stream.config, state=state)
    described.created.FromNanoseconds(stream.created_ns)
    return described
