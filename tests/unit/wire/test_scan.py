"""Requests are judged on their bytes before protobuf builds objects of them."""

import pytest
from google.protobuf import struct_pb2

from tidewire.errors import MalformedRequest, MessageTooLarge
from tidewire.v1 import checkpoint_pb2, common_pb2, event_pb2, state_pb2
from tidewire.wire.scan import FIELDS_MAX, OVERHEAD_BYTES_MAX, check_request_size, count_fields

MIB = 1 << 20


def publish(batch: common_pb2.Batch) -> bytes:
    item = event_pb2.PublishItem(publish_id=1, request=event_pb2.PublishRequest(batch=batch))
    return event_pb2.PublishStreamRequest(publish=item).SerializeToString()


STREAM = event_pb2.PublishStreamRequest.DESCRIPTOR


def test_a_large_payload_passes() -> None:
    """10 MiB of payload is not overhead, however deep it sits."""
    check_request_size(
        publish(common_pb2.Batch(subject="a", body=bytes(10 * MIB))), descriptor=STREAM
    )
    flat = event_pb2.PublishRequest(batch=common_pb2.Batch(body=bytes(10 * MIB)))
    check_request_size(flat.SerializeToString())


def test_many_payloads_pass() -> None:
    """A transaction of many values is judged by what is beside them."""
    puts = [
        state_pb2.PutRequest(key=f"k{i}", value=common_pb2.Payload(data=bytes(50_000)))
        for i in range(128)
    ]
    request = state_pb2.TransactRequest(then=[state_pb2.StateOperation(put=put) for put in puts])

    check_request_size(request.SerializeToString(), descriptor=state_pb2.TransactRequest.DESCRIPTOR)


@pytest.mark.parametrize(
    "request_",
    [
        checkpoint_pb2.CommitRequest(positions=[checkpoint_pb2.Position()] * 100_000),
        checkpoint_pb2.CommitRequest(outputs=[event_pb2.PublishRequest()] * 300_000),
        checkpoint_pb2.CommitRequest(operator="x" * (OVERHEAD_BYTES_MAX + 1)),
    ],
    ids=["positions", "outputs", "long text"],
)
def test_overhead_is_refused(request_: checkpoint_pb2.CommitRequest) -> None:
    """What becomes many objects, or is long without being payload, is refused."""
    data = request_.SerializeToString()

    with pytest.raises(MessageTooLarge):
        check_request_size(data, descriptor=request_.DESCRIPTOR)


def test_overhead_below_other_messages_is_refused() -> None:
    """A bomb inside of the only field of a request is found."""
    data = publish(common_pb2.Batch(message_ids=[""] * 200_000))

    with pytest.raises(MessageTooLarge):
        check_request_size(data, descriptor=STREAM)
    check_request_size(data)  # control: without the type nobody can know


def test_fields_are_counted_and_the_scan_stops_early() -> None:
    """The number of fields has its own limit, and nothing is read behind it."""
    data = common_pb2.PayloadList(payload=[b""] * (FIELDS_MAX + 1)).SerializeToString()
    broken_tail = data + b"\xff"

    with pytest.raises(MessageTooLarge, match="fields"):
        check_request_size(broken_tail, descriptor=common_pb2.PayloadList.DESCRIPTOR)
    assert 3 == count_fields(data[:6], 3)
    with pytest.raises(MessageTooLarge):
        count_fields(data[:8], 3)


@pytest.mark.parametrize(
    "tail",
    [b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x0a", b"\xff" * 11, b"\x09\0", b"\x0d\0"],
    ids=["too long", "group", "no length", "endless number", "short fixed64", "short fixed32"],
)
def test_what_is_no_protobuf_is_refused(tail: bytes) -> None:
    """Broken bytes behind a good payload are an error of the request."""
    data = common_pb2.Payload(data=bytes(300_000)).SerializeToString()

    with pytest.raises(MalformedRequest):
        check_request_size(data + tail, descriptor=common_pb2.Payload.DESCRIPTOR)


def test_endless_nesting_is_refused() -> None:
    """A message that nests deeper than any real one is cut off."""
    # ListValue.values(1) holds Value.list_value(6): the tags alternate.
    deep = b""
    for level in range(80):
        tag = b"\x0a" if level % 2 else b"\x32"
        size = len(deep)
        length = bytearray()
        while size > 0x7F:
            length.append(size & 0x7F | 0x80)
            size >>= 7
        length.append(size)
        deep = tag + bytes(length) + deep

    with pytest.raises(MalformedRequest, match="deeper"):
        check_request_size(deep, 0, struct_pb2.ListValue.DESCRIPTOR)
