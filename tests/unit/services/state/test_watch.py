"""Watch and Changes on the embedded engine: a snapshot, then every change, in order."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.store import (
    WAIT_S,
    Store,
    delete_operation,
    open_store,
    put,
    put_operation,
    refused,
    until,
)
from support.watching import Reader, watching_store
from tidewire import errors
from tidewire.v1 import state_pb2
from tidewire_server.members import Life
from tidewire_server.services.state import watching

PUT = state_pb2.CHANGE_KIND_PUT
DELETE = state_pb2.CHANGE_KIND_DELETE
EXPIRE = state_pb2.CHANGE_KIND_EXPIRE
LEASE_LOST = state_pb2.CHANGE_KIND_LEASE_LOST


@pytest.fixture(params=["grpc", "tcp"])
async def store(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    async with open_store(tmp_path, wire=request.param) as opened:
        yield opened


async def test_a_watch_is_greeted_with_limits(store: Store) -> None:
    """The first response says what the server's limits are."""
    call = store.state.Watch(state_pb2.WatchRequest())
    opened = (await Reader(call).response()).opened
    call.cancel()

    assert ("server", store.core.limits.to_proto()) == (opened.node_id, opened.limits)


async def test_a_snapshot_and_then_the_changes(store: Store) -> None:
    """What is there comes as one revision, what happens then as changes, for this prefix only."""
    await store.state.Put(put("a/1", b"x"))
    await store.state.Put(put("b"))
    async with watching_store(store, prefix="a/") as reader:
        entries, revision = await reader.snapshot()
        await store.state.Put(put("b"))
        await store.state.Put(put("a/2", b"y"))
        await store.state.Delete(state_pb2.DeleteRequest(key="a/1"))
        changes = await reader.changes(2)

    assert ([("a/1", b"x")], 2) == ([(e.key, e.value.data) for e in entries], revision)
    assert [(PUT, "a/2", 4), (DELETE, "a/1", 5)] == [
        (c.kind, c.entry.key, c.entry.revision) for c in changes
    ]
    assert (b"y", False) == (changes[0].entry.value.data, changes[1].entry.HasField("value"))


async def test_an_empty_prefix_has_one_empty_last_part(store: Store) -> None:
    """A watcher knows that there was nothing."""
    async with watching_store(store, prefix="a") as reader:
        assert ([], 0) == await reader.snapshot()


async def test_a_large_snapshot_comes_in_parts_of_one_revision(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are bounded, and what is written between them comes as changes, not in the snapshot."""
    monkeypatch.setattr(watching, "RESPONSE_CHANGES_MAX", 3)
    for number in range(10):
        await store.state.Put(put(f"k{number}"))
    async with watching_store(store) as reader:
        entries, revision = await reader.snapshot()
        await store.state.Put(put("k0"))

        assert ([f"k{n}" for n in range(10)], 10) == ([e.key for e in entries], revision)
        assert [(PUT, "k0", 11)] == await reader.seen(1)


async def test_an_exact_watch_is_about_one_key(store: Store) -> None:
    """Keys that only begin with it are not for this watch."""
    for key in ("a", "ab"):
        await store.state.Put(put(key))
    async with watching_store(store, prefix="a", exact=True) as reader:
        entries, _ = await reader.snapshot()
        for key in ("ab", "a"):
            await store.state.Put(put(key))

        assert ["a"] == [entry.key for entry in entries]
        assert [(PUT, "a", 4)] == await reader.seen(1)


@pytest.mark.parametrize("exact", [False, True])
async def test_a_watch_resumes_after_a_revision(store: Store, exact: bool) -> None:
    """No snapshot; history first, then what comes."""
    for data in (b"1", b"2", b"3"):
        await store.state.Put(put("a", data))
    async with watching_store(store, prefix="a", after_revision=1, exact=exact) as reader:
        assert [(PUT, "a", 2), (PUT, "a", 3)] == await reader.seen(2)
        await store.state.Put(put("a"))
        assert [(PUT, "a", 4)] == await reader.seen(1)


async def test_changes_only_begins_now_and_says_where(store: Store) -> None:
    """No snapshot, no past; a bookmark gives the place to resume from."""
    await store.state.Put(put("a"))
    async with watching_store(store, changes_only=True) as reader:
        bookmark = (await reader.response()).bookmark
        await store.state.Put(put("a"))

        assert 1 == bookmark.revision
        assert [(PUT, "a", 2)] == await reader.seen(1)


async def test_a_watch_can_have_the_entry_before(store: Store) -> None:
    """With what each change replaced or removed; none for a new key."""
    async with watching_store(store, with_previous=True) as reader:
        await reader.snapshot()
        await store.state.Put(put("a", b"1"))
        await store.state.Put(put("a", b"2"))
        await store.state.Delete(state_pb2.DeleteRequest(key="a"))
        changes = await reader.changes(3)

    assert [None, b"1", b"2"] == [
        c.previous.value.data if c.HasField("previous") else None for c in changes
    ]


async def test_changes_of_one_revision_are_never_split(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small responses are, a transaction comes in one, live and from history."""
    monkeypatch.setattr(watching, "RESPONSE_CHANGES_MAX", 2)
    transaction = state_pb2.TransactRequest(then=[put_operation(f"k{n}") for n in range(5)])
    async with watching_store(store) as live:
        await live.snapshot()
        for _ in range(2):
            await store.state.Transact(transaction)
        responses = [(await live.response()).changes for _ in range(2)]
    async with watching_store(store, after_revision=1) as resumed:
        responses.append((await resumed.response()).changes)

    assert [(5, 1), (5, 2), (5, 2)] == [(len(r.changes), r.revision) for r in responses]


async def test_an_idle_watch_gets_bookmarks_that_move(store: Store) -> None:
    """What is not for this watch moves its place on all the same."""
    request = state_pb2.WatchRequest(prefix="a")
    request.idle_bookmark.FromMilliseconds(100)
    call = store.state.Watch(request)
    reader = await Reader(call).opened()
    await reader.snapshot()
    first = (await reader.response()).bookmark.revision
    await store.state.Put(put("b"))
    async with asyncio.timeout(WAIT_S):
        while (await reader.response()).bookmark.revision != 1:
            pass
    call.cancel()

    assert 0 == first


async def test_what_is_forgotten_or_not_yet_there_is_a_typed_error(store: Store) -> None:
    """A place before the history kept, or after the store, ends the watch with the figures."""
    for _ in range(5):
        await store.state.Put(put("a"))
    await store.state.Compact(state_pb2.CompactRequest(revision=4))

    async def watch(after: int) -> errors.TidewireError:
        call = store.state.Watch(state_pb2.WatchRequest(after_revision=after))
        return await refused(call.read())  # instead of the greeting

    gone, future = await watch(1), await watch(6)

    assert isinstance(gone, errors.RevisionCompacted)
    assert 4 == gone.figure("compacted_revision")
    assert isinstance(future, errors.RevisionInFuture)


async def test_expiry_is_a_change_of_its_own(store: Store) -> None:
    """A key whose time to live passes goes with EXPIRE, a sooner one first, a touched one not."""
    async with watching_store(store, changes_only=True) as reader:
        for key, seconds in (("long", 3600), ("b", 2), ("a", 1)):
            request = put(key)
            request.ttl.seconds = seconds
            await store.state.Put(request)
        seen = await reader.seen(5)

    assert [(EXPIRE, "a", 4), (EXPIRE, "b", 5)] == seen[3:]
    assert not (await store.state.Get(state_pb2.GetRequest(key="a"))).HasField("entry")
    assert (await store.state.Get(state_pb2.GetRequest(key="long"))).HasField("entry")


async def test_keys_that_expired_while_the_server_was_away_go_at_its_start(tmp_path: Path) -> None:
    """The records are of the wall clock, so a restart does not lengthen them."""
    request = put("a")
    request.ttl.seconds = 1
    async with open_store(tmp_path) as store:
        expires_ns = (await store.state.Put(request)).entry.expires.ToNanoseconds()
        wall_ns = store.core.wall_ns
    await asyncio.sleep(max(0.0, (expires_ns - wall_ns()) / 1e9))
    async with (
        open_store(tmp_path) as store,
        watching_store(store, after_revision=1) as reader,
    ):
        assert [(EXPIRE, "a", 2)] == await reader.seen(1)


async def put_leased(store: Store, key: str, node_id: str) -> int:
    """Join and write a key on the lease; the member's fencing token."""
    member = await store.engine.join_member(node_id, 10.0, ())
    lease = state_pb2.LeaseRef(node_id=node_id, fencing_token=member.fencing_token)
    await store.state.Put(put(key, lease=lease))
    return member.fencing_token


@pytest.mark.parametrize("life", [Life.DEAD, Life.LEFT])
async def test_keys_go_with_the_lease_they_hang_on(store: Store, life: Life) -> None:
    """A member that is gone takes its keys with it, typed; others' and plain ones stay."""
    token = await put_leased(store, "a", "node")
    await put_leased(store, "b", "other")
    await store.state.Put(put("c"))
    async with watching_store(store, changes_only=True) as reader:
        await reader.response()
        store.core.members.set_life("node", Life.SUSPECT, token)
        store.core.members.set_life("node", life, token)

        assert [(LEASE_LOST, "a", 4)] == await reader.seen(1)
    page = await store.state.Range(state_pb2.RangeRequest())
    assert ["b", "c"] == [entry.key for entry in page.entries]


async def test_a_new_incarnation_ends_the_leases_of_those_before(store: Store) -> None:
    """Keys of the incarnation that was lost go; what the new one wrote stays."""
    await put_leased(store, "old", "node")
    token = await put_leased(store, "new", "node")
    async with watching_store(store, changes_only=True) as reader:
        store.core.members.set_life("node", Life.ALIVE, token)
        await reader.response()

        assert [(LEASE_LOST, "old", 3)] == await reader.seen(1)
    assert (await store.state.Get(state_pb2.GetRequest(key="new"))).HasField("entry")


async def test_a_lease_that_is_not_held_takes_no_keys(store: Store) -> None:
    """Neither an unknown member's, nor an older incarnation's."""
    token = await put_leased(store, "a", "node")
    await store.engine.join_member("node", 10.0, ())
    for node_id, number in (("node", token), ("stranger", 1)):
        lease = state_pb2.LeaseRef(node_id=node_id, fencing_token=number)
        assert isinstance(
            await refused(store.state.Put(put("b", lease=lease))), errors.LeaseNotHeld
        )


async def test_leases_that_ended_while_the_server_was_away(tmp_path: Path) -> None:
    """A member recorded as gone has no keys after a start."""
    async with open_store(tmp_path) as store:
        await put_leased(store, "a", "node")
        await store.engine.mark_member_gone("node", 1)
    async with (
        open_store(tmp_path) as store,
        watching_store(store, after_revision=1) as reader,
    ):
        assert [(LEASE_LOST, "a", 2)] == await reader.seen(1)


async def test_a_draining_server_says_where_to_go_on(store: Store) -> None:
    """Everything that happened comes first, then a bookmark, the notice, and a clean end."""
    async with watching_store(store, prefix="a") as reader:
        await reader.snapshot()
        await store.state.Put(put("b"))
        store.core.drain.start(2.0)
        responses = [await reader.response() for _ in range(2)]
        status = await reader.call.code()

    assert ["bookmark", "draining"] == [r.WhichOneof("kind") for r in responses]
    assert (1, 2) == (responses[0].bookmark.revision, responses[1].draining.grace.seconds)
    assert "OK" == status.name


async def test_watchers_that_go_leave_nothing_behind(store: Store) -> None:
    """A cancelled watch has no tail any more."""
    async with watching_store(store) as reader:
        await reader.snapshot()
        assert 1 == len(store.service._feed)
    await until(lambda: len(store.service._feed) == 0)


async def test_changes_wait_for_the_first(store: Store) -> None:
    """A watch by unary calls: at once what is there, else when it comes, else nothing."""
    await store.state.Put(put("a"))
    there = await store.state.Changes(state_pb2.ChangesRequest(prefix="a"))
    request = state_pb2.ChangesRequest(prefix="a", after_revision=there.revision)
    nothing = await store.state.Changes(request)
    request.wait.seconds = 20
    waiting = asyncio.ensure_future(store.state.Changes(request))
    await until(lambda: len(store.service._feed) == 1)
    await store.state.Put(put("b"))
    await store.state.Put(put("a"))
    came = await waiting
    request.after_revision = came.revision
    request.wait.FromMilliseconds(50)
    in_vain = await store.state.Changes(request)

    assert ([1], 1) == ([c.entry.revision for c in there.changes], there.revision)
    assert ([], 1) == (list(nothing.changes), nothing.revision)
    assert ([3], 3) == ([c.entry.revision for c in came.changes], came.revision)
    assert ([], 3) == (list(in_vain.changes), in_vain.revision)


async def test_changes_come_in_whole_revisions(store: Store) -> None:
    """The last revision may go over the count; asking on from the answer leaves none out."""
    for _ in range(3):
        await store.state.Transact(
            state_pb2.TransactRequest(
                then=[put_operation("a"), put_operation("b"), delete_operation("c")]
            )
        )
    first = await store.state.Changes(state_pb2.ChangesRequest(changes_max=3))
    rest = await store.state.Changes(state_pb2.ChangesRequest(after_revision=first.revision))

    assert ([1, 1, 2, 2], 2) == ([c.entry.revision for c in first.changes], first.revision)
    assert [3, 3] == [c.entry.revision for c in rest.changes]


async def test_a_draining_server_answers_who_waits(store: Store) -> None:
    """A long poll does not hold a drain up."""
    request = state_pb2.ChangesRequest()
    request.wait.seconds = 30
    waiting = asyncio.ensure_future(store.state.Changes(request))
    await until(lambda: len(store.service._feed) == 1)
    async with asyncio.timeout(WAIT_S):
        store.core.drain.start(1.0)
        assert not (await waiting).changes
