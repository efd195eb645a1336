"""A stream put back in order: what is delivered again may overtake what is delivered first."""

from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class InOrder(Generic[ItemT]):
    """
    Give out the messages of a whole stream in the order of their sequences, each once.

    What waits is bounded by the consumer's ``ack_pending_max``: more is not delivered before the
    first of them is settled.

    Attributes:
        position: Everything up to this sequence was given out.
    """

    def __init__(self, position: int) -> None:
        self.position = position
        self._waiting: dict[int, ItemT] = {}

    def put(self, sequence: int, item: ItemT) -> None:
        """Take in a message; one that was given out before is dropped."""
        if sequence > self.position:
            self._waiting[sequence] = item

    def pop(self) -> ItemT | None:
        """The message whose turn it is; ``None`` when it has not come yet."""
        item = self._waiting.pop(self.position + 1, None)
        if item is not None:
            self.position += 1
        return item
