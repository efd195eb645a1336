"""State over every wire, through the public client."""

import asyncio

import pytest

import tidewire
from tidewire import errors
from tidewire.v1 import common_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 20.0


async def until(watch: tidewire.Watch, kind: str) -> list[tidewire.StateEvent]:
    """Read events up to and with the first of a kind."""
    events: list[tidewire.StateEvent] = []
    while not events or events[-1].kind.value != kind:
        events.append(await watch.next(timeout_s=WAIT_S))
    return events


async def test_revisions_decide_who_writes(client: tidewire.Client, name: str) -> None:
    """Compare-and-set by revision; a refusal tells the actual one, in the exception's figures."""
    state = client.state
    made = await state.put(name, b"\x00\xff", expected_revision=0, content_type="a/b")
    changed = await state.put(name, "2", expected_revision=made.revision)
    with pytest.raises(errors.RevisionMismatch) as put:
        await state.put(name, "3", expected_revision=made.revision)
    with pytest.raises(errors.RevisionMismatch) as delete:
        await state.delete(name, expected_revision=made.revision)
    old = await state.get(name, revision=made.revision)
    now = await state.get(name)

    assert old is not None
    assert now is not None
    assert (b"\x00\xff", 1, "a/b") == (old.value, old.version, old.content_type)
    assert ("2", 2, made.revision) == (now.text, now.version, now.create_revision)
    assert changed.revision == put.value.figure("actual_revision")
    assert now == changed
    assert ("fsync", "unspecified") == (str(changed.durability), str(now.durability))
    assert changed.revision == delete.value.figure("actual_revision")
    assert await state.delete(name, expected_revision=changed.revision)
    assert not await state.delete(name)
    assert await state.get(name) is None


async def test_an_answer_says_how_durable_it_is(client: tidewire.Client, name: str) -> None:
    """A write, a deletion and a transaction say the level they reached, and their revision."""
    state = client.state
    put = await state.put(name, "1", durability="os")
    done = await state.transact().put(f"{name}/a", "1").delete(name).commit(durability="os")
    gone = await state.delete(f"{name}/a", durability="os")
    nothing = await state.delete(f"{name}/a")

    assert done.succeeded
    assert gone
    assert not nothing
    levels = [int(answer.durability) for answer in (put, done, gone)]
    assert all(common_pb2.DURABILITY_OS <= level for level in levels)
    assert "fsync" == str(nothing.durability)
    assert put.revision < done.revision < gone.revision == nothing.revision


async def test_one_writer_of_many_wins(client: tidewire.Client, name: str) -> None:
    """Of twenty that create the same key one succeeds, and the others are told its revision."""
    tries = await asyncio.gather(
        *(client.state.put(name, str(n), expected_revision=0) for n in range(20)),
        return_exceptions=True,
    )
    winners = [each for each in tries if isinstance(each, tidewire.Entry)]
    losers = [each for each in tries if isinstance(each, errors.RevisionMismatch)]

    assert (1, 19) == (len(winners), len(losers))
    assert {winners[0].revision} == {loser.figure("actual_revision") for loser in losers}


async def test_many_keys_are_read_at_once(client: tidewire.Client, name: str) -> None:
    """By one request or by many at a time: each key has its own answer, as many as there are."""
    keys = [f"{name}/{number:02}" for number in range(30)]
    for key in keys[::2]:
        await client.state.put(key, key * 10)
    entries = await client.state.get_many([*keys, keys[0]])
    alone = await asyncio.gather(*(client.state.get(key) for key in keys))
    refused = await asyncio.gather(
        *(client.state.get(key) for key in ("no key", keys[0], keys[1])), return_exceptions=True
    )

    assert keys[::2] == list(entries)
    assert [entries.get(key) for key in keys] == alone
    assert [key * 10 for key in keys[::2]] == [entry.text for entry in entries.values()]
    assert isinstance(refused[0], errors.InvalidKey)
    assert [alone[0], None] == refused[1:]
    assert {} == await client.state.get_many([])
    with pytest.raises(errors.InvalidKey):
        await client.state.get_many([keys[0], "no key"])


async def test_ranges_are_of_one_revision(client: tidewire.Client, name: str) -> None:
    """In byte order, by pages, with a prefix; pages agree though somebody writes between them."""
    for number in range(10):
        await client.state.put(f"{name}/{number}", str(number))
    await client.state.put(f"{name}0", "beside")
    keys = []
    async for entry in client.state.range(f"{name}/", page_size=3):
        keys.append((entry.key, entry.text))
        await client.state.put(f"{name}/9", "changed meanwhile")
    only_keys = [entry.value async for entry in client.state.range(f"{name}/", keys_only=True)]

    assert [(f"{name}/{number}", str(number)) for number in range(10)] == keys
    assert [None] * 10 == only_keys


async def test_transactions_are_all_or_nothing(client: tidewire.Client, name: str) -> None:
    """One revision for all keys; what does not hold does the other part; a refusal undoes it."""
    a, b = f"{name}/a", f"{name}/b"
    state = client.state
    first = await state.transact().if_absent(a).put(a, "1").put(b, "1").commit()
    second = state.transact().if_version(a, 7).put(a, "never")
    second.otherwise.get(b).delete(a)
    other = await second.commit()
    with pytest.raises(errors.TidewireError):
        await state.transact().put(b, "2").put(a, "x", expected_revision=99).commit()
    kept = await state.get(b)

    assert first.succeeded
    entries = [entry for entry in first.results if isinstance(entry, tidewire.Entry)]
    assert 1 == len({entry.revision for entry in entries})
    assert (False, True) == (other.succeeded, other.results[1])
    assert {"fsync"} == {str(level) for level in (first.durability, entries[0].durability)}
    assert kept is not None
    assert "1" == kept.text
    assert await state.get(a) is None


async def test_keys_live_as_long_as_told(client: tidewire.Client, name: str) -> None:
    """A key expires after its time, with an event of that kind; touching starts its time anew."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with client.state.watch(name) as watch:
        await client.state.put(f"{name}/short", "x", ttl_s=1.0)
        await client.state.put(f"{name}/long", "x", ttl_s=1.0)
        await asyncio.sleep(0.6)
        touched = await client.state.touch(f"{name}/long")
        events = await until(watch, "expire")
        first_s = loop.time() - began
        events += await until(watch, "expire")
        second_s = loop.time() - began

    gone = [(event.key, event.value) for event in events if event.kind.value == "expire"]
    assert [(f"{name}/short", None), (f"{name}/long", None)] == gone
    assert 1.0 == touched.ttl_s
    assert first_s >= 0.95
    assert second_s >= 1.5
    assert await client.state.get(f"{name}/short") is None


@pytest.mark.needs("streams")
async def test_a_watch_is_snapshot_then_deltas(client: tidewire.Client, name: str) -> None:
    """What is there, then each change once and in order; a second one resumes by revision."""
    await client.state.put(f"{name}/a", "1")
    await client.state.put(f"{name}/b", "1")
    async with client.state.watch(f"{name}/", with_previous=True) as watch:
        snapshot = await until(watch, "synced")
        middle = await client.state.put(f"{name}/a", "2")
        await client.state.delete(f"{name}/b")
        await client.state.put(f"{name}x", "beside")
        await client.state.put(f"{name}/c", "1")
        events = [await watch.next(timeout_s=WAIT_S) for _ in range(3)]
    async with client.state.watch(f"{name}/", after_revision=middle.revision) as watch:
        resumed = [await watch.next(timeout_s=WAIT_S) for _ in range(2)]
    async with client.state.watch(f"{name}/a", exact=True, changes_only=True) as watch:
        await client.state.put(f"{name}/ab", "no")
        await client.state.put(f"{name}/a", "3")
        exact = await watch.next(timeout_s=WAIT_S)

    assert [f"{name}/a", f"{name}/b"] == [event.key for event in snapshot[:-1]]
    kinds = [("put", "a"), ("delete", "b"), ("put", "c")]
    assert kinds == [(event.kind.value, event.key[-1]) for event in events]
    previous = events[0].previous
    assert previous is not None
    assert "1" == previous.text
    assert kinds[1:] == [(event.kind.value, event.key[-1]) for event in resumed]
    assert (f"{name}/a", b"3") == (exact.key, exact.value)
    revisions = [event.revision for event in events]
    assert sorted(set(revisions)) == revisions


async def test_history_ends_where_it_was_compacted(client: tidewire.Client, name: str) -> None:
    """Older revisions are refused by reads, watches and changes alike, with a type of their own."""
    await client.state.put(f"{name}/before", "0")  # or there is no revision before the first
    first = await client.state.put(name, "1")
    second = await client.state.put(name, "2")
    history = [(e.kind.value, e.value) async for e in client.state.history(name)]
    await client.state.compact(second.revision)
    with pytest.raises(errors.RevisionCompacted):
        await client.state.get(name, revision=first.revision)
    with pytest.raises(errors.RevisionCompacted):
        await client.state.changes(name, after_revision=first.revision - 1)
    with pytest.raises(errors.RevisionCompacted):
        await client.state.watch(name, after_revision=first.revision - 1)
    with pytest.raises(errors.RevisionInFuture):
        await client.state.get(name, revision=second.revision + 1_000_000)

    assert [("put", b"2"), ("put", b"1")] == history


async def test_changes_wait_for_the_first_one(client: tidewire.Client, name: str) -> None:
    """The long poll returns when something changes, and with nothing when its time is over."""
    entry = await client.state.put(f"{name}/a", "1")
    waiting = asyncio.create_task(
        client.state.changes(f"{name}/", after_revision=entry.revision, wait_s=20)
    )
    await client.state.put(f"{name}/b", "1")
    changes, revision = await waiting
    none, after = await client.state.changes(f"{name}/", after_revision=revision, wait_s=0.1)

    assert [f"{name}/b"] == [change.key for change in changes]
    assert [] == none
    assert after >= revision


@pytest.mark.parametrize("key", ["", "with space", "ü", "x" * 513])
async def test_keys_have_rules(client: tidewire.Client, key: str) -> None:
    """A key that breaks them is refused with the reason."""
    with pytest.raises(errors.InvalidKey):
        await client.state.put(key, "x")
