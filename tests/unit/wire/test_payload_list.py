"""Serialized payload lists: joined and cut here exactly as protobuf would."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tidewire.v1 import common_pb2
from tidewire.wire.payload_list import CUT_AT_ONCE, SHORT_BYTES, cut_payloads, join_payloads

SIZES = [0, 1, 2, 125, 126, 127, 128, 129, 130, 131, 300, SHORT_BYTES - 4, SHORT_BYTES]
COUNTS = [1, 15, 16, CUT_AT_ONCE - 1, CUT_AT_ONCE, CUT_AT_ONCE + 1, 3 * CUT_AT_ONCE]


def by_protobuf(payloads: list[bytes]) -> bytes:
    """The reference."""
    return common_pb2.PayloadList(payload=payloads).SerializeToString()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", COUNTS)
def test_payloads_of_one_size(size: int, count: int) -> None:
    """Each payload comes back as itself, around every edge of sizes and numbers."""
    payloads = [bytes([index % 251]) * size for index in range(count)]

    raw = join_payloads(payloads)

    assert by_protobuf(payloads) == raw
    assert payloads == cut_payloads(raw, count)


@given(payloads=st.lists(st.binary(max_size=200), min_size=1, max_size=100))
def test_payloads_of_many_sizes(payloads: list[bytes]) -> None:
    """Sizes may differ."""
    raw = join_payloads(payloads)

    assert by_protobuf(payloads) == raw
    assert payloads == cut_payloads(raw, len(payloads))


@given(
    size=st.integers(0, 140),
    count=st.integers(16, 140),
    at=st.integers(0, 1 << 20),
    to=st.integers(0, 255),
)
def test_what_was_changed_is_read_as_protobuf_reads_it(
    size: int, count: int, at: int, to: int
) -> None:
    """One byte of a list of equal payloads is changed: the answer is protobuf's, or its refusal."""
    raw = bytearray(by_protobuf([b"\x0a\x7f" * (size // 2) + b"x" * (size % 2)] * count))
    raw[at % len(raw)] = to
    try:
        expected: object = list(common_pb2.PayloadList.FromString(bytes(raw)).payload)
    except DecodeError:
        expected = None

    try:
        actual: object = cut_payloads(bytes(raw), count)
    except DecodeError:
        actual = None

    assert expected == actual


def test_a_list_of_another_number_is_not_cut_at_a_wrong_stride() -> None:
    """The number stated only helps: what is in the list is returned."""
    payloads = [b"\x0a\x02ab" * 4] * 32

    assert payloads == cut_payloads(by_protobuf(payloads), 16)
    assert payloads == cut_payloads(by_protobuf(payloads), 64)
