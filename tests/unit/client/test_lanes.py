"""Lanes of a publisher: which are kept, and what a batch on its way may rely on."""

import pytest

from tidewire.client.lanes import Item, Lane, Lanes
from tidewire.errors import InvalidArgument, Overloaded
from tidewire.v1 import event_pb2

LANES_MAX = 4


def item(subject: str) -> Item:
    """A batch of one message."""
    message = event_pb2.PublishStreamRequest()
    message.publish.request.batch.subject = subject
    message.publish.request.batch.count = 1
    return Item(message, 1, 1, [])


def lane_of(batch: Item) -> Lane:
    """The lane a batch was given."""
    assert batch.lane is not None
    return batch.lane


def test_idle_lanes_beyond_the_limit_are_forgotten() -> None:
    """The one that is idle for the longest goes first; a lane made anew has a new producer id."""
    lanes = Lanes("p", LANES_MAX)
    ids = {}
    for number in range(LANES_MAX):
        sent = item(f"s{number}")
        lanes.enter(sent)
        lanes.succeeded(sent)
        ids[number] = lane_of(sent).producer_id
    again = item("s0")
    lanes.enter(again)  # used again: s1 is now the longest idle
    lanes.succeeded(again)
    lanes.enter(item("new"))

    kept, made_anew = item("s0"), item("s1")
    lanes.enter(kept)
    lanes.enter(made_anew)

    assert ids[0] == lane_of(kept).producer_id
    assert ids[1] != lane_of(made_anew).producer_id
    assert len(lanes._lanes) <= LANES_MAX


def test_a_lane_in_use_is_kept_beyond_the_limit() -> None:
    """What is on its way keeps its numbers, however many lanes that takes."""
    lanes = Lanes("p", LANES_MAX)
    sent = [item(f"s{number}") for number in range(10 * LANES_MAX)]
    for batch in sent:
        lanes.enter(batch)

    more = [item(batch.batch.subject) for batch in sent]
    for batch in more:
        lanes.enter(batch)

    assert [lane_of(batch) for batch in sent] == [lane_of(batch) for batch in more]
    assert [2] * len(more) == [batch.batch.producer_sequence for batch in more]
    for batch in (*sent, *more):
        lanes.succeeded(batch)
    lanes.enter(item("new"))
    assert len(lanes._lanes) <= LANES_MAX


@pytest.mark.parametrize(
    ("error", "is_held"), [(Overloaded("later"), True), (InvalidArgument("never"), False)]
)
def test_a_lane_that_mends_is_kept_until_it_is_mended(error: Exception, is_held: bool) -> None:
    """A refused lane is not forgotten before it has begun its next epoch, and may be after."""
    assert isinstance(error, Overloaded | InvalidArgument)
    lanes = Lanes("p", LANES_MAX)
    refused = item("bad")
    lanes.enter(refused)
    assert is_held == lanes.refused(refused, error)
    for number in range(2 * LANES_MAX):
        other = item(f"s{number}")
        lanes.enter(other)
        lanes.succeeded(other)
    assert "bad" in lanes._lanes

    again = lanes.restart(refused)

    assert ([refused] if is_held else []) == list(again)
    for batch in again:
        lanes.succeeded(batch)
    for number in range(2 * LANES_MAX):
        other = item(f"t{number}")
        lanes.enter(other)
        lanes.succeeded(other)
    assert "bad" not in lanes._lanes
