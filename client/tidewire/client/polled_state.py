"""Watch by Range and Changes; see `tidewire.client.polled`."""

from typing import Any

from tidewire.client.polled import POLL_WAIT_S, PolledCall, Sizing, carries_streams
from tidewire.client.session import Metadata, Session
from tidewire.client.times import to_duration
from tidewire.errors import WireUnsuitable
from tidewire.v1 import state_pb2
from tidewire.v1.state_pb2_grpc import StateServiceStub


def state_stub(session: Session) -> Any:
    """Return a stub of the state service whose Watch works on the session's channel."""
    stub: Any = StateServiceStub(session.channel)
    return stub if carries_streams(session.channel) else _PolledStub(session, stub)


class _PolledStub:
    """The state service with Watch made of unary calls."""

    def __init__(self, session: Session, stub: Any) -> None:
        self._session = session
        self._stub = stub

    def Watch(self, request: state_pb2.WatchRequest, *, metadata: Metadata = ()) -> "PolledWatch":
        """Watch by Range and Changes."""
        return PolledWatch(self._session, self._stub, request, metadata)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)


class PolledWatch(PolledCall[state_pb2.WatchResponse]):
    """A watch made of long polls: a snapshot by pages, then what changes."""

    def __init__(
        self, session: Session, stub: Any, request: state_pb2.WatchRequest, metadata: Metadata
    ) -> None:
        super().__init__(session, metadata)
        self._stub = stub
        self._request = request
        self._sizing = Sizing(session.channel)
        self.spawn(self._run())

    async def _run(self) -> None:
        request = self._request
        if request.with_previous:
            raise WireUnsuitable(
                "a watch with the entries before needs a stream: use tcp://, quic:// or grpc://"
            )
        revision = request.after_revision
        opened = await self.greeting()
        if revision:
            # What is forgotten is told before the greeting, as a stream would.
            await self._ask(revision, 0.0)
            self.put(state_pb2.WatchResponse(opened=opened))
        else:
            page = await self._page("")
            self.put(state_pb2.WatchResponse(opened=opened))
            revision = page.revision
            if not request.changes_only:
                await self._snapshot(page)
        while True:
            await self.wait_taken()
            response = await self._ask(revision, POLL_WAIT_S)
            revision = response.revision
            changes = [each for each in response.changes if self._wanted(each.entry.key)]
            if changes:
                following = state_pb2.WatchChanges(changes=changes, revision=revision)
                self.put(state_pb2.WatchResponse(changes=following))
            else:
                bookmark = state_pb2.WatchBookmark(revision=revision)
                self.put(state_pb2.WatchResponse(bookmark=bookmark))

    async def _snapshot(self, page: state_pb2.RangeResponse) -> None:
        while True:
            entries = [entry for entry in page.entries if self._wanted(entry.key)]
            # A key comes before all it is a prefix of: an exact watch needs one page.
            last = self._request.exact or not page.next_page_token
            part = state_pb2.WatchSnapshot(entries=entries, revision=page.revision, last=last)
            self.put(state_pb2.WatchResponse(snapshot=part))
            if last:
                return
            await self.wait_taken()
            page = await self._page(page.next_page_token)

    async def _page(self, token: str) -> state_pb2.RangeResponse:
        async def ask(count: int) -> Any:
            wanted = state_pb2.RangeRequest(
                prefix=self._request.prefix,
                page_size=count,
                page_token=token,
                keys_only=self._request.changes_only,
            )
            return await self.unary(self._stub.Range, wanted)

        page: state_pb2.RangeResponse = await self._sizing.ask(ask)
        return page

    async def _ask(self, revision: int, wait_s: float) -> state_pb2.ChangesResponse:
        async def ask(count: int) -> Any:
            wanted = state_pb2.ChangesRequest(
                prefix=self._request.prefix, after_revision=revision, changes_max=count
            )
            if wait_s:
                wanted.wait.CopyFrom(to_duration(wait_s))
            return await self.unary(self._stub.Changes, wanted, wait_s)

        response: state_pb2.ChangesResponse = await self._sizing.ask(ask)
        return response

    def _wanted(self, key: str) -> bool:
        return not self._request.exact or key == self._request.prefix
