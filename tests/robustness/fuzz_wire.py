"""
Feed the parsers of bytes from strangers with mutations of good samples: nothing but typed refusals.

    python tests/robustness/fuzz_wire.py --inputs 10000000             must find nothing
    python tests/robustness/fuzz_wire.py --inputs 100000 --control     must find every missing check

Prints how many inputs each target took and refused, and how many of a second. What is fed is in
`fuzz_targets`, the corpus in ``tests/data/wire``; a seed makes every run the same.
"""

import argparse
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent))

from robustness.fuzz_targets import TARGETS, Target
from tidewire.errors import TidewireError
from tidewire.wire.frame import HEADER, HEADER_BYTES, LENGTH_LEAST

MUTATIONS_MAX: Final = 4
BYTES_MAX: Final = 2_000
CALL_IDS: Final = 4
"""Retouched frames are of calls 0 to 3: that few calls meet each other."""
_BOUNDARIES: Final = (0, 1, 0x7F, 0x80, 0xFF)


class FaultFound(Exception):
    """A target raised what it must not; the message has the input."""


@dataclass(slots=True)
class Outcome:
    """What a target did with its inputs."""

    taken: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """By name of the error."""
    took_s: float = 0.0

    @property
    def inputs(self) -> int:
        """How many there were."""
        return self.taken + self.refused.total()


def sample(path: Path) -> bytes:
    """Return one sample."""
    return bytes.fromhex("".join(path.read_text("ascii").split()))


def samples(folder: Path) -> list[bytes]:
    """Return the corpus of a target."""
    return [sample(path) for path in sorted(folder.glob("*.hex"))]


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


@dataclass(frozen=True, slots=True)
class Corpus:
    """
    Samples of a target.

    Attributes:
        all: Those of its folder.
        honest: Those of them that it takes as they are.
        begins: What comes first, none of it, some of it, all of it.
    """

    all: list[bytes]
    honest: list[bytes]
    begins: list[bytes]

    @classmethod
    def of(cls, target: Target) -> "Corpus":
        """Read it."""
        every = samples(target.folder)
        begins = [b""]
        for name in target.begins:
            begins.append(begins[-1] + sample(target.folder / f"{name}.hex"))
        honest = [one for one in every if any(takes(target, first + one) for first in begins)]
        return cls(every, honest, begins)


def takes(target: Target, data: bytes) -> bool:
    """Say whether a target refuses nothing of it."""
    try:
        target.parse(data)
    except TidewireError:
        return False
    return True


def retouch(piece: bytes, choose: random.Random, corpus: list[bytes]) -> bytes:
    """Change the body, the call or the flags of a frame, and let its length be true."""
    _, kind, flags, priority, call_id = HEADER.unpack_from(piece)
    body = bytearray(piece[HEADER_BYTES:])
    if choose.randrange(4) == 0:
        mutate(body, choose, corpus)
    if choose.randrange(8) == 0:
        flags = choose.randrange(16)
    if choose.randrange(4) == 0:
        call_id = choose.randrange(CALL_IDS)
    return HEADER.pack(LENGTH_LEAST + len(body), kind, flags, priority, call_id) + body


def compose(target: Target, choose: random.Random, corpus: Corpus) -> bytes:
    """Return an input: samples one after the other, changed as bytes or as frames."""
    count = choose.randrange(1, target.pieces_max + 1)
    source = corpus.honest if choose.randrange(8) else corpus.all
    pieces = [source[choose.randrange(len(source))] for _ in range(count)]
    if target.pieces_max > 1 and choose.randrange(3):
        data = b"".join(
            retouch(piece, choose, source) if choose.randrange(2) else piece for piece in pieces
        )
    else:
        changed = bytearray().join(pieces)
        mutate(changed, choose, source)
        data = bytes(changed)
    first = corpus.begins[-1 if choose.randrange(4) else choose.randrange(len(corpus.begins))]
    return (first + data)[:BYTES_MAX]


def fuzz(target: Target, inputs: int, seed: int) -> Outcome:
    """
    Feed a target.

    Raises:
        FaultFound: It raised something that is no refusal.
    """
    choose = random.Random(seed)
    corpus = Corpus.of(target)
    outcome = Outcome()
    begun_s = time.perf_counter()
    for _ in range(inputs):
        given = compose(target, choose, corpus)
        try:
            target.parse(given)
        except TidewireError as error:
            outcome.refused[type(error).__name__] += 1
        except Exception as error:
            raise FaultFound(f"{target.name}: {error!r} on {given.hex()}") from error
        else:
            outcome.taken += 1
    outcome.took_s = time.perf_counter() - begun_s
    return outcome


def caught(target: Target, inputs: int, seed: int) -> bool:
    """Take a check out of a target, and say whether that was found."""
    try:
        with target.control():
            fuzz(target, inputs, seed)
    except FaultFound:
        return True
    return False


def run(target: Target, inputs: int, seed: int, *, control: bool) -> bool:
    """Feed a target, or its control, print what came of it, and say whether it is as it must be."""
    if control:
        found = caught(target, inputs, seed)
        sys.stdout.write(f"{target.name}: the missing check was {'' if found else 'NOT '}found\n")
        return found
    try:
        outcome = fuzz(target, inputs, seed)
    except FaultFound as fault:
        sys.stdout.write(f"FAULT in {fault}\n")
        return False
    refused = ", ".join(f"{count} {name}" for name, count in outcome.refused.most_common())
    sys.stdout.write(
        f"{target.name}: {outcome.inputs} inputs in {outcome.took_s:.0f} s, "
        f"{outcome.taken} taken, refused: {refused}\n"
    )
    sys.stdout.flush()
    return True


def main() -> int:
    """Run from the command line; exit code 1 when something is not as it must be."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    options.add_argument("--inputs", type=int, default=100_000, help="for all targets together")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", default="", help="targets whose name contains this")
    options.add_argument("--control", action="store_true", help="without one check each")
    given = options.parse_args()
    targets = [target for target in TARGETS if given.only in target.name]
    each = given.inputs // max(1, len(targets))
    good = [run(target, each, given.seed, control=given.control) for target in targets]
    return 0 if good and all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
