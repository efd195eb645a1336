"""Codecs over every wire: bytes shrink, the codec's library opens them, lies are refused."""

import os
import zlib

import cramjam
import lz4.frame
import pytest
import zstandard

import tidewire
from support.server import Running
from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2, event_pb2_grpc
from tidewire.wire.batch import encode_payloads

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = [f'{{"city": "oslo", "hour": {hour}, "temperature": -3}}'.encode() for hour in range(2_000)]
RANDOM = [os.urandom(1_000) for _ in range(50)]
OPENERS = {
    "lz4": (common_pb2.CODEC_LZ4, lz4.frame.decompress),
    "snappy": (common_pb2.CODEC_SNAPPY, lambda data: bytes(cramjam.snappy.decompress_raw(data))),
    "zstd": (common_pb2.CODEC_ZSTD, lambda data: zstandard.ZstdDecompressor().decompress(data)),
}
"""How each codec's own library opens a body."""


async def captured(
    server: Running, wire: str, codec: str | None, name: str, payloads: list[bytes]
) -> list[common_pb2.Batch]:
    """Publish with a codec into a stream, check what arrives, and fetch the batches as stored."""
    url, tls = server.url(wire), server.tls(wire)
    async with tidewire.connect(url, tls=tls, compression=codec) as client:
        await client.events.stream(name).create([f"{name}.>"])
        await client.events.publish_many(f"{name}.x", payloads)
        async with client.events.read(name, start="all") as messages:
            assert payloads == [(await messages.next(timeout_s=20)).payload for _ in payloads]
        stub = event_pb2_grpc.EventServiceStub(client.channel)
        request = event_pb2.FetchRequest(messages_max=10_000)
        request.ordered.stream = name
        request.ordered.start.all = True
        response = await stub.Fetch(request, timeout=20)
    return [delivery.batch for delivery in response.deliveries]


@pytest.mark.needs("large")
@pytest.mark.parametrize("codec", sorted(OPENERS))
async def test_a_body_shrinks_and_opens_with_the_codecs_own_library(
    server: Running, wire: str, codec: str, name: str
) -> None:
    """What is stored is smaller, and is exactly what the named format says."""
    number, opens = OPENERS[codec]
    payloads: list[bytes] = []
    for batch in await captured(server, wire, codec, name, TEXT):
        assert number == batch.codec
        assert 3 * len(batch.body) < batch.raw_size
        raw = opens(batch.body)
        assert batch.raw_size == len(raw)
        payloads += common_pb2.PayloadList.FromString(raw).payload

    assert payloads == TEXT


@pytest.mark.needs("large")
@pytest.mark.parametrize("codec", [*sorted(OPENERS), None])
async def test_what_does_not_shrink_travels_as_it_is(
    server: Running, wire: str, codec: str | None, name: str
) -> None:
    """A body says it is compressed only when it is."""
    for batch in await captured(server, wire, codec, name, RANDOM):
        assert common_pb2.CODEC_NONE == batch.codec
        assert len(batch.body) == batch.raw_size


async def test_fewer_bytes_reach_a_raw_wire(server: Running, name: str) -> None:
    """The wire's own counters see the difference, which is more than threefold."""
    counters = server.server.listeners.raw["tcp"].counters
    taken = []
    for codec in (None, "zstd"):
        before = counters.bytes_in
        async with tidewire.connect(server.url("tcp"), compression=codec) as client:
            await client.events.publish_many(f"{name}.x", TEXT)
        taken.append(counters.bytes_in - before)

    assert 3 * taken[1] < taken[0]


async def test_an_unknown_codec_and_a_false_size_are_refused(
    client: tidewire.Client, name: str
) -> None:
    """A server that never opens bodies still refuses what cannot be."""
    stub = event_pb2_grpc.EventServiceStub(client.channel)
    for field, value in (("codec", 9), ("raw_size", 7)):
        batch = encode_payloads(f"{name}.x", [b"abc"])
        setattr(batch, field, value)
        with pytest.raises(Exception, match=r"(?i)codec|raw_size") as raised:
            await stub.Publish(event_pb2.PublishRequest(batch=batch), timeout=20)
        assert "INVALID_ARGUMENT" in str(raised.value)


async def test_a_body_that_lies_is_refused_by_who_reads(client: tidewire.Client, name: str) -> None:
    """Zlib's bytes under zstd's name: the reader says so, and reads on."""
    stub = event_pb2_grpc.EventServiceStub(client.channel)
    async with client.events.subscribe(f"{name}.x") as messages:
        batch = encode_payloads(f"{name}.x", [b"abc"])
        batch.codec = common_pb2.CODEC_ZSTD
        batch.body = zlib.compress(batch.body)
        from crc32c import crc32c

        batch.crc32c = crc32c(batch.body)
        await stub.Publish(event_pb2.PublishRequest(batch=batch), timeout=20)
        await client.events.publish(f"{name}.x", b"good")
        message = await messages.next(timeout_s=20)

        assert (b"good", 1) == (message.payload, messages.corrupt)


async def test_a_codec_the_server_does_not_allow_is_a_typed_error(client: tidewire.Client) -> None:
    """A name nobody knows is refused before anything is sent."""
    with pytest.raises(errors.TidewireError):
        client.events.publisher(compression="brotli")
