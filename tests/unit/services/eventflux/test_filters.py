"""Which events a reader may ask for, and which it gets."""

from typing import Any

import pytest

from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire_server.services.eventflux.filters import Wanted, read_request
from tidewire_server.services.eventflux.messages import AHEAD_MS_MAX

NOW_MS = 10_000_000
EVENT = transport_pb2.MESSAGE_TYPE_EVENT
METADATA = transport_pb2.MESSAGE_TYPE_METADATA
STATE = transport_pb2.MESSAGE_TYPE_STATE


def wanted(**fields: Any) -> Wanted:
    outer = {name: fields.pop(name) for name in ("node_id", "batch_size") if name in fields}
    asked = transport_pb2.EventFilter(**fields)
    return read_request(transport_pb2.EventRequest(filter=asked, **outer), NOW_MS)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": 10_001}, "batch_size"),
        ({"node_id": "x" * 257}, "node_id"),
        ({"stream_names": ["a", "b c"]}, "filter.stream_names[1]"),
        ({"stream_names": ["a"] * 65}, "filter.stream_names"),
        ({"message_types": [STATE]}, "filter.message_types"),
        ({"message_types": [EVENT, 77]}, "filter.message_types[1]"),
        ({"message_types": [0]}, "filter.message_types[0]"),
        ({"start_timestamp": -1}, "filter.start_timestamp"),
        ({"end_timestamp": -1}, "filter.end_timestamp"),
        ({"start_timestamp": 5, "end_timestamp": 4}, "filter.end_timestamp"),
        ({"end_timestamp": NOW_MS - 1}, "filter.start_timestamp"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    """Also a filter that nothing could ever pass: an empty stream would say nothing of it."""
    with pytest.raises(errors.InvalidArgument) as caught:
        wanted(**fields)

    assert [named] == list(caught.value.fields)


def test_without_a_filter_everything_comes() -> None:
    """All subjects, EVENT and METADATA, from now on, in batches of 100."""
    made = read_request(transport_pb2.EventRequest(), NOW_MS)

    assert ((">",), frozenset({EVENT, METADATA}), 0, 0, 100) == (
        made.patterns,
        made.kinds,
        made.start_ms,
        made.end_ms,
        made.batch_size,
    )


def test_names_are_looked_for_once_and_other_types_are_left_out() -> None:
    """A name twice is one name; STATE beside EVENT changes nothing."""
    made = wanted(stream_names=["a", "b.*", "a"], message_types=[EVENT, STATE])

    assert ("a", "b.*") == made.patterns
    assert frozenset({EVENT}) == made.kinds


@pytest.mark.parametrize(
    ("fields", "takes"),
    [
        ({}, True),
        ({"timestamp": 99}, False),
        ({"timestamp": 100}, True),
        ({"timestamp": 200}, True),
        ({"timestamp": 201}, False),
        ({"message_type": METADATA}, False),
        ({"target_node": "me"}, True),
        ({"target_node": "you"}, False),
    ],
)
def test_all_conditions_hold_together(fields: dict[str, Any], takes: bool) -> None:
    """Both times are inclusive; type and target have to fit as well."""
    asked = wanted(node_id="me", message_types=[EVENT], start_timestamp=100, end_timestamp=200)
    message = {"message_type": EVENT, "timestamp": 150, **fields}

    assert takes == asked.takes(transport_pb2.TransportMessage(**message))


def test_reading_begins_before_the_start_and_ends_after_the_end() -> None:
    """
    Clocks of senders may be ahead, so what was stored a little earlier counts; what was stored
    after the end does not, however late its message.
    """
    past = wanted(start_timestamp=1 + AHEAD_MS_MAX, end_timestamp=2 + AHEAD_MS_MAX)
    future = wanted(start_timestamp=1, end_timestamp=NOW_MS + 5)

    assert 1_000_000 == past.seek_ns
    assert 0 == future.seek_ns
    assert (False, True) == (past.is_past(NOW_MS), past.is_past(NOW_MS + 1))
    assert (False, True) == (future.is_past(NOW_MS + 5), future.is_past(NOW_MS + 6))
    assert not wanted().is_past(1 << 60)
