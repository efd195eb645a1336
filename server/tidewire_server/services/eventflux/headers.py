"""Headers of an EventFlux message that the server reads, each with its bounds."""

from collections.abc import Mapping
from typing import Final

from tidewire.errors import InvalidArgument
from tidewire.v1 import common_pb2

DURABILITIES: Final = {
    "memory": common_pb2.DURABILITY_MEMORY,
    "os": common_pb2.DURABILITY_OS,
    "fsync": common_pb2.DURABILITY_FSYNC,
    "quorum": common_pb2.DURABILITY_QUORUM,
}
_WORDS: Final = {level: word for word, level in DURABILITIES.items()}
NUMBER_DIGITS_MAX: Final = 20


def bad_header(name: str, why: str) -> InvalidArgument:
    """Make the error for a header that cannot be."""
    return InvalidArgument(f"header {name!r} {why}", fields={f"headers[{name}]": why})


def number(
    headers: Mapping[str, str], name: str, *, least: int = 0, most: int = (1 << 63) - 1
) -> int | None:
    """A whole number between two bounds; ``None`` when the header is absent."""
    text = headers.get(name)
    if text is None:
        return None
    rule = f"must be a whole number of {least} to {most}"
    if not (text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX):
        raise bad_header(name, f"is {text[:40]!r}; it {rule}")
    value = int(text)
    if not least <= value <= most:
        raise bad_header(name, f"is {value}; it {rule}")
    return value


def choice(headers: Mapping[str, str], name: str, *words: str) -> str:
    """One of some words; the first when the header is absent."""
    word = headers.get(name, words[0])
    if word not in words:
        raise bad_header(name, f"is {word[:40]!r}; it must be one of {', '.join(words)}")
    return word


def durability(headers: Mapping[str, str]) -> common_pb2.Durability.ValueType:
    """The level that is asked for; DURABILITY_UNSPECIFIED when the header is absent."""
    if "durability" not in headers:
        return common_pb2.DURABILITY_UNSPECIFIED
    return DURABILITIES[choice(headers, "durability", *DURABILITIES)]


def durability_word(level: common_pb2.Durability.ValueType) -> str:
    """A level as answers say it: "memory", "os", "fsync" or "quorum"."""
    return _WORDS.get(level, "")
