"""
Reading a stream on and on: from the store while behind, from what was just stored once caught up.

Sequences of a stream are dense, so the switch is exact: a stored batch is taken from the listener
only when it begins where reading has come to. In every other case it is left to the next read.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from tidewire.wire.subject import matches
from tidewire_server.engine.base import Engine, StoredBatch
from tidewire_server.services.event.delivery import message_count
from tidewire_server.services.event.signal import Signal

READ_MESSAGES_MAX: Final = 16_384
READ_BYTES_MAX: Final = 1024 * 1024
TAIL_BATCHES_MAX: Final = 1024
TAIL_BYTES_MAX: Final = 4 * 1024 * 1024
VERDICTS_MAX: Final = 10_000


class SubjectFilter:
    """Whether a subject matches one of some patterns; none means every subject."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = tuple(dict.fromkeys(patterns))
        self._verdicts: dict[str, bool] = {}

    def __call__(self, subject: str) -> bool:
        """Judge a valid subject; one that was seen before costs a dictionary read."""
        if not self.patterns:
            return True
        verdict = self._verdicts.get(subject)
        if verdict is None:
            if len(self._verdicts) >= VERDICTS_MAX:
                self._verdicts.clear()
            verdict = any(matches(pattern, subject) for pattern in self.patterns)
            self._verdicts[subject] = verdict
        return verdict


class StreamFollower:
    """
    Batches of a stream from a position on, in order, each once.

    Attributes:
        position: Next sequence to hand out; everything before it was taken or is not wanted.
        signal: Set when there may be more.
        is_gone: True once the stream was deleted.
    """

    def __init__(
        self,
        engine: Engine,
        stream: str,
        position: int,
        subjects: Sequence[str] = (),
        *,
        signal: Signal | None = None,
    ) -> None:
        self.stream = stream
        self.position = position
        self.signal = signal or Signal()
        self.is_gone = False
        self.wanted = SubjectFilter(subjects)
        self._engine = engine
        self._read_to = position  # next sequence that is neither read nor taken from the tail
        self._batches: deque[StoredBatch] = deque()
        self._bytes = 0
        self._messages = 0
        self._is_caught_up = False
        self._heard = 0
        self._uncounted: int | None = None

    @property
    def head(self) -> StoredBatch | None:
        """The next batch that was read; it may begin before `position`. ``None``: `fill` first."""
        return self._batches[0] if self._batches else None

    @property
    def pending(self) -> int:
        """Messages that are still to be handed out, as far as they were counted."""
        if not self.wanted.patterns:
            return max(0, self._engine.last_sequence(self.stream) + 1 - self.position)
        if self._is_caught_up or self._uncounted is None:
            return self._messages
        return max(self._messages, self._uncounted)

    @property
    def is_caught_up(self) -> bool:
        """Whether everything that is stored was read."""
        return self._is_caught_up

    async def count(self) -> None:
        """Count what matches, so that `pending` is right before everything is read."""
        if self.wanted.patterns:
            self._uncounted = await self._engine.count_pending(
                self.stream, self.position - 1, self.wanted.patterns
            )

    async def fill(
        self, messages_max: int = READ_MESSAGES_MAX, bytes_max: int = READ_BYTES_MAX
    ) -> bool:
        """
        Read on when nothing is ready. Returns whether something is.

        Args:
            messages_max: What the caller wants at most; the last batch may go over.
            bytes_max: Body bytes it wants at most; one batch comes whatever its size.

        Raises:
            DataCorrupt: The next sequences are damaged; `skip_to` leads past them.
            StreamNotFound: The stream was deleted.
        """
        if self._batches:
            return True
        if self._is_caught_up:
            return False
        before, heard = self._read_to, self._heard
        part = await self._engine.read_stream(
            self.stream,
            before,
            messages_max=min(messages_max, READ_MESSAGES_MAX),
            bytes_max=min(bytes_max, READ_BYTES_MAX),
            subjects=self.wanted.patterns,
        )
        if self._read_to == before:  # nobody skipped meanwhile
            for stored in part.batches:
                self._take(stored)
            self._read_to = max(before, part.next_sequence)
            # A read that leads nowhere, with nothing stored meanwhile, is the end whatever the
            # store says: never read in a circle.
            self._is_caught_up = self._read_to > self._engine.last_sequence(self.stream) or (
                self._read_to == before and self._heard == heard
            )
            if self._is_caught_up and self._uncounted is not None:
                self._uncounted = self._messages
            if not self._batches:
                self.position = max(self.position, self._read_to)
        return bool(self._batches)

    def appended(self, stored: StoredBatch) -> None:
        """Hear of a batch that was stored."""
        if stored.last_sequence < self._read_to:
            return
        fits = len(self._batches) < TAIL_BATCHES_MAX and self._bytes < TAIL_BYTES_MAX
        self._heard += 1
        wanted = self.wanted(stored.batch.subject)
        if self._uncounted is not None and wanted:
            self._uncounted += message_count(stored.batch)
        if not self._is_caught_up or stored.first_sequence > self._read_to or not fits:
            self._is_caught_up = False
        else:
            self._read_to = stored.last_sequence + 1
            if wanted:
                self._take(stored)
            elif not self._batches:
                self.position = max(self.position, self._read_to)
        self.signal.set()

    def advance(self, through: int) -> None:
        """Everything up to this sequence, inside the head, was handed out."""
        stored = self._batches[0]
        taken = through + 1 - max(self.position, stored.first_sequence)
        self._messages -= taken
        if self._uncounted is not None:
            self._uncounted -= taken
        self.position = through + 1
        if through >= stored.last_sequence:
            self._drop_head()
            if not self._batches:
                self.position = max(self.position, self._read_to)

    def skip_to(self, sequence: int) -> None:
        """Go on from here, when that is ahead."""
        if sequence <= self.position:
            return
        while self._batches and self._batches[0].last_sequence < sequence:
            self._drop_head()
        self.position = sequence
        self._read_to = max(self._read_to, sequence)
        self._messages = sum(self._left(stored) for stored in self._batches)
        self._is_caught_up = self._read_to > self._engine.last_sequence(self.stream)
        self.signal.set()

    def _take(self, stored: StoredBatch) -> None:
        if stored.last_sequence < self.position:
            return
        self._batches.append(stored)
        self._bytes += len(stored.batch.body)
        self._messages += self._left(stored)

    def _left(self, stored: StoredBatch) -> int:
        return stored.last_sequence + 1 - max(self.position, stored.first_sequence)

    def _drop_head(self) -> None:
        stored = self._batches.popleft()
        self._bytes -= len(stored.batch.body)
