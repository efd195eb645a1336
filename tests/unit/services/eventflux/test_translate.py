"""EventFlux events as batches, and batches of anybody as EventFlux events."""

import os
from typing import Any

import pytest
import zstandard

from support.eventflux import message, name_of
from support.live_fake_engine import make_core
from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import check_batch, encode_messages, encode_payloads
from tidewire_server.core import ServiceLimits
from tidewire_server.services.eventflux.messages import Reader, TransportMessage
from tidewire_server.services.eventflux.translate import from_delivery, to_batch

LIMITS = ServiceLimits()
TIME_NS = 1_700_000_000_000_000_000


async def batch_of(*arguments: Any, **fields: Any) -> common_pb2.Batch:
    batch = common_pb2.Batch()
    await to_batch(await Reader(make_core()).read(message(*arguments, **fields)), batch)
    check_batch(batch, LIMITS)
    return batch


async def messages_of(
    batch: common_pb2.Batch, *included: tuple[int, int], stream: str = "s", first: int = 1
) -> list[TransportMessage]:
    delivery = event_pb2.Delivery(batch=batch, stream=stream, first_sequence=first)
    delivery.time.FromNanoseconds(TIME_NS)
    for low, high in included:
        delivery.included.add(first=low, last=high)
    return list(await from_delivery(delivery, LIMITS.payload_bytes_max))


@pytest.mark.parametrize("kind", ["EVENT", "METADATA"])
@pytest.mark.parametrize("size", [0, 10, 1_000_000])
async def test_a_message_survives_the_way_through_a_batch(kind: str, size: int) -> None:
    """Everything a reader of EventFlux is to see, and nothing of ours beside it."""
    headers = {
        "stream": "a.b",
        "source_node": "n1",
        "target_node": "n2",
        "priority": "7",
        "k": "\xe9",
    }
    sent = message(kind, os.urandom(size), headers)
    (got,) = await messages_of(
        await batch_of(kind, sent.payload, headers, id=sent.id, timestamp=sent.timestamp)
    )

    assert sent == got


async def test_a_compressed_message_is_kept_compressed() -> None:
    """The batch's body is smaller, and says so; what does not shrink is kept as it is."""
    data = b"x" * 10_000
    here = {"stream": "a"}
    packed = await batch_of("EVENT", zstandard.compress(data), here, compression="ZSTD")
    tiny = await batch_of("EVENT", zstandard.compress(b"x"), here, compression="ZSTD")
    (got,) = await messages_of(packed)

    assert common_pb2.CODEC_ZSTD == packed.codec
    assert len(packed.body) < 500
    assert common_pb2.CODEC_NONE == tiny.codec
    assert data == got.payload


async def test_an_id_identifies_only_when_the_client_gave_it() -> None:
    """One made by the server would make no repetition known, and is not kept."""
    assert [] == list((await batch_of("EVENT", id="")).message_ids)
    assert ["x"] == list((await batch_of("EVENT", id="x")).message_ids)


async def test_subjects_have_a_default_and_a_rule() -> None:
    """A name that is no subject is refused, never changed."""
    assert "eventflux.event" == (await batch_of("EVENT")).subject
    assert "eventflux.metadata" == (await batch_of("METADATA")).subject
    assert "x.y" == (await batch_of("EVENT", b"", {"subject": "x.y"})).subject
    for name in ("Stock Stream", "a..b", "a.>", "*"):
        with pytest.raises(errors.InvalidSubject):
            await batch_of("EVENT", b"", {"stream": name})


async def test_only_what_is_delivered_becomes_messages() -> None:
    """Of a batch of many: those selected when it was stored, those included now; with their ids."""
    batch = encode_payloads("a", [str(number).encode() for number in range(10)])
    batch.selected.add(first=2, last=4)
    batch.selected.add(first=7, last=9)
    every = await messages_of(batch, first=100)
    some = await messages_of(batch, (101, 101), (103, 104), first=100)

    assert [b"2", b"3", b"4", b"7", b"8", b"9"] == [m.payload for m in every]
    assert [f"s/{sequence}" for sequence in range(100, 106)] == [m.id for m in every]
    assert [(b"3", "s/101"), (b"7", "s/103"), (b"8", "s/104")] == [(m.payload, m.id) for m in some]
    assert {TIME_NS // 1_000_000} == {m.timestamp for m in every}


async def test_headers_of_others_are_taken_as_far_as_they_go() -> None:
    """Values that are no text, fields that are no numbers, and keys that come twice."""
    headers = [
        ("priority", b"abc"),
        ("eventflux-timestamp", b"9" * 40),
        ("eventflux-message-type", b"CONTROL"),
        ("raw", b"\xff\x00"),
        ("twice", b"1"),
        ("twice", b"2"),
    ]
    (got,) = await messages_of(encode_messages("a", [(b"x", headers)]))

    assert ("EVENT", 5, TIME_NS // 1_000_000) == (
        name_of(got.message_type),
        got.priority,
        got.timestamp,
    )
    assert {"priority": "abc", "raw-bin": "/wA=", "twice": "2", "stream": "a"} == dict(got.headers)


async def test_a_body_that_is_not_what_it_says_is_an_error() -> None:
    """Nobody looked into it before: count, codec and form may all be untrue."""
    batch = encode_payloads("a", [b"1", b"2"])
    batch.count = 3
    with pytest.raises(errors.BodyCorrupt):
        await messages_of(batch)
    batch.count, batch.codec = 2, common_pb2.CODEC_ZSTD
    with pytest.raises(errors.BodyCorrupt):
        await messages_of(batch)
