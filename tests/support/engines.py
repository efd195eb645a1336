"""Short ways to say what a test of an engine does."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tidewire.v1 import common_pb2, event_pb2, state_pb2
from tidewire_server.engine.base import Append, Committed, Settle, Transaction
from tidewire_server.engine.embedded import EmbeddedEngine, EngineOptions, open_engine

SMALL = EngineOptions(ballast_bytes=0, sweep_interval_s=3600.0)


@asynccontextmanager
async def engine_at(path: Path, options: EngineOptions = SMALL) -> AsyncIterator[EmbeddedEngine]:
    """An engine on a directory, closed at the end."""
    engine = await open_engine(path, node_id="test", options=options)
    try:
        yield engine
    finally:
        await engine.close()


def stream_config(name: str = "orders", *subjects: str, **settings: Any) -> event_pb2.StreamConfig:
    """A stream that takes ``<name>.>`` unless subjects are given."""
    return event_pb2.StreamConfig(name=name, subjects=subjects or [f"{name}.>"], **settings)


def batch_of(subject: str, *payloads: bytes, **settings: Any) -> common_pb2.Batch:
    """A batch of bare payloads."""
    body = common_pb2.PayloadList(payload=payloads).SerializeToString()
    return common_pb2.Batch(subject=subject, count=len(payloads), body=body, **settings)


def append_of(
    batch: common_pb2.Batch, *, expected_last_sequence: int | None = None, **settings: Any
) -> Append:
    """One append of a batch."""
    request = event_pb2.PublishRequest(batch=batch)
    if expected_last_sequence is not None:
        request.expected_last_sequence = expected_last_sequence
    return Append(request, **settings)


async def publish(
    engine: EmbeddedEngine, subject: str, *payloads: bytes, **settings: Any
) -> event_pb2.PublishResponse:
    """Store one batch and return what became of it."""
    done = await engine.commit(
        Transaction(appends=[append_of(batch_of(subject, *payloads, **settings))])
    )
    return done.appends[0]


def put_of(key: str, value: bytes = b"v", **settings: Any) -> state_pb2.StateOperation:
    """A write of a key."""
    payload = common_pb2.Payload(data=value)
    return state_pb2.StateOperation(put=state_pb2.PutRequest(key=key, value=payload, **settings))


def delete_of(key: str, **settings: Any) -> state_pb2.StateOperation:
    """A deletion of a key."""
    return state_pb2.StateOperation(delete=state_pb2.DeleteRequest(key=key, **settings))


async def put(
    engine: EmbeddedEngine, key: str, value: bytes = b"v", **settings: Any
) -> state_pb2.PutResponse:
    """Write one key and return the answer."""
    done = await engine.commit(Transaction(then=[put_of(key, value, **settings)]))
    assert done.state is not None
    return done.state.results[0].put


async def delete(engine: EmbeddedEngine, key: str) -> Committed:
    """Delete one key."""
    return await engine.commit(Transaction(then=[delete_of(key)]))


async def value_of(engine: EmbeddedEngine, key: str, revision: int = 0) -> bytes | None:
    """The value of a key, ``None`` when it is not there."""
    response = await engine.get_state(key, revision)
    return response.entry.value.data if response.HasField("entry") else None


async def settle(engine: EmbeddedEngine, stream: str, consumer: str, **progress: Any) -> None:
    """Store progress of a consumer."""
    await engine.commit(Transaction(settles=[Settle(stream, consumer, **progress)]))


async def messages_of(
    engine: EmbeddedEngine, stream: str, first: int = 1, subjects: Sequence[str] = ()
) -> dict[int, bytes]:
    """All messages from a sequence on, by sequence."""
    found: dict[int, bytes] = {}
    position = first
    while True:
        part = await engine.read_stream(
            stream, position, messages_max=1000, bytes_max=1_000_000, subjects=subjects
        )
        for stored in part.batches:
            payloads = common_pb2.PayloadList.FromString(stored.batch.body).payload
            indexes = [
                i for item in stored.batch.selected for i in range(item.first, item.last + 1)
            ] or range(stored.batch.count)
            for place, index in enumerate(indexes):
                found[stored.first_sequence + place] = payloads[index]
        if part.next_sequence > part.last_sequence:
            return {sequence: data for sequence, data in found.items() if sequence >= first}
        position = part.next_sequence
