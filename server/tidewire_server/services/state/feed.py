"""
The tail of the change log, handed to watchers. Sans-IO: changes go in, and each watcher takes what
is new for it.

A watcher holds a position: everything up to this revision was sent to it, or is not for it. Its
`Tail` holds the changes that came since the tail's ``base``. While the position is before the base
the watcher reads history; from the base on the tail is complete, so the switch leaves no gap, and
what both have is left out by its revision. A tail that is full is emptied and its watcher goes back
to reading history: a slow watcher costs bounded memory and loses nothing.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from tidewire.v1 import state_pb2


class Revised:
    """The changes of one revision that one filter takes; shared by all tails that hold them."""

    __slots__ = ("_response", "changes", "revision", "size")

    def __init__(self, revision: int, changes: tuple[state_pb2.Change, ...]) -> None:
        self.revision = revision
        self.changes = changes
        self.size = size_of(changes)
        self._response: state_pb2.WatchResponse | None = None

    def response(self) -> state_pb2.WatchResponse:
        """Return it as it is sent; made once, however many watchers there are."""
        if self._response is None:
            self._response = to_response(self.changes, self.revision)
        return self._response


@dataclass(frozen=True, slots=True)
class KeyFilter:
    """Which keys a watch is about: one key, or all that begin with a prefix."""

    prefix: str
    exact: bool = False


class Tail:
    """
    What one watcher has not taken yet.

    Attributes:
        base: Every change after this revision is in the tail, unless it overflowed.
        overflowed: True: changes were left out since `restart`; the watcher must read history
            again.
    """

    def __init__(
        self,
        keys: KeyFilter,
        wake: Callable[[], None],
        *,
        base: int,
        changes_max: int,
        bytes_max: int,
    ) -> None:
        self.keys = keys
        self.base = base
        self.overflowed = False
        self._wake = wake
        self._changes_max = changes_max
        self._bytes_max = bytes_max
        self._pending: deque[Revised] = deque()
        self._changes = 0
        self._bytes = 0

    def wake(self) -> None:
        """Tell the watcher to look again."""
        self._wake()

    def offer(self, revised: Revised) -> None:
        """Keep the changes of a new revision, or go into overflow."""
        self._wake()
        if self.overflowed:
            return
        if (
            self._changes + len(revised.changes) > self._changes_max
            or self._bytes + revised.size > self._bytes_max
        ):
            self.overflowed = True
            self._clear()
            return
        self._pending.append(revised)
        self._changes += len(revised.changes)
        self._bytes += revised.size

    def restart(self, revision: int) -> None:
        """Begin again, empty: from here on every change after this revision is kept."""
        self._clear()
        self.overflowed = False
        self.base = revision

    def take(self, after: int, *, changes_max: int, bytes_max: int) -> list[Revised]:
        """Take whole revisions after one, in order, at least one when there is one."""
        taken: list[Revised] = []
        count = size = 0
        while self._pending:
            revised = self._pending[0]
            count += len(revised.changes)
            size += revised.size
            if taken and (count > changes_max or size > bytes_max):
                break
            self._pending.popleft()
            self._changes -= len(revised.changes)
            self._bytes -= revised.size
            if revised.revision > after:
                taken.append(revised)
            else:
                count = size = 0
        return taken

    def _clear(self) -> None:
        self._pending.clear()
        self._changes = 0
        self._bytes = 0


class Feed:
    """
    All tails, by what they are about.

    A change is looked at once for each distinct filter, not for each watcher.

    Attributes:
        revision: Last revision that was offered.
    """

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self._keys: dict[str, list[Tail]] = {}
        self._prefixes: dict[str, list[Tail]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._keys.values())) + sum(map(len, self._prefixes.values()))

    def attach(
        self,
        keys: KeyFilter,
        wake: Callable[[], None],
        *,
        changes_max: int,
        bytes_max: int,
    ) -> Tail:
        """
        Make a tail that is complete after the current revision. With limits of 0 it only wakes and
        overflows.
        """
        tail = Tail(keys, wake, base=self.revision, changes_max=changes_max, bytes_max=bytes_max)
        self._table(keys).setdefault(keys.prefix, []).append(tail)
        return tail

    def detach(self, tail: Tail) -> None:
        """Forget a tail."""
        table = self._table(tail.keys)
        tails = table[tail.keys.prefix]
        tails.remove(tail)
        if not tails:
            del table[tail.keys.prefix]

    def offer(self, changes: Sequence[state_pb2.Change], revision: int) -> None:
        """
        Hand changes, in order of their revisions, to the tails they are for; ``revision`` is the
        last one.
        """
        for number, group in groupby(changes, key=_revision_of):
            self._offer_one(number, list(group))
        self.revision = max(self.revision, revision)

    def wake_all(self) -> None:
        """Tell every watcher to look again."""
        for table in (self._keys, self._prefixes):
            for tails in table.values():
                for tail in tails:
                    tail.wake()

    def _offer_one(self, revision: int, changes: list[state_pb2.Change]) -> None:
        self.revision = max(self.revision, revision)
        if self._keys:
            for change in changes:
                tails = self._keys.get(change.entry.key)
                if tails:
                    _hand(tails, revision, (change,))
        for prefix, tails in self._prefixes.items():
            taken = tuple(c for c in changes if c.entry.key.startswith(prefix))
            if taken:
                _hand(tails, revision, taken)

    def _table(self, keys: KeyFilter) -> dict[str, list[Tail]]:
        return self._keys if keys.exact else self._prefixes


def to_response(changes: Iterable[state_pb2.Change], revision: int) -> state_pb2.WatchResponse:
    """Build the response that carries changes up to a revision."""
    return state_pb2.WatchResponse(
        changes=state_pb2.WatchChanges(changes=changes, revision=revision)
    )


def size_of(changes: Iterable[state_pb2.Change]) -> int:
    """Size of changes in an answer, in bytes."""
    return sum(change.ByteSize() for change in changes)


def _hand(tails: Iterable[Tail], revision: int, changes: tuple[state_pb2.Change, ...]) -> None:
    revised = Revised(revision, changes)
    for tail in tails:
        tail.offer(revised)


def _revision_of(change: state_pb2.Change) -> int:
    return change.entry.revision
