"""Acknowledgements become few ranges, and each answer finds who waits for it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire.client.acks import ACK_ITEMS_MAX, DONE, RETRY, TERMINATE, AckBuffer
from tidewire.client.settling import UNANSWERED_MAX, Settlements
from tidewire.errors import InvalidArgument, StaleAck
from tidewire.v1 import common_pb2, event_pb2


def covered(items: list[event_pb2.AckItem]) -> dict[int, set[int]]:
    by_attempt: dict[int, set[int]] = {}
    for item in items:
        sequences = set(range(item.range.first, item.range.last + 1))
        assert not sequences & by_attempt.get(item.attempt, set())
        by_attempt.setdefault(item.attempt, set()).update(sequences)
    return by_attempt


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(0, 9), st.integers(1, 2)),
        min_size=1,
        max_size=60,
    )
)
def test_ranges_cover_exactly_what_was_done(runs: list[tuple[int, int, int]]) -> None:
    """Whatever the order, the ranges cover what was acknowledged, and neighbours are joined."""
    buffer = AckBuffer()
    wanted: dict[int, set[int]] = {}
    for first, more, attempt in runs:
        buffer.done(first, first + more, attempt)
        wanted.setdefault(attempt, set()).update(range(first, first + more + 1))

    items = buffer.take()

    assert wanted == covered(items)
    ends = {(item.attempt, item.range.last + 1) for item in items}
    assert not ends & {(item.attempt, item.range.first) for item in items}
    assert not buffer


def test_a_turn_in_order_is_one_item() -> None:
    """A thousand acks in order are one range."""
    buffer = AckBuffer()
    for sequence in range(1, 1_001):
        buffer.done(sequence, sequence, 1)

    expected = event_pb2.AckItem(
        range=common_pb2.SequenceRange(first=1, last=1_000), settlement=DONE, attempt=1
    )
    assert [expected] == buffer.take()


def test_an_ack_has_no_more_items_than_it_may() -> None:
    """What does not fit stays for the next ack."""
    buffer = AckBuffer()
    for sequence in range(0, 3_000, 2):
        buffer.done(sequence, sequence, 1)
    buffer.other(9_999, 1, RETRY, delay_s=1.5, reason="later")

    sizes = []
    while buffer:
        sizes.append(len(buffer.take()))

    assert [ACK_ITEMS_MAX, 1_501 - ACK_ITEMS_MAX] == sizes


def test_reasons_and_delays_are_bounded() -> None:
    """A long reason is cut within its limit; a delay that cannot be is refused."""
    buffer = AckBuffer()
    buffer.other(7, 2, TERMINATE, reason="\u00e9" * 1_000)

    (item,) = buffer.take()

    assert 1_024 == len(item.reason.encode())
    with pytest.raises(InvalidArgument):
        buffer.other(7, 2, RETRY, delay_s=-1.0)


async def test_answers_find_who_waits() -> None:
    """A refusal is told to who settled that message, and to nobody else."""
    acks = Settlements()
    acks.buffer.done(1, 1, 1)
    good = acks.confirm(1, 1)
    acks.buffer.done(5, 5, 1)
    bad = acks.confirm(5, 5)
    ack = acks.take()
    assert ack is not None
    stale = StaleAck("an older delivery").to_status()

    refused = common_pb2.ItemResult(index=1, status=stale)
    acks.answered(event_pb2.AckResult(ack_id=ack.ack_id, failed=[refused]))

    assert good.result() is None
    assert isinstance(bad.exception(), StaleAck)
    assert 1 == acks.failed
    assert not acks.busy


async def test_acks_cut_off_go_again() -> None:
    """What was sent and not answered is sent on the next call, and who waits goes on waiting."""
    acks = Settlements()
    acks.buffer.done(1, 3, 1)
    waiting = acks.confirm(1, 3)
    first = acks.take()
    acks.broken()

    again = acks.take()

    assert first is not None
    assert again is not None
    assert list(first.items) == list(again.items)
    assert not waiting.done()
    acks.answered(event_pb2.AckResult(ack_id=again.ack_id))
    assert waiting.result() is None


async def test_acks_grow_together_while_many_are_unanswered() -> None:
    """A server that does not answer gets no endless row of acks."""
    acks = Settlements()
    for sequence in range(1, 1_000):
        acks.buffer.done(sequence, sequence, 1)
        acks.take()

    assert acks.take() is None
    for ack_id in range(1, UNANSWERED_MAX + 1):
        acks.answered(event_pb2.AckResult(ack_id=ack_id))
    rest = acks.take()
    assert rest is not None
    assert [(UNANSWERED_MAX + 1, 999)] == [(i.range.first, i.range.last) for i in rest.items]


async def test_waiting_for_nothing_is_over_at_once() -> None:
    """With nothing to confirm a confirmation is there; what is on its way is waited for."""
    acks = Settlements()
    assert acks.confirm(0, 0).done()
    acks.buffer.done(1, 1, 1)
    ack = acks.take()
    late = acks.confirm(0, 0)
    assert not late.done()
    assert ack is not None
    acks.answered(event_pb2.AckResult(ack_id=ack.ack_id))
    async with asyncio.timeout(5):
        await late
