"""What an EventFlux message may be, and how its payload is read and answered."""

import os
from typing import Any

import lz4.frame
import pytest
import snappy
import zstandard

from support.eventflux import message, now_ms
from support.live_fake_engine import make_core
from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire.v1 import common_pb2
from tidewire.wire.codec import compress
from tidewire_server.core import ServiceLimits
from tidewire_server.services.eventflux.messages import (
    AHEAD_MS_MAX,
    HEADERS_TAKEN_MAX,
    Reader,
    Writer,
)

LIMIT = 64 * 1024
COMPRESSORS = {
    "LZ4": lz4.frame.compress,
    "SNAPPY": snappy.compress,
    "ZSTD": zstandard.compress,
}
each_codec = pytest.mark.parametrize("compression", COMPRESSORS)


def reader(**options: Any) -> Reader:
    return Reader(make_core(limits=ServiceLimits(payload_bytes_max=LIMIT)), **options)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "x" * 65),
        ("priority", -1),
        ("priority", 10),
        ("timestamp", -1),
        ("source_node", "x" * 257),
        ("target_node", "x" * 257),
        ("headers", {str(number): "" for number in range(HEADERS_TAKEN_MAX + 1)}),
        ("message_type", 0),
        ("message_type", 8),
        ("message_type", 9),
    ],
)
async def test_what_cannot_be_is_refused_by_name(field: str, value: Any) -> None:
    """Each field has its bounds, and the error names the field; control: without it all is well."""
    await reader().read(message("EVENT"))
    with pytest.raises(errors.InvalidArgument) as caught:
        await reader().read(message("EVENT", **{field: value}))

    assert [field] == list(caught.value.fields)


async def test_a_clock_may_be_ahead_a_little() -> None:
    """Five minutes are taken, more is refused; the past is anybody's."""
    near, far = now_ms() + AHEAD_MS_MAX - 60_000, now_ms() + AHEAD_MS_MAX + 60_000
    read = await reader().read(message("EVENT", timestamp=near))
    with pytest.raises(errors.InvalidArgument, match="5 min"):
        await reader().read(message("EVENT", timestamp=far))

    assert near == read.time_ms
    assert 1 == (await reader().read(message("EVENT", timestamp=1))).time_ms
    assert abs((await reader().read(message("EVENT", timestamp=0))).time_ms - now_ms()) < 60_000


async def test_fields_stand_over_headers() -> None:
    """Where both are there the field counts; EventFlux's client fills fields from headers."""
    headers = {"source_node": "h", "target_node": "h"}
    both = await reader().read(message("EVENT", b"", headers, source_node="f", target_node=""))

    assert ("f", "h") == (both.source_node, both.target_node)


async def test_an_id_is_made_where_none_is() -> None:
    """Messages without one can be told apart, and not be repeated."""
    first, second = [await reader().read(message("EVENT", id="")) for _ in range(2)]

    assert first.id != second.id
    assert not first.is_named
    assert (await reader().read(message("EVENT"))).is_named


@each_codec
async def test_payloads_are_decompressed(compression: str) -> None:
    """Each codec in the format that is written down."""
    data = os.urandom(1000) + b"x" * 10_000
    packed = COMPRESSORS[compression](data)
    read = await reader().read(message("EVENT", packed, compression=compression))

    assert data == read.payload
    assert f"CODEC_{compression}" == common_pb2.Codec.Name(read.codec)


@each_codec
async def test_a_payload_is_what_it_says(compression: str) -> None:
    """Raw bytes under a codec's name, and another codec's frame, are refused."""
    others = [make(b"data" * 100) for name, make in COMPRESSORS.items() if name != compression]
    for payload in (b"raw bytes", b"", *others):
        with pytest.raises((errors.BodyCorrupt, errors.MessageTooLarge)):
            await reader().read(message("EVENT", payload, compression=compression))


@each_codec
async def test_bombs_are_refused(compression: str) -> None:
    """A byte over the limit is too much; control: at the limit it is taken."""
    make = COMPRESSORS[compression]
    with pytest.raises(errors.MessageTooLarge):
        await reader().read(message("EVENT", make(bytes(LIMIT + 1)), compression=compression))
    with pytest.raises(errors.MessageTooLarge):
        await reader().read(message("EVENT", bytes(LIMIT + 1)))

    read = await reader().read(message("EVENT", make(bytes(LIMIT)), compression=compression))
    assert LIMIT == len(read.payload)


async def test_a_codec_the_server_does_not_use_is_refused() -> None:
    """Codecs of the configuration hold here too."""
    core = make_core(codecs=(common_pb2.CODEC_NONE, common_pb2.CODEC_LZ4))
    with pytest.raises(errors.CodecUnsupported):
        await Reader(core).read(message("EVENT", zstandard.compress(b"x"), compression="ZSTD"))
    unknown = message("EVENT", b"x")
    unknown.compression = 4  # type: ignore[assignment]  # of a later version
    with pytest.raises(errors.CodecUnsupported):
        await Reader(core).read(unknown)
    taken = await Reader(core).read(message("EVENT", lz4.frame.compress(b"x"), compression="LZ4"))

    assert b"x" == taken.payload


async def test_only_zstd_may_be_mislabelled() -> None:
    """The option takes what EventFlux's client sends, and nothing else that is wrong."""
    tolerant = reader(accept_mislabelled_zstd=True)
    taken = await tolerant.read(message("EVENT", b"raw", compression="ZSTD"))
    empty = await tolerant.read(message("EVENT", b"", compression="ZSTD"))
    for compression in ("LZ4", "SNAPPY"):
        with pytest.raises((errors.BodyCorrupt, errors.MessageTooLarge)):
            await tolerant.read(message("EVENT", b"raw bytes", compression=compression))

    assert (b"raw", common_pb2.CODEC_NONE) == (taken.payload, taken.codec)
    assert b"" == empty.payload


@pytest.mark.parametrize("stored", ["NONE", *COMPRESSORS])
@pytest.mark.parametrize("asked", ["NONE", *COMPRESSORS])
async def test_an_answer_is_compressed_as_its_request(stored: str, asked: str) -> None:
    """However the value is kept; a codec is named only when the bytes are compressed with it."""
    value = b"value " * 1000
    codec = common_pb2.Codec.Value(f"CODEC_{stored}")
    payload = common_pb2.Payload(
        codec=codec, data=compress(codec, value), raw_size=len(value) if stored != "NONE" else 0
    )
    make = COMPRESSORS.get(asked, bytes)
    request = await reader().read(message("QUERY", make(b"q"), compression=asked))
    core = make_core()
    answer = await Writer(core).reply(request, {}, transport_pb2.MESSAGE_TYPE_QUERY, payload)
    again = await Reader(core).read(answer)

    assert f"COMPRESSION_TYPE_{asked}" == transport_pb2.CompressionType.Name(answer.compression)
    assert value == again.payload
    assert (len(answer.payload) < len(value)) == (asked != "NONE")


async def test_what_does_not_shrink_is_not_called_compressed() -> None:
    """A small answer to a compressed request is plain, and says so."""
    request = await reader().read(message("QUERY", zstandard.compress(b"q"), compression="ZSTD"))
    payload = common_pb2.Payload(data=b"small")
    answer = await Writer(make_core()).reply(request, {}, transport_pb2.MESSAGE_TYPE_QUERY, payload)

    assert transport_pb2.COMPRESSION_TYPE_NONE == answer.compression
    assert b"small" == answer.payload
