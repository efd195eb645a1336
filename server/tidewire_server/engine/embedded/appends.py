"""
Storing a batch: every condition is judged first, then one row is written.

Duplicates are found by producer sequence and by message id; what is new of a batch is stored as a
selection of its body.
"""

from collections.abc import Sequence

from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2
from tidewire_server.engine.base import Append, StoredBatch
from tidewire_server.engine.embedded import ranges, rows, schema
from tidewire_server.engine.embedded.facts import PRODUCER_BATCHES_KEPT, Producer, Stream
from tidewire_server.engine.embedded.message_ids import ids_of
from tidewire_server.engine.embedded.session import Session

_INSERT = "INSERT INTO batches VALUES (?,?,?,?,?,?,?,?)"


def append(session: Session, item: Append) -> event_pb2.PublishResponse:
    """Store a batch, or what is new of it, and say where."""
    stream = _find_stream(session, item)
    if stream is None:
        return event_pb2.PublishResponse()
    batch = item.request.batch
    _check_running(stream)
    if item.dead_letter is not None:
        return _store(session, stream, batch, item.dead_letter)
    producer = _find_producer(session, stream, batch) if batch.producer_sequence else None
    remembers = bool(batch.message_ids) and stream.dedup_window_ns > 0
    copies: dict[int, int] = {}
    if producer is not None or remembers:
        copies = _find_copies(session, stream, batch, producer, remembers=remembers)
    if len(copies) < batch.count:
        # A copy gets the first one's answer, though that one has moved the stream on.
        _check_last_sequence(stream, item.request)
    response = _store_new(session, stream, batch, copies)
    if producer is not None:
        _advance(session, producer, batch, response)
    return response


def _find_stream(session: Session, item: Append) -> Stream | None:
    subject = item.request.batch.subject
    expected = item.request.expected_stream
    if item.stream is not None:
        return find_stream(session, item.stream)
    found = session.subjects.find(subject)
    if expected:
        find_stream(session, expected)
        if not found or found[0].name != expected:
            raise errors.NoStream(
                f"stream {expected!r} does not take subject {subject!r}",
                metadata={"subject": subject, "stream": expected},
            )
    if not found:
        session.connection.check_absence("streams", f"a stream that takes {subject!r}")
        if item.stream_required:
            raise errors.NoStream(
                f"no stream takes subject {subject!r}; make one, or publish without durability",
                metadata={"subject": subject},
            )
        return None
    return found[0]


def find_stream(session: Session, name: str) -> Stream:
    """The stream of this name, or `errors.StreamNotFound`."""
    stream = session.streams.by_name.get(name)
    if stream is None:
        session.connection.check_absence("streams", f"stream {name!r}")
        raise stream_not_found(name)
    return stream


def stream_not_found(name: str) -> errors.StreamNotFound:
    """The error for a stream that is not there."""
    return errors.StreamNotFound(f"there is no stream {name!r}", metadata={"stream": name})


def _check_running(stream: Stream) -> None:
    if stream.config.paused:
        raise errors.StreamPaused(
            f"stream {stream.name!r} is paused; resume it", metadata={"stream": stream.name}
        )


def _check_last_sequence(stream: Stream, request: event_pb2.PublishRequest) -> None:
    if request.HasField("expected_last_sequence"):
        expected = request.expected_last_sequence
        if expected != stream.last_sequence:
            raise errors.WrongLastSequence(
                f"stream {stream.name!r} is at sequence {stream.last_sequence}, expected "
                f"{expected}",
                metadata={
                    "subject": stream.name,
                    "stream": stream.name,
                    "last_sequence": stream.last_sequence,
                    "expected_last_sequence": expected,
                },
            )


# Producers.


def _find_producer(session: Session, stream: Stream, batch: common_pb2.Batch) -> Producer:
    key = (stream.number, batch.producer_id)
    producer = session.producers.get(key)
    if producer is None:
        # One that is not known yet is remembered when its first batch is stored.
        producer = Producer.load(session.connection, *key)
        producer = producer or Producer(*key, epoch=batch.producer_epoch)
    if batch.producer_epoch < producer.epoch:
        raise errors.ProducerFenced(
            f"producer {producer.producer_id!r} has published with epoch {producer.epoch}; epoch "
            f"{batch.producer_epoch} is over",
            metadata={"subject": producer.producer_id, "epoch": producer.epoch},
        )
    expected = producer.next_sequence if batch.producer_epoch == producer.epoch else 1
    if batch.producer_sequence > expected:
        raise errors.ProducerGap(
            f"producer {producer.producer_id!r} sent sequence {batch.producer_sequence}, expected "
            f"{expected}; "
            "send what lies between, or begin a new epoch at 1",
            metadata={"subject": producer.producer_id, "expected_sequence": expected},
        )
    return producer


def _forget_producer(session: Session) -> None:
    """Make room: the one that was remembered first and has nothing to write."""
    for key in session.producers:
        if key not in session.dirty_producers:
            del session.producers[key]
            return


def _advance(
    session: Session,
    producer: Producer,
    batch: common_pb2.Batch,
    response: event_pb2.PublishResponse,
) -> None:
    before = (producer.epoch, producer.next_sequence, producer.recent, producer.time_ns)

    def restore() -> None:
        producer.epoch, producer.next_sequence, producer.recent, producer.time_ns = before

    session.on_undo(restore)
    recent = producer.recent
    if batch.producer_epoch > producer.epoch:
        producer.epoch, producer.next_sequence, recent = batch.producer_epoch, 1, []
    fresh = response.stored.last - response.stored.first + 1
    after = batch.producer_sequence + batch.count
    if after > producer.next_sequence:
        # What was new lies at the end of the batch unless message ids took some out of the middle.
        producer.next_sequence = after
        if response.duplicates < batch.count:
            entry = (after - fresh, fresh, response.stored.first)
            recent = [*recent[-PRODUCER_BATCHES_KEPT + 1 :], entry]
    producer.recent = recent
    producer.time_ns = session.now_ns
    key = (producer.stream, producer.producer_id)
    if key not in session.producers and len(session.producers) >= session.options.producers_max:
        _forget_producer(session)
    session.producers[key] = session.dirty_producers[key] = producer


# Duplicates.


def _find_copies(
    session: Session,
    stream: Stream,
    batch: common_pb2.Batch,
    producer: Producer | None,
    *,
    remembers: bool,
) -> dict[int, int]:
    """
    Messages of the batch that were stored before, by index, with their sequence (0: not known any
    more).
    """
    copies: dict[int, int] = {}
    if producer is not None and batch.producer_epoch == producer.epoch:
        known = min(producer.next_sequence - batch.producer_sequence, batch.count)
        for index in range(known):
            copies[index] = _sequence_of(producer, batch.producer_sequence + index)
    if remembers:
        window = stream.message_ids
        window.forget(session.now_ns - stream.dedup_window_ns, session.options.message_ids_max)
        seen: dict[str, int] = {}
        for index, message_id in enumerate(batch.message_ids):
            if index in copies or not message_id:
                continue
            sequence = window.find(message_id)
            if sequence is not None:
                copies[index] = sequence
            elif message_id in seen:
                copies[index] = -1 - seen[message_id]
            else:
                seen[message_id] = index
    return copies


def _sequence_of(producer: Producer, producer_sequence: int) -> int:
    for first, count, sequence in producer.recent:
        if first <= producer_sequence < first + count:
            return sequence + producer_sequence - first
    return 0


def _store_new(
    session: Session, stream: Stream, batch: common_pb2.Batch, copies: dict[int, int]
) -> event_pb2.PublishResponse:
    if not copies:
        return _store(session, stream, batch, None)
    indexes = [index for index in _selected(batch) if index not in copies]
    if not indexes:
        known = [sequence for sequence in copies.values() if sequence > 0]
        stored = common_pb2.SequenceRange(first=min(known), last=max(known)) if known else None
        return event_pb2.PublishResponse(
            stream=stream.name, stored=stored, duplicates=len(copies), durability=session.level
        )
    part = common_pb2.Batch()
    part.CopyFrom(batch)
    del part.selected[:]
    for first, last in ranges.of_indexes(indexes):
        part.selected.add(first=first, last=last)
    response = _store(session, stream, part, None)
    response.duplicates = len(copies)
    return response


def _selected(batch: common_pb2.Batch) -> Sequence[int]:
    if not batch.selected:
        return range(batch.count)
    return [i for item in batch.selected for i in range(item.first, item.last + 1)]


# Storing.


def _store(
    session: Session,
    stream: Stream,
    batch: common_pb2.Batch,
    dead_letter: event_pb2.DeadLetter | None,
) -> event_pb2.PublishResponse:
    count = batch.count
    if batch.selected:
        count = sum(item.last - item.first + 1 for item in batch.selected)
    data = batch.SerializeToString()
    reason = dead_letter.SerializeToString() if dead_letter is not None else None
    size = len(data) + (len(reason) if reason else 0)
    _check_room(stream, count, size)
    first = stream.last_sequence + 1
    last = first + count - 1
    time_ns = max(session.now_ns, stream.last_time_ns)
    ids = ids_of(batch, first) if stream.dedup_window_ns and dead_letter is None else []
    identifier = schema.batch_id(stream.number, first)
    columns = (identifier, last, time_ns, int(bool(ids)), batch.subject, reason, data)
    crc = rows.seal(*columns)
    session.connection.execute(_INSERT, (*columns[:5], crc, reason, data))
    session.touch_stream(stream)
    if stream.first_sequence == first:
        stream.first_time_ns = time_ns
    stream.last_sequence = last
    stream.last_time_ns = time_ns
    stream.bytes += size
    if ids:
        stream.message_ids.add(time_ns, ids)
        session.on_undo(stream.message_ids.take_back)
    session.effects.appended.append(
        StoredBatch(stream.name, batch, first, last, time_ns, dead_letter)
    )
    return event_pb2.PublishResponse(
        stream=stream.name,
        stored=common_pb2.SequenceRange(first=first, last=last),
        durability=session.level,
    )


def _check_room(stream: Stream, count: int, size: int) -> None:
    if stream.last_sequence + count > schema.SEQUENCE_MAX:
        raise errors.StreamFull(f"stream {stream.name!r} has given all its sequences")
    if stream.config.discard != event_pb2.DISCARD_NEW:
        return
    for what, kept, more, limit in (
        ("messages", stream.messages, count, stream.config.messages_max),
        ("bytes", stream.bytes, size, stream.config.bytes_max),
    ):
        if limit and kept + more > limit:
            raise errors.StreamFull(
                f"stream {stream.name!r} keeps {kept} {what} and takes at most {limit}; {more} "
                "more do not fit",
                metadata={"stream": stream.name, f"{what}_max": limit, what: kept},
            )
