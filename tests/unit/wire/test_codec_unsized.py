"""Decompression of frames whose sender states no size: bounded before, during and after."""

import os
import tracemalloc
from collections.abc import Callable

import lz4.frame
import pytest
import snappy
import zstandard

from tidewire.errors import BodyCorrupt, CodecUnsupported, MessageTooLarge
from tidewire.v1 import common_pb2
from tidewire.wire.codec import decompress_unsized

LIMIT = 1 << 20
MIB = 1 << 20
Compress = Callable[[bytes], bytes]


def zstd_unsized(data: bytes) -> bytes:
    """A frame that does not state its content size, as streaming encoders make it."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(data) + stream.flush()


def lz4_unsized(data: bytes) -> bytes:
    """A frame that does not state its content size."""
    packed: bytes = lz4.frame.compress(data, store_size=False)
    return packed


FORMATS: dict[str, tuple[common_pb2.Codec.ValueType, Compress]] = {
    "lz4": (common_pb2.CODEC_LZ4, lz4.frame.compress),
    "lz4-unsized": (common_pb2.CODEC_LZ4, lz4_unsized),
    "snappy": (common_pb2.CODEC_SNAPPY, snappy.compress),
    "zstd": (common_pb2.CODEC_ZSTD, zstandard.compress),
    "zstd-unsized": (common_pb2.CODEC_ZSTD, zstd_unsized),
}
each_format = pytest.mark.parametrize(("codec", "compress"), FORMATS.values(), ids=FORMATS)


@each_format
@pytest.mark.parametrize("size", [0, 1, 1000, LIMIT - 1, LIMIT])
def test_it_comes_back(codec: common_pb2.Codec.ValueType, compress: Compress, size: int) -> None:
    """Up to the limit, whatever it consists of."""
    data = (os.urandom(size // 2) + b"x" * size)[:size]

    assert data == decompress_unsized(codec, compress(data), LIMIT)


@each_format
def test_more_than_the_limit_is_refused(
    codec: common_pb2.Codec.ValueType, compress: Compress
) -> None:
    """One byte too much is too much; control: without it the same is taken."""
    with pytest.raises(MessageTooLarge):
        decompress_unsized(codec, compress(b"x" * (LIMIT + 1)), LIMIT)

    assert LIMIT == len(decompress_unsized(codec, compress(b"x" * LIMIT), LIMIT))


@each_format
def test_what_is_no_whole_frame_is_refused(
    codec: common_pb2.Codec.ValueType, compress: Compress
) -> None:
    """Cut anywhere, with something behind it, or something else altogether."""
    whole = compress(os.urandom(5000))
    cut = [whole[:length] for length in (0, 1, 4, 7, len(whole) // 2, len(whole) - 1)]
    for broken in (*cut, whole + b"x", whole + whole, b"\xff" * 40):
        with pytest.raises((BodyCorrupt, MessageTooLarge)):
            decompress_unsized(codec, broken, LIMIT)


@each_format
def test_a_bomb_costs_little(codec: common_pb2.Codec.ValueType, compress: Compress) -> None:
    """
    256 MiB of zeros with a limit of 1 MiB: a few limits of memory at most.
    Control: with a limit that allows it, it takes all of it.
    """
    size = 256 * MIB
    bomb = compress(bytes(size))
    tracemalloc.start()
    with pytest.raises(MessageTooLarge):
        decompress_unsized(codec, bomb, LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    assert size == len(decompress_unsized(codec, bomb, size))
    _, peak_allowed = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 16 * MIB
    assert peak_allowed >= size


def test_a_large_window_is_refused() -> None:
    """A frame that makes its reader keep more than 8 MiB is not read."""
    parameters = zstandard.ZstdCompressionParameters(window_log=25)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = stream.compress(b"x" * 1000) + stream.flush()
    with pytest.raises(BodyCorrupt):
        decompress_unsized(common_pb2.CODEC_ZSTD, frame, LIMIT)


def test_plain_and_unknown() -> None:
    """No codec means the data itself, within the limit; one that nobody knows is refused."""
    assert b"abc" == decompress_unsized(common_pb2.CODEC_NONE, b"abc", 3)
    with pytest.raises(MessageTooLarge):
        decompress_unsized(common_pb2.CODEC_NONE, b"abcd", 3)
    with pytest.raises(CodecUnsupported):
        decompress_unsized(9, b"abc", 3)  # type: ignore[arg-type]  # of a later version
