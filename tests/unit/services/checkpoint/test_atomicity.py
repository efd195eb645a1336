"""
A commit is all or nothing: any one part that is refused leaves every other part undone.

The control is the same commit without a fault: it does every part.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.checkpoints import (
    OPERATOR,
    acquire,
    commit,
    digest_of,
    floor,
    load,
    make_streams,
    output,
)
from support.store import Store, open_store, payload, put, put_operation, refused, stream_config
from tidewire import errors
from tidewire.v1 import checkpoint_pb2, common_pb2, event_pb2, state_pb2

Request = checkpoint_pb2.CommitRequest


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path) as opened:
        await make_streams(opened)
        await opened.engine.create_stream(stream_config("PAUSED", "paused.>", paused=True))
        await opened.engine.create_stream(
            stream_config("FULL", "full.>", messages_max=1, discard=event_pb2.DISCARD_NEW)
        )
        setup = await acquire(opened, "setup")
        await opened.checkpoints.Commit(commit(setup, operator="setup", outputs=[output("full.a")]))
        await opened.state.Put(put("total", b"1"))
        for _ in range(2):
            epoch = await acquire(opened)
        await opened.checkpoints.Commit(commit(epoch, b"old"))
        yield opened


def whole_commit() -> Request:
    """Build a commit with every part, all of it right: revision 2 of the operator's epoch 2."""
    return commit(
        2,
        b"new",
        expected_revision=1,
        positions=[checkpoint_pb2.Position(stream="IN", consumer="worker", through=6)],
        outputs=[output("out.a", b"1", b"2"), output("in.b", expected_last_sequence=10)],
        compare=[state_pb2.Compare(key="total", revision=1)],
        state_operations=[put_operation("total", b"2"), put_operation("fresh")],
        request_id="r",
    )


@dataclass(frozen=True)
class Everything:
    """All that a commit could have changed."""

    sequences: tuple[int, ...]
    floor: int
    revision: int
    total: bytes
    fresh: bool
    checkpoints: tuple[tuple[int, bytes], ...]


async def everything(store: Store) -> Everything:
    async def entry(key: str) -> state_pb2.GetResponse:
        return await store.state.Get(state_pb2.GetRequest(key=key))

    request = checkpoint_pb2.ListCheckpointsRequest(operator=OPERATOR)
    listed = (await store.checkpoints.ListCheckpoints(request)).checkpoints
    streams = sorted(await store.engine.list_streams(), key=lambda stream: stream.config.name)
    return Everything(
        sequences=tuple(stream.state.last_sequence for stream in streams),
        floor=await floor(store),
        revision=store.engine.state_revision,
        total=(await entry("total")).entry.value.data,
        fresh=(await entry("fresh")).HasField("entry"),
        checkpoints=tuple((c.revision, c.digest) for c in listed),
    )


def no_stream(request: Request) -> None:
    request.outputs.append(output("nowhere.a"))


def other_stream(request: Request) -> None:
    request.outputs[0].expected_stream = "IN"


def paused_stream(request: Request) -> None:
    request.outputs.append(output("paused.a"))


def full_stream(request: Request) -> None:
    request.outputs.append(output("full.b"))


def wrong_last_sequence(request: Request) -> None:
    request.outputs[1].expected_last_sequence = 9


def wrong_checksum(request: Request) -> None:
    request.outputs[1].batch.crc32c ^= 1


def wrong_key_revision(request: Request) -> None:
    request.state_operations[1].put.expected_revision = 9


def lease_not_held(request: Request) -> None:
    request.state_operations[1].put.lease.node_id = "stranger"
    request.state_operations[1].put.lease.fencing_token = 1


def value_too_large(request: Request) -> None:
    request.state_operations[1].put.value.CopyFrom(payload(b""))
    request.state_operations[1].put.value.codec = common_pb2.CODEC_LZ4
    request.state_operations[1].put.value.raw_size = 11 * 1024 * 1024


def failed_comparison(request: Request) -> None:
    request.compare.append(state_pb2.Compare(key="fresh", exists=True))


def fenced(request: Request) -> None:
    request.epoch = 1


def epoch_never_given(request: Request) -> None:
    request.epoch = 3


def wrong_revision(request: Request) -> None:
    request.expected_revision = 0


def backwards(request: Request) -> None:
    request.positions[0].through = 3


def position_not_there_yet(request: Request) -> None:
    request.positions[0].through = 1000


def no_consumer(request: Request) -> None:
    request.positions.append(checkpoint_pb2.Position(stream="IN", consumer="other", through=5))


def no_input_stream(request: Request) -> None:
    request.positions.append(checkpoint_pb2.Position(stream="OTHER", consumer="other", through=5))


def chunk_missing(request: Request) -> None:
    request.chunks.chunks.add(digest=digest_of(b"x"), bytes=1)
    request.digest = digest_of(b"x")


def wrong_digest(request: Request) -> None:
    request.digest = digest_of(b"other")


FAULTS: list[tuple[Callable[[Request], None], type[errors.TidewireError]]] = [
    (no_stream, errors.NoStream),
    (other_stream, errors.NoStream),
    (paused_stream, errors.StreamPaused),
    (full_stream, errors.StreamFull),
    (wrong_last_sequence, errors.WrongLastSequence),
    (wrong_checksum, errors.ChecksumMismatch),
    (wrong_key_revision, errors.RevisionMismatch),
    (lease_not_held, errors.LeaseNotHeld),
    (value_too_large, errors.MessageTooLarge),
    (failed_comparison, errors.RevisionMismatch),
    (fenced, errors.OperatorFenced),
    (epoch_never_given, errors.OperatorFenced),
    (wrong_revision, errors.RevisionMismatch),
    (backwards, errors.PositionBackwards),
    (position_not_there_yet, errors.RevisionInFuture),
    (no_consumer, errors.ConsumerNotFound),
    (no_input_stream, errors.StreamNotFound),
    (chunk_missing, errors.ChunksMissing),
    (wrong_digest, errors.DigestMismatch),
]


@pytest.mark.parametrize(("break_it", "kind"), FAULTS, ids=lambda value: value.__name__)
async def test_a_refused_part_leaves_all_others_undone(
    store: Store, break_it: Callable[[Request], None], kind: type[errors.TidewireError]
) -> None:
    """Streams, positions, State and checkpoints are as before; put right, the commit is done."""
    before = await everything(store)
    request = whole_commit()
    break_it(request)

    error = await refused(store.checkpoints.Commit(request))

    assert kind is type(error)
    assert before == await everything(store)
    answer = await store.checkpoints.Commit(whole_commit())
    assert 2 == answer.revision


async def test_the_same_commit_without_a_fault_does_every_part(store: Store) -> None:
    """Control: everything that must stay untouched above is touched by this."""
    before = await everything(store)

    answer = await store.checkpoints.Commit(whole_commit())
    after = await everything(store)

    assert [("OUT", 1, 2), ("IN", 11, 11)] == [
        (output.stream, output.stored.first, output.stored.last) for output in answer.outputs
    ]
    assert (
        Everything(
            sequences=(1, 11, 2, 0),
            floor=6,
            revision=2,
            total=b"2",
            fresh=True,
            checkpoints=((2, digest_of(b"new")), (1, digest_of(b"old"))),
        )
        == after
    )
    assert (1, 10, 0, 0) == before.sequences
    assert b"new" == (await load(store)).inline
