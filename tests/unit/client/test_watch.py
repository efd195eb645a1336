"""Watches go on from their revision, and say when they cannot."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from support.scripted import Conversation, Script, ScriptedState, client_of, forever
from tidewire.client.entries import ChangeKind, StateEvent
from tidewire.client.watching import Watch
from tidewire.errors import DeadlineExceeded, PermissionDenied, RevisionCompacted
from tidewire.v1 import common_pb2, state_pb2, state_pb2_grpc


def entry(key: str, revision: int, value: bytes = b"v") -> state_pb2.Entry:
    payload = common_pb2.Payload(data=value)
    return state_pb2.Entry(key=key, revision=revision, value=payload)


def changes(*pairs: tuple[str, int]) -> state_pb2.WatchChanges:
    made = [
        state_pb2.Change(kind=state_pb2.CHANGE_KIND_PUT, entry=entry(key, revision))
        for key, revision in pairs
    ]
    return state_pb2.WatchChanges(changes=made, revision=pairs[-1][1])


async def begin(conversation: Conversation) -> state_pb2.WatchRequest:
    request = await conversation.read()
    await conversation.write(opened=common_pb2.Opened(node_id="scripted"))
    asked: state_pb2.WatchRequest = request
    return asked


async def take(watch: Watch, count: int) -> list[StateEvent]:
    return [await watch.next(timeout_s=20) for _ in range(count)]


def registered(scripts: Sequence[Script], revision: int = 0) -> Any:
    servicer = ScriptedState(watch=scripts)
    servicer.revision = revision
    return (state_pb2_grpc.add_StateServiceServicer_to_server, servicer)


async def test_a_watch_goes_on_from_its_revision() -> None:
    """After breaks, and an end without an error, changes follow without gap or duplicate."""
    asked: list[state_pb2.WatchRequest] = []

    async def first(conversation: Conversation) -> None:
        asked.append(await begin(conversation))
        snapshot = state_pb2.WatchSnapshot(entries=[entry("a", 3)], revision=5, last=True)
        await conversation.write(snapshot=snapshot)
        await conversation.write(changes=changes(("a", 6), ("b", 6)))
        await conversation.cut()

    async def second(conversation: Conversation) -> None:
        asked.append(await begin(conversation))
        await conversation.write(changes=changes(("a", 7)))
        await conversation.write(bookmark=state_pb2.WatchBookmark(revision=9))
        await conversation.write(draining=common_pb2.Draining())

    async def third(conversation: Conversation) -> None:
        asked.append(await begin(conversation))
        await conversation.write(changes=changes(("c", 10)))
        await forever(conversation)

    async with (
        client_of(registered([first, second, third])) as client,
        client.state.watch("", with_previous=True) as watch,
    ):
        events = await take(watch, 6)

        assert (10, 2) == (watch.revision, watch.reopened)
    assert [
        (ChangeKind.SNAPSHOT, "a", 5),
        (ChangeKind.SYNCED, "", 5),
        (ChangeKind.PUT, "a", 6),
        (ChangeKind.PUT, "b", 6),
        (ChangeKind.PUT, "a", 7),
        (ChangeKind.PUT, "c", 10),
    ] == [(event.kind, event.key, event.revision) for event in events]
    assert [0, 6, 9] == [request.after_revision for request in asked]
    assert all(request.with_previous for request in asked)


async def test_a_cut_snapshot_begins_again_visibly() -> None:
    """What was given of a snapshot that was cut may be gone: the application is told."""

    async def cut(conversation: Conversation) -> None:
        await begin(conversation)
        await conversation.write(
            snapshot=state_pb2.WatchSnapshot(entries=[entry("gone", 1)], revision=5)
        )
        await conversation.cut()

    async def whole(conversation: Conversation) -> None:
        assert 0 == (await begin(conversation)).after_revision
        await conversation.write(snapshot=state_pb2.WatchSnapshot(revision=6, last=True))
        await forever(conversation)

    async with client_of(registered([cut, whole])) as client, client.state.watch() as watch:
        events = await take(watch, 3)

    assert [ChangeKind.SNAPSHOT, ChangeKind.RESTARTED, ChangeKind.SYNCED] == [
        event.kind for event in events
    ]


async def test_a_break_that_was_too_long_is_told() -> None:
    """When history was compacted meanwhile, that is an event, and a new snapshot follows."""

    async def first(conversation: Conversation) -> None:
        await begin(conversation)
        await conversation.write(snapshot=state_pb2.WatchSnapshot(revision=5, last=True))
        await conversation.cut()

    async def compacted(conversation: Conversation) -> None:
        assert 5 == (await conversation.read()).after_revision
        raise RevisionCompacted("history begins at 90")

    async def again(conversation: Conversation) -> None:
        assert 0 == (await begin(conversation)).after_revision
        snapshot = state_pb2.WatchSnapshot(entries=[entry("a", 95)], revision=99, last=True)
        await conversation.write(snapshot=snapshot)
        await forever(conversation)

    async with (
        client_of(registered([first, compacted, again])) as client,
        client.state.watch() as watch,
    ):
        events = await take(watch, 4)

        assert 99 == watch.revision
    assert [
        ChangeKind.SYNCED,
        ChangeKind.COMPACTED,
        ChangeKind.SNAPSHOT,
        ChangeKind.SYNCED,
    ] == [event.kind for event in events]


async def test_only_what_comes_is_pinned_when_it_is_opened() -> None:
    """A watch of changes only does not lose those of a break before its first event."""
    asked: list[int] = []

    async def serve(conversation: Conversation) -> None:
        request = await begin(conversation)
        assert not request.changes_only
        asked.append(request.after_revision)
        if conversation.number == 0:
            await conversation.cut()
        await conversation.write(changes=changes(("a", 42)))
        await forever(conversation)

    async with (
        client_of(registered([serve], revision=41)) as client,
        client.state.watch(changes_only=True) as watch,
    ):
        events = await take(watch, 1)

    assert [42] == [event.revision for event in events]
    assert [41, 41] == asked


async def test_refusals_are_raised_by_opening() -> None:
    """A revision that is forgotten, or a prefix that is not allowed, is told at once."""

    async def refuse(conversation: Conversation) -> None:
        await conversation.read()
        if conversation.number == 0:
            raise RevisionCompacted("history begins at 90")
        raise PermissionDenied("not this prefix")

    async with client_of(registered([refuse])) as client:
        with pytest.raises(RevisionCompacted):
            await client.state.watch(after_revision=5)
        with pytest.raises(PermissionDenied):
            await client.state.watch("secret/")


async def test_waiting_for_an_event_can_be_given_up() -> None:
    """A wait that is over or cancelled loses nothing, and the call goes on."""
    given_up = asyncio.Event()
    asked: list[int] = []

    async def serve(conversation: Conversation) -> None:
        asked.append((await begin(conversation)).after_revision)
        await conversation.write(snapshot=state_pb2.WatchSnapshot(revision=5, last=True))
        await given_up.wait()
        await conversation.write(changes=changes(("a", 6)))
        await conversation.write(changes=changes(("a", 7)))
        await forever(conversation)

    async with client_of(registered([serve])) as client, client.state.watch() as watch:
        await take(watch, 1)
        with pytest.raises(DeadlineExceeded):
            await watch.next(timeout_s=0.02)
        waiting = asyncio.create_task(watch.next())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        given_up.set()
        events = await take(watch, 2)

        assert 0 == watch.reopened
    assert [6, 7] == [event.revision for event in events]
    assert [0] == asked


async def test_what_came_while_nobody_waited_is_not_lost() -> None:
    """A change that comes after a wait was given up is the next one's, and not yet passed."""

    async def serve(conversation: Conversation) -> None:
        await begin(conversation)
        await conversation.write(snapshot=state_pb2.WatchSnapshot(revision=5, last=True))
        await conversation.write(changes=changes(("a", 6)))
        await forever(conversation)

    async with client_of(registered([serve])) as client, client.state.watch() as watch:
        await take(watch, 1)
        with pytest.raises(DeadlineExceeded):
            await watch.next(timeout_s=0)
        await asyncio.sleep(0.05)  # the change comes, or does not: either way it is not lost
        assert 5 == watch.revision
        events = await take(watch, 1)

    assert [6] == [event.revision for event in events]


async def test_closing_ends_who_waits() -> None:
    """A task that iterates when the watch is closed comes to the end; it is not cancelled."""

    async def serve(conversation: Conversation) -> None:
        await begin(conversation)
        await forever(conversation)

    async with client_of(registered([serve])) as client:
        watch = await client.state.watch()

        async def iterate() -> list[StateEvent]:
            return [event async for event in watch]

        iterating = asyncio.create_task(iterate())
        await asyncio.sleep(0)
        await watch.close()

        assert [] == await asyncio.wait_for(iterating, 20)
