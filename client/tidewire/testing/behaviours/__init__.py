"""The behaviours, in the order of the report."""

from typing import Final

from tidewire.testing.behaviour import Behaviour, found
from tidewire.testing.behaviours import endings, flow, life, metadata, shapes, trust

_ORDER: Final = [
    module.__name__.rpartition(".")[2] for module in (shapes, metadata, endings, flow, life, trust)
]
BEHAVIOURS: Final[tuple[Behaviour, ...]] = tuple(
    sorted(found(), key=lambda behaviour: _ORDER.index(behaviour.group))
)

__all__ = ["BEHAVIOURS"]
