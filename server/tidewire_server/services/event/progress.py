"""
Storing the progress of a durable consumer.

One commit at a time for each consumer: acknowledgements that arrive while one is under way share
the next. What is given up goes to the dead-letter stream in the same transaction that settles it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tidewire.errors import DataCorrupt, StreamNotFound, TidewireError
from tidewire.v1 import common_pb2, event_pb2
from tidewire_server.core import Core
from tidewire_server.engine.base import Append, Settle, StoredBatch, Transaction
from tidewire_server.services.event.delivery import dead_letter, narrowed
from tidewire_server.services.event.ledger import ConsumerLedger
from tidewire_server.services.event.runs import Run, Unsaved
from tidewire_server.services.event.signal import Signal

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0
"""Wait after a commit was refused (full, paused)."""
DELIVERIES_SAVE_S: Final = 1.0
"""How long the number of deliveries may go unstored when nothing is settled."""
DEAD_LETTERS_MAX: Final = 64
DEAD_LETTER_BYTES_MAX: Final = 8 * 1024 * 1024
"""Most dead letters, and bytes of their bodies, in one transaction; one always goes."""

Answer = Callable[[event_pb2.AckResult], None]


@dataclass(frozen=True, slots=True)
class _Waiter:
    ack: event_pb2.Ack
    failed: Sequence[common_pb2.ItemResult]
    answer: Answer

    def resolve(
        self,
        durability: common_pb2.Durability.ValueType,
        settle_error: TidewireError | None,
        record_error: TidewireError | None,
    ) -> None:
        failed = {result.index: result for result in self.failed}
        for index, item in enumerate(self.ack.items):
            error = settle_error
            if item.settlement == event_pb2.SETTLEMENT_TERMINATE and record_error is not None:
                error = record_error
            if error is not None and index not in failed:
                failed[index] = common_pb2.ItemResult(index=index, status=error.to_status())
        self.answer(
            event_pb2.AckResult(
                ack_id=self.ack.ack_id,
                failed=[failed[index] for index in sorted(failed)],
                durability=durability,
            )
        )


class ProgressSaver:
    """Stores what a ledger says, and answers acknowledgements when it is stored."""

    def __init__(
        self, core: Core, stream: str, config: event_pb2.ConsumerConfig, ledger: ConsumerLedger
    ) -> None:
        self.signal = Signal()
        self._core = core
        self._stream = stream
        self._config = config
        self._ledger = ledger
        self._waiters: list[_Waiter] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether everything is stored and answered."""
        ledger = self._ledger
        return not (self._waiters or ledger.has_unsaved or ledger.has_unsaved_deliveries)

    def answer_when_stored(
        self, ack: event_pb2.Ack, failed: Sequence[common_pb2.ItemResult], answer: Answer
    ) -> None:
        """Answer an acknowledgement, already applied to the ledger, when it is stored."""
        self._waiters.append(_Waiter(ack, failed, answer))
        self.signal.set()

    def note(self) -> None:
        """Something happened to the ledger: store it now, or soon when it is only deliveries."""
        ledger = self._ledger
        if ledger.has_unsaved or (ledger.has_given_up and self._timer is None):
            self.signal.set()
        elif self._timer is None and ledger.has_unsaved_deliveries:
            self._wake_later(DELIVERIES_SAVE_S)

    async def run(self) -> None:
        """Store and answer until cancelled."""
        while True:
            await self.signal.wait()
            await self.save()

    async def save(self) -> None:
        """Store what there is and answer those who waited for it."""
        waiters, self._waiters = self._waiters, []
        record_error = await self._record_given_up()
        ledger = self._ledger
        durability: common_pb2.Durability.ValueType = common_pb2.DURABILITY_MEMORY
        settle_error: TidewireError | None = None
        if ledger.has_unsaved or ledger.has_unsaved_deliveries:
            level = self._level if ledger.has_unsaved else common_pb2.DURABILITY_OS
            unsaved = ledger.take_unsaved()
            try:
                durability = await self._store(unsaved, min(level, self._level))
            except TidewireError as error:
                settle_error = error
                ledger.put_back(unsaved)
                self._wake_later(RETRY_S)
        if record_error is not None:
            self._wake_later(RETRY_S)
        for waiter in waiters:
            waiter.resolve(durability, settle_error, record_error)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def _level(self) -> common_pb2.Durability.ValueType:
        config = self._core.engine.stream_config(self._stream)
        if config is None or not config.durability:
            return common_pb2.DURABILITY_FSYNC
        return config.durability

    async def _store(
        self, unsaved: Unsaved, level: common_pb2.Durability.ValueType
    ) -> common_pb2.Durability.ValueType:
        settle = Settle(
            self._stream,
            self._config.name,
            settled=unsaved.settled,
            attempts=unsaved.attempts,
            delivered_through=unsaved.delivered_through,
            given_up=unsaved.given_up,
        )
        committed = await self._core.engine.commit(Transaction(durability=level, settles=(settle,)))
        return committed.durability

    async def _record_given_up(self) -> TidewireError | None:
        """Store dead letters until none is left, or storing them is refused."""
        while self._ledger.has_given_up:
            runs = self._ledger.take_given_up(DEAD_LETTERS_MAX)
            if not self._config.dead_letter_stream:
                for run in runs:
                    self._drop(run)
                continue
            try:
                await self._store_letters(runs)
            except StreamNotFound:
                for run in runs:
                    self._drop(run)
            except TidewireError as error:
                for run in runs:
                    self._ledger.postpone(run)
                return error
        return None

    def _drop(self, run: Run) -> None:
        self._ledger.drop(run)
        self._core.counters.add("events_given_up", run.count)
        log.warning(
            "messages %d to %d of stream %s given up by consumer %s: %s",
            run.first, run.last, self._stream, self._config.name, run.reason,
        )  # fmt: skip

    async def _store_letters(self, runs: Sequence[Run]) -> None:
        """One transaction: dead letters for as many messages as fit, and that they are settled."""
        appends: list[Append] = []
        done: list[Run] = []
        body_bytes = 0
        for run in runs:
            sequence = run.first
            while sequence <= run.last and body_bytes < DEAD_LETTER_BYTES_MAX:
                stored, gone_through = await self._read(sequence, run.last)
                end = min(gone_through, run.last)
                if stored is not None:
                    appends.append(self._letter(stored, sequence, run))
                    body_bytes += len(stored.batch.body)
                    end = sequence
                done.append(Run(sequence, end, run.attempt, run.reason))
                sequence = end + 1
            if sequence <= run.last:
                self._ledger.postpone(Run(sequence, run.last, run.attempt, run.reason))
        settle = Settle(
            self._stream,
            self._config.name,
            settled=[(run.first, run.last) for run in done],
            given_up=sum(run.count for run in done),
        )
        transaction = Transaction(durability=self._level, appends=appends, settles=(settle,))
        await self._core.engine.commit(transaction)
        for run in done:
            self._ledger.confirm(run)
        self._core.counters.add("events_given_up", settle.given_up)
        self._core.counters.add("events_dead_lettered", len(appends))

    async def _read(self, sequence: int, last: int) -> tuple[StoredBatch | None, int]:
        """
        The batch of a message; or ``None``, and the sequence through which messages are gone or
        damaged.
        """
        try:
            part = await self._core.engine.read_stream(
                self._stream, sequence, messages_max=1, bytes_max=1
            )
        except DataCorrupt as error:
            log.error("message %d of stream %s is damaged", sequence, self._stream)
            return None, error.figure("last_sequence") or sequence
        if not part.batches:
            return None, last
        stored = part.batches[0]
        if stored.first_sequence > sequence:
            return None, stored.first_sequence - 1
        return stored, sequence - 1

    def _letter(self, stored: StoredBatch, sequence: int, run: Run) -> Append:
        letter = dead_letter(stored, self._config.name, sequence, run, self._core.wall_ns())
        request = event_pb2.PublishRequest(batch=narrowed(stored, sequence))
        return Append(request, stream=self._config.dead_letter_stream, dead_letter=letter)

    def _wake_later(self, wait_s: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.signal.set()
