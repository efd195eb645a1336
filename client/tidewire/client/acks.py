"""Acknowledgements of one loop turn, put together into ranges. No I/O."""

from dataclasses import dataclass
from typing import Final

from tidewire.errors import InvalidArgument
from tidewire.v1 import common_pb2, event_pb2

ACK_ITEMS_MAX: Final = 1_024
REASON_BYTES_MAX: Final = 1_024

DONE: Final = event_pb2.SETTLEMENT_DONE
RETRY: Final = event_pb2.SETTLEMENT_RETRY
EXTEND: Final = event_pb2.SETTLEMENT_EXTEND
TERMINATE: Final = event_pb2.SETTLEMENT_TERMINATE


@dataclass(slots=True)
class _Run:
    first: int
    last: int
    attempt: int


class AckBuffer:
    """
    Settlements waiting to be sent.

    Done messages of one attempt that follow each other become one range, whatever the order in
    which they were acknowledged; the rest goes item by item. What is for one message keeps its
    order.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._others: list[event_pb2.AckItem] = []

    def __bool__(self) -> bool:
        return bool(self._runs or self._others)

    def done(self, first: int, last: int, attempt: int) -> None:
        """Settle sequences `first` to `last`, both included, as processed."""
        runs = self._runs
        if runs:
            run = runs[-1]
            if run.last + 1 == first and run.attempt == attempt:
                run.last = last
                return
        runs.append(_Run(first, last, attempt))

    def other(
        self,
        sequence: int,
        attempt: int,
        settlement: event_pb2.Settlement.ValueType,
        *,
        delay_s: float | None = None,
        reason: str = "",
    ) -> None:
        """Settle one sequence otherwise: again later, more time, or never again."""
        item = event_pb2.AckItem(
            range=common_pb2.SequenceRange(first=sequence, last=sequence),
            settlement=settlement,
            attempt=attempt,
            reason=reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore"),
        )
        if delay_s is not None:
            if not 0.0 <= delay_s < 1e9:
                raise InvalidArgument(f"a delay of {delay_s} s cannot be")
            item.delay.FromNanoseconds(int(delay_s * 1e9))
        self._others.append(item)

    def take(self) -> list[event_pb2.AckItem]:
        """Take up to `ACK_ITEMS_MAX` items; those that extend go first."""
        items = self._others[:ACK_ITEMS_MAX]
        del self._others[: len(items)]
        runs = _merge(self._runs)
        room = ACK_ITEMS_MAX - len(items)
        for run in runs[:room]:
            item = event_pb2.AckItem(settlement=DONE, attempt=run.attempt)
            item.range.first = run.first
            item.range.last = run.last
            items.append(item)
        self._runs = runs[room:]
        return items

    def put_back(self, items: list[event_pb2.AckItem]) -> None:
        """Take back items that were not sent."""
        self._others[:0] = items

    def clear(self) -> None:
        """Drop everything."""
        self._runs.clear()
        self._others.clear()


def _merge(runs: list[_Run]) -> list[_Run]:
    if len(runs) < 2:
        return runs
    merged: list[_Run] = []
    for run in sorted(runs, key=lambda run: (run.attempt, run.first)):
        last = merged[-1] if merged else None
        if last is not None and last.attempt == run.attempt and run.first <= last.last + 1:
            last.last = max(last.last, run.last)
        else:
            merged.append(run)
    return merged
