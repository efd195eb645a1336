"""
The four codecs of bodies and values, with the limit judged before any work is done.

Formats are those of ``Codec`` in ``common.proto``: an LZ4 frame, raw Snappy, one Zstandard frame
that states its content size. Libraries are imported on first use; one that is missing makes its
codec unsupported, never silently another one.
"""

from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, TypeAlias

from tidewire.errors import BodyCorrupt, CodecUnsupported, InvalidArgument, MessageTooLarge
from tidewire.v1 import common_pb2

CodecName: TypeAlias = common_pb2.Codec.ValueType

COMPRESS_BYTES_MIN: Final = 256
"""Data shorter than this is not worth the header of a frame: compression is not tried."""
ZSTD_LEVEL: Final = 1
ZSTD_WINDOW_BYTES_MAX: Final = 8 * 1024 * 1024
CONTEXTS_KEPT_MAX: Final = 8
"""Zstandard contexts of each kind kept for reuse; making one costs about 10 us and 600 KiB."""
SNAPPY_HEADER_BYTES_MAX: Final = 5
PART_BYTES: Final = 256 * 1024
"""What is decompressed at once where the size of the whole is not known."""

_MODULES: Final = {
    common_pb2.CODEC_LZ4: "lz4.frame",
    common_pb2.CODEC_SNAPPY: "snappy",
    common_pb2.CODEC_ZSTD: "zstandard",
}
_NAMES: Final[dict[str, CodecName]] = {
    "none": common_pb2.CODEC_NONE,
    "lz4": common_pb2.CODEC_LZ4,
    "snappy": common_pb2.CODEC_SNAPPY,
    "zstd": common_pb2.CODEC_ZSTD,
}
# Contexts are taken out and put back, so that no two threads ever use one; a deque's ends are safe
# to use from several threads.
_compressors: deque[Any] = deque(maxlen=CONTEXTS_KEPT_MAX)
_decompressors: deque[Any] = deque(maxlen=CONTEXTS_KEPT_MAX)


def codec_of(name: str | None) -> CodecName:
    """
    Return the codec of a name: "lz4", "snappy", "zstd", "none" or ``None``.

    Raises:
        CodecUnsupported: There is no such codec, or its library is not installed.
    """
    codec = _NAMES.get(name or "none")
    if codec is None:
        raise CodecUnsupported(f"there is no codec {name!r}; there are {', '.join(_NAMES)}")
    if codec != common_pb2.CODEC_NONE:
        _library(codec)
    return codec


def name_of(codec: CodecName) -> str:
    """Name of a codec, such as "zstd"; its number when it is unknown."""
    for name, number in _NAMES.items():
        if number == codec:
            return name
    return "none" if codec == common_pb2.CODEC_UNSPECIFIED else str(int(codec))


def codecs_installed() -> tuple[CodecName, ...]:
    """Codecs whose library is there, CODEC_NONE first."""
    found: list[CodecName] = [common_pb2.CODEC_NONE]
    for codec in _MODULES:
        try:
            _library(codec)
        except CodecUnsupported:
            continue
        found.append(codec)
    return tuple(found)


def compress(codec: CodecName, data: bytes) -> bytes:
    """
    Return the data in the format of the codec, also when that is not smaller.

    Raises:
        CodecUnsupported: The codec is unknown or its library is not installed.
    """
    if codec in (common_pb2.CODEC_UNSPECIFIED, common_pb2.CODEC_NONE):
        return data
    work = _COMPRESS.get(codec)
    if work is None:
        raise _unknown(codec)
    return work(_library(codec), data)


def shrink(codec: CodecName, data: bytes) -> tuple[CodecName, bytes]:
    """Compress when it pays; the codec returned is CODEC_NONE when the result is not smaller."""
    if codec <= common_pb2.CODEC_NONE or len(data) < COMPRESS_BYTES_MIN:
        return common_pb2.CODEC_NONE, data
    packed = compress(codec, data)
    return (codec, packed) if len(packed) < len(data) else (common_pb2.CODEC_NONE, data)


def decompress(codec: CodecName, data: bytes, raw_size: int, limit: int) -> bytes:
    """
    Return what was compressed, having refused what cannot be right before any work.

    Args:
        codec: How `data` is compressed.
        data: One whole frame; bytes after it are an error.
        raw_size: Size of the result in bytes, as the sender states it.
        limit: Largest `raw_size` taken, in bytes. Memory stays within a few times this.

    Raises:
        MessageTooLarge: `raw_size`, or the size in the frame, is over the limit.
        BodyCorrupt: The data does not decompress to exactly `raw_size` bytes.
        CodecUnsupported: The codec is unknown or its library is not installed.
    """
    if raw_size > limit:
        raise _too_large(raw_size, limit)
    if codec in (common_pb2.CODEC_UNSPECIFIED, common_pb2.CODEC_NONE):
        result = data
    else:
        work = _DECOMPRESS.get(codec)
        if work is None:
            raise _unknown(codec)
        result = work(_library(codec), data, raw_size, limit)
    if len(result) != raw_size:
        raise BodyCorrupt(f"the data has {len(result)} bytes, its sender states {raw_size}")
    return result


def decompress_unsized(codec: CodecName, data: bytes, limit: int) -> bytes:
    """
    Return what was compressed by a sender that does not state its size; memory stays within a few
    times the limit whatever the data says.

    Args:
        codec: How `data` is compressed.
        data: One whole frame; bytes after it are an error. A Zstandard frame need not state its
            content size here.
        limit: Largest result taken, in bytes.

    Raises:
        MessageTooLarge: The result would be over the limit.
        BodyCorrupt: The data is not one whole frame of this codec.
        CodecUnsupported: The codec is unknown or its library is not installed.
    """
    if codec == common_pb2.CODEC_LZ4:
        return _decompress_lz4_unsized(_library(codec), data, limit)
    if codec == common_pb2.CODEC_SNAPPY:
        return decompress(codec, data, _snappy_size(data), limit)
    if codec == common_pb2.CODEC_ZSTD:
        return _decompress_zstd_unsized(_library(codec), data, limit)
    return decompress(codec, data, len(data), limit)


def _compress_lz4(library: Any, data: bytes) -> bytes:
    packed: bytes = library.compress(data)
    return packed


def _compress_snappy(library: Any, data: bytes) -> bytes:
    packed: bytes = library.compress(data)
    return packed


def _compress_zstd(library: Any, data: bytes) -> bytes:
    try:
        context = _compressors.pop()
    except IndexError:
        context = library.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True)
    packed: bytes = context.compress(data)
    _compressors.append(context)
    return packed


def _decompress_lz4(library: Any, data: bytes, raw_size: int, _limit: int) -> bytes:
    context = library.LZ4FrameDecompressor()
    try:
        result: bytes = context.decompress(data, max_length=raw_size + 1)
    except (RuntimeError, EOFError) as error:
        raise BodyCorrupt(f"{len(data)} bytes are not an LZ4 frame: {error}") from error
    if len(result) > raw_size:
        raise BodyCorrupt(f"an LZ4 frame holds more than the {raw_size} bytes its sender states")
    if not context.eof or context.unused_data:
        raise BodyCorrupt("an LZ4 frame is cut short, or something follows it")
    return result


def _decompress_lz4_unsized(library: Any, data: bytes, limit: int) -> bytes:
    context = library.LZ4FrameDecompressor()
    parts: list[bytes] = []
    total, part_bytes = 0, PART_BYTES
    rest = data
    try:
        while not context.eof:
            part = context.decompress(rest, max_length=min(part_bytes, limit + 1 - total))
            parts.append(part)
            total += len(part)
            if total > limit:
                raise _too_large(total, limit, "at least ")
            if not part and not context.eof:
                break  # it waits for more, and there is none
            # The library copies what is left at every step: few large steps.
            rest, part_bytes = b"", 2 * part_bytes
    except (RuntimeError, EOFError) as error:
        raise BodyCorrupt(f"{len(data)} bytes are not an LZ4 frame: {error}") from error
    if not context.eof or context.unused_data:
        raise BodyCorrupt("an LZ4 frame is cut short, or something follows it")
    return b"".join(parts)


def _decompress_snappy(library: Any, data: bytes, raw_size: int, limit: int) -> bytes:
    declared = _snappy_size(data)
    if declared > limit:
        raise _too_large(declared, limit)
    if declared != raw_size:
        raise BodyCorrupt(f"a Snappy body states {declared} bytes, its sender {raw_size}")
    try:
        result: bytes = library.uncompress(data)
    except library.UncompressError as error:
        raise BodyCorrupt(f"{len(data)} bytes are not raw Snappy") from error
    return result


def _snappy_size(data: bytes) -> int:
    size = 0
    for index in range(min(len(data), SNAPPY_HEADER_BYTES_MAX)):
        size |= (data[index] & 0x7F) << (7 * index)
        if data[index] < 0x80:
            return size
    raise BodyCorrupt(f"{len(data)} bytes do not begin with the size of raw Snappy")


def _decompress_zstd_unsized(library: Any, data: bytes, limit: int) -> bytes:
    frame = _zstd_frame(library, data)
    if frame.content_size != library.CONTENTSIZE_UNKNOWN:
        return _decompress_zstd(library, data, frame.content_size, limit)
    _check_window(frame.window_size, 0)
    # Counted first, in parts that are thrown away: only then is it known to fit. A frame that does
    # not state its size is work for two.
    context = library.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
    try:
        with context.stream_reader(data) as reader:
            total = 0
            while part := reader.read(PART_BYTES):
                total += len(part)
                if total > limit:
                    raise _too_large(total, limit, "at least ")
        whole = context.decompressobj()
        result: bytes = whole.decompress(data)
    except library.ZstdError as error:
        raise BodyCorrupt(f"{len(data)} bytes are not one whole Zstandard frame") from error
    if not whole.eof or whole.unused_data:
        raise BodyCorrupt("a Zstandard frame is cut short, or something follows it")
    return result


def _zstd_frame(library: Any, data: bytes) -> Any:
    try:
        return library.get_frame_parameters(data)
    except library.ZstdError as error:
        raise BodyCorrupt(f"{len(data)} bytes are not a Zstandard frame") from error


def _check_window(window_bytes: int, raw_size: int) -> None:
    # A frame of a single segment has its content for a window and needs no other memory.
    if window_bytes > max(ZSTD_WINDOW_BYTES_MAX, raw_size):
        raise BodyCorrupt(
            f"a frame wants a window of {window_bytes} bytes, at most {ZSTD_WINDOW_BYTES_MAX} are "
            "given"
        )


def _decompress_zstd(library: Any, data: bytes, raw_size: int, limit: int) -> bytes:
    frame = _zstd_frame(library, data)
    if frame.content_size == library.CONTENTSIZE_UNKNOWN:
        raise BodyCorrupt("a Zstandard frame does not state its content size; it must")
    if frame.content_size > limit:
        raise _too_large(frame.content_size, limit)
    if frame.content_size != raw_size:
        raise BodyCorrupt(f"a frame states {frame.content_size} bytes, its sender {raw_size}")
    _check_window(frame.window_size, raw_size)
    try:
        context = _decompressors.pop()
    except IndexError:
        context = library.ZstdDecompressor()
    try:
        result: bytes = context.decompress(data, max_output_size=raw_size, allow_extra_data=False)
    except library.ZstdError as error:
        raise BodyCorrupt(f"{len(data)} bytes are not one whole Zstandard frame") from error
    _decompressors.append(context)
    return result


def _library(codec: CodecName) -> Any:
    library = _libraries.get(codec)
    if library is None:
        name = _MODULES.get(codec)
        if name is None:
            raise _unknown(codec)
        try:
            library = _libraries[codec] = import_module(name)
        except ImportError as error:
            raise CodecUnsupported(
                f"codec {name_of(codec)} needs the package {name.partition('.')[0]}, "
                "which is not installed here"
            ) from error
    return library


def _unknown(codec: CodecName) -> CodecUnsupported:
    return CodecUnsupported(f"codec {int(codec)} is unknown here; known are {', '.join(_NAMES)}")


def _too_large(size: int, limit: int, about: str = "") -> MessageTooLarge:
    if limit < 0:
        raise InvalidArgument(f"a limit of {limit} bytes cannot be")
    return MessageTooLarge(
        f"a body has {about}{size} bytes decompressed, the limit is {limit}",
        metadata={"bytes": size, "bytes_max": limit},
    )


_libraries: dict[CodecName, Any] = {}
_COMPRESS: Final[dict[CodecName, Callable[[Any, bytes], bytes]]] = {
    common_pb2.CODEC_LZ4: _compress_lz4,
    common_pb2.CODEC_SNAPPY: _compress_snappy,
    common_pb2.CODEC_ZSTD: _compress_zstd,
}
_DECOMPRESS: Final[dict[CodecName, Callable[[Any, bytes, int, int], bytes]]] = {
    common_pb2.CODEC_LZ4: _decompress_lz4,
    common_pb2.CODEC_SNAPPY: _decompress_snappy,
    common_pb2.CODEC_ZSTD: _decompress_zstd,
}
