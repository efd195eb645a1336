"""Runs of questions in flight, without I/O: each question has one outcome and no slot is lost."""

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from support.live_fake_engine import make_core
from tidewire import errors
from tidewire.v1 import query_pb2
from tidewire_server.services.outbox import OutboxClosed
from tidewire_server.services.query import QueryService
from tidewire_server.services.query.asker import Asker
from tidewire_server.services.query.flight import Query
from tidewire_server.services.query.responder import Responder
from tidewire_server.services.query.runs import Part


class Scene:
    """Three responders of different kinds, two askers, and what each of them was told."""

    def __init__(self) -> None:
        core = make_core()
        service = QueryService(core)
        self.directory = service.directory
        self.responders = [
            Responder(str(n), ["a"], in_flight_max=5, takes_questions=n > 0) for n in range(3)
        ]
        self.written: dict[Responder, list[int]] = {each: [] for each in self.responders}
        for responder in self.responders:
            self.directory.add(responder)
        at_once = self.responders[2]
        at_once.write_at_once = lambda query: self.write_at_once(at_once, query)
        self.askers = [Asker(core, service.dispatch, f"{n}-", "") for n in range(2)]
        self.outcomes: dict[Asker, Counter[int]] = {each: Counter() for each in self.askers}
        self.dropped: dict[Asker, set[int]] = {each: set() for each in self.askers}
        self.last: dict[Asker, int] = dict.fromkeys(self.askers, 0)
        self.tries = 0

    def write_at_once(self, responder: Responder, query: Query | Part) -> bool:
        self.tries += 1
        if self.tries % 3 == 0:
            raise errors.MessageTooLarge("the peer would refuse it")
        if self.tries % 3 == 1:
            self.note(responder, query.to_response(0.0))
        return self.tries % 3 == 1

    def note(self, responder: Responder, response: query_pb2.ServeResponse) -> None:
        written = self.written[responder]
        if response.HasField("query"):
            written.append(response.query.query_id)
        if response.HasField("questions"):
            first = response.questions.first_query_id
            written.extend(range(first, first + len(response.questions.bare)))

    def write(self, responder: Responder) -> None:
        try:
            item = responder.outbox.take_nowait()
        except OutboxClosed:
            return
        if item is not None:
            for response in responder.next_responses(item, 0.0):
                self.note(responder, response)

    def act(self, act: str, number: int, size: int) -> None:
        asker = self.askers[number % 2]
        responder = self.responders[number % 3]
        if act == "ask":
            questions = query_pb2.Questions(
                subject="a", first_id=self.last[asker] + 1 + number % 4, bare=[b"?"] * size
            )
            self.last[asker] = questions.first_id + size - 1
            asker.take(query_pb2.AskManyRequest(questions=questions))
            self.asked(asker, questions.first_id, size)
        elif act == "write":
            self.write(responder)
        elif act == "answer":
            ids = self.written[responder][number : number + size]
            responder.take_answers(ids, [b"!"] * len(ids), bare=True)
        elif act == "reply":
            for number_ in self.written[responder][number : number + 1]:
                error = errors.Internal("no").to_status()
                responder.take_reply(query_pb2.ServeReply(query_id=number_, error=error, end=True))
        elif act == "cancel":
            ids = list(range(number, number + size))
            before = asker.outstanding
            self.collect()
            waiting = [each for each in ids if each in self.dropped[asker]]
            cancel = query_pb2.AskManyCancel(ids=[*ids, *ids])
            asker.take(query_pb2.AskManyRequest(cancel=cancel))
            live = [n for n in ids if n in self.live(asker) and n not in waiting]
            self.dropped[asker].update(live)
            assert before - len(live) == asker.outstanding
        elif act == "drain":
            responder.drain()
        elif act == "dead":
            responder.lose("died", cancel=True)
        else:
            self.lose(responder)

    def asked(self, asker: Asker, first: int, size: int) -> None:
        for number in range(first, first + size):
            self.outcomes[asker].setdefault(number, 0)

    def live(self, asker: Asker) -> list[int]:
        return [
            number
            for number, count in self.outcomes[asker].items()
            if not count and number not in self.dropped[asker]
        ]

    def collect(self) -> None:
        for asker in self.askers:
            while (response := asker.backlog.take_nowait()) is not None:
                for number in (*response.answers.ids, *response.failed.ids):
                    self.outcomes[asker][number] += 1

    def lose(self, responder: Responder) -> None:
        self.directory.remove(responder)
        responder.lose("was lost")
        responder.outbox.close()

    def check(self) -> None:
        self.collect()
        for asker in self.askers:
            counts = self.outcomes[asker]
            assert all(count <= 1 for count in counts.values())
            assert not any(counts[number] for number in self.dropped[asker])
            assert len(self.live(asker)) == asker.outstanding
        for responder in self.responders:
            assert len(responder.queries) == responder.in_hand <= responder.in_flight_max


ACTS = ["ask", "ask", "ask", "write", "write", "answer", "answer", "reply", "cancel"]
ENDS = ["drain", "dead", "lose"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*ACTS, *ENDS]), st.integers(0, 30), st.integers(1, 9)),
        max_size=60,
    )
)
def test_every_question_has_one_outcome(steps: list[tuple[str, int, int]]) -> None:
    """A question is answered, failed, cancelled, or in the hands of exactly one responder."""

    async def play() -> None:
        scene = Scene()
        for act, number, size in steps:
            scene.act(act, number, size)
            scene.check()
        for responder in scene.responders:
            scene.lose(responder)
        scene.check()
        for asker in scene.askers:
            assert 0 == asker.outstanding
            asker.abandon()

    asyncio.run(play())


def test_what_was_not_written_goes_to_the_next_without_what_was_cancelled() -> None:
    """A part that waits is given on in pieces; only what may have been seen is unknown."""

    async def play() -> tuple[list[int], list[int]]:
        scene = Scene()
        for idle in scene.responders[:2]:
            scene.directory.remove(idle)
        first = scene.responders[2]
        first.write_at_once = None
        scene.act("ask", 0, 5)
        second = scene.responders[1]
        second.serving = True
        scene.directory.add(second)
        cancel = query_pb2.AskManyCancel(ids=[3])
        scene.askers[0].take(query_pb2.AskManyRequest(cancel=cancel))
        scene.lose(first)
        parts = [part for part in second.queries.values() if isinstance(part, Part)]
        asked = [number + part.offset for number, part in zip(second.queries, parts, strict=True)]
        scene.write(second)
        scene.lose(second)
        unknown: list[int] = []
        while (response := scene.askers[0].backlog.take_nowait()) is not None:
            reason = errors.from_status(response.failed.error)
            if isinstance(reason, errors.OutcomeUnknown):
                unknown.extend(response.failed.ids)
        scene.askers[0].abandon()
        return asked, unknown

    asked, unknown = asyncio.run(play())
    assert [1, 2, 4, 5] == asked
    assert [1, 2] == unknown
