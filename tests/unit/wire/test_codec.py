"""Codecs: the formats are the public ones, and limits are judged before work is done."""

import os
import shutil
import subprocess
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lz4.block
import lz4.frame
import pytest
import snappy
import zstandard

from tidewire.errors import BodyCorrupt, CodecUnsupported, MessageTooLarge
from tidewire.v1 import common_pb2
from tidewire.wire.codec import (
    COMPRESS_BYTES_MIN,
    CodecName,
    codec_of,
    codecs_installed,
    compress,
    decompress,
    name_of,
    shrink,
)

LIMIT = 1 << 20
TEXT = b"the tide goes out, the tide comes in; " * 400
PACKED: list[CodecName] = [common_pb2.CODEC_LZ4, common_pb2.CODEC_SNAPPY, common_pb2.CODEC_ZSTD]
SAMPLES = [b"", b"a", TEXT, os.urandom(5_000), bytes(300_000)]


def zstd_without_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


@pytest.mark.parametrize("codec", [common_pb2.CODEC_NONE, *PACKED])
@pytest.mark.parametrize("data", SAMPLES, ids=len)
def test_what_is_compressed_comes_back(codec: CodecName, data: bytes) -> None:
    """Every codec gives back what it took, at exactly the limit too."""
    packed = compress(codec, data)

    assert data == decompress(codec, packed, len(data), len(data))


@pytest.mark.parametrize(
    ("codec", "tool"), [(common_pb2.CODEC_LZ4, "lz4"), (common_pb2.CODEC_ZSTD, "zstd")]
)
def test_the_formats_are_those_of_the_tools(codec: CodecName, tool: str, tmp_path: Path) -> None:
    """The command line tool of the format reads ours, and we read its."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.write_bytes(TEXT)
    ours.write_bytes(compress(codec, TEXT))

    read = subprocess.run([tool, "-d", "-c", ours], capture_output=True, check=True).stdout
    theirs = subprocess.run([tool, "-c", plain], capture_output=True, check=True).stdout

    assert TEXT == read
    assert TEXT == decompress(codec, theirs, len(TEXT), LIMIT)


def test_the_formats_are_those_of_the_libraries() -> None:
    """Each library reads ours by its plain call."""
    assert TEXT == lz4.frame.decompress(compress(common_pb2.CODEC_LZ4, TEXT))
    assert TEXT == snappy.uncompress(compress(common_pb2.CODEC_SNAPPY, TEXT))
    assert TEXT == zstandard.decompress(compress(common_pb2.CODEC_ZSTD, TEXT))


@pytest.mark.parametrize("codec", PACKED)
def test_bombs_are_refused_with_little_memory(codec: CodecName) -> None:
    """A body of 64 MiB in a few kilobytes is refused, and next to no memory was taken for it."""
    bomb = compress(codec, bytes(64 << 20))
    decompress(codec, compress(codec, TEXT), len(TEXT), LIMIT)

    tracemalloc.start()
    try:
        with pytest.raises(MessageTooLarge):
            decompress(codec, bomb, 64 << 20, LIMIT)
        with pytest.raises((BodyCorrupt, MessageTooLarge)):
            decompress(codec, bomb, LIMIT, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 4 * LIMIT


@pytest.mark.parametrize("codec", [common_pb2.CODEC_NONE, *PACKED])
@pytest.mark.parametrize("wrong_by", [-1, 1])
def test_a_false_size_is_refused(codec: CodecName, wrong_by: int) -> None:
    """The result must have exactly the size that was stated."""
    packed = compress(codec, TEXT)

    with pytest.raises(BodyCorrupt):
        decompress(codec, packed, len(TEXT) + wrong_by, LIMIT)


@pytest.mark.parametrize("codec", PACKED)
def test_what_follows_a_frame_is_refused(codec: CodecName) -> None:
    """Trailing bytes, and a second frame, are errors."""
    packed = compress(codec, TEXT)

    for tail in (b"\0", b"tail", packed):
        with pytest.raises(BodyCorrupt):
            decompress(codec, packed + tail, len(TEXT), LIMIT)


@pytest.mark.parametrize("codec", PACKED)
def test_a_frame_cut_anywhere_is_refused(codec: CodecName) -> None:
    """No prefix of a frame is taken for a whole one."""
    data = TEXT[:700]
    packed = compress(codec, data)

    for cut in range(len(packed)):
        with pytest.raises(BodyCorrupt):
            decompress(codec, packed[:cut], len(data), LIMIT)


def test_zstd_must_state_its_size_and_a_modest_window() -> None:
    """A frame without content size, or with a window over 8 MiB, is refused."""
    with pytest.raises(BodyCorrupt, match="content size"):
        decompress(common_pb2.CODEC_ZSTD, zstd_without_size(TEXT), len(TEXT), LIMIT)
    # Frame header written by hand: not a single segment, window 2**27, content size 100 (8 bytes).
    wide = bytes.fromhex("28b52ffd") + bytes([0xC0, (27 - 10) << 3]) + (100).to_bytes(8, "little")
    with pytest.raises(BodyCorrupt, match="window"):
        decompress(common_pb2.CODEC_ZSTD, wide + bytes(16), 100, LIMIT)


def test_a_bare_lz4_block_is_not_a_frame() -> None:
    """The block format is another format."""
    with pytest.raises(BodyCorrupt):
        decompress(common_pb2.CODEC_LZ4, lz4.block.compress(TEXT), len(TEXT), LIMIT)


def test_compression_is_only_kept_when_it_helps() -> None:
    """Noise and short data are sent as they are, and say so."""
    noise = os.urandom(5_000)

    assert (common_pb2.CODEC_NONE, noise) == shrink(common_pb2.CODEC_ZSTD, noise)
    short = b"a" * (COMPRESS_BYTES_MIN - 1)
    assert (common_pb2.CODEC_NONE, short) == shrink(common_pb2.CODEC_LZ4, short)
    codec, packed = shrink(common_pb2.CODEC_LZ4, TEXT)
    assert common_pb2.CODEC_LZ4 == codec
    assert len(packed) < len(TEXT)


def test_unknown_codecs_are_errors() -> None:
    """Neither a name nor a number that is not known is replaced by another codec."""
    with pytest.raises(CodecUnsupported):
        codec_of("brotli")
    with pytest.raises(CodecUnsupported):
        decompress(77, b"x", 1, LIMIT)  # type: ignore[arg-type]  # a number of the future
    assert [common_pb2.CODEC_NONE, *PACKED] == list(codecs_installed())
    assert ["lz4", "snappy", "zstd"] == [name_of(codec) for codec in PACKED]
    assert common_pb2.CODEC_NONE == codec_of(None)


def test_contexts_are_never_shared_between_threads() -> None:
    """Many threads at once get back what they put in."""

    def turn(number: int) -> bool:
        data = bytes([number % 251]) * 20_000 + os.urandom(200)
        packed = compress(common_pb2.CODEC_ZSTD, data)
        return data == decompress(common_pb2.CODEC_ZSTD, packed, len(data), LIMIT)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(turn, range(400)))
