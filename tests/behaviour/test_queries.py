"""Queries over every wire, through the public client."""

import asyncio
from collections.abc import AsyncIterator

import pytest

import tidewire
from tidewire import errors

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 20.0


@pytest.mark.needs("streams")
async def test_an_answer_comes_with_what_was_asked(client: tidewire.Client, name: str) -> None:
    """Payload, headers, subject and remaining time reach the responder, its answer comes back."""
    seen: list[tidewire.Query] = []

    def answer(query: tidewire.Query) -> bytes:
        seen.append(query)
        return query.payload[::-1]

    async with client.queries.serve(f"{name}.*", answer):
        reply = await client.queries.ask(
            f"{name}.a", b"\x00abc", headers=[("k", b"v")], timeout_s=15
        )

    (query,) = seen
    assert b"cba\x00" == reply.payload
    assert (f"{name}.a", [("k", b"v")]) == (query.subject, list(query.headers))
    assert query.remaining_s is not None
    assert 5 < query.remaining_s <= 15 * 1.1  # gRPC rounds a deadline up on its way


@pytest.mark.needs("streams")
async def test_nobody_there_is_told_at_once(client: tidewire.Client, name: str) -> None:
    """No responders is an error long before the deadline, for every shape."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(errors.NoResponders):
        await client.queries.ask(name, timeout_s=60)
    with pytest.raises(errors.NoResponders):
        await client.queries.gather(name, timeout_s=60)
    with pytest.raises(errors.NoResponders):
        async for _ in client.queries.ask_stream(name, timeout_s=60):
            pass

    assert loop.time() - began < 10


@pytest.mark.needs("streams")
async def test_the_least_busy_responder_is_asked(client: tidewire.Client, name: str) -> None:
    """While one member of a group works the other gets the next queries."""
    release, started = asyncio.Event(), asyncio.Event()
    asked: list[str] = []

    async def first(query: tidewire.Query) -> str:
        asked.append("first")
        return await work(query)

    async def second(query: tidewire.Query) -> str:
        asked.append("second")
        return await work(query)

    async def work(query: tidewire.Query) -> str:
        if query.text == "hold":
            started.set()
            await release.wait()
        return "done"

    async with (
        client.queries.serve(name, first, group="g"),
        client.queries.serve(name, second, group="g"),
    ):
        held = asyncio.create_task(client.queries.ask(name, "hold"))
        await asyncio.wait_for(started.wait(), WAIT_S)
        busy = asked[0]
        for _ in range(5):
            await client.queries.ask(name, "quick")
        release.set()
        await held

    assert 5 == len([each for each in asked[1:] if each != busy])


@pytest.mark.needs("streams")
async def test_many_replies_come_as_they_are_made(client: tidewire.Client, name: str) -> None:
    """The first one is there before the second one is made; leaving cancels the responder."""
    go_on, cancelled = asyncio.Event(), asyncio.Event()

    async def count(query: tidewire.Query) -> AsyncIterator[str]:
        try:
            yield "1"
            await go_on.wait()
            yield "2"
            if query.text == "endless":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with client.queries.serve(name, count):
        replies = []
        async for reply in client.queries.ask_stream(name, ""):
            replies.append(reply.text)
            go_on.set()
        endless = client.queries.ask_stream(name, "endless")
        assert "1" == (await anext(endless)).text
        await endless.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(cancelled.wait(), WAIT_S)

    assert ["1", "2"] == replies


@pytest.mark.needs("streams")
@pytest.mark.parametrize("way", ["cancelled", "deadline"])
async def test_giving_up_reaches_the_responder(
    client: tidewire.Client, name: str, way: str
) -> None:
    """Cancelling who asks, or its deadline, cancels who answers."""
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(query: tidewire.Query) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return ""

    async with client.queries.serve(name, answer):
        timeout_s = 0.5 if way == "deadline" else 60.0
        asking = asyncio.create_task(client.queries.ask(name, timeout_s=timeout_s))
        await asyncio.wait_for(started.wait(), WAIT_S)
        if way == "cancelled":
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        else:
            with pytest.raises(errors.DeadlineExceeded):
                await asking
        await asyncio.wait_for(cancelled.wait(), WAIT_S)


@pytest.mark.needs("streams")
async def test_gather_by_first_quorum_and_all(client: tidewire.Client, name: str) -> None:
    """First n of all, k of n, everybody known; who fails and who is missing is named."""
    hang = asyncio.Event()

    async def slow(_: tidewire.Query) -> str:
        await hang.wait()
        return "slow"

    def fails(_: tidewire.Query) -> str:
        raise errors.KeyNotFound("nothing here")

    async with (
        client.queries.serve(name, lambda _: "a"),
        client.queries.serve(name, lambda _: "b"),
        client.queries.serve(name, fails),
        client.queries.serve(name, slow),
    ):
        first = await client.queries.gather(name, first=2)
        late = await client.queries.gather(name, timeout_s=1.0)
        with pytest.raises(errors.TooFewResponders):
            await client.queries.gather(name, first=5)
        hang.set()
        everybody = await client.queries.gather(name)
        quorum = await client.queries.gather(name, quorum=3)

    assert (True, ["a", "b"]) == (first.complete, sorted(r.text for r in first.replies))
    assert (False, 2, 1, 1) == (
        late.complete,
        len(late.replies),
        len(late.errors),
        len(late.missing),
    )
    assert ["a", "b", "slow"] == sorted(r.text for r in everybody.replies)
    (failure,) = everybody.errors.values()
    assert "nothing here" in str(failure)
    assert (True, 3) == (quorum.complete, len(quorum.replies))


@pytest.mark.needs("streams")
async def test_a_responder_that_fails_or_is_busy_is_told(
    client: tidewire.Client, name: str
) -> None:
    """The responder's own error keeps its text, and a full house is RESPONDERS_BUSY at once."""
    started, release = asyncio.Event(), asyncio.Event()

    async def answer(query: tidewire.Query) -> str:
        if query.text == "fail":
            raise ValueError("swordfish")
        started.set()
        await release.wait()
        return "late"

    async with client.queries.serve(name, answer, in_flight_max=1):
        with pytest.raises(errors.ResponderFailed, match="swordfish"):
            await client.queries.ask(name, "fail")
        asking = asyncio.create_task(client.queries.ask(name))
        await asyncio.wait_for(started.wait(), WAIT_S)
        with pytest.raises(errors.RespondersBusy):
            await client.queries.ask(name)
        release.set()
        assert "late" == (await asking).text


@pytest.mark.needs("streams")
async def test_ten_thousand_at_once_get_their_own_answers(
    client: tidewire.Client, name: str
) -> None:
    """Bare ones and others, by handlers of both kinds, in whatever runs they travel."""

    async def later(query: tidewire.Query) -> bytes:
        await asyncio.sleep(0)
        return query.payload

    async with (
        client.queries.serve(f"{name}.now", lambda q: q.payload, in_flight_max=10_000),
        client.queries.serve(f"{name}.later", later, in_flight_max=10_000),
    ):
        asked = []
        for number in range(10_000):
            subject = f"{name}.later" if number % 10 == 0 else f"{name}.now"
            headers = [("k", b"v")] if number % 7 == 0 else []
            asked.append(client.queries.ask(subject, b"%d" % number, headers=headers))
        replies = await asyncio.gather(*asked)

    assert [b"%d" % number for number in range(10_000)] == [reply.payload for reply in replies]
    assert 10_000 == len({reply.request_id for reply in replies})


@pytest.mark.needs("streams")
async def test_of_many_at_once_each_ends_in_its_own_way(client: tidewire.Client, name: str) -> None:
    """Answered, failed, too late, given up and nobody there: beside each other on one stream."""
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(query: tidewire.Query) -> str:
        if query.text == "fail":
            raise errors.KeyNotFound("swordfish")
        if query.text == "hang":
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
        return "done"

    async with client.queries.serve(name, answer):
        for _ in range(2):  # the first time a stream is opened
            assert "done" == (await client.queries.ask(name, "go")).text
        ask = client.queries.ask
        given_up = asyncio.create_task(ask(name, "hang", timeout_s=60))
        outcomes = asyncio.gather(
            ask(name, "go"),
            ask(name, "fail"),
            ask(name, "slow", timeout_s=30),
            ask(f"{name}.nobody", "go"),
            ask(name, "hang", timeout_s=0.3),
            return_exceptions=True,
        )
        await asyncio.wait_for(started.wait(), WAIT_S)
        done, failed, slow, nobody, late = await outcomes
        assert isinstance(late, errors.DeadlineExceeded)
        await asyncio.wait_for(cancelled.wait(), WAIT_S)
        cancelled.clear()
        given_up.cancel()
        await asyncio.wait_for(cancelled.wait(), WAIT_S)

    assert isinstance(done, tidewire.Reply)
    assert isinstance(slow, tidewire.Reply)
    assert isinstance(failed, errors.ResponderFailed)
    assert "swordfish" in str(failed)
    assert isinstance(nobody, errors.NoResponders)


@pytest.mark.needs("streams")
async def test_more_than_a_responder_takes_is_told_at_once(
    client: tidewire.Client, name: str
) -> None:
    """Of a run that is larger than its hands the rest is busy; those taken are answered."""
    release = asyncio.Event()

    async def answer(query: tidewire.Query) -> bytes:
        await release.wait()
        return query.payload

    async with client.queries.serve(name, answer, in_flight_max=5):
        release.set()
        for _ in range(2):
            await client.queries.ask(name, "warm")
        release.clear()
        asked = [asyncio.create_task(client.queries.ask(name, b"x")) for _ in range(12)]
        busy, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_S)
        assert busy
        release.set()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)

    kinds = [type(outcome) for outcome in outcomes]
    assert (5, 7) == (kinds.count(tidewire.Reply), kinds.count(errors.RespondersBusy))
