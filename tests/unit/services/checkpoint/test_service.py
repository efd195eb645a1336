"""The Checkpoint service on the embedded engine: what each call answers and refuses."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

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
    put_chunk,
)
from support.store import Store, open_store, put_operation, refused
from tidewire import errors
from tidewire.v1 import checkpoint_pb2, common_pb2, state_pb2
from tidewire_server.core import ServiceLimits

Position = checkpoint_pb2.Position


@pytest.fixture(params=["grpc", "tcp"])
async def store(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    async with open_store(tmp_path, wire=request.param) as opened:
        yield opened


async def test_every_acquire_has_a_higher_epoch(store: Store) -> None:
    """Each operator counts on its own, and hears of the last checkpoint without its state."""
    assert [1, 2, 1] == [await acquire(store), await acquire(store), await acquire(store, "other")]
    await store.checkpoints.Commit(commit(2, note="noon"))
    answer = await store.checkpoints.Acquire(checkpoint_pb2.AcquireRequest(operator=OPERATOR))

    assert (3, 1, "noon", None) == (
        answer.epoch,
        answer.last.revision,
        answer.last.note,
        answer.last.WhichOneof("state"),
    )


async def test_a_commit_is_loaded_as_it_was_made(store: Store) -> None:
    """State, digest, epoch, positions, note and time."""
    await make_streams(store)
    epoch = await acquire(store)
    places = [Position(stream="IN", consumer="worker", through=6), Position(stream="X", through=9)]
    answer = await store.checkpoints.Commit(commit(epoch, b"sum=1", positions=places, note="n"))
    found = await load(store)

    assert (1, common_pb2.DURABILITY_FSYNC, digest_of(b"sum=1")) == (
        answer.revision,
        answer.durability,
        answer.digest,
    )
    assert (OPERATOR, 1, epoch, b"sum=1", digest_of(b"sum=1"), 5, "n") == (
        found.operator,
        found.revision,
        found.epoch,
        found.inline,
        found.digest,
        found.state_bytes,
        found.note,
    )
    assert places == list(found.positions)
    assert found.time.ToNanoseconds() > 0
    assert 6 == await floor(store)


async def test_an_operator_without_checkpoints_is_no_error(store: Store) -> None:
    """The last one is absent; one that is named and not there is an error."""
    request = checkpoint_pb2.LoadRequest(operator=OPERATOR)
    answer = await store.checkpoints.Load(request)
    request.revision = 7

    assert not answer.HasField("checkpoint")
    assert isinstance(await refused(store.checkpoints.Load(request)), errors.CheckpointNotFound)


async def test_outputs_and_state_changes_come_with_the_commit(store: Store) -> None:
    """One transaction: the answer says where the events went and which revision State has."""
    await make_streams(store)
    epoch = await acquire(store)
    answer = await store.checkpoints.Commit(
        commit(
            epoch,
            outputs=[output("out.a", b"1", b"2"), output("out.b"), output("in.b")],
            compare=[state_pb2.Compare(key="total", exists=False)],
            state_operations=[put_operation("total", b"3"), put_operation("count", b"1")],
        )
    )
    stored = [(o.stream, o.stored.first, o.stored.last) for o in answer.outputs]
    total = (await store.state.Get(state_pb2.GetRequest(key="total"))).entry

    assert [("OUT", 1, 2), ("OUT", 3, 3), ("IN", 11, 11)] == stored
    assert (1, 1, b"3") == (answer.state_revision, total.revision, total.value.data)
    assert 3 == store.engine.last_sequence("OUT")


async def test_state_in_chunks_is_stored_once(store: Store) -> None:
    """Chunks are uploaded before, named by digest, shared by checkpoints, and read one by one."""
    epoch = await acquire(store)
    parts = [b"a" * 1000, b"b" * 500]
    first = await put_chunk(store, parts[0])
    missing = await store.checkpoints.FindMissingChunks(
        checkpoint_pb2.FindMissingChunksRequest(digests=[digest_of(part) for part in parts])
    )
    second = await put_chunk(store, parts[1])
    again = await store.checkpoints.PutChunk(
        checkpoint_pb2.PutChunkRequest(data=parts[1], digest=second.digest)
    )
    chunks = checkpoint_pb2.ChunkList(chunks=[first, second, first])
    whole = parts[0] + parts[1] + parts[0]
    request = checkpoint_pb2.CommitRequest(
        operator=OPERATOR, epoch=epoch, chunks=chunks, digest=digest_of(whole)
    )
    await store.checkpoints.Commit(request)
    found = await load(store)
    read = [
        (await store.checkpoints.GetChunk(checkpoint_pb2.GetChunkRequest(digest=c.digest))).data
        for c in found.chunks.chunks
    ]

    assert [digest_of(parts[1])] == list(missing.missing)
    assert again.existed
    assert (chunks, 2500, digest_of(whole)) == (found.chunks, found.state_bytes, found.digest)
    assert whole == b"".join(read)


async def test_thousands_of_chunks_are_asked_for_at_once(store: Store) -> None:
    """A state of gigabytes is compared with what is there in few calls; the order is kept."""
    digests = [digest_of(b"%d" % number) for number in range(7000)]
    for number in (10, 5000):
        await put_chunk(store, b"%d" % number)
    request = checkpoint_pb2.FindMissingChunksRequest(digests=digests)
    answer = await store.checkpoints.FindMissingChunks(request)

    assert [d for n, d in enumerate(digests) if n not in (10, 5000)] == list(answer.missing)


async def test_a_large_state_goes_inline(store: Store) -> None:
    """Up to the payload limit, hashed beside the event loop."""
    epoch = await acquire(store)
    data = bytes(range(256)) * 8192
    await store.checkpoints.Commit(commit(epoch, data, digest=digest_of(data)))

    assert data == (await load(store)).inline
    assert not (await load(store, metadata_only=True)).inline


async def test_older_checkpoints_are_kept_as_many_as_asked(store: Store) -> None:
    """`keep` of Acquire decides; an older one is loaded until it goes."""
    epoch = await acquire(store, keep=2)
    for number in range(1, 5):
        await store.checkpoints.Commit(commit(epoch, b"%d" % number))
    request = checkpoint_pb2.ListCheckpointsRequest(operator=OPERATOR)
    listed = (await store.checkpoints.ListCheckpoints(request)).checkpoints

    assert [4, 3] == [checkpoint.revision for checkpoint in listed]
    assert (b"3", b"4") == ((await load(store, 3)).inline, (await load(store)).inline)
    gone = checkpoint_pb2.LoadRequest(operator=OPERATOR, revision=2)
    assert isinstance(await refused(store.checkpoints.Load(gone)), errors.CheckpointNotFound)


async def test_listings_go_by_pages(store: Store) -> None:
    """Of one operator newest first, of all operators by name; none has its state."""
    for operator in ("a", "b", "c"):
        epoch = await acquire(store, operator)
        for _ in range(3):
            await store.checkpoints.Commit(commit(epoch, operator=operator))

    async def pages(operator: str) -> list[tuple[str, int]]:
        request = checkpoint_pb2.ListCheckpointsRequest(operator=operator, page_size=2)
        found = []
        while True:
            page = await store.checkpoints.ListCheckpoints(request)
            assert len(page.checkpoints) <= 2
            assert all(c.WhichOneof("state") is None for c in page.checkpoints)
            found += [(c.operator, c.revision) for c in page.checkpoints]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    assert [("b", 3), ("b", 2), ("b", 1)] == await pages("b")
    assert [("a", 3), ("b", 3), ("c", 3)] == await pages("")


async def test_the_last_checkpoint_goes_only_with_the_operator(store: Store) -> None:
    """One by one, or all; the epoch and the count of revisions stay, so nothing comes twice."""
    epoch = await acquire(store)
    for _ in range(3):
        await store.checkpoints.Commit(commit(epoch))

    def delete(revision: int) -> Any:
        request = checkpoint_pb2.DeleteCheckpointRequest(operator=OPERATOR, revision=revision)
        return store.checkpoints.DeleteCheckpoint(request)

    last = await refused(delete(3))
    one = (await delete(1)).deleted
    rest = (await delete(0)).deleted
    answer = await store.checkpoints.Commit(commit(epoch, expected_revision=0))

    assert isinstance(last, errors.FailedPrecondition)
    assert (1, 2, 4) == (one, rest, answer.revision)
    assert epoch + 1 == await acquire(store)


async def test_a_repeated_commit_gets_the_first_answer(store: Store) -> None:
    """Once more with the same id does nothing, also when others have fenced it since."""
    await make_streams(store)
    epoch = await acquire(store, keep=1)
    request = commit(
        epoch,
        b"one",
        expected_revision=0,
        outputs=[output("out.a")],
        positions=[Position(stream="IN", consumer="worker", through=7)],
        state_operations=[put_operation("k")],
        request_id="r",
    )
    first = await store.checkpoints.Commit(request)
    second = await store.checkpoints.Commit(request)
    newer = await acquire(store)
    await store.checkpoints.Commit(commit(newer, b"two"))
    third = await store.checkpoints.Commit(request)
    other_operator = await acquire(store, "other")
    fresh = await store.checkpoints.Commit(
        commit(other_operator, operator="other", request_id="r", outputs=[output("out.b")])
    )

    assert first == second == third
    assert (1, digest_of(b"one")) == (first.revision, first.digest)
    assert (2, 1) == (store.engine.last_sequence("OUT"), store.engine.state_revision)
    assert 2 == fresh.outputs[0].stored.first
    assert b"two" == (await load(store)).inline


async def test_a_repeat_answers_the_digest_of_what_was_committed(store: Store) -> None:
    """Also when the repeat brings other bytes under the same id."""
    epoch = await acquire(store)
    await store.checkpoints.Commit(commit(epoch, b"one", request_id="r"))
    repeated = await store.checkpoints.Commit(commit(epoch, b"two", request_id="r"))

    assert (1, digest_of(b"one")) == (repeated.revision, repeated.digest)


async def test_checkpoints_survive_a_restart(tmp_path: Path) -> None:
    """State, positions, epoch and chunks are there after the store was closed and opened."""
    async with open_store(tmp_path) as store:
        await make_streams(store)
        epoch = await acquire(store)
        chunk = await put_chunk(store, b"chunk")
        place = Position(stream="IN", consumer="worker", through=8)
        chunks = checkpoint_pb2.ChunkList(chunks=[chunk])
        await store.checkpoints.Commit(
            checkpoint_pb2.CommitRequest(
                operator=OPERATOR,
                epoch=epoch,
                chunks=chunks,
                digest=digest_of(b"chunk"),
                positions=[place],
            )
        )
        before = await load(store)
    async with open_store(tmp_path) as store:
        assert before == await load(store)
        assert 8 == await floor(store)
        get = checkpoint_pb2.GetChunkRequest(digest=chunk.digest)
        assert b"chunk" == (await store.checkpoints.GetChunk(get)).data
        assert epoch + 1 == await acquire(store)


DIGEST = digest_of(b"")
CHUNK = checkpoint_pb2.ChunkRef(digest=DIGEST, bytes=1)


def chunked(*chunks: checkpoint_pb2.ChunkRef, **values: Any) -> checkpoint_pb2.CommitRequest:
    request = checkpoint_pb2.CommitRequest(operator=OPERATOR, epoch=1, **values)
    request.chunks.chunks.extend(chunks)
    return request


REFUSED_COMMITS = [
    (commit(1, operator="a b"), errors.InvalidSubject, "operator"),
    (commit(0), errors.InvalidArgument, "epoch"),
    (commit(1, note="x" * 1025), errors.InvalidArgument, "note"),
    (commit(1, request_id="x" * 65), errors.InvalidArgument, "request_id"),
    (commit(1, digest=b"short"), errors.InvalidArgument, "digest"),
    (commit(1, digest=DIGEST), errors.DigestMismatch, "digest"),
    (commit(1, bytes(2001)), errors.MessageTooLarge, None),
    (chunked(CHUNK), errors.InvalidArgument, "digest"),
    (
        chunked(checkpoint_pb2.ChunkRef(digest=b"x", bytes=1), digest=DIGEST),
        errors.InvalidArgument,
        "chunks.chunks[0].digest",
    ),
    (
        chunked(CHUNK, checkpoint_pb2.ChunkRef(digest=DIGEST), digest=DIGEST),
        errors.InvalidArgument,
        "chunks.chunks[1].bytes",
    ),
    (commit(1, positions=[Position()]), errors.InvalidSubject, "positions[0].stream"),
    (
        commit(1, positions=[Position(stream="S", consumer="*")]),
        errors.InvalidSubject,
        "positions[0].consumer",
    ),
    (commit(1, positions=[Position(stream="S")] * 2), errors.InvalidArgument, "positions[1]"),
    (
        commit(1, positions=[Position(stream=f"S{n}") for n in range(1001)]),
        errors.InvalidArgument,
        "positions",
    ),
    (commit(1, outputs=[output("out.a")] * 129), errors.InvalidArgument, "outputs"),
    (commit(1, outputs=[output("out.*")]), errors.InvalidSubject, None),
    (
        commit(1, state_operations=[put_operation("k")] * 2),
        errors.InvalidArgument,
        "state_operations[1].put.key",
    ),
    (
        commit(1, state_operations=[state_pb2.StateOperation(get=state_pb2.GetRequest(key="k"))]),
        errors.InvalidArgument,
        "state_operations[0]",
    ),
    (
        commit(1, state_operations=[put_operation(f"k{n}") for n in range(129)]),
        errors.InvalidArgument,
        "state_operations",
    ),
    (
        commit(1, compare=[state_pb2.Compare(key="k")]),
        errors.InvalidArgument,
        "compare[0].condition",
    ),
    (
        commit(1, outputs=[output("out.a", durability=common_pb2.DURABILITY_QUORUM)]),
        errors.DurabilityUnavailable,
        None,
    ),
]


async def test_commits_that_cannot_be_name_their_field(tmp_path: Path) -> None:
    """Every bound of a commit, over the wire, with BadRequest."""
    async with open_store(tmp_path, limits=ServiceLimits(payload_bytes_max=2000)) as store:
        for request, kind, field in REFUSED_COMMITS:
            error = await refused(store.checkpoints.Commit(request))
            assert kind is type(error), (error, request)
            if field:
                assert [field] == list(error.fields), error


async def test_requests_that_cannot_be_are_refused(store: Store) -> None:
    """The other calls' bounds."""
    calls = store.checkpoints
    cases: list[tuple[Any, type[errors.TidewireError]]] = [
        (calls.Acquire(checkpoint_pb2.AcquireRequest()), errors.InvalidSubject),
        (
            calls.Acquire(checkpoint_pb2.AcquireRequest(operator="a", keep=1001)),
            errors.InvalidArgument,
        ),
        (calls.PutChunk(checkpoint_pb2.PutChunkRequest(digest=DIGEST)), errors.InvalidArgument),
        (calls.PutChunk(checkpoint_pb2.PutChunkRequest(data=b"x")), errors.InvalidArgument),
        (
            calls.PutChunk(checkpoint_pb2.PutChunkRequest(data=b"x", digest=DIGEST)),
            errors.DigestMismatch,
        ),
        (
            calls.PutChunk(
                checkpoint_pb2.PutChunkRequest(data=bytes(1024 * 1024 + 1), digest=DIGEST)
            ),
            errors.MessageTooLarge,
        ),
        (
            calls.FindMissingChunks(checkpoint_pb2.FindMissingChunksRequest(digests=[b"x"])),
            errors.InvalidArgument,
        ),
        (calls.GetChunk(checkpoint_pb2.GetChunkRequest(digest=DIGEST)), errors.ChunkNotFound),
        (calls.Load(checkpoint_pb2.LoadRequest()), errors.InvalidSubject),
        (
            calls.ListCheckpoints(checkpoint_pb2.ListCheckpointsRequest(page_token="?")),
            errors.InvalidArgument,
        ),
        (
            calls.DeleteCheckpoint(checkpoint_pb2.DeleteCheckpointRequest(operator="a")),
            errors.CheckpointNotFound,
        ),
    ]
    for call, kind in cases:
        assert kind is type(await refused(call))
