"""The JavaScript client's decompressors, against what the libraries of Python compress."""

import base64
import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import lz4.frame
import snappy
import zstandard

from support.node import CLIENT, node
from tidewire.v1.common_pb2 import CODEC_LZ4, CODEC_SNAPPY, CODEC_ZSTD

LIMIT_S: Final = 120
LEVELS: Final = (-5, 1, 3, 9, 19)
DAMAGED: Final = 2_000
Case = tuple[int, bytes, bytes]


def texts() -> Iterator[bytes]:
    """Nothing, short, repetitive, random, skewed, like JSON, and larger than a block."""
    chance = random.Random(7)
    yield from (b"", b"a", b"abc" * 1000, bytes(300_000))
    yield chance.randbytes(200_000)
    yield bytes(chance.choices(range(200), weights=[1 / (n + 1) for n in range(200)], k=70_000))
    yield json.dumps([{"id": n, "value": chance.random()} for n in range(5_000)]).encode()


def cases() -> Iterator[Case]:
    """Codec, compressed, text."""
    for text in texts():
        for level in LEVELS:
            compressor = zstandard.ZstdCompressor(level=level, write_checksum=level == 3)
            yield CODEC_ZSTD, compressor.compress(text), text
        for linked in (False, True):
            packed = lz4.frame.compress(
                text, block_linked=linked, content_checksum=linked, block_checksum=not linked
            )
            yield CODEC_LZ4, packed, text
        yield CODEC_SNAPPY, snappy.compress(text), text


def decompress(asked: list[tuple[int, bytes, int]]) -> list[bytes | str]:
    """Return what JavaScript makes of it: bytes, or the name of the error."""
    lines = (
        json.dumps([codec, base64.b64encode(data).decode(), size]) for codec, data, size in asked
    )
    script = str(Path(__file__).with_name("codecs.mjs"))
    done = subprocess.run(
        [*node(), script, (CLIENT / "codecs.js").as_uri()],
        input="\n".join(lines), capture_output=True, text=True, timeout=LIMIT_S, check=True,
    )  # fmt: skip
    answers = done.stdout.split("\n")[: len(asked)]
    return [line[1:] if line.startswith("!") else base64.b64decode(line) for line in answers]


def test_what_libraries_compress() -> None:
    """Every text comes back, whatever the codec, level and shape of the frame."""
    known = list(cases())
    got = decompress([(codec, packed, len(text)) for codec, packed, text in known])

    assert [len(text) for _, _, text in known] == [len(each) for each in got]
    assert all(text == each for (_, _, text), each in zip(known, got, strict=True))


def test_declared_sizes_hold() -> None:
    """A byte more or less than was declared is an error; what bursts is stopped at its size."""
    asked = [
        (codec, packed, len(text) + off)
        for codec, packed, text in cases()
        for off in (-1, 1)
        if len(text) > 1
    ]

    assert {"RangeError"} == set(decompress(asked))


def test_damage_ends() -> None:
    """Damaged and cut bytes end in an error of range or in other bytes of the declared size."""
    chance = random.Random(11)
    small = [case for case in cases() if 0 < len(case[1]) < 40_000]
    asked = []
    for _ in range(DAMAGED):
        codec, packed, text = chance.choice(small)
        damaged = bytearray(packed[: chance.randint(1, len(packed))])
        for _ in range(chance.randint(0, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        asked.append((codec, bytes(damaged), len(text)))
    got = decompress(asked)

    assert DAMAGED == len(got)
    wrong = [each for each in got if isinstance(each, str) and each != "RangeError"]
    assert [] == wrong
