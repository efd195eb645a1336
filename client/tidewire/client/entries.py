"""Entries and changes of State, as the application sees them."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from tidewire.client.naming import level_of
from tidewire.client.times import to_datetime, to_seconds
from tidewire.v1 import common_pb2, state_pb2
from tidewire.wire.payload import decode_payload, headers_of


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One version of a key.

    Attributes:
        key: Key.
        value: Value, decompressed; ``None`` where only keys were asked for.
        revision: Store revision that wrote this version.
        create_revision: Store revision that made the key.
        version: Versions since the key was made, from 1.
        ttl_s: Time to live it was written with; ``None`` when it has none.
        expires: When it expires, unless it is touched.
        lease_node_id: Member whose lease it hangs on; empty when none.
        time: When this version was written.
        content_type: Media type given by the writer.
        headers: Headers given by the writer.
        durability: Level that writing it reached, for an entry just written; it prints as its word.
            UNSPECIFIED for one that was read; two entries are equal whatever it is.
    """

    key: str
    value: bytes | None
    revision: int
    create_revision: int = 0
    version: int = 0
    ttl_s: float | None = None
    expires: datetime | None = None
    lease_node_id: str = ""
    time: datetime | None = None
    content_type: str = ""
    headers: tuple[tuple[str, bytes], ...] = ()
    durability: common_pb2.Durability.ValueType = field(
        default=common_pb2.DURABILITY_UNSPECIFIED, compare=False
    )

    @property
    def text(self) -> str:
        """The value as UTF-8 text; empty when there is none."""
        return "" if self.value is None else self.value.decode()


@dataclass(frozen=True, slots=True)
class Deleted:
    """
    What a deletion did; it is true when the key was there.

    Attributes:
        deleted: The key was there.
        revision: Store revision after it.
        durability: Level reached; it prints as its word.
    """

    deleted: bool
    revision: int
    durability: common_pb2.Durability.ValueType

    def __bool__(self) -> bool:
        return self.deleted


class ChangeKind(Enum):
    """What an event of a watch or of history says."""

    SNAPSHOT = "snapshot"
    """The key was there when the watch began."""
    SYNCED = "synced"
    """The snapshot is complete; what follows are changes."""
    PUT = "put"
    DELETE = "delete"
    EXPIRE = "expire"
    LEASE_LOST = "lease_lost"
    COMPACTED = "compacted"
    """Changes were missed and cannot be had: forget what you know, a new snapshot follows."""
    RESTARTED = "restarted"
    """The snapshot was cut by a break: forget what you know, it begins again."""
    UNKNOWN = "unknown"
    """A kind of change this version does not know."""


_KINDS = {
    state_pb2.CHANGE_KIND_PUT: ChangeKind.PUT,
    state_pb2.CHANGE_KIND_DELETE: ChangeKind.DELETE,
    state_pb2.CHANGE_KIND_EXPIRE: ChangeKind.EXPIRE,
    state_pb2.CHANGE_KIND_LEASE_LOST: ChangeKind.LEASE_LOST,
}


@dataclass(frozen=True, slots=True)
class StateEvent:
    """
    One event of a watch.

    Attributes:
        kind: What happened.
        revision: Store revision of it.
        entry: The entry after it; for what removes a key only key, revision and time are set;
            ``None`` for SYNCED and COMPACTED.
        previous: The entry before, when asked for and kept.
    """

    kind: ChangeKind
    revision: int
    entry: Entry | None = None
    previous: Entry | None = None

    @property
    def key(self) -> str:
        """Key it is about; empty when it is about none."""
        return "" if self.entry is None else self.entry.key

    @property
    def value(self) -> bytes | None:
        """Value of the entry, if there is one."""
        return None if self.entry is None else self.entry.value


def read_entry(
    entry: state_pb2.Entry,
    durability: common_pb2.Durability.ValueType = common_pb2.DURABILITY_UNSPECIFIED,
) -> Entry:
    """Return an entry with its value decompressed; errors: see `wire.payload.decode_payload`."""
    value, content_type = None, ""
    headers: tuple[tuple[str, bytes], ...] = ()
    if entry.HasField("value"):
        payload = entry.value
        value = decode_payload(payload)
        content_type = payload.content_type
        if payload.header:
            headers = tuple(headers_of(payload))
    return Entry(
        entry.key,
        value,
        entry.revision,
        entry.create_revision,
        entry.version,
        to_seconds(entry.ttl) if entry.HasField("ttl") else None,
        to_datetime(entry.expires) if entry.HasField("expires") else None,
        entry.lease_node_id,
        to_datetime(entry.time) if entry.HasField("time") else None,
        content_type,
        headers,
        level_of(durability),
    )


def read_deleted(response: state_pb2.DeleteResponse) -> Deleted:
    """Return what a deletion did."""
    return Deleted(response.deleted, response.revision, level_of(response.durability))


def read_change(change: state_pb2.Change) -> StateEvent:
    """Return a change with its values decompressed."""
    return StateEvent(
        kind=_KINDS.get(change.kind, ChangeKind.UNKNOWN),
        revision=change.entry.revision,
        entry=read_entry(change.entry),
        previous=read_entry(change.previous) if change.HasField("previous") else None,
    )
