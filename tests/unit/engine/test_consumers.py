"""Durable consumers of the embedded engine: where they start, and how progress merges."""

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from support.engines import engine_at, publish, put_of, settle, stream_config
from tidewire import errors
from tidewire.v1 import event_pb2
from tidewire_server.engine.base import Settle, Transaction
from tidewire_server.engine.embedded import EmbeddedEngine, ranges


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    async with engine_at(tmp_path / "store") as opened:
        await opened.create_stream(stream_config())
        for i in range(10):
            await publish(opened, "orders.a", b"%d" % i)
        yield opened


async def state_of(engine: EmbeddedEngine, name: str = "c") -> event_pb2.ConsumerState:
    return (await engine.get_consumer("orders", name)).state


def config(name: str = "c", **start: object) -> event_pb2.ConsumerConfig:
    position = event_pb2.StartPosition(**start)  # type: ignore[arg-type]
    return event_pb2.ConsumerConfig(name=name, start=position)


@pytest.mark.parametrize(
    ("start", "floor"),
    [
        ({}, 10),
        ({"next": True}, 10),
        ({"all": True}, 0),
        ({"sequence": 4}, 3),
        ({"last": True}, 9),
        ({"time": timestamp_pb2.Timestamp(seconds=1)}, 0),
        ({"time": timestamp_pb2.Timestamp(seconds=2**33)}, 10),
    ],
)
async def test_where_consumers_start(
    engine: EmbeddedEngine, start: dict[str, Any], floor: int
) -> None:
    """Everything before the start counts as settled."""
    made = await engine.create_consumer("orders", config(**start))

    assert ("orders", floor, floor) == (
        made.stream,
        made.state.ack_floor,
        made.state.delivered_through,
    )


async def test_consumers_are_made_once(engine: EmbeddedEngine) -> None:
    """The same configuration succeeds and keeps progress; another one is refused."""
    await engine.create_consumer("orders", config(all=True))
    await settle(engine, "orders", "c", settled=[(1, 3)])
    again = await engine.create_consumer("orders", config(all=True))
    assert 3 == again.state.ack_floor

    with pytest.raises(errors.ConsumerExists):
        await engine.create_consumer("orders", config(last=True))
    with pytest.raises(errors.StreamNotFound):
        await engine.create_consumer("none", config())
    assert ["c"] == [c.config.name for c in await engine.list_consumers("orders")]
    assert 1 == (await engine.get_stream("orders")).state.consumers
    await engine.delete_consumer("orders", "c")
    for call in (engine.delete_consumer("orders", "c"), engine.get_consumer("orders", "c")):
        with pytest.raises(errors.ConsumerNotFound):
            await call


async def test_progress_merges(engine: EmbeddedEngine) -> None:
    """
    Ranges join, the floor rises over them, attempts below it are dropped, repeats change nothing.
    """
    await engine.create_consumer("orders", config(all=True))
    await settle(
        engine,
        "orders",
        "c",
        settled=[(3, 4), (7, 7)],
        attempts=[(1, 2), (5, 3)],
        delivered_through=8,
        given_up=1,
    )
    for _ in range(2):
        await settle(
            engine, "orders", "c", settled=[(1, 2)], attempts=[(5, 2)], delivered_through=6
        )

    state = await state_of(engine)
    assert (4, 8, 1) == (state.ack_floor, state.delivered_through, state.given_up)
    assert [(7, 7)] == [(r.first, r.last) for r in state.settled]
    assert [(5, 3)] == [(a.sequence, a.count) for a in state.attempts]


async def test_progress_survives_a_restart(tmp_path: Path) -> None:
    """What was settled is settled when the store is opened again."""
    async with engine_at(tmp_path) as engine:
        await engine.create_stream(stream_config())
        for i in range(5):
            await publish(engine, "orders.a", b"%d" % i)
        await engine.create_consumer("orders", config(all=True))
        await settle(engine, "orders", "c", settled=[(1, 1), (4, 4)], attempts=[(3, 2)])
        before = await state_of(engine)
    async with engine_at(tmp_path) as engine:
        assert before == await state_of(engine)


async def test_positions_move_forward_only(engine: EmbeddedEngine) -> None:
    """A position settles all before it, is told to listeners, and is never moved back."""
    heard: list[Settle] = []
    engine.listeners.settled.append(heard.extend)
    await engine.create_consumer("orders", config(all=True))
    await settle(engine, "orders", "c", settled=[(8, 8)])
    await settle(engine, "orders", "c", through=7)
    await settle(engine, "orders", "c", through=8)

    assert 8 == (await state_of(engine)).ack_floor
    assert [7, 8] == [item.through for item in heard]
    with pytest.raises(errors.PositionBackwards) as caught:
        await settle(engine, "orders", "c", through=6)
    assert 8 == caught.value.figure("ack_floor")
    with pytest.raises(errors.RevisionInFuture):
        await settle(engine, "orders", "c", through=11)


async def test_refused_progress_is_taken_back(engine: EmbeddedEngine) -> None:
    """Progress within a transaction that is refused has not happened."""
    await engine.create_consumer("orders", config(all=True))
    good = Settle("orders", "c", settled=[(1, 5)], attempts=[(7, 2)])
    with pytest.raises(errors.ConsumerNotFound):
        await engine.commit(
            Transaction(
                settles=[good, Settle("orders", "none", settled=[(1, 1)])], then=[put_of("a")]
            )
        )
    await settle(engine, "orders", "c", settled=[(2, 2)])

    state = await state_of(engine)
    assert (0, [(2, 2)]) == (state.ack_floor, [(r.first, r.last) for r in state.settled])


async def test_what_is_purged_counts_as_settled(engine: EmbeddedEngine) -> None:
    """The floor does not wait for messages that are gone."""
    await engine.create_consumer("orders", config(all=True))
    await engine.purge_stream("orders", 6)
    await settle(engine, "orders", "c", settled=[(8, 8)])

    state = await state_of(engine)
    assert (6, [(8, 8)]) == (state.ack_floor, [(r.first, r.last) for r in state.settled])


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 8)), max_size=30))
def test_ranges_are_sets(items: list[tuple[int, int]]) -> None:
    """Ranges hold what a set of the numbers holds, sorted and apart."""
    kept: list[ranges.Range] = []
    model: set[int] = set()
    for first, more in items:
        ranges.add(kept, first, first + more)
        model.update(range(first, first + more + 1))

    assert sorted(model) == [n for first, last in kept for n in range(first, last + 1)]
    assert all(left[1] + 1 < right[0] for left, right in pairwise(kept))
    assert kept == ranges.of_indexes(sorted(model))
    floor = ranges.raise_floor(0, kept)
    assert all(n in model for n in range(1, floor + 1))
    assert floor + 1 not in model
