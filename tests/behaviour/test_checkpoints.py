"""Checkpoints over every wire, through the public client."""

import hashlib
import os
from typing import Any

import pytest

import tidewire
from tidewire import errors
from tidewire.v1 import checkpoint_pb2, checkpoint_pb2_grpc
from tidewire.wire.batch import encode_payloads

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def prepare(client: tidewire.Client, name: str) -> None:
    """A stream with ten messages and a consumer, and a stream for outputs."""
    await client.events.stream(name).create(name)
    await client.events.stream(name).consumer("c").create()
    await client.events.stream(f"{name}out").create(f"{name}.out.>")
    await client.events.publish_many(name, [str(number) for number in range(10)])


async def test_a_commit_is_all_or_nothing(client: tidewire.Client, name: str) -> None:
    """State, positions, outputs and changes come together, and with a part refused none does."""
    await prepare(client, name)
    operator = client.checkpoints.operator(name)
    assert await operator.acquire() is None
    done = await operator.commit(
        "one",
        positions={(name, "c"): 4},
        outputs=[(f"{name}.out.a", "1"), (f"{name}.out.b", "2", [("k", b"v")])],
        changes=client.state.transact().put(name, "4"),
    )
    for broken in (
        {"changes": client.state.transact().if_absent(name).put(name, "9")},
        {"outputs": [(f"{name}.nowhere", "x")]},
        {"positions": {(name, "c"): 2}},
        {"positions": {(f"{name}none", "c"): 2}},
        {"expected_revision": 7},
    ):
        mixed: dict[str, Any] = {
            "positions": {(name, "c"): 9},
            "outputs": [(f"{name}.out.a", "never")],
            "changes": client.state.transact().put(f"{name}/never", "x"),
            **broken,
        }
        with pytest.raises(errors.TidewireError):
            await operator.commit("two", **mixed)
    outputs, _ = await client.events.fetch_from(f"{name}out")
    loaded = await operator.load()
    value = await client.state.get(name)
    consumer = await client.events.stream(name).consumer("c").info()

    assert 1 == done.revision
    assert [(b"1", []), (b"2", [("k", b"v")])] == [(m.payload, list(m.headers)) for m in outputs]
    assert loaded is not None
    assert (b"one", 1, 4) == (loaded.state, loaded.info.revision, loaded.info.position(name))
    assert value is not None
    assert "4" == value.text
    assert await client.state.get(f"{name}/never") is None
    assert 4 == consumer.state.ack_floor


@pytest.mark.needs("large")
async def test_only_the_last_incarnation_commits(client: tidewire.Client, name: str) -> None:
    """Acquiring fences whoever had it; the new one sees the state of the old one."""
    old, new = client.checkpoints.operator(name), client.checkpoints.operator(name)
    await old.acquire()
    state = os.urandom(600_000)
    await old.commit(state)
    last = await new.acquire()
    with pytest.raises(errors.OperatorFenced):
        await old.commit("late")
    await new.commit("second", expected_revision=1)
    with pytest.raises(errors.RevisionMismatch) as caught:
        await new.commit("third", expected_revision=1)

    assert last is not None
    assert (1, old.epoch) == (last.revision, last.epoch)
    assert state == last.state
    assert new.epoch > old.epoch
    assert 2 == caught.value.figure("actual_revision")


@pytest.mark.needs("large")
async def test_only_new_chunks_travel(client: tidewire.Client, name: str) -> None:
    """A large state with a small change sends one chunk; both revisions load whole."""
    operator = client.checkpoints.operator(name)
    await operator.acquire()
    before = os.urandom(2_000_000)
    after = before[:1_000_000] + bytes([before[1_000_000] ^ 1]) + before[1_000_001:]
    first = await operator.commit(before)
    second = await operator.commit(after)
    loaded = [await operator.load(revision) for revision in (1, 2)]

    assert first.chunks_sent >= 2
    assert 1 == second.chunks_sent
    assert [before, after] == [each.state for each in loaded if each is not None]
    assert hashlib.sha256(after).digest() == (await operator.list())[0].digest


async def test_so_many_are_kept(client: tidewire.Client, name: str) -> None:
    """Older ones go by the number to keep, or by deleting; others stay readable."""
    operator = client.checkpoints.operator(name)
    await operator.acquire(keep=2)
    for number in range(4):
        await operator.commit(str(number))
    kept = [info.revision for info in await operator.list()]
    with pytest.raises(errors.CheckpointNotFound):
        await operator.load(1)
    deleted = await operator.delete(3)
    loaded = await operator.load()

    assert [4, 3] == kept
    assert 1 == deleted
    assert loaded is not None
    assert b"3" == loaded.state
    assert 1 == await operator.delete()
    assert await operator.load() is None


async def test_a_commit_sent_twice_is_done_once(client: tidewire.Client, name: str) -> None:
    """The same request id gets the first answer; a digest that does not fit is refused."""
    await prepare(client, name)
    stub = checkpoint_pb2_grpc.CheckpointServiceStub(client.channel)
    operator = client.checkpoints.operator(name)
    await operator.acquire()
    request = checkpoint_pb2.CommitRequest(
        operator=name,
        epoch=operator.epoch,
        inline=b"state",
        digest=hashlib.sha256(b"state").digest(),
        request_id=f"{name}-1",
    )
    request.outputs.add().batch.CopyFrom(encode_payloads(f"{name}.out.a", [b"x"]))
    answers = [await stub.Commit(request, timeout=20) for _ in range(2)]
    request.request_id, request.digest = f"{name}-2", hashlib.sha256(b"other").digest()
    with pytest.raises(Exception, match="digest"):
        await stub.Commit(request, timeout=20)

    assert [1, 1] == [answer.revision for answer in answers]
    assert 1 == (await client.events.stream(f"{name}out").info()).state.messages
