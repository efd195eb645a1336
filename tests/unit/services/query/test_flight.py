"""Queries in flight, without I/O: whatever happens, each has one outcome and no slot is lost."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidewire import errors
from tidewire.v1 import common_pb2, query_pb2
from tidewire_server.services.outbox import OutboxClosed
from tidewire_server.services.query import responder as responders
from tidewire_server.services.query.flight import Query, SingleQuery
from tidewire_server.services.query.responder import Responder
from tidewire_server.services.query.routing import Directory
from tidewire_server.services.query.runs import Part


class Scene:
    """Three responders, a directory, and the queries that were asked."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.directory: Directory[Responder] = Directory()
        self.responders = [Responder(str(i), ["a"], in_flight_max=2) for i in range(3)]
        self.written: dict[Responder, list[int]] = {each: [] for each in self.responders}
        self.queries: list[SingleQuery] = []
        self.outcomes: list[list[Any]] = []
        """What each query was told, as it was told it."""
        self.dropped: set[SingleQuery] = set()
        for responder in self.responders:
            self.directory.add(responder)
        self.tries = 0

    def ask(self) -> None:
        outcomes: list[Any] = []
        query = SingleQuery(
            "a", common_pb2.Payload(data=b"?"), "r", "", outcomes.append, self.route
        )
        query.deadline_s = 5.0
        self.route(query)
        self.queries.append(query)
        self.outcomes.append(outcomes)

    def route(self, query: Query) -> None:
        try:
            self.directory.choose("a").give(query)
        except errors.TidewireError as error:
            query.on_error(error)

    def write(self, responder: Responder) -> None:
        try:
            item = responder.outbox.take_nowait()
        except OutboxClosed:
            return
        if item is None:
            return
        for response in responder.next_responses(item, 0.0):
            if response.HasField("query"):
                self.written[responder].append(response.query.query_id)

    def write_at_once(self, responder: Responder, query: Query | Part) -> bool:
        assert not len(responder.outbox)
        self.tries += 1
        if self.tries % 3 == 0:
            raise errors.MessageTooLarge("the peer would refuse it")
        if self.tries % 3 == 1:
            self.written[responder].append(query.to_response(0.0).query.query_id)
        return self.tries % 3 == 1

    def reply(self, responder: Responder, number: int) -> None:
        written = self.written[responder]
        if written:
            query_id = written[number % len(written)]
            reply = query_pb2.ServeReply(query_id=query_id, payload=common_pb2.Payload(), end=True)
            responder.take_reply(reply)

    def drop(self, number: int) -> None:
        waiting = [query for query in self.queries if not query.over]
        if waiting:
            query = waiting[number % len(waiting)]
            query.abandon()
            self.dropped.add(query)

    def lose(self, responder: Responder) -> None:
        self.directory.remove(responder)
        responder.lose("was lost")
        responder.outbox.close()

    def act(self, act: str, responder: Responder, number: int) -> None:
        if act == "ask":
            self.ask()
        elif act == "write":
            self.write(responder)
        elif act == "reply":
            self.reply(responder, number)
        elif act == "drop":
            self.drop(number)
        elif act == "lose":
            self.lose(responder)
        elif act == "drain":
            responder.drain()
        else:
            responder.lose("died", cancel=True)

    def check(self) -> None:
        held = [query for each in self.responders for query in each.queries.values()]
        assert len(held) == len(set(held))
        for query, outcomes in zip(self.queries, self.outcomes, strict=True):
            assert query.over != (query in held)
            assert (query.over and query not in self.dropped) == len(outcomes)
        for responder in self.responders:
            assert len(responder.queries) == responder.in_hand
            assert responder.in_hand <= responder.in_flight_max


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["ask", "ask", "write", "write", "reply", "drop", "lose", "drain", "dead"]
            ),
            st.integers(0, 8),
        ),
        max_size=80,
    )
)
def test_every_query_has_one_outcome(steps: list[tuple[str, int]]) -> None:
    """A query is answered, failed, dropped, or in the hands of exactly one responder."""
    loop = asyncio.new_event_loop()
    try:
        scene = Scene(loop)
        idle = scene.responders[0]  # its wire takes some queries at once
        idle.write_at_once = lambda query: scene.write_at_once(idle, query)
        for act, number in steps:
            responder = scene.responders[number % 3]
            scene.act(act, responder, number)
            scene.check()
        for responder in scene.responders:
            scene.lose(responder)
        scene.check()
        assert all(query.over for query in scene.queries)
    finally:
        loop.close()


@pytest.fixture
async def scene() -> Scene:
    return Scene(asyncio.get_running_loop())


async def test_what_was_not_written_goes_to_the_next(scene: Scene) -> None:
    """At most once is kept: only what may have been seen is unknown."""
    scene.ask()
    first = scene.queries[0].responder
    assert first is not None
    scene.lose(first)
    second = scene.queries[0].responder
    assert second not in (None, first)
    assert second is not None
    scene.write(second)
    scene.lose(second)

    (outcome,) = scene.outcomes[0]
    assert isinstance(outcome, errors.OutcomeUnknown)


async def test_a_dropped_query_is_never_written(scene: Scene) -> None:
    """Its responder hears nothing of it, and has its slot back."""
    scene.ask()
    responder = scene.queries[0].responder
    assert responder is not None
    scene.drop(0)
    item = responder.outbox.take_nowait()

    assert isinstance(item, Query)
    assert not responder.next_responses(item, 0.0)
    assert 0 == responder.in_hand


async def test_a_responder_that_does_not_read_counts_as_busy(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From so many unwritten bytes on; reading makes it ready again."""
    monkeypatch.setattr(responders, "UNWRITTEN_BYTES_MAX", 400)
    responder = Responder("n", ["b"], in_flight_max=10)
    scene.directory.add(responder)
    outcomes: list[Any] = []
    for _ in range(2):
        query = SingleQuery("b", common_pb2.Payload(), "r", "", outcomes.append, scene.route)
        scene.directory.choose("b").give(query)
    with pytest.raises(errors.RespondersBusy):
        scene.directory.choose("b")
    scene.written[responder] = []
    scene.write(responder)

    assert responder is scene.directory.choose("b")


async def test_time_left_is_told_when_it_is_written(scene: Scene) -> None:
    """Not when it was asked; and never nothing."""
    scene.ask()
    query = scene.queries[0]

    assert 3_500_000_000 == query.to_response(1.5).query.remaining.ToNanoseconds()
    assert 1_000 == query.to_response(9.0).query.remaining.ToNanoseconds()
