"""Checkpoints, chunks, members and documents of the embedded engine."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.engines import (
    SMALL,
    append_of,
    batch_of,
    engine_at,
    messages_of,
    put_of,
    stream_config,
    value_of,
)
from tidewire import errors
from tidewire.v1 import checkpoint_pb2, event_pb2
from tidewire_server.engine.base import CheckpointWrite, Settle, Transaction
from tidewire_server.engine.embedded import EmbeddedEngine, maintenance
from tidewire_server.engine.embedded.session import Session


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    async with engine_at(tmp_path / "store") as opened:
        yield opened


def write_of(epoch: int, inline: bytes | None = b"state", **settings: Any) -> CheckpointWrite:
    plain: dict[str, Any] = {
        "operator": "op",
        "epoch": epoch,
        "expected_revision": None,
        "inline": inline,
        "chunks": (),
        "digest": b"",
        "positions": (),
    }
    return CheckpointWrite(**(plain | settings))


async def write(engine: EmbeddedEngine, epoch: int, *args: Any, **settings: Any) -> int:
    done = await engine.commit(Transaction(checkpoint=write_of(epoch, *args, **settings)))
    return done.checkpoint_revision


async def load(engine: EmbeddedEngine, revision: int = 0) -> checkpoint_pb2.Checkpoint:
    found = await engine.load_checkpoint("op", revision, with_state=True)
    assert found is not None
    return found


async def test_everything_commits_together(tmp_path: Path) -> None:
    """State, outputs, keys and positions of a checkpoint happen together, and last."""
    async with engine_at(tmp_path) as engine:
        await engine.create_stream(stream_config())
        await engine.create_consumer(
            "orders", event_pb2.ConsumerConfig(name="c", start=event_pb2.StartPosition(all=True))
        )
        epoch, last = await engine.acquire_operator("op", 0)
        assert (1, None) == (epoch, last)
        position = checkpoint_pb2.Position(stream="orders", consumer="c", through=1)
        done = await engine.commit(
            Transaction(
                checkpoint=write_of(epoch, positions=[position], note="n"),
                appends=[append_of(batch_of("orders.out", b"o"))],
                then=[put_of("k", b"kv")],
                settles=[Settle("orders", "c", through=1)],
            )
        )
        assert 1 == done.checkpoint_revision
    async with engine_at(tmp_path) as engine:
        found = await load(engine)
        assert (b"state", "n", 5, [position]) == (
            found.inline,
            found.note,
            found.state_bytes,
            list(found.positions),
        )
        assert hashlib.sha256(b"state").digest() == found.digest
        assert {1: b"o"} == await messages_of(engine, "orders")
        assert b"kv" == await value_of(engine, "k")
        assert 1 == (await engine.get_consumer("orders", "c")).state.ack_floor


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"epoch": 1}, errors.OperatorFenced),
        ({"epoch": 3}, errors.OperatorFenced),
        ({"operator": "other"}, errors.OperatorFenced),
        ({"expected_revision": 0}, errors.RevisionMismatch),
        ({"digest": b"x" * 32}, errors.DigestMismatch),
        ({"inline": None, "chunks": [(b"d" * 32, 1)]}, errors.ChunksMissing),
    ],
)
async def test_refused_commits_leave_nothing(
    engine: EmbeddedEngine, settings: dict[str, Any], refusal: type[errors.TidewireError]
) -> None:
    """A commit that is refused, for whatever reason, leaves no output, key or checkpoint."""
    await engine.create_stream(stream_config())
    await engine.acquire_operator("op", 0)
    epoch, _ = await engine.acquire_operator("op", 0)
    await write(engine, epoch)
    with pytest.raises(refusal):
        await engine.commit(
            Transaction(
                checkpoint=replace(write_of(epoch), **settings),
                appends=[append_of(batch_of("orders.out", b"o"))],
                then=[put_of("k")],
            )
        )

    assert 1 == (await load(engine)).revision
    assert 0 == engine.last_sequence("orders")
    assert await value_of(engine, "k") is None


async def test_the_newest_are_kept(engine: EmbeddedEngine) -> None:
    """As many as the operator keeps stay; revisions go on; the last goes only with all."""
    epoch, _ = await engine.acquire_operator("op", 2)
    for i in range(4):
        await write(engine, epoch, b"%d" % i, expected_revision=i)
    listed, token = await engine.list_checkpoints("op", before="", checkpoints_max=1)
    rest, end = await engine.list_checkpoints("op", before=token, checkpoints_max=5)

    assert ([4], [3], "") == ([c.revision for c in listed], [c.revision for c in rest], end)
    assert not listed[0].HasField("inline")
    with pytest.raises(errors.CheckpointNotFound):
        await load(engine, 2)
    with pytest.raises(errors.FailedPrecondition):
        await engine.delete_checkpoint("op", 4)
    assert 1 == await engine.delete_checkpoint("op", 3)
    assert 1 == await engine.delete_checkpoint("op", 0)
    assert await engine.load_checkpoint("op", 0, with_state=True) is None
    assert 5 == await write(engine, epoch, expected_revision=0)
    next_epoch, last = await engine.acquire_operator("op", 0)
    assert (2, 5) == (next_epoch, last.revision if last else 0)


async def test_operators_are_listed_by_pages(engine: EmbeddedEngine) -> None:
    """Without an operator the last checkpoint of each is listed, by name."""
    for name in ("b", "a", "c"):
        epoch, _ = await engine.acquire_operator(name, 0)
        for _ in range(2):
            await write(engine, epoch, operator=name)
    first, token = await engine.list_checkpoints("", before="", checkpoints_max=2)
    rest, end = await engine.list_checkpoints("", before=token, checkpoints_max=2)

    found = [(c.operator, c.revision) for c in (*first, *rest)]
    assert [("a", 2), ("b", 2), ("c", 2)] == found
    assert "" == end


async def test_chunks_live_as_long_as_they_are_needed(tmp_path: Path) -> None:
    """A chunk is stored once, survives while a checkpoint uses it, and goes after its grace."""
    data = [b"chunk-%d" % i * 100 for i in range(3)]
    digests = [hashlib.sha256(item).digest() for item in data]
    later = replace(SMALL, chunk_grace_s=0.0)

    def sweep_later(session: Session) -> int:
        session.now_ns += 10**9
        return maintenance.sweep(session)

    async with engine_at(tmp_path, later) as engine:
        assert [False] * 3 == [
            await engine.put_chunk(d, item) for d, item in zip(digests, data, strict=True)
        ]
        assert await engine.put_chunk(digests[0], data[0])
        epoch, _ = await engine.acquire_operator("op", 1)
        refs = [(d, len(item)) for d, item in zip(digests, data, strict=True)]
        await write(engine, epoch, None, chunks=refs[:2], digest=b"s" * 32)
        await engine._write(sweep_later)

        assert [digests[2]] == list(await engine.find_missing_chunks(digests))
        assert data[1] == await engine.get_chunk(digests[1])
        assert digests[:2] == [c.digest for c in (await load(engine)).chunks.chunks]
        await write(engine, epoch, None, chunks=[refs[0], refs[0]], digest=b"s" * 32)
        await engine._write(sweep_later)
        assert digests[1:] == list(await engine.find_missing_chunks(digests))
        with pytest.raises(errors.ChunkNotFound):
            await engine.get_chunk(digests[1])


async def test_chunks_without_a_checkpoint_have_a_grace(engine: EmbeddedEngine) -> None:
    """What was just uploaded stays until its commit had time to come."""
    digest = hashlib.sha256(b"x").digest()
    await engine.put_chunk(digest, b"x")
    await engine._write(maintenance.sweep)

    assert b"x" == await engine.get_chunk(digest)


async def test_members_rise(tmp_path: Path) -> None:
    """Incarnations rise by node, fencing tokens over the store, also after a restart."""
    async with engine_at(tmp_path) as engine:
        first = await engine.join_member("a", 5.0, ["g"])
        other = await engine.join_member("b", 5.0, ())
        await engine.mark_member_gone("a", first.incarnation + 1)
        await engine.mark_member_gone("b", other.incarnation)
    async with engine_at(tmp_path) as engine:
        again = await engine.join_member("a", 2.5, ())

        assert [(1, 1), (1, 2), (2, 3)] == [
            (m.incarnation, m.fencing_token) for m in (first, other, again)
        ]
        assert [("a", 2.5, False), ("b", 5.0, True)] == [
            (m.node_id, m.lease_s, m.gone) for m in await engine.list_members()
        ]


async def test_documents_are_bounded_by_kind(tmp_path: Path) -> None:
    """
    No more than the limit are taken; replacing one, removing one and what was taken back leave the
    count right, also over a restart.
    """
    options = replace(SMALL, documents_max=3)
    for _ in range(2):
        async with engine_at(tmp_path, options) as engine:
            for name in ("a", "b", "c", "c"):
                await engine.put_document("command", name, b"1", 0)
            for _ in range(2):
                with pytest.raises(errors.Overloaded):
                    await engine.put_document("command", "d", b"1", 0)
            await engine.put_document("other", "d", b"1", 0)
            await engine.delete_documents("command", ["b", "none"])
            await engine.put_document("command", "e", b"1", 0)
            with pytest.raises(errors.Overloaded):
                await engine.put_document("command", "f", b"1", 0)
            names = [name for name, _ in await engine.list_documents("command")]
            assert ["a", "c", "e"] == names
            await engine.delete_documents("command", ["e"])


async def test_documents(tmp_path: Path) -> None:
    """Documents of a kind are kept until they expire or are deleted."""
    async with engine_at(tmp_path) as engine:
        await engine.put_document("command", "b", b"2", 0)
        await engine.put_document("command", "a", b"1", 2**62)
        await engine.put_document("command", "old", b"0", 1)
        await engine.put_document("other", "c", b"3", 0)
        await engine.put_document("command", "b", b"22", 0)
    async with engine_at(tmp_path) as engine:
        assert [("a", b"1"), ("b", b"22")] == list(await engine.list_documents("command"))
        await engine.delete_documents("command", ["a", "none"])
        assert [("b", b"22")] == list(await engine.list_documents("command"))
        assert 1 == await engine._write(maintenance.sweep)


async def test_documents_are_bounded(tmp_path: Path) -> None:
    """More documents of one kind than are kept are refused."""
    async with engine_at(tmp_path, replace(SMALL, documents_max=1)) as engine:
        await engine.put_document("command", "a", b"1", 0)
        with pytest.raises(errors.Overloaded):
            await engine.put_document("command", "b", b"1", 0)
