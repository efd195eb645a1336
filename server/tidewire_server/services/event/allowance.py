"""What a subscriber is ready to take: totals that only grow, on both sides."""

from tidewire.v1 import common_pb2


class Allowance:
    """
    Credit of one subscriber, as totals since it was opened.

    Nothing is delivered without credit of both kinds. Where a batch cannot be cut it may go over by
    one batch.
    """

    __slots__ = ("_bytes", "_bytes_until", "_messages", "_messages_until")

    def __init__(self, credit: common_pb2.Credit | None = None) -> None:
        self._messages = self._bytes = 0
        self._messages_until = self._bytes_until = 0
        if credit is not None:
            self.grow(credit)

    def grow(self, credit: common_pb2.Credit) -> None:
        """Take new totals; lower ones than before change nothing."""
        self._messages_until = max(self._messages_until, credit.messages_until)
        self._bytes_until = max(self._bytes_until, credit.bytes_until)

    @property
    def is_open(self) -> bool:
        """Whether something may be delivered."""
        return self._messages < self._messages_until and self._bytes < self._bytes_until

    @property
    def messages_left(self) -> int:
        """Messages that may be delivered now."""
        return max(0, self._messages_until - self._messages) if self.is_open else 0

    def take(self, messages: int, body_bytes: int) -> None:
        """Count a delivery."""
        self._messages += messages
        self._bytes += body_bytes
