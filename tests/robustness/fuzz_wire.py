"""
Feed the parsers of bytes from strangers with mutations of good samples: nothing but typed refusals.

``python tests/robustness/fuzz_wire.py --inputs 10000000`` prints how many inputs were taken and
refused by each parser. The corpus is ``tests/data/wire``; a seed makes every run the same.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tidewire.errors import ProtocolViolation
from tidewire.wire.bodies import decode_goaway, decode_head, decode_hello
from tidewire.wire.datagram import (
    GOAWAY,
    HELLO,
    ONEWAY,
    OPENED,
    REQUEST,
    RESPONSE,
    WELCOME,
    decode_answer,
    decode_delivery,
    decode_greeting,
    decode_oneway,
    decode_opened,
    decode_request,
    parse_datagram,
)
from tidewire.wire.frame import FrameDecoder
from tidewire.wire.limits import FRAME_BYTES_MAX

CORPUS: Final = Path(__file__).parent.parent / "data" / "wire"
MUTATIONS_MAX: Final = 4
BYTES_MAX: Final = 2_000
_BOUNDARIES: Final = (0, 1, 0x7F, 0x80, 0xFF)

Parser = Callable[[bytes], None]


def frames(data: bytes) -> None:
    """Parse a stream of frames."""
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    decoder.feed(data)
    if decoder.violation is not None:
        raise decoder.violation


def from_client(data: bytes) -> None:
    """Parse a datagram as a server does, with its body."""
    kind, _, _, _, _, body = parse_datagram(data, from_client=True)
    if kind == HELLO:
        decode_greeting(body)
    elif kind == REQUEST:
        decode_head(decode_request(body).head)
    elif kind == ONEWAY:
        decode_head(decode_oneway(body).head)
    elif kind == GOAWAY:
        decode_goaway(body)


def from_server(data: bytes) -> None:
    """Parse a datagram as a client does, with its body."""
    kind, flags, _, _, _, body = parse_datagram(data, from_client=False)
    if kind == RESPONSE and flags & OPENED:
        decode_opened(body)
    elif kind == RESPONSE:
        decode_answer(flags, body)
    elif kind == WELCOME:
        decode_hello(body)
    elif kind == GOAWAY:
        decode_goaway(body)
    else:
        _delivery(body)


def _delivery(body: bytes) -> None:
    decode_delivery(body)


PARSERS: Final[tuple[tuple[str, Parser, Path], ...]] = (
    ("frames", frames, CORPUS),
    ("datagrams from clients", from_client, CORPUS / "datagrams"),
    ("datagrams from servers", from_server, CORPUS / "datagrams"),
)


def samples(folder: Path) -> list[bytes]:
    """Return the corpus of a parser."""
    paths = sorted(folder.glob("*.hex"))
    return [bytes.fromhex("".join(path.read_text("ascii").split())) for path in paths]


def mutate(data: bytearray, choose: random.Random, corpus: list[bytes]) -> None:
    """Change a sample a little: bits, bytes, boundaries, cuts, repeats, pieces of others."""
    for _ in range(choose.randrange(1, MUTATIONS_MAX + 1)):
        kind = choose.randrange(7)
        at = choose.randrange(len(data)) if data else 0
        if not data or kind == 0:
            data.insert(at, choose.randrange(256))
        elif kind == 1:
            data[at] ^= 1 << choose.randrange(8)
        elif kind == 2:
            data[at] = _BOUNDARIES[choose.randrange(len(_BOUNDARIES))]
        elif kind == 3:
            del data[at : at + choose.randrange(1, 9)]
        elif kind == 4:
            data[at:at] = data[at : at + choose.randrange(1, 17)]
        elif kind == 5:
            other = corpus[choose.randrange(len(corpus))]
            begin = choose.randrange(len(other))
            data[at : at + 8] = other[begin : begin + choose.randrange(1, 33)]
        else:
            del data[at:]
    del data[BYTES_MAX:]


def fuzz(parser: Parser, corpus: list[bytes], inputs: int, seed: int) -> Counter[str]:
    """
    Feed mutations to a parser.

    Returns:
        How many were taken and how many refused.

    Raises:
        Exception: Whatever the parser raised that is no ProtocolViolation; the input is on stderr.
    """
    choose = random.Random(seed)
    outcome: Counter[str] = Counter()
    for _ in range(inputs):
        data = bytearray(corpus[choose.randrange(len(corpus))])
        mutate(data, choose, corpus)
        given = bytes(data)
        try:
            parser(given)
        except ProtocolViolation:
            outcome["refused"] += 1
        except Exception:
            sys.stderr.write(f"{parser.__name__} failed on {given.hex()}\n")
            raise
        else:
            outcome["taken"] += 1
    return outcome


def main() -> None:
    """Run from the command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--inputs", type=int, default=100_000, help="for all parsers together")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    for name, parser, folder in PARSERS:
        corpus = samples(folder)
        begun_s = time.perf_counter()
        outcome = fuzz(parser, corpus, given.inputs // len(PARSERS), given.seed)
        took_s = time.perf_counter() - begun_s
        sys.stdout.write(
            f"{name}: {outcome.total()} inputs from {len(corpus)} samples in {took_s:.0f} s, "
            f"{outcome['taken']} taken, {outcome['refused']} refused\n"
        )


if __name__ == "__main__":
    main()
