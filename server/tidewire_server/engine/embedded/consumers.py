"""Durable consumers: making them, and merging their progress."""

from tidewire import errors
from tidewire.v1 import event_pb2
from tidewire_server.engine.base import Settle
from tidewire_server.engine.embedded import ranges, rows, schema
from tidewire_server.engine.embedded.appends import find_stream
from tidewire_server.engine.embedded.facts import Consumer, Stream
from tidewire_server.engine.embedded.session import Session


def consumer_not_found(stream: str, name: str) -> errors.ConsumerNotFound:
    """The error for a consumer that is not there."""
    return errors.ConsumerNotFound(
        f"stream {stream!r} has no consumer {name!r}", metadata={"stream": stream, "consumer": name}
    )


def parse(row: tuple[object, ...]) -> Consumer:
    """A consumer of its row; `errors.DataCorrupt` when it does not fit its checksum."""
    stream, name, config, state, created_ns, crc = row
    if not rows.fits(crc, stream, name, config, state, created_ns):
        raise errors.DataCorrupt(
            f"the stored progress of consumer {name!r} is damaged; delete it and make it again",
            metadata={"consumer": str(name)},
        )
    assert isinstance(stream, int)
    assert isinstance(name, str)
    assert isinstance(config, bytes)
    assert isinstance(state, bytes)
    assert isinstance(created_ns, int)
    consumer = Consumer(stream, name, event_pb2.ConsumerConfig.FromString(config), created_ns)
    consumer.set_state(event_pb2.ConsumerState.FromString(state))
    return consumer


def _load(session: Session, stream: Stream, name: str) -> Consumer | None:
    key = (stream.number, name)
    consumer = session.consumers.get(key)
    if consumer is None:
        row = session.row("SELECT * FROM consumers WHERE stream=? AND name=?", *key)
        if row is None:
            session.connection.check_absence("consumers", f"consumer {name!r}")
            return None
        consumer = session.consumers[key] = parse(row)
    return consumer


def create(session: Session, stream_name: str, config: event_pb2.ConsumerConfig) -> Consumer:
    """Make a consumer at its start; the same one again is no error."""
    stream = find_stream(session, stream_name)
    known = _load(session, stream, config.name)
    if known is not None:
        if known.config != config:
            raise errors.ConsumerExists(
                f"consumer {config.name!r} of stream {stream_name!r} is there with another "
                "configuration; delete it first",
                metadata={"stream": stream_name, "consumer": config.name},
            )
        return known
    if config.dead_letter_stream:
        find_stream(session, config.dead_letter_stream)
    own = event_pb2.ConsumerConfig()
    own.CopyFrom(config)
    consumer = Consumer(stream.number, config.name, own, session.now_ns)
    consumer.floor = _start(session, stream, config.start) - 1
    consumer.delivered_through = consumer.floor
    consumer.save(session.connection)
    key = (stream.number, config.name)
    session.consumers[key] = consumer
    session.on_undo(lambda: session.consumers.__delitem__(key))
    session.view_changed = True
    session.effects.streams_changed.append(stream_name)
    return consumer


def _start(session: Session, stream: Stream, start: event_pb2.StartPosition) -> int:
    match start.WhichOneof("position"):
        case "all":
            return stream.first_sequence
        case "sequence":
            return max(1, start.sequence)
        case "last":
            return max(1, stream.last_sequence)
        case "time":
            return sequence_at(session, stream, start.time.ToNanoseconds())
        case _:
            return stream.last_sequence + 1


def sequence_at(session: Session, stream: Stream, time_ns: int) -> int:
    """Sequence of the first message stored at or after a time; last + 1 when there is none."""
    low, high = stream.first_sequence, stream.last_sequence + 1
    while low < high:
        middle = (low + high) // 2
        row = session.row(
            "SELECT id, last_sequence, time_ns FROM batches WHERE id BETWEEN ? AND ? ORDER BY id "
            "DESC LIMIT 1",
            schema.batch_id(stream.number, 0),
            schema.batch_id(stream.number, middle),
        )
        if row is None:
            low = middle + 1
        elif row[2] >= time_ns:
            high = min(middle, row[0] & schema.SEQUENCE_MAX)
        else:
            low = max(middle, row[1]) + 1
    return low


def delete(session: Session, stream_name: str, name: str) -> None:
    """Delete a consumer."""
    stream = find_stream(session, stream_name)
    key = (stream.number, name)
    session.execute("DELETE FROM consumers WHERE stream=? AND name=?", *key)
    if not session.connection.changes():
        raise consumer_not_found(stream_name, name)
    known = session.consumers.pop(key, None)
    session.dirty_consumers.pop(key, None)
    if known is not None:
        session.on_undo(lambda: session.consumers.__setitem__(key, known))
    session.view_changed = True
    session.effects.streams_changed.append(stream_name)


def settle(session: Session, item: Settle) -> None:
    """Merge progress into what is known; doing it again changes nothing but ``given_up``."""
    stream = find_stream(session, item.stream)
    consumer = _load(session, stream, item.consumer)
    if consumer is None:
        raise consumer_not_found(item.stream, item.consumer)
    if item.through is not None and item.through < consumer.floor:
        raise errors.PositionBackwards(
            f"consumer {item.consumer!r} of stream {item.stream!r} is at sequence "
            f"{consumer.floor}; "
            f"it cannot be moved back to {item.through}",
            metadata={
                "stream": item.stream,
                "consumer": item.consumer,
                "ack_floor": consumer.floor,
            },
        )
    if item.through is not None and item.through > stream.last_sequence:
        raise errors.RevisionInFuture(
            f"stream {item.stream!r} is at sequence {stream.last_sequence}; {item.through} does "
            "not exist yet",
            metadata={"stream": item.stream, "last_sequence": stream.last_sequence},
        )
    _remember(session, consumer)
    _merge(consumer, stream, item)
    session.dirty_consumers[stream.number, item.consumer] = consumer
    if item.through is not None:
        session.effects.settled.append(item)


def _remember(session: Session, consumer: Consumer) -> None:
    before = (
        consumer.floor,
        list(consumer.settled),
        dict(consumer.attempts),
        consumer.delivered_through,
        consumer.given_up,
    )

    def restore() -> None:
        (
            consumer.floor,
            consumer.settled,
            consumer.attempts,
            consumer.delivered_through,
            consumer.given_up,
        ) = before

    session.on_undo(restore)


def _merge(consumer: Consumer, stream: Stream, item: Settle) -> None:
    floor = consumer.floor
    for first, last in item.settled:
        last = min(last, stream.last_sequence)
        if first <= last and last > floor:
            ranges.add(consumer.settled, max(first, floor + 1), last)
    if item.through is not None and item.through > floor:
        ranges.add(consumer.settled, floor + 1, item.through)
    if stream.first_sequence - 1 > floor:
        # What retention removed can never be delivered: it is as good as settled.
        ranges.add(consumer.settled, floor + 1, stream.first_sequence - 1)
    consumer.floor = ranges.raise_floor(floor, consumer.settled)
    for sequence, count in item.attempts:
        consumer.attempts[sequence] = max(count, consumer.attempts.get(sequence, 0))
    if consumer.attempts:
        consumer.attempts = {
            sequence: count
            for sequence, count in consumer.attempts.items()
            if sequence > consumer.floor
        }
    consumer.delivered_through = max(
        consumer.delivered_through, item.delivered_through, consumer.floor
    )
    consumer.given_up += item.given_up
