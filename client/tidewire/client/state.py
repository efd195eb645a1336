"""State: shared versioned values."""

import uuid
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from tidewire.client.entries import (
    Deleted,
    Entry,
    StateEvent,
    read_change,
    read_deleted,
    read_entry,
)
from tidewire.client.naming import Durability, durability_of
from tidewire.client.opening import Opening
from tidewire.client.polled import Pages
from tidewire.client.session import Session
from tidewire.client.state_gets import Gets
from tidewire.client.times import to_duration
from tidewire.client.transaction import Transaction, put_request
from tidewire.client.watching import Watch
from tidewire.errors import InvalidArgument
from tidewire.v1 import state_pb2
from tidewire.v1.state_pb2_grpc import StateServiceStub
from tidewire.wire.payload import Value

if TYPE_CHECKING:
    from tidewire.client.membership import Membership

CHANGES_WAIT_SLACK_S = 5.0


class State:
    """
    The state part of a client; see `tidewire.connect`.

    A key is 1 to 512 bytes of ``[A-Za-z0-9_.:/=@+-]``. Every answer carries revisions: of the key,
    and of the whole store, which grows with each transaction.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stub = StateServiceStub(session.channel)
        self._gets = Gets(session, self._stub)

    async def get(self, key: str, *, revision: int = 0) -> Entry | None:
        """
        Read a key; ``None`` when it is not there.

        Args:
            key: Key.
            revision: Read what was current at this store revision; 0 means now.

        Raises:
            RevisionCompacted: History does not go back so far.
        """
        if revision:
            return await self._gets.alone(key, revision)
        return await self._gets.get(key)

    async def get_many(self, keys: Iterable[str], *, revision: int = 0) -> dict[str, Entry]:
        """
        Read several keys as they are at one moment; those that are not there are left out.

        One request for up to 1,024 keys, unless the answer is larger than a message may be.

        Args:
            keys: Keys.
            revision: Read what was current at this store revision; 0 means now.

        Returns:
            Entries by key, in the order of the keys.

        Raises:
            InvalidKey: One of them is not a key; the field says which.
            RevisionCompacted: History does not go back so far.
        """
        return await self._gets.many(keys, revision)

    async def put(
        self,
        key: str,
        value: Value,
        *,
        expected_revision: int | None = None,
        ttl_s: float | None = None,
        lease: "Membership | None" = None,
        durability: Durability | None = None,
        compression: str | bool | None = True,
        content_type: str = "",
    ) -> Entry:
        """
        Write a key.

        Args:
            key: Key.
            value: Bytes, or text that becomes UTF-8.
            expected_revision: Write only when the key's revision is this; 0: only when it is not
                there.
            ttl_s: Time to live, at least 1 s.
            lease: Membership it hangs on: the key goes when the member is gone.
            durability: Level the acknowledgement must reach; by default FSYNC.
            compression: Codec of the value; by default the client's.
            content_type: Media type, for people and tools.

        Returns:
            The entry as written, with its revisions and the durability reached.

        Raises:
            RevisionMismatch: With the actual revision in ``figure("actual_revision")``.
            InvalidKey, MessageTooLarge, LeaseNotHeld, StoreFull: It cannot be written.
        """
        request = put_request(
            key,
            value,
            expected_revision=expected_revision,
            ttl_s=ttl_s,
            lease=lease,
            codec=self._session.codec_for(compression),
            content_type=content_type,
        )
        request.request_id = uuid.uuid4().hex
        request.durability = durability_of(durability)
        response = await self._session.unary(self._stub.Put, request)
        response.entry.value.CopyFrom(request.value)
        return read_entry(response.entry, response.durability)

    async def delete(
        self,
        key: str,
        *,
        expected_revision: int | None = None,
        durability: Durability | None = None,
    ) -> Deleted:
        """Delete a key; the answer is false when it was not there. Error: RevisionMismatch."""
        request = state_pb2.DeleteRequest(
            key=key, request_id=uuid.uuid4().hex, durability=durability_of(durability)
        )
        if expected_revision is not None:
            request.expected_revision = expected_revision
        return read_deleted(await self._session.unary(self._stub.Delete, request))

    async def range(
        self, prefix: str = "", *, keys_only: bool = False, page_size: int = 0
    ) -> AsyncIterator[Entry]:
        """
        Iterate over the keys with a prefix, in byte order, as of one revision.

        Args:
            prefix: Prefix; empty means all keys.
            keys_only: Leave the values out.
            page_size: Entries asked for at a time; 0 means 1,000.
        """
        token = ""
        pages = Pages(self._session, page_size)

        async def ask(size: int) -> Any:
            request = state_pb2.RangeRequest(
                prefix=prefix, page_size=size, page_token=token, keys_only=keys_only
            )
            return await self._session.unary(self._stub.Range, request)

        while True:
            page = await pages.ask(ask)
            for entry in page.entries:
                yield read_entry(entry)
            token = page.next_page_token
            if not token:
                return

    def transact(self) -> Transaction:
        """Begin a transaction: add comparisons and operations, then ``await commit()``."""
        return Transaction(self._session)

    async def touch(self, key: str, *, expected_revision: int | None = None) -> Entry:
        """Give a key its full time to live again. Errors: KeyNotFound, RevisionMismatch."""
        request = state_pb2.TouchRequest(key=key)
        if expected_revision is not None:
            request.expected_revision = expected_revision
        response = await self._session.unary(self._stub.Touch, request)
        return read_entry(response.entry)

    async def history(self, key: str, *, page_size: int = 0) -> AsyncIterator[StateEvent]:
        """Iterate over the changes of a key that are kept, newest first."""
        token = ""
        pages = Pages(self._session, page_size)

        async def ask(size: int) -> Any:
            request = state_pb2.HistoryRequest(key=key, page_size=size, page_token=token)
            return await self._session.unary(self._stub.History, request)

        while True:
            page = await pages.ask(ask)
            for change in page.changes:
                yield read_change(change)
            token = page.next_page_token
            if not token:
                return

    async def changes(
        self, prefix: str = "", *, after_revision: int, wait_s: float = 0.0, changes_max: int = 0
    ) -> tuple[list[StateEvent], int]:
        """
        Return the changes after a revision, and the revision to ask from next: a watch by calls.

        Args:
            prefix: Prefix; empty means all keys.
            after_revision: Store revision.
            wait_s: How long to wait for the first change, at most 30.
            changes_max: Most changes; 0 means 1,000.
        """
        request = state_pb2.ChangesRequest(
            prefix=prefix, after_revision=after_revision, changes_max=changes_max
        )
        if wait_s:
            request.wait.CopyFrom(to_duration(wait_s))
        limit_s = max(self._session.options.timeout_s, wait_s + CHANGES_WAIT_SLACK_S)
        response = await self._session.unary(self._stub.Changes, request, timeout_s=limit_s)
        return [read_change(change) for change in response.changes], int(response.revision)

    def watch(
        self,
        prefix: str = "",
        *,
        exact: bool = False,
        after_revision: int = 0,
        changes_only: bool = False,
        with_previous: bool = False,
    ) -> Opening[Watch]:
        """
        Watch keys: first what is there, then every change, in order, without a gap.

        It is opened again by itself after a break, from the revision it had seen.

        Args:
            prefix: Prefix; empty means all keys.
            exact: Only the key that equals `prefix`.
            after_revision: Only changes after this revision, no snapshot.
            changes_only: No snapshot, only what comes.
            with_previous: Events carry the entry before, where it is kept.

        Raises:
            RevisionCompacted: `after_revision` is forgotten. Later, when a break was too long, an
                event of kind COMPACTED comes, and a new snapshot.
        """
        if changes_only and after_revision:
            raise InvalidArgument("changes_only begins now; leave after_revision out")
        request = state_pb2.WatchRequest(
            prefix=prefix,
            exact=exact,
            after_revision=after_revision,
            changes_only=changes_only,
            with_previous=with_previous,
        )
        return Opening(Watch(self._session, request).open)

    async def compact(self, revision: int) -> int:
        """Forget history before a revision; returns the oldest one can resume from."""
        request = state_pb2.CompactRequest(revision=revision)
        response = await self._session.unary(self._stub.Compact, request)
        return int(response.compacted_revision)
