"""Streams of the embedded engine: sequences, retention, duplicates, producers, conditions."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2

from support.engines import (
    SMALL,
    append_of,
    batch_of,
    engine_at,
    messages_of,
    publish,
    stream_config,
)
from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2
from tidewire_server.engine.base import StoredBatch, Transaction
from tidewire_server.engine.embedded import EmbeddedEngine, maintenance
from tidewire_server.engine.embedded.session import Session


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    async with engine_at(tmp_path / "store") as opened:
        yield opened


async def test_sequences_are_dense(engine: EmbeddedEngine) -> None:
    """Each message takes the next sequence of its stream, whatever the batch."""
    await engine.create_stream(stream_config())
    await publish(engine, "orders.a", b"1", b"2")
    response = await publish(engine, "orders.b", b"3", b"4", b"5")

    assert (3, 5) == (response.stored.first, response.stored.last)
    assert common_pb2.DURABILITY_FSYNC == response.durability
    assert 5 == engine.last_sequence("orders")
    assert {i: str(i).encode() for i in range(1, 6)} == await messages_of(engine, "orders")


async def test_sequences_are_never_used_again(tmp_path: Path) -> None:
    """After everything was purged, and after a restart, the next sequence goes on."""
    async with engine_at(tmp_path) as engine:
        await engine.create_stream(stream_config())
        await publish(engine, "orders.a", b"1", b"2")
        assert 2 == await engine.purge_stream("orders", 0)
    async with engine_at(tmp_path) as engine:
        state = (await engine.get_stream("orders")).state
        response = await publish(engine, "orders.a", b"3")

        assert (0, 3, 2) == (state.messages, state.first_sequence, state.last_sequence)
        assert 3 == response.stored.first


async def test_a_stream_made_again_is_a_new_one(engine: EmbeddedEngine) -> None:
    """A deleted stream leaves nothing to the one of the same name."""
    await engine.create_stream(stream_config())
    await publish(engine, "orders.a", b"old")
    await engine.create_consumer("orders", event_pb2.ConsumerConfig(name="c"))

    assert 1 == await engine.delete_stream("orders")
    with pytest.raises(errors.StreamNotFound):
        engine.last_sequence("orders")
    await engine.create_stream(stream_config())

    assert {} == await messages_of(engine, "orders")
    assert [] == list(await engine.list_consumers("orders"))
    assert 1 == (await publish(engine, "orders.a", b"new")).stored.first


async def test_deleted_streams_are_swept(engine: EmbeddedEngine) -> None:
    """The batches of a deleted stream go with the sweeps, those of others stay."""
    await engine.create_stream(stream_config())
    await engine.create_stream(stream_config("other"))
    for _ in range(3):
        await publish(engine, "orders.a", b"1")
    await publish(engine, "other.a", b"2")
    await engine.delete_stream("orders")

    assert 3 == await engine._write(maintenance.sweep)
    left = await engine.readers.read(
        lambda c: (
            c.execute("SELECT (SELECT count(*) FROM batches), (SELECT count(*) FROM streams)").get
        )
    )
    assert (1, 1) == left


async def test_equal_configurations_make_one_stream(engine: EmbeddedEngine) -> None:
    """Making the same stream again succeeds; with another configuration it is refused."""
    await engine.create_stream(stream_config(messages_max=5))
    await engine.create_stream(stream_config(messages_max=5))

    with pytest.raises(errors.StreamExists):
        await engine.create_stream(stream_config(messages_max=6))


async def test_overlapping_subjects_are_refused(engine: EmbeddedEngine) -> None:
    """No two streams take the same subject, by making or by changing."""
    await engine.create_stream(stream_config())
    await engine.create_stream(stream_config("other"))

    with pytest.raises(errors.SubjectOverlap):
        await engine.create_stream(stream_config("third", "*.a"))
    with pytest.raises(errors.SubjectOverlap):
        await engine.update_stream(stream_config("other", "orders.x"))
    assert "other" == engine.stream_for("other.x")
    assert engine.stream_for("orders.x.y") == "orders"
    assert engine.stream_for("nothing") is None


async def test_updates_change_where_subjects_go(engine: EmbeddedEngine) -> None:
    """A new configuration holds from its answer on, here and for publishing."""
    await engine.create_stream(stream_config())
    await engine.update_stream(stream_config("orders", "bills.>", paused=True))

    assert engine.stream_for("orders.a") is None
    with pytest.raises(errors.StreamPaused):
        await publish(engine, "bills.a", b"1")
    with pytest.raises(errors.NoStream):
        await publish(engine, "orders.a", b"1")
    with pytest.raises(errors.StreamNotFound):
        await engine.update_stream(stream_config("none"))


async def test_no_stream_may_be_no_error(engine: EmbeddedEngine) -> None:
    """An append that needs no stream stores nothing where none takes the subject."""
    append = append_of(batch_of("live.a", b"1"), stream_required=False)
    done = await engine.commit(Transaction(appends=[append]))

    assert not done.appends[0].HasField("stored")
    assert "" == done.appends[0].stream


async def test_conditions_of_a_publish(engine: EmbeddedEngine) -> None:
    """The expected stream and last sequence must be right, else nothing is stored."""
    await engine.create_stream(stream_config())
    await publish(engine, "orders.a", b"1")
    good = append_of(batch_of("orders.a", b"2"), expected_last_sequence=1)
    late = append_of(batch_of("orders.a", b"3"), expected_last_sequence=1)
    await engine.commit(Transaction(appends=[good]))

    with pytest.raises(errors.WrongLastSequence) as caught:
        await engine.commit(Transaction(appends=[late]))
    assert 2 == caught.value.figure("last_sequence")
    late.request.ClearField("expected_last_sequence")
    late.request.expected_stream = "absent"
    with pytest.raises(errors.StreamNotFound):
        await engine.commit(Transaction(appends=[late]))
    assert 2 == engine.last_sequence("orders")


@pytest.mark.parametrize(
    ("settings", "kept"), [({"messages_max": 4}, [7, 8, 9, 10]), ({"bytes_max": 110}, [9, 10])]
)
async def test_old_messages_go_at_a_limit(
    tmp_path: Path, settings: dict[str, Any], kept: list[int]
) -> None:
    """Whole batches go, oldest first, in the commit that passes the limit."""
    async with engine_at(tmp_path) as engine:
        await engine.create_stream(stream_config(**settings))
        for start in range(1, 11, 2):
            await publish(engine, "orders.a", *(b"%20d" % i for i in (start, start + 1)))
        state = (await engine.get_stream("orders")).state

        assert kept == list(await messages_of(engine, "orders"))
        assert (len(kept), kept[0], 10) == (
            state.messages,
            state.first_sequence,
            state.last_sequence,
        )


async def test_full_streams_refuse(engine: EmbeddedEngine) -> None:
    """With DISCARD_NEW a batch that does not fit is refused and nothing goes."""
    await engine.create_stream(stream_config(messages_max=3, discard=event_pb2.DISCARD_NEW))
    await publish(engine, "orders.a", b"1", b"2")

    with pytest.raises(errors.StreamFull):
        await publish(engine, "orders.a", b"3", b"4")
    await publish(engine, "orders.a", b"3")
    assert [1, 2, 3] == list(await messages_of(engine, "orders"))


async def test_old_age_is_swept(engine: EmbeddedEngine) -> None:
    """A sweep removes batches older than the limit and leaves the others."""
    config = stream_config(age_max=duration_pb2.Duration(seconds=60))
    await engine.create_stream(config)
    await publish(engine, "orders.a", b"1")
    await publish(engine, "orders.a", b"2")

    def sweep_later(session: Session) -> int:
        session.now_ns += 3600 * 10**9
        return maintenance.sweep(session)

    await engine._write(maintenance.sweep)
    assert 2 == len(await messages_of(engine, "orders"))
    await engine._write(sweep_later)
    assert {} == await messages_of(engine, "orders")
    assert 3 == (await publish(engine, "orders.a", b"3")).stored.first


async def test_message_ids_are_stored_once(tmp_path: Path) -> None:
    """Copies are left out within a batch, across batches, across a restart, after a purge."""
    async with engine_at(tmp_path) as engine:
        await engine.create_stream(stream_config())
        await publish(engine, "orders.a", b"a", b"b", message_ids=["a", "b"])
        part = await publish(
            engine, "orders.a", b"b", b"c", b"c", b"", message_ids=["b", "c", "c", ""]
        )
        again = await publish(engine, "orders.a", b"b", b"a", message_ids=["b", "a"])

        assert (3, 4, 2) == (part.stored.first, part.stored.last, part.duplicates)
        assert (1, 2, 2) == (again.stored.first, again.stored.last, again.duplicates)
        assert [b"a", b"b", b"c", b""] == list((await messages_of(engine, "orders")).values())
    async with engine_at(tmp_path) as engine:
        assert 1 == (await publish(engine, "orders.a", b"c", message_ids=["c"])).duplicates
        await engine.purge_stream("orders", 0)
    async with engine_at(tmp_path) as engine:
        assert 1 == (await publish(engine, "orders.a", b"c", message_ids=["c"])).duplicates
        assert 0 == (await publish(engine, "orders.a", b"d", message_ids=["d"])).duplicates


async def test_a_copy_needs_no_condition(engine: EmbeddedEngine) -> None:
    """A repeated publish with a condition gets the first answer, not a refusal."""
    await engine.create_stream(stream_config())
    append = append_of(batch_of("orders.a", b"a", message_ids=["a"]), expected_last_sequence=0)
    first = await engine.commit(Transaction(appends=[append]))
    again = await engine.commit(Transaction(appends=[append]))

    assert first.appends[0].stored == again.appends[0].stored
    assert 1 == again.appends[0].duplicates


async def test_message_ids_may_be_turned_off(engine: EmbeddedEngine) -> None:
    """Control: with a window of 0 s copies are stored."""
    await engine.create_stream(stream_config(dedup_window=duration_pb2.Duration()))
    await publish(engine, "orders.a", b"a", message_ids=["a"])

    assert 0 == (await publish(engine, "orders.a", b"a", message_ids=["a"])).duplicates


async def test_a_refused_transaction_remembers_no_ids(engine: EmbeddedEngine) -> None:
    """Ids of a transaction that was refused half-way are forgotten with it."""
    await engine.create_stream(stream_config())
    good = append_of(batch_of("orders.a", b"a", message_ids=["a"]))
    bad = append_of(batch_of("nowhere", b"b"))

    with pytest.raises(errors.NoStream):
        await engine.commit(Transaction(appends=[good, bad]))
    assert 0 == engine.last_sequence("orders")
    assert 0 == (await publish(engine, "orders.a", b"a", message_ids=["a"])).duplicates


async def test_producer_sequences(tmp_path: Path) -> None:
    """
    What was stored is left out, a gap is refused, an old epoch is fenced; all after a restart too.
    """

    async def send(
        engine: EmbeddedEngine, epoch: int, first: int, count: int
    ) -> event_pb2.PublishResponse:
        payloads = [str(first + i).encode() for i in range(count)]
        return await publish(
            engine,
            "orders.a",
            *payloads,
            producer_id="p",
            producer_epoch=epoch,
            producer_sequence=first,
        )

    async with engine_at(tmp_path) as engine:
        await engine.create_stream(stream_config())
        with pytest.raises(errors.ProducerGap):
            await send(engine, 1, 2, 1)
        await send(engine, 1, 1, 3)
        part = await send(engine, 1, 3, 2)
        assert (4, 4, 1) == (part.stored.first, part.stored.last, part.duplicates)
        with pytest.raises(errors.ProducerGap) as gap:
            await send(engine, 1, 7, 1)
        assert 5 == gap.value.figure("expected_sequence")
    async with engine_at(tmp_path) as engine:
        again = await send(engine, 1, 2, 2)
        assert (2, 3, 2) == (again.stored.first, again.stored.last, again.duplicates)
        await send(engine, 2, 1, 1)
        with pytest.raises(errors.ProducerFenced):
            await send(engine, 1, 5, 1)
        values = list((await messages_of(engine, "orders")).values())
        assert [b"1", b"2", b"3", b"4", b"1"] == values


async def test_reading_from_within_a_batch(engine: EmbeddedEngine) -> None:
    """A read may begin anywhere; limits cut between batches; subjects select."""
    await engine.create_stream(stream_config())
    await publish(engine, "orders.a", b"1", b"2", b"3")
    await publish(engine, "orders.b", b"4", b"5")
    await publish(engine, "orders.a", b"6")

    part = await engine.read_stream("orders", 2, messages_max=2, bytes_max=1000)
    assert ([1], 4, 6) == (
        [item.first_sequence for item in part.batches],
        part.next_sequence,
        part.last_sequence,
    )
    small = await engine.read_stream("orders", 4, messages_max=100, bytes_max=1)
    assert ([4], 6) == ([item.first_sequence for item in small.batches], small.next_sequence)
    assert [2, 3, 6] == list(await messages_of(engine, "orders", 2, ["*.a"]))
    assert 3 == await engine.count_pending("orders", 1, ["orders.a"])
    assert 5 == await engine.count_pending("orders", 1)
    end = await engine.read_stream("orders", 7, messages_max=1, bytes_max=1)
    assert ((), 7) == (tuple(end.batches), end.next_sequence)


async def test_large_purges_are_done_in_pieces(tmp_path: Path) -> None:
    """More batches than one piece are purged in one call, up to the end of a batch."""
    async with engine_at(tmp_path, replace(SMALL, sweep_rows_max=4)) as engine:
        await engine.create_stream(stream_config())
        await asyncio.gather(*(publish(engine, "orders.a", b"1", b"2") for _ in range(20)))

        assert 30 == await engine.purge_stream("orders", 31)
        assert list(range(31, 41)) == list(await messages_of(engine, "orders"))
        assert 10 == await engine.purge_stream("orders", 0)
        assert 0 == await engine.purge_stream("orders", 0)


async def test_finding_a_time(engine: EmbeddedEngine) -> None:
    """The first message at or after a time is found in every place."""
    await engine.create_stream(stream_config())
    for i in range(5):
        await publish(engine, "orders.a", b"%d" % i, b"+")
    stored = (await engine.read_stream("orders", 1, messages_max=100, bytes_max=1000)).batches

    found = [await engine.sequence_at("orders", item.time_ns) for item in stored]
    assert [1, 3, 5, 7, 9] == found
    assert 1 == await engine.sequence_at("orders", 0)
    assert 11 == await engine.sequence_at("orders", stored[-1].time_ns + 1)


async def test_dead_letters_keep_their_reason(engine: EmbeddedEngine) -> None:
    """One message of a batch moves to a named stream, whatever its subject, with the reason."""
    await engine.create_stream(stream_config())
    await engine.create_stream(stream_config("dead", "dead"))
    batch = batch_of("orders.a", b"1", b"2", b"3", message_ids=["a", "b", "c"])
    batch.selected.add(first=1, last=1)
    letter = event_pb2.DeadLetter(stream="orders", sequence=2, reason="poison")
    append = append_of(batch, stream="dead", dead_letter=letter)
    for _ in range(2):
        await engine.commit(Transaction(appends=[append]))

    read = await engine.read_stream("dead", 1, messages_max=10, bytes_max=1000)
    assert [1, 2] == [item.first_sequence for item in read.batches]
    assert "poison" == read.batches[0].dead_letter.reason if read.batches[0].dead_letter else ""
    assert {1: b"2", 2: b"2"} == await messages_of(engine, "dead")


async def test_listeners_hear_before_the_answer(engine: EmbeddedEngine) -> None:
    """Listeners hear of durable batches in commit order, before who published has the answer."""
    await engine.create_stream(stream_config())
    heard: list[int] = []

    def hear(batches: object) -> None:
        assert isinstance(batches, list)
        for item in batches:
            assert isinstance(item, StoredBatch)
            assert item.last_sequence <= engine.last_sequence("orders")
            heard.append(item.first_sequence)

    engine.listeners.appended.append(hear)

    async def one() -> None:
        response = await publish(engine, "orders.a", b"1")
        assert response.stored.first in heard

    await asyncio.gather(*(one() for _ in range(50)))
    assert list(range(1, 51)) == heard


async def test_many_publishes_share_flushes(tmp_path: Path) -> None:
    """What waits while one group is flushed goes in the next one."""
    async with engine_at(tmp_path, SMALL) as engine:
        await engine.create_stream(stream_config())
        before = engine.writer.counters.groups
        await asyncio.gather(*(publish(engine, "orders.a", b"1") for _ in range(500)))

        assert engine.writer.counters.groups - before < 50


async def test_cancelled_publishes_are_whole_or_absent(engine: EmbeddedEngine) -> None:
    """A cancelled publish leaves all of its messages or none, and the next one works."""
    await engine.create_stream(stream_config())
    tasks = [asyncio.create_task(publish(engine, "orders.a", b"x", b"y")) for _ in range(100)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await publish(engine, "orders.a", b"x", b"y")

    values = list((await messages_of(engine, "orders")).values())
    assert [b"x", b"y"] * (len(values) // 2) == values
    assert len(values) >= 2 * 51
    assert 0 == engine.writer.pending.transactions


async def test_levels_of_durability(engine: EmbeddedEngine) -> None:
    """The answer says the level reached; a stream's own level holds when nothing is said."""
    await engine.create_stream(stream_config(durability=common_pb2.DURABILITY_OS))
    unsaid = Transaction(
        durability=common_pb2.DURABILITY_UNSPECIFIED,
        appends=[append_of(batch_of("orders.a", b"1"))],
    )
    said = Transaction(appends=[append_of(batch_of("orders.a", b"1"))])
    quorum = Transaction(
        durability=common_pb2.DURABILITY_QUORUM, appends=[append_of(batch_of("orders.a", b"1"))]
    )

    assert common_pb2.DURABILITY_OS == (await engine.commit(unsaid)).durability
    assert common_pb2.DURABILITY_FSYNC == (await engine.commit(said)).durability
    with pytest.raises(errors.DurabilityUnavailable):
        await engine.commit(quorum)
