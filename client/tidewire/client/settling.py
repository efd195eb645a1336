"""Confirmed acknowledgements: which answer of the server is for which caller."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from tidewire.client.acks import AckBuffer
from tidewire.errors import TidewireError
from tidewire.errors import from_status as error_of
from tidewire.v1 import event_pb2

UNANSWERED_MAX = 16
"""Acks on their way before more of them wait, and grow together, in the buffer."""


@dataclass(slots=True)
class _Confirmation:
    first: int
    last: int
    future: asyncio.Future[None]


class Settlements:
    """
    Acks of one subscription: gathered, sent, answered.

    Attributes:
        failed: Items the server refused.
        last_failure: The latest refusal.
    """

    def __init__(self) -> None:
        self.buffer = AckBuffer()
        self.failed = 0
        self.last_failure: TidewireError | None = None
        self._ack_id = 0
        self._sent: dict[int, list[event_pb2.AckItem]] = {}
        self._confirming: dict[int, list[_Confirmation]] = {}
        self._waiting: list[_Confirmation] = []

    @property
    def busy(self) -> bool:
        """Something is not confirmed."""
        return bool(self.buffer or self._sent)

    def confirm(self, first: int, last: int) -> asyncio.Future[None]:
        """Return a future of the answer to what is in the buffer for this range."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        confirmation = _Confirmation(first, last, future)
        if self.buffer:
            self._waiting.append(confirmation)
        elif self._sent:
            self._confirming.setdefault(max(self._sent), []).append(confirmation)
        else:
            future.set_result(None)
        return future

    def take(self) -> event_pb2.Ack | None:
        """Return the next ack to send; ``None`` when there is none, or enough are on their way."""
        if not self.buffer or len(self._sent) >= UNANSWERED_MAX:
            return None
        self._ack_id += 1
        items = self.buffer.take()
        self._sent[self._ack_id] = items
        if not self.buffer and self._waiting:
            self._confirming[self._ack_id] = self._waiting
            self._waiting = []
        return event_pb2.Ack(ack_id=self._ack_id, items=items)

    def answered(self, result: event_pb2.AckResult) -> None:
        """Take the server's answer to an ack."""
        items = self._sent.pop(result.ack_id, [])
        refused: list[tuple[event_pb2.AckItem, TidewireError]] = []
        for failure in result.failed:
            error = error_of(failure.status)
            self.failed += 1
            self.last_failure = error
            if failure.index < len(items):
                refused.append((items[failure.index], error))
        for confirmation in self._confirming.pop(result.ack_id, ()):
            _tell(confirmation, refused)

    def broken(self) -> None:
        """Put back what was sent and not answered: it goes again on the next call."""
        for ack_id in sorted(self._sent, reverse=True):
            self.buffer.put_back(self._sent[ack_id])
            self._waiting[:0] = self._confirming.pop(ack_id, ())
        self._sent.clear()

    def give_up(self, error: TidewireError) -> None:
        """Tell who still waits that no answer comes."""
        left = [*self._waiting, *(c for group in self._confirming.values() for c in group)]
        for confirmation in left:
            if not confirmation.future.done():
                confirmation.future.set_exception(error)
        self._waiting.clear()
        self._confirming.clear()


def _tell(
    confirmation: _Confirmation, refused: Iterable[tuple[event_pb2.AckItem, TidewireError]]
) -> None:
    if confirmation.future.done():
        return
    for item, error in refused:
        if item.range.first <= confirmation.last and item.range.last >= confirmation.first:
            confirmation.future.set_exception(error)
            return
    confirmation.future.set_result(None)
