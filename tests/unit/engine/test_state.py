"""State of the embedded engine: revisions, comparisons, expiry, leases, history, compaction."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import duration_pb2

from support.engines import (
    SMALL,
    append_of,
    batch_of,
    delete,
    delete_of,
    engine_at,
    put,
    put_of,
    value_of,
)
from tidewire import errors
from tidewire.v1 import state_pb2
from tidewire_server.engine.base import RequestKey, Transaction
from tidewire_server.engine.embedded import EmbeddedEngine, maintenance

TTL = duration_pb2.Duration(seconds=10)
HOUR_NS = 3600 * 10**9


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    async with engine_at(tmp_path / "store") as opened:
        yield opened


async def changes_of(
    engine: EmbeddedEngine, prefix: str = "", after: int = 0, changes_max: int = 1000
) -> list[tuple[str, int, int]]:
    found, _ = await engine.state_changes(
        prefix, after_revision=after, changes_max=changes_max, bytes_max=1_000_000
    )
    return [(item.entry.key, item.kind, item.entry.revision) for item in found]


async def test_revisions_and_versions(engine: EmbeddedEngine) -> None:
    """Each write takes the next revision; versions count from the making of a key."""
    first = await put(engine, "a")
    second = await put(engine, "a")
    await delete(engine, "a")
    third = await put(engine, "a")

    figures = [
        (r.entry.revision, r.entry.version, r.entry.create_revision) for r in (first, second, third)
    ]
    assert [(1, 1, 1), (2, 2, 1), (4, 1, 4)] == figures
    assert not first.entry.HasField("value")
    assert 4 == engine.state_revision


async def test_deleting_nothing_takes_no_revision(engine: EmbeddedEngine) -> None:
    """A deletion that removes nothing succeeds and changes nothing."""
    await put(engine, "a")
    done = await delete(engine, "b")

    assert done.state is not None
    assert (False, 1) == (done.state.results[0].delete.deleted, done.state_revision)


async def test_expected_revisions(engine: EmbeddedEngine) -> None:
    """A write under a wrong revision is refused and says the right one."""
    await put(engine, "a", expected_revision=0)

    with pytest.raises(errors.RevisionMismatch) as caught:
        await put(engine, "a", expected_revision=0)
    assert 1 == caught.value.figure("actual_revision")
    await put(engine, "a", expected_revision=1)
    with pytest.raises(errors.RevisionMismatch):
        await engine.commit(Transaction(then=[delete_of("a", expected_revision=1)]))
    assert 2 == engine.state_revision


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"revision": 1}, True),
        ({"revision": 0}, False),
        ({"version": 1}, True),
        ({"version": 2}, False),
        ({"exists": True}, True),
        ({"exists": False}, False),
    ],
)
async def test_comparisons_choose(
    engine: EmbeddedEngine, condition: dict[str, int], holds: bool
) -> None:
    """When all comparisons hold ``then`` is done, else ``otherwise``, under one revision."""
    await put(engine, "a")
    compare = [state_pb2.Compare(key="a", **condition)]  # type: ignore[arg-type]
    get = state_pb2.StateOperation(get=state_pb2.GetRequest(key="b"))
    done = await engine.commit(
        Transaction(
            compare=compare,
            then=[put_of("b", b"then"), put_of("c"), get],
            otherwise=[put_of("b", b"otherwise")],
        )
    )

    assert done.state is not None
    assert holds == done.state.succeeded
    assert (b"then" if holds else b"otherwise") == await value_of(engine, "b")
    assert 2 == engine.state_revision
    if holds:
        assert b"then" == done.state.results[2].get.entry.value.data
    else:
        assert ["a"] == [entry.key for entry in done.state.actual]


async def test_required_comparisons_refuse_everything(engine: EmbeddedEngine) -> None:
    """A comparison that is required and fails leaves nothing done."""
    compare = [state_pb2.Compare(key="a", exists=True)]
    with pytest.raises(errors.RevisionMismatch):
        await engine.commit(Transaction(compare=compare, compare_required=True, then=[put_of("b")]))

    assert await value_of(engine, "b") is None
    assert 0 == engine.state_revision


async def test_a_transaction_is_all_or_nothing(engine: EmbeddedEngine) -> None:
    """An operation that fails late takes the ones before it back, of whatever kind."""
    await put(engine, "x", b"old")
    with pytest.raises(errors.RevisionMismatch):
        await engine.commit(
            Transaction(then=[put_of("x", b"new"), put_of("y"), put_of("z", expected_revision=9)])
        )
    with pytest.raises(errors.NoStream):
        await engine.commit(
            Transaction(then=[put_of("x", b"new")], appends=[append_of(batch_of("nowhere", b"1"))])
        )

    assert b"old" == await value_of(engine, "x")
    assert await value_of(engine, "y") is None
    assert 2 == (await put(engine, "y")).revision


async def test_requests_are_done_once(tmp_path: Path) -> None:
    """A repeated request gets the first answer, after a restart too, and does nothing."""
    request = RequestKey("put", "id-1")
    transaction = Transaction(then=[put_of("a", b"1", expected_revision=0)], request=request)
    async with engine_at(tmp_path) as engine:
        first = await engine.commit(transaction)
        again = await engine.commit(transaction)
        assert (False, True) == (first.repeated, again.repeated)
        assert first.state == again.state
    async with engine_at(tmp_path) as engine:
        restarted = await engine.commit(transaction)
        other = replace(transaction, request=RequestKey("other", "id-1"))

        assert first.state == restarted.state
        assert 1 == restarted.state_revision
        with pytest.raises(errors.RevisionMismatch):
            await engine.commit(other)


async def test_reading_the_past(engine: EmbeddedEngine) -> None:
    """A key reads as it was at any revision that is kept."""
    for value in (b"1", b"2", b"3"):
        await put(engine, "a", value)
        await put(engine, "other")
    await delete(engine, "a")
    await put(engine, "a", b"4")

    past = [await value_of(engine, "a", revision) for revision in range(1, 9)]
    assert [b"1", b"1", b"2", b"2", b"3", b"3", None, b"4"] == past
    with pytest.raises(errors.RevisionInFuture):
        await engine.get_state("a", 9)


async def test_a_broken_chain_is_noticed(engine: EmbeddedEngine) -> None:
    """When the index no longer finds a version, an older one is not taken for it."""
    for value in (b"1", b"2", b"3"):
        await put(engine, "a", value)
    steal = "UPDATE changes SET key='b' WHERE id=(SELECT id FROM changes LIMIT 1 OFFSET 1)"
    await engine._write(lambda session: session.execute(steal).fetchall())

    assert b"3" == await value_of(engine, "a")
    for revision in (1, 2):
        with pytest.raises(errors.DataCorrupt):
            await value_of(engine, "a", revision)
    with pytest.raises(errors.DataCorrupt):
        await engine.state_history("a", changes_max=9, bytes_max=999)


async def test_ranges_by_pages(engine: EmbeddedEngine) -> None:
    """All pages of a listing show one revision, in order of keys, without what is not there."""
    for key in ("a/1", "a/2", "a/3", "b/1"):
        await put(engine, key, key.encode())
    await delete(engine, "a/2")
    first, revision, more = await engine.range_state("a/", entries_max=1, bytes_max=1000)
    await put(engine, "a/3", b"changed")
    await put(engine, "a/4")
    rest, at, end = await engine.range_state(
        "a/", start_after="a/1", revision=revision, entries_max=10, bytes_max=1000
    )

    assert (["a/1"], 5, True) == ([e.key for e in first], revision, more)
    assert ([("a/3", b"a/3")], 5, False) == ([(e.key, e.value.data) for e in rest], at, end)
    keys, _, _ = await engine.range_state("", entries_max=10, bytes_max=1000, keys_only=True)
    assert ["a/1", "a/3", "a/4", "b/1"] == [e.key for e in keys]
    assert not any(e.HasField("value") for e in keys)


async def test_changes_in_order(engine: EmbeddedEngine) -> None:
    """Changes come by revision; a revision is never cut; one prefix or one key can be chosen."""
    await put(engine, "a")
    await engine.commit(Transaction(then=[put_of("a"), put_of("b"), delete_of("c")]))
    await delete(engine, "a")
    put_kind, delete_kind = state_pb2.CHANGE_KIND_PUT, state_pb2.CHANGE_KIND_DELETE

    everything = [("a", put_kind, 1), ("a", put_kind, 2), ("b", put_kind, 2), ("a", delete_kind, 3)]
    assert everything == await changes_of(engine)
    assert everything[1:] == await changes_of(engine, after=1)
    assert everything[:3] == await changes_of(engine, changes_max=2)
    assert [everything[2]] == await changes_of(engine, "b")
    found, revision = await engine.state_changes(
        "a", after_revision=2, changes_max=9, bytes_max=999, exact=True, with_previous=True
    )
    assert (2, 3) == (found[0].previous.revision, revision)
    with pytest.raises(errors.RevisionInFuture):
        await changes_of(engine, after=4)


async def test_history_of_a_key(engine: EmbeddedEngine) -> None:
    """Versions come newest first, by pages."""
    for value in (b"1", b"2", b"3"):
        await put(engine, "a", value)
    newest, compacted, more = await engine.state_history("a", changes_max=2, bytes_max=1000)
    older, _, end = await engine.state_history(
        "a", before_revision=newest[-1].entry.revision, changes_max=2, bytes_max=1000
    )

    assert ([3, 2], 0, True) == ([c.entry.revision for c in newest], compacted, more)
    assert ([b"1"], False) == ([c.entry.value.data for c in older], end)
    assert ([], 0, False) == await engine.state_history("none", changes_max=2, bytes_max=9)


async def test_expiry_is_a_change(engine: EmbeddedEngine) -> None:
    """What expires is removed under one revision with its own kind; a touch moves the time."""
    await put(engine, "a", ttl=TTL)
    entry = (await put(engine, "b", ttl=TTL)).entry
    await put(engine, "c")
    expires_ns = entry.expires.ToNanoseconds()
    touched = await engine.touch_state("a", None)
    assert touched.entry.expires.ToNanoseconds() > expires_ns
    assert touched.entry.revision == 1

    following = await engine.expire_state(expires_ns)
    assert touched.entry.expires.ToNanoseconds() == following
    assert await engine.expire_state(expires_ns + HOUR_NS) is None
    expired = state_pb2.CHANGE_KIND_EXPIRE
    assert [("b", expired, 4), ("a", expired, 5)] == await changes_of(engine, after=3)
    assert b"v" == await value_of(engine, "c")
    with pytest.raises(errors.KeyNotFound):
        await engine.touch_state("a", None)


async def test_many_keys_expire_in_pieces(engine: EmbeddedEngine) -> None:
    """More keys than one revision takes expire in one call."""
    for start in range(0, 1200, 100):
        operations = [put_of(f"k{start + i}", ttl=TTL) for i in range(100)]
        await engine.commit(Transaction(then=operations))

    assert await engine.expire_state(2**62) is None
    left, _, _ = await engine.range_state("", entries_max=10, bytes_max=1000)
    assert [] == list(left)
    assert 15 == engine.state_revision


async def test_leases_must_be_held(engine: EmbeddedEngine) -> None:
    """A key hangs on a lease only for the incarnation that holds it, and goes with it."""
    member = await engine.join_member("n", 5.0, ())
    lease = state_pb2.LeaseRef(node_id="n", fencing_token=member.fencing_token)
    await put(engine, "a", lease=lease)
    for wrong in (
        state_pb2.LeaseRef(node_id="n", fencing_token=member.fencing_token + 1),
        state_pb2.LeaseRef(node_id="m", fencing_token=1),
    ):
        with pytest.raises(errors.LeaseNotHeld):
            await put(engine, "b", lease=wrong)
    newer = await engine.join_member("n", 5.0, ())
    with pytest.raises(errors.LeaseNotHeld):
        await put(engine, "b", lease=lease)
    await put(engine, "c", lease=state_pb2.LeaseRef(node_id="n", fencing_token=newer.fencing_token))

    assert 1 == await engine.drop_leased_state("n", member.fencing_token)
    assert [("a", state_pb2.CHANGE_KIND_LEASE_LOST, 3)] == await changes_of(engine, after=2)
    await engine.mark_member_gone("n", newer.incarnation)
    with pytest.raises(errors.LeaseNotHeld):
        await put(
            engine, "d", lease=state_pb2.LeaseRef(node_id="n", fencing_token=newer.fencing_token)
        )
    assert 1 == await engine.drop_leased_state("n", newer.fencing_token)
    assert 0 == await engine.drop_leased_state("n", newer.fencing_token)


async def test_compaction_forgets_only_history(tmp_path: Path) -> None:
    """What is current stays; older versions go; reading before the bound is refused."""
    async with engine_at(tmp_path) as engine:
        for value in (b"1", b"2", b"3"):
            await put(engine, "a", value)
        await put(engine, "b")
        await delete(engine, "b")
        await put(engine, "a", b"4")
        with pytest.raises(errors.RevisionInFuture):
            await engine.compact_state(99)
        assert 5 == await engine.compact_state(5)
        assert 5 == await engine.compact_state(2)
        await engine._write(maintenance.sweep)
    async with engine_at(tmp_path) as engine:
        rows = await engine.readers.read(lambda c: c.execute("SELECT count(*) FROM changes").get)

        assert 2 == rows
        assert b"3" == await value_of(engine, "a", 5)
        assert b"4" == await value_of(engine, "a")
        assert await value_of(engine, "b", 5) is None
        assert [("a", state_pb2.CHANGE_KIND_PUT, 6)] == await changes_of(engine, after=5)
        history, compacted, more = await engine.state_history("a", changes_max=9, bytes_max=999)
        assert ([6, 3], 5, False) == ([c.entry.revision for c in history], compacted, more)
        for refused in (engine.get_state("a", 4), changes_of(engine, after=4)):
            with pytest.raises(errors.RevisionCompacted) as caught:
                await refused
            assert 5 == caught.value.figure("compacted_revision")
        assert 1 == (await put(engine, "b")).entry.version


async def test_history_is_bounded(tmp_path: Path) -> None:
    """History is compacted by itself, a bounded piece with each sweep."""
    options = replace(SMALL, history_changes_max=50, sweep_rows_max=30)
    async with engine_at(tmp_path, options) as engine:
        for i in range(300):
            await put(engine, f"k{i % 3}", b"%d" % i)
        for _ in range(5):
            await engine._write(maintenance.sweep)
        rows = await engine.readers.read(lambda c: c.execute("SELECT count(*) FROM changes").get)

        assert 50 <= rows <= 54
        assert [b"297", b"298", b"299"] == [await value_of(engine, f"k{i}") for i in range(3)]
        assert b"260" == await value_of(engine, "k2", 261)


async def test_changes_reach_listeners_with_their_revision(engine: EmbeddedEngine) -> None:
    """Each transaction that changes something is told once, in order."""
    heard: list[tuple[int, list[str]]] = []
    engine.listeners.changed.append(
        lambda changes, revision: heard.append((revision, [c.entry.key for c in changes]))
    )
    await engine.commit(Transaction(then=[put_of("a"), put_of("b")]))
    await delete(engine, "none")
    await delete(engine, "a")

    assert [(1, ["a", "b"]), (2, ["a"])] == heard
