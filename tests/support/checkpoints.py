"""Build what the tests of checkpoints commit."""

import hashlib
from typing import Any

from support.store import Store, stream_config
from tidewire.v1 import checkpoint_pb2, event_pb2
from tidewire.wire.batch import encode_payloads

OPERATOR = "orders.total"


def digest_of(data: bytes) -> bytes:
    """Compute the SHA-256 of a state or chunk."""
    return hashlib.sha256(data).digest()


def output(subject: str, *payloads: bytes, **values: Any) -> event_pb2.PublishRequest:
    """Build an output of a commit."""
    batch = encode_payloads(subject, payloads or (b"event",))
    return event_pb2.PublishRequest(batch=batch, **values)


def commit(epoch: int, data: bytes = b"state", **values: Any) -> checkpoint_pb2.CommitRequest:
    """Build a commit with inline state."""
    values.setdefault("operator", OPERATOR)
    return checkpoint_pb2.CommitRequest(epoch=epoch, inline=data, **values)


async def acquire(store: Store, operator: str = OPERATOR, keep: int = 0) -> int:
    """Become the operator; the epoch."""
    request = checkpoint_pb2.AcquireRequest(operator=operator, keep=keep)
    return (await store.checkpoints.Acquire(request)).epoch


async def load(store: Store, revision: int = 0, **values: Any) -> checkpoint_pb2.Checkpoint:
    """Read a checkpoint that is there."""
    request = checkpoint_pb2.LoadRequest(operator=OPERATOR, revision=revision, **values)
    answer = await store.checkpoints.Load(request)
    assert answer.HasField("checkpoint")
    return answer.checkpoint


async def put_chunk(store: Store, data: bytes) -> checkpoint_pb2.ChunkRef:
    """Store a chunk and return what names it."""
    digest = digest_of(data)
    await store.checkpoints.PutChunk(checkpoint_pb2.PutChunkRequest(data=data, digest=digest))
    return checkpoint_pb2.ChunkRef(digest=digest, bytes=len(data))


async def make_streams(store: Store) -> None:
    """Make stream IN with ten messages and consumer ``worker`` at 4, and stream OUT."""
    await store.engine.create_stream(stream_config("IN", "in.>"))
    await store.engine.create_stream(stream_config("OUT", "out.>"))
    consumer = event_pb2.ConsumerConfig(name="worker")
    await store.engine.create_consumer("IN", consumer)
    epoch = await acquire(store, "setup")
    place = checkpoint_pb2.Position(stream="IN", consumer="worker", through=4)
    events = output("in.a", *(b"%d" % n for n in range(10)))
    await store.checkpoints.Commit(commit(epoch, operator="setup", outputs=[events]))
    await store.checkpoints.Commit(commit(epoch, operator="setup", positions=[place]))


async def floor(store: Store) -> int:
    """Place of the consumer."""
    return (await store.engine.get_consumer("IN", "worker")).state.ack_floor
