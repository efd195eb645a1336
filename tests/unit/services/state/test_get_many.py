"""Reading State without a thread, and many keys at once: over gRPC and over raw wires."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.store import Store, open_store, put, refused
from tidewire import errors
from tidewire.v1 import state_pb2
from tidewire_server.core import ServiceLimits
from tidewire_server.engine.embedded import EmbeddedEngine

RESPONSE_BYTES_MAX = 4096


@pytest.fixture(params=["grpc", "tcp"])
async def store(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    limits = ServiceLimits(response_bytes_max=RESPONSE_BYTES_MAX)
    async with open_store(tmp_path, wire=request.param, limits=limits) as opened:
        yield opened


def many(*keys: str, revision: int = 0) -> state_pb2.GetManyRequest:
    return state_pb2.GetManyRequest(keys=keys, revision=revision)


def reads_of(store: Store) -> int:
    assert isinstance(store.engine, EmbeddedEngine)
    return store.engine.readers.reads


def keys_of(answer: Any) -> list[str]:
    return [entry.key for entry in answer.entries]


async def test_a_read_that_was_read_before_needs_no_thread(store: Store) -> None:
    """The second answer is the first one, from memory; a write in between is in the third."""
    await store.state.Put(put("a", b"1"))
    first = await store.state.Get(state_pb2.GetRequest(key="a"))
    before = reads_of(store)
    second = await store.state.Get(state_pb2.GetRequest(key="a"))
    await store.state.Put(put("a", b"2"))
    third = await store.state.Get(state_pb2.GetRequest(key="a"))

    assert first == second
    assert (b"2", 2) == (third.entry.value.data, third.revision)
    assert before == reads_of(store)


async def test_many_keys_are_read_at_one_revision(store: Store) -> None:
    """In the order asked for, without those that are not there, with those asked for twice."""
    for key in ("a", "b", "c"):
        await store.state.Put(put(key, key.encode()))
    wanted = many("c", "none", "a", "c")
    first = await store.state.GetMany(wanted)
    before = reads_of(store)
    second = await store.state.GetMany(wanted)

    assert (["c", "a", "c"], 3, 4) == (keys_of(first), first.revision, first.read)
    assert first == second
    assert before == reads_of(store)


async def test_an_answer_that_would_be_too_large_ends_early(store: Store) -> None:
    """It says how many keys it is about; at least one, however large."""
    for key in ("a", "b", "c"):
        await store.state.Put(put(key, b"x" * 1500))
    await store.state.Put(put("large", b"x" * 2 * RESPONSE_BYTES_MAX))
    for _ in range(2):
        part = await store.state.GetMany(many("a", "b", "c", "large"))
        single = await store.state.GetMany(many("large", "a"))

        assert (["a", "b"], 2) == (keys_of(part), part.read)
        assert (["large"], 1) == (keys_of(single), single.read)


async def test_many_keys_as_they_were(store: Store) -> None:
    """A revision is as for one key: what was current then, or the error that says why not."""
    await store.state.Put(put("a", b"1"))
    await store.state.Put(put("b", b"1"))
    then = await store.state.GetMany(many("a", "b", revision=1))
    await store.state.Compact(state_pb2.CompactRequest(revision=2))
    gone = await refused(store.state.GetMany(many("a", revision=1)))
    future = await refused(store.state.GetMany(many("a", revision=9)))

    assert (["a"], 1) == (keys_of(then), then.revision)
    assert isinstance(gone, errors.RevisionCompacted)
    assert isinstance(future, errors.RevisionInFuture)


async def test_what_is_no_request_for_many_keys(store: Store) -> None:
    """None, too many, or something that is no key; the field says which."""
    none = await refused(store.state.GetMany(many()))
    too_many = await refused(store.state.GetMany(many(*(["a"] * 1025))))
    no_key = await refused(store.state.GetMany(many("a", "no key")))
    alone = await refused(store.state.Get(state_pb2.GetRequest(key="no key")))

    assert [errors.InvalidArgument] * 2 == [type(none), type(too_many)]
    assert [errors.InvalidKey] * 2 == [type(no_key), type(alone)]
    assert "keys[1]" in no_key.message
    assert 1024 == (await store.state.GetMany(many(*(["a"] * 1024)))).read
