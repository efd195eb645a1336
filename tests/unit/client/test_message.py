"""Deliveries become messages with the right payloads, sequences and headers."""

from datetime import UTC, datetime

import pytest

from tidewire.client.message import MessageBatch
from tidewire.errors import ChecksumMismatch, FailedPrecondition
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import encode_messages, encode_payloads

PAYLOADS = [b"0", b"1", b"2", b"3", b"4"]


def index_ranges(*pairs: tuple[int, int]) -> list[common_pb2.IndexRange]:
    return [common_pb2.IndexRange(first=first, last=last) for first, last in pairs]


def sequence_ranges(*pairs: tuple[int, int]) -> list[common_pb2.SequenceRange]:
    return [common_pb2.SequenceRange(first=first, last=last) for first, last in pairs]


CASES = [
    # selected, included, after, expected (sequence, payload) pairs; the batch begins at 10.
    ([], [], 0, [(10, b"0"), (11, b"1"), (12, b"2"), (13, b"3"), (14, b"4")]),
    ([(1, 2), (4, 4)], [], 0, [(10, b"1"), (11, b"2"), (12, b"4")]),
    ([], [(11, 12), (14, 14)], 0, [(11, b"1"), (12, b"2"), (14, b"4")]),
    ([(1, 2), (4, 4)], [(12, 12)], 0, [(12, b"4")]),
    ([], [], 12, [(13, b"3"), (14, b"4")]),
    ([], [(10, 11), (13, 13)], 10, [(11, b"1"), (13, b"3")]),
    ([], [], 14, []),
    ([], [], 9, [(10, b"0"), (11, b"1"), (12, b"2"), (13, b"3"), (14, b"4")]),
    ([], [(1, 10), (14, 99)], 0, [(10, b"0"), (14, b"4")]),
]


@pytest.mark.parametrize(("selected", "included", "after", "expected"), CASES)
@pytest.mark.parametrize("with_headers", [False, True])
def test_parts_of_batches_keep_their_sequences(
    selected: list[tuple[int, int]],
    included: list[tuple[int, int]],
    after: int,
    expected: list[tuple[int, bytes]],
    with_headers: bool,
) -> None:
    """Selection, inclusion and the reader's position are applied, for both forms of bodies."""
    batch = (
        encode_messages("a", [(payload, [("n", payload)]) for payload in PAYLOADS])
        if with_headers
        else encode_payloads("a", PAYLOADS)
    )
    batch.selected.extend(index_ranges(*selected))
    delivery = event_pb2.Delivery(
        batch=batch, stream="s", first_sequence=10, included=sequence_ranges(*included), attempt=1
    )

    messages = list(MessageBatch(delivery, after_sequence=after))

    assert expected == [(message.sequence, message.payload) for message in messages]
    headers = [(("n", payload),) if with_headers else () for _, payload in expected]
    assert headers == [message.headers for message in messages]


def test_a_message_says_where_it_is_from() -> None:
    """Everything of the delivery is seen on its messages."""
    delivery = event_pb2.Delivery(
        batch=encode_payloads("a.b", [b"x"]),
        stream="orders",
        first_sequence=7,
        attempt=3,
        pending=5,
        dead_letter=event_pb2.DeadLetter(stream="s", reason="why"),
    )
    delivery.time.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, 6_000, tzinfo=UTC))
    batch = MessageBatch(delivery)
    (message,) = batch

    assert ("a.b", "orders", 7, 3, b"x") == (
        message.subject,
        message.stream,
        message.sequence,
        message.attempt,
        message.data,
    )
    assert datetime(2026, 1, 2, 3, 4, 5, 6_000, tzinfo=UTC) == message.time
    assert message.dead_letter is not None
    assert (5, "why") == (batch.pending, message.dead_letter.reason)


async def test_live_messages_have_no_sequence_and_no_ack() -> None:
    """What no stream keeps cannot be acknowledged, and says so."""
    (message,) = MessageBatch(event_pb2.Delivery(batch=encode_payloads("a", [b"x"])))

    assert (0, 0, "") == (message.sequence, message.attempt, message.stream)
    assert message.time is None
    with pytest.raises(FailedPrecondition, match="consume"):
        await message.ack()


def test_damaged_bodies_are_errors() -> None:
    """A body that was changed on its way is not given out."""
    batch = encode_payloads("a", [b"x"])
    batch.body += b"y"

    with pytest.raises(ChecksumMismatch):
        MessageBatch(event_pb2.Delivery(batch=batch))
