"""The State service on the embedded engine: what each call answers and refuses."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.store import (
    Store,
    delete_operation,
    get_operation,
    open_store,
    put,
    put_operation,
    refused,
)
from tidewire import errors
from tidewire.v1 import common_pb2, state_pb2


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path) as opened:
        yield opened


def get(key: str, revision: int = 0) -> state_pb2.GetRequest:
    return state_pb2.GetRequest(key=key, revision=revision)


async def test_a_key_that_is_not_there_is_no_error(store: Store) -> None:
    """The entry is absent, and the answer still says at which revision."""
    answer = await store.state.Get(get("a"))

    assert (False, 0) == (answer.HasField("entry"), answer.revision)


async def test_what_was_put_is_read_with_its_versions(store: Store) -> None:
    """Value, revisions, version and time; the second write counts on."""
    first = await store.state.Put(put("a", b"1"))
    second = await store.state.Put(put("a", b"2"))
    entry = (await store.state.Get(get("a"))).entry

    assert common_pb2.DURABILITY_FSYNC == first.durability
    assert (1, 2) == (first.revision, second.revision)
    assert not second.entry.HasField("value")
    assert (b"2", 2, 1, 2) == (
        entry.value.data,
        entry.revision,
        entry.create_revision,
        entry.version,
    )
    assert entry.time.ToNanoseconds() > 0


async def test_values_are_opaque(store: Store) -> None:
    """Bytes that no decompressor could read come back as they went in, with their figures."""
    value = common_pb2.Payload(
        codec=common_pb2.CODEC_ZSTD,
        raw_size=100,
        data=b"\xffnot zstd",
        header=[common_pb2.Header(key="k", value=b"v")],
        content_type="text/plain",
    )
    await store.state.Put(state_pb2.PutRequest(key="a", value=value))

    assert value == (await store.state.Get(get("a"))).entry.value


async def test_compare_and_set_says_what_is_there(store: Store) -> None:
    """A write for another revision is refused with the key's and the store's."""
    await store.state.Put(put("a", b"1"))
    await store.state.Put(put("b", b"1"))

    error = await refused(store.state.Put(put("a", b"2", expected_revision=2)))
    exists = await refused(store.state.Put(put("a", b"2", expected_revision=0)))
    missing = await refused(
        store.state.Delete(state_pb2.DeleteRequest(key="c", expected_revision=2))
    )
    done = await store.state.Put(put("a", b"2", expected_revision=1))

    assert isinstance(error, errors.RevisionMismatch)
    assert (1, 2) == (error.figure("actual_revision"), error.figure("store_revision"))
    assert isinstance(exists, errors.RevisionMismatch)
    assert isinstance(missing, errors.RevisionMismatch)
    assert 0 == missing.figure("actual_revision")
    assert 3 == done.revision


async def test_deleting_what_is_not_there_takes_no_revision(store: Store) -> None:
    """Only a delete that deletes moves the store on; a key that comes back begins anew."""
    await store.state.Put(put("a"))
    nothing = await store.state.Delete(state_pb2.DeleteRequest(key="b"))
    deleted = await store.state.Delete(state_pb2.DeleteRequest(key="a"))
    again = await store.state.Put(put("a"))

    assert (False, 1) == (nothing.deleted, nothing.revision)
    assert (True, 2) == (deleted.deleted, deleted.revision)
    assert (3, 3, 1) == (again.revision, again.entry.create_revision, again.entry.version)


async def test_pages_of_a_range_show_one_revision(store: Store) -> None:
    """What is written between two pages is not in them."""
    for number in range(5):
        await store.state.Put(put(f"a/{number}", b"old"))
    await store.state.Put(put("b"))
    request = state_pb2.RangeRequest(prefix="a/", page_size=2)
    entries: list[state_pb2.Entry] = []
    revisions = set()
    while True:
        page = await store.state.Range(request)
        entries += page.entries
        revisions.add(page.revision)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        await store.state.Put(put(f"a/{len(entries)}", b"new"))
        await store.state.Delete(state_pb2.DeleteRequest(key="a/4"))
        await store.state.Put(put("a/9", b"new"))

    assert {6} == revisions
    assert [(f"a/{n}", b"old") for n in range(5)] == [(e.key, e.value.data) for e in entries]


async def test_a_token_of_another_listing_is_refused(store: Store) -> None:
    """A token belongs to its prefix."""
    for key in ("a1", "a2"):
        await store.state.Put(put(key))
    page = await store.state.Range(state_pb2.RangeRequest(prefix="a", page_size=1))
    other = state_pb2.RangeRequest(prefix="b", page_token=page.next_page_token)

    assert isinstance(await refused(store.state.Range(other)), errors.InvalidArgument)


async def test_keys_only_leaves_the_values_out(store: Store) -> None:
    """A listing of names costs no values."""
    await store.state.Put(put("a", b"1"))
    page = await store.state.Range(state_pb2.RangeRequest(keys_only=True))

    assert ["a"] == [entry.key for entry in page.entries]
    assert not page.entries[0].HasField("value")


async def test_a_transaction_does_one_list_under_one_revision(store: Store) -> None:
    """All comparisons hold: `then`, in order, reads seeing the writes before them."""
    await store.state.Put(put("a", b"1"))
    answer = await store.state.Transact(
        state_pb2.TransactRequest(
            compare=[
                state_pb2.Compare(key="a", revision=1),
                state_pb2.Compare(key="a", version=1),
                state_pb2.Compare(key="b", exists=False),
            ],
            then=[
                put_operation("b", b"2"),
                get_operation("b"),
                delete_operation("a"),
                get_operation("a"),
            ],
            otherwise=[put_operation("c")],
        )
    )

    assert (True, 2, common_pb2.DURABILITY_FSYNC) == (
        answer.succeeded,
        answer.revision,
        answer.durability,
    )
    assert ["put", "get", "delete", "get"] == [r.WhichOneof("kind") for r in answer.results]
    assert b"2" == answer.results[1].get.entry.value.data
    assert not answer.results[3].get.HasField("entry")
    assert answer.results[2].delete.deleted


async def test_a_failed_comparison_does_the_other_list_and_says_why(store: Store) -> None:
    """`otherwise` is done, and `actual` has the compared keys without their values."""
    await store.state.Put(put("a", b"1"))
    answer = await store.state.Transact(
        state_pb2.TransactRequest(
            compare=[
                state_pb2.Compare(key="a", revision=9),
                state_pb2.Compare(key="x", revision=9),
            ],
            then=[put_operation("b")],
            otherwise=[get_operation("a")],
        )
    )

    assert (False, 1) == (answer.succeeded, answer.revision)
    assert b"1" == answer.results[0].get.entry.value.data
    assert [("a", 1, False)] == [(e.key, e.revision, e.HasField("value")) for e in answer.actual]


async def test_one_refused_operation_undoes_the_others(store: Store) -> None:
    """A write in a transaction that expects another revision refuses all of it."""
    await store.state.Put(put("a", b"1"))
    error = await refused(
        store.state.Transact(
            state_pb2.TransactRequest(
                then=[put_operation("b"), put_operation("a", b"2", expected_revision=9)]
            )
        )
    )

    assert isinstance(error, errors.RevisionMismatch)
    assert (False, 1) == ((r := await store.state.Get(get("b"))).HasField("entry"), r.revision)


async def test_reads_of_a_transaction_are_bounded(store: Store) -> None:
    """An answer nobody could take refuses the transaction; one large value alone is read."""
    large = bytes(6 * 1024 * 1024)
    for key in ("a", "b"):
        await store.state.Put(put(key, large))
    reads = [get_operation("a"), get_operation("b")]
    error = await refused(
        store.state.Transact(state_pb2.TransactRequest(then=[put_operation("c"), *reads]))
    )
    one = await store.state.Transact(state_pb2.TransactRequest(then=reads[:1]))

    assert isinstance(error, errors.MessageTooLarge)
    assert 2 == store.engine.state_revision
    assert large == one.results[0].get.entry.value.data


async def test_touch_moves_the_expiry_and_nothing_else(store: Store) -> None:
    """Same revision, later expiry; a key without a time to live stays for ever."""
    request = put("a")
    request.ttl.seconds = 3600
    before = (await store.state.Put(request)).entry
    await store.state.Put(put("b"))
    touched = (await store.state.Touch(state_pb2.TouchRequest(key="a", expected_revision=1))).entry
    read = (await store.state.Get(get("a"))).entry

    assert before.revision == touched.revision == read.revision
    assert before.expires.ToNanoseconds() < touched.expires.ToNanoseconds()
    assert touched.expires == read.expires
    assert not (await store.state.Touch(state_pb2.TouchRequest(key="b"))).entry.HasField("expires")
    for refusal, kind in (
        (state_pb2.TouchRequest(key="c"), errors.KeyNotFound),
        (state_pb2.TouchRequest(key="a", expected_revision=9), errors.RevisionMismatch),
    ):
        assert isinstance(await refused(store.state.Touch(refusal)), kind)


async def test_history_goes_back_by_pages(store: Store) -> None:
    """Every version, newest first, with what happened."""
    for data in (b"1", b"2"):
        await store.state.Put(put("a", data))
        await store.state.Put(put("b", data))
    await store.state.Delete(state_pb2.DeleteRequest(key="a"))
    request = state_pb2.HistoryRequest(key="a", page_size=2)
    first = await store.state.History(request)
    request.page_token = first.next_page_token
    second = await store.state.History(request)

    assert [(state_pb2.CHANGE_KIND_DELETE, 5), (state_pb2.CHANGE_KIND_PUT, 3)] == [
        (change.kind, change.entry.revision) for change in first.changes
    ]
    assert [b"1"] == [change.entry.value.data for change in second.changes]
    assert (5, "") == (first.revision, second.next_page_token)


async def test_the_past_is_read_until_it_is_compacted(store: Store) -> None:
    """A read at a revision sees what was; a forgotten or future one is an error of its own."""
    for data in (b"1", b"2", b"3"):
        await store.state.Put(put("a", data))

    assert b"2" == (await store.state.Get(get("a", 2))).entry.value.data
    compacted = await store.state.Compact(state_pb2.CompactRequest(revision=3))
    gone = await refused(store.state.Get(get("a", 1)))
    future = await refused(store.state.Get(get("a", 9)))

    assert isinstance(gone, errors.RevisionCompacted)
    assert compacted.compacted_revision == gone.figure("compacted_revision")
    assert isinstance(future, errors.RevisionInFuture)
    assert b"3" == (await store.state.Get(get("a"))).entry.value.data
    too_far = refused(store.state.Compact(state_pb2.CompactRequest(revision=9)))
    assert isinstance(await too_far, errors.RevisionInFuture)


async def test_a_repeated_request_gets_the_first_answer(store: Store) -> None:
    """The same id does it once; for another key it is refused, without an id it is done again."""
    first = await store.state.Put(put("a", b"1", request_id="r"))
    repeated = await store.state.Put(put("a", b"1", request_id="r"))
    other = await refused(store.state.Put(put("b", b"1", request_id="r")))
    delete = state_pb2.DeleteRequest(key="a", request_id="r")
    deleted = [await store.state.Delete(delete) for _ in range(2)]
    transact = state_pb2.TransactRequest(then=[put_operation("c")], request_id="r")
    done = [await store.state.Transact(transact) for _ in range(2)]

    assert first == repeated
    assert ["request_id"] == list(other.fields)
    assert deleted[0] == deleted[1]
    assert deleted[0].deleted
    assert done[0] == done[1]
    assert (1, 2, 3) == (first.revision, deleted[0].revision, done[0].revision)


async def test_concurrent_writers_of_one_revision_have_one_winner(store: Store) -> None:
    """Twenty compare-and-sets on the same revision: one takes it, nineteen are told."""
    await store.state.Put(put("a", b"0"))
    calls = [store.state.Put(put("a", b"x", expected_revision=1)) for _ in range(20)]
    answers = await asyncio.gather(*calls, return_exceptions=True)

    assert 1 == sum(isinstance(answer, state_pb2.PutResponse) for answer in answers)
    assert 2 == (await store.state.Get(get("a"))).revision


async def test_requests_that_cannot_be_name_their_field(store: Store) -> None:
    """One refusal of each call, over the wire, with BadRequest."""
    state = store.state
    many = [put_operation(f"k{n}") for n in range(129)]
    cases: list[tuple[str, object]] = [
        ("key", state.Get(get(""))),
        ("value", state.Put(state_pb2.PutRequest(key="a"))),
        ("key", state.Delete(state_pb2.DeleteRequest(key="*"))),
        ("prefix", state.Range(state_pb2.RangeRequest(prefix="a b"))),
        ("page_token", state.Range(state_pb2.RangeRequest(page_token="?"))),
        ("then", state.Transact(state_pb2.TransactRequest(then=many))),
        ("key", state.Touch(state_pb2.TouchRequest())),
        ("key", state.History(state_pb2.HistoryRequest())),
        ("prefix", state.Changes(state_pb2.ChangesRequest(prefix="*"))),
        ("request_id", state.Put(put("a", request_id="x" * 65))),
    ]
    for field, call in cases:
        error = await refused(call)  # type: ignore[arg-type]
        assert isinstance(error, errors.InvalidArgument)
        assert [field] == list(error.fields)
    assert 0 == store.engine.state_revision
