"""Metadata: with the request, before the answer, after it."""

from typing import Any

from tidewire.testing.behaviour import behaviour, expect
from tidewire.testing.site import Site, decoded


async def _round(site: Site, given: tuple[tuple[str, Any], ...], body: bytes = b"") -> None:
    call = site.unary("Metadata", body, metadata=given)
    first = list(await call.initial_metadata())
    answer = decoded(await call)
    last = list(await call.trailing_metadata())
    shown = [[key, it.hex() if isinstance(it, bytes) else it] for key, it in given]
    expect(shown, answer, "what the handler saw")
    for name, metadata in (("first", first), ("last", last)):
        wanted = [(f"{name}-{key}", it) for key, it in given]
        kept = [(key, it) for key, it in metadata if key.startswith(f"{name}-kit-")]
        expect(wanted, kept, f"the {name} metadata")


@behaviour()
async def text_metadata(site: Site) -> None:
    """Text travels with the request, before the answer and after it."""
    await _round(site, (("kit-color", "blue"), ("kit-empty", "")))


@behaviour()
async def binary_metadata(site: Site) -> None:
    """Keys that end in -bin carry any bytes."""
    await _round(site, (("kit-raw-bin", b"\x00\x01\xff\n"), ("kit-all-bin", bytes(range(128)))))


@behaviour()
async def repeated_metadata(site: Site) -> None:
    """A key may be there several times; order and values stay."""
    await _round(site, (("kit-a", "1"), ("kit-a", "2"), ("kit-a", "1")))
