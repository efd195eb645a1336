"""One message of each kind, byte by byte: what is stored and sent today must be read for ever."""

from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from tidewire.v1 import (
    checkpoint_pb2,
    common_pb2,
    control_pb2,
    event_pb2,
    heartbeat_pb2,
    query_pb2,
    state_pb2,
)

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "messages"

BATCH = common_pb2.Batch(
    subject="weather.oslo",
    codec=common_pb2.CODEC_NONE,
    form=common_pb2.BODY_FORM_PAYLOADS,
    count=2,
    raw_size=8,
    crc32c=0x1B2A3C4D,
    body=b"\x0a\x02-3\x0a\x02-4",
    producer_id="p1",
    producer_epoch=1,
    producer_sequence=7,
    message_ids=["a", "b"],
    signature=b"\x00\x01",
    signature_key_id="k",
    selected=[common_pb2.IndexRange(first=0, last=1)],
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)
PAYLOAD = common_pb2.Payload(
    codec=common_pb2.CODEC_NONE,
    raw_size=2,
    data=b"hi",
    header=[common_pb2.Header(key="k", value=b"v")],
    content_type="text/plain",
)

SAMPLES: dict[str, Message] = {
    "event": event_pb2.PublishRequest(
        batch=BATCH,
        durability=common_pb2.DURABILITY_FSYNC,
        expected_stream="weather",
        expected_last_sequence=41,
    ),
    "query": query_pb2.AskRequest(subject="prices.gold", payload=PAYLOAD, request_id="r1"),
    "state": state_pb2.PutRequest(
        key="config/limit",
        value=PAYLOAD,
        expected_revision=0,
        ttl=Duration(seconds=5),
        lease=state_pb2.LeaseRef(node_id="n", fencing_token=3),
        request_id="r2",
        durability=common_pb2.DURABILITY_OS,
    ),
    "control": control_pb2.SendRequest(
        command_id="c1",
        target=control_pb2.Target(group="pumps"),
        verb="pause",
        arguments=PAYLOAD,
        expiry=Duration(seconds=30),
    ),
    "heartbeat": heartbeat_pb2.BeatRequest(
        node_id="n",
        incarnation=2,
        status=heartbeat_pb2.NodeStatus(
            health=heartbeat_pb2.NODE_HEALTH_HEALTHY,
            cpu_cores=0.5,
            memory_bytes=1 << 20,
            connections=0,
            events_per_second=2.5,
            version="1",
            labels={"zone": "a"},
        ),
    ),
    "checkpoint": checkpoint_pb2.CommitRequest(
        operator="daily",
        epoch=4,
        expected_revision=3,
        inline=b"state",
        digest=bytes(range(32)),
        positions=[checkpoint_pb2.Position(stream="weather", consumer="c", through=9)],
        outputs=[event_pb2.PublishRequest(batch=BATCH)],
        compare=[state_pb2.Compare(key="a", revision=1)],
        state_operations=[
            state_pb2.StateOperation(put=state_pb2.PutRequest(key="a", value=PAYLOAD))
        ],
        request_id="r3",
        note="nightly",
    ),
}


def golden(kind: str) -> bytes:
    """The bytes of a kind, written as hexadecimal with line breaks anywhere."""
    return bytes.fromhex((GOLDEN / f"{kind}.hex").read_text())


def test_there_is_one_sample_for_each_kind() -> None:
    """No kind is forgotten, and no file is left over."""
    assert sorted(SAMPLES) == sorted(path.stem for path in GOLDEN.glob("*.hex"))


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_a_kind_is_written_as_ever(kind: str) -> None:
    """The sample of today has the bytes of the first version."""
    assert golden(kind) == SAMPLES[kind].SerializeToString(deterministic=True)


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_a_kind_is_read_as_ever(kind: str) -> None:
    """The bytes of the first version mean what they meant, with nothing unknown in them."""
    sample = SAMPLES[kind]
    read = type(sample).FromString(golden(kind))

    assert sample == read
    assert len(golden(kind)) == read.ByteSize()


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_fields_of_a_later_version_are_let_through(kind: str) -> None:
    """A field nobody knows yet does no harm, and is kept when the message is passed on."""
    later = golden(kind) + b"\xfa\x7f\x03new"  # field 2047, length-delimited

    assert later == type(SAMPLES[kind]).FromString(later).SerializeToString(deterministic=True)
