"""
Current entries of State in memory, so that reading one needs no thread.

It holds only what was read before, and is brought up to date with each group that became durable,
before anybody hears of it. Three things keep a read from showing what is over:

- A read by a thread fills the cache only when no change of its key became known since it was asked
  for (`reading`, `keep`): its snapshot may be from before that change.
- A thread may show a group that is committed but not yet known here. From then until it is known,
  nothing is found (`exposed`): what was shown once is never followed by something older.
- A group that failed for good closes it: what the disk has is no longer certain.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from tidewire.v1 import state_pb2
from tidewire_server.engine.embedded.session import Effects

ENTRY_OVERHEAD_BYTES: Final = 256
"""What an entry takes besides its key and its encoded bytes, about."""
ENTRY_SHARE: Final = 8
"""An entry that takes more than this part of the bound is not kept: it would push out many."""


class StateCache:
    """
    Encoded entries by key, least recently used first; for the event loop only.

    An entry is kept as field 1 of ``GetResponse``, which is field 1 of ``GetManyResponse`` too; a
    key that is not there is kept as no bytes.

    Attributes:
        bytes_max: Most bytes kept; 0 keeps nothing.
        bytes: Bytes kept now, about.
        hits: Entries that were found.
        misses: Entries that were not.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self._reading: dict[str, object] = {}
        self._known = 0
        self._exposed = 0

    def find(self, key: str) -> bytes | None:
        """Return the encoded entry of a key; ``None`` when it must be read."""
        entry = self._entries.get(key)
        if entry is None or self._exposed > self._known:
            self.misses += 1
            return None
        self._entries.move_to_end(key)
        self.hits += 1
        return entry

    def find_all(self, keys: Sequence[str]) -> list[bytes] | None:
        """Return the encoded entries of keys; ``None`` when one of them must be read."""
        found: list[bytes] = []
        for key in keys:
            entry = self.find(key)
            if entry is None:
                return None
            found.append(entry)
        return found

    # Reads by threads.

    def reading(self, keys: Iterable[str]) -> dict[str, object]:
        """
        Say that keys are going to be read by a thread; give the ticket to `keep` or `forget`.

        Of several reads of one key at a time the first one fills.
        """
        if not self.bytes_max:
            return {}
        mark = object()
        return {key: mark for key in keys if self._reading.setdefault(key, mark) is mark}

    def keep(
        self,
        ticket: dict[str, object],
        entries: Iterable[state_pb2.Entry],
        keys: Sequence[str],
    ) -> None:
        """Take what was read of these keys of the ticket; those without an entry are not there."""
        if not ticket:
            return
        found = {entry.key: entry for entry in entries}
        unchanged = self.forget(ticket)
        for key in keys:
            if key in unchanged:
                entry = found.get(key)
                self._put(key, b"" if entry is None else encode(entry))

    def forget(self, ticket: dict[str, object]) -> set[str]:
        """End the reads of a ticket; return the keys of which no change became known meanwhile."""
        unchanged = {key for key, mark in ticket.items() if self._reading.get(key) is mark}
        for key in unchanged:
            del self._reading[key]
        return unchanged

    def exposed(self, turn: int) -> None:
        """Say that a thread may have shown what the writer committed up to this turn."""
        self._exposed = max(self._exposed, turn)

    # News of the writer.

    def learn(self, turn: int, effects: Iterable[Effects]) -> None:
        """Take what became durable up to this turn of the writer."""
        for item in effects:
            for changes, _ in item.changed:
                for change in changes:
                    self._change(change)
            for key in item.touched:
                self._reading.pop(key, None)
                self._drop(key)
        self._known = turn

    def close(self) -> None:
        """Find nothing any more, for good."""
        self.bytes_max = 0
        self._entries.clear()
        self._reading.clear()
        self.bytes = 0

    def _change(self, change: state_pb2.Change) -> None:
        key = change.entry.key
        self._reading.pop(key, None)
        if key in self._entries:
            there = change.kind == state_pb2.CHANGE_KIND_PUT
            self._put(key, encode(change.entry) if there else b"")

    def _put(self, key: str, entry: bytes) -> None:
        self._drop(key)
        size = _size(key, entry)
        if size > self.bytes_max // ENTRY_SHARE:
            return
        self._entries[key] = entry
        self.bytes += size
        while self.bytes > self.bytes_max:
            oldest, dropped = self._entries.popitem(last=False)
            self.bytes -= _size(oldest, dropped)

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= _size(key, entry)


def encode(entry: state_pb2.Entry) -> bytes:
    """Encode an entry as field 1 of the answers that carry it."""
    return state_pb2.GetResponse(entry=entry).SerializeToString()


def _size(key: str, entry: bytes) -> int:
    return len(key) + len(entry) + ENTRY_OVERHEAD_BYTES
