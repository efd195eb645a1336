"""A watch of State that goes on from its revision after a break."""

from collections.abc import Iterable

from tidewire.client.entries import ChangeKind, StateEvent, read_change, read_entry
from tidewire.client.polled_state import state_stub
from tidewire.client.pull import PullStream
from tidewire.client.session import PRIORITY_DEFAULT, Session, log
from tidewire.errors import RevisionCompacted, TidewireError
from tidewire.v1 import state_pb2


class Watch(PullStream[StateEvent]):
    """
    Events of State, in order: iterate over it.

    Attributes:
        revision: Everything up to this store revision was given out or is not for this watch; a
            later watch may resume after it.
    """

    def __init__(self, session: Session, request: state_pb2.WatchRequest) -> None:
        stub = state_stub(session)
        super().__init__(session, "a watch", stub.Watch, PRIORITY_DEFAULT)
        self._stub = stub
        self._first = request
        self._in_snapshot = False
        self._begun = False
        self.revision: int = request.after_revision

    async def _request(self) -> state_pb2.WatchRequest:
        request = state_pb2.WatchRequest()
        request.CopyFrom(self._first)
        if self._in_snapshot:
            # Cut within a snapshot: what was given out of it may be gone by now.
            self._events.append(StateEvent(ChangeKind.RESTARTED, self.revision))
            request.after_revision = 0
            self._in_snapshot = False
        elif self.revision:
            request.after_revision = self.revision
            request.changes_only = False
        elif request.changes_only:
            # Pinned now: a break before the first change must not move it.
            look = state_pb2.RangeRequest(prefix=request.prefix, page_size=1, keys_only=True)
            page = await self._session.unary(self._stub.Range, look)
            self.revision = page.revision
            if self.revision:
                request.after_revision = self.revision
                request.changes_only = False
        return request

    def _read(self, kind: str, response: state_pb2.WatchResponse) -> Iterable[StateEvent]:
        self._begun = True
        if kind == "snapshot":
            return self._read_snapshot(response.snapshot)
        if kind == "changes":
            self.revision = response.changes.revision
            return [read_change(change) for change in response.changes.changes]
        if kind == "bookmark":
            self.revision = response.bookmark.revision
        return ()

    def _read_snapshot(self, snapshot: state_pb2.WatchSnapshot) -> Iterable[StateEvent]:
        self._in_snapshot = not snapshot.last
        events = [
            StateEvent(ChangeKind.SNAPSHOT, snapshot.revision, read_entry(entry))
            for entry in snapshot.entries
        ]
        if snapshot.last:
            self.revision = snapshot.revision
            events.append(StateEvent(ChangeKind.SYNCED, snapshot.revision))
        return events

    def _recovers(self, problem: TidewireError) -> Iterable[StateEvent] | None:
        if not isinstance(problem, RevisionCompacted) or not self._begun:
            return None
        log.warning("%s fell behind what is kept; it begins again: %s", self.what, problem)
        event = StateEvent(ChangeKind.COMPACTED, self.revision)
        self.revision = 0
        self._first.after_revision = 0
        self._first.changes_only = False
        return (event,)
