"""The State service against a dictionary that remembers every revision."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from support.store import delete_operation, get_operation, put, put_operation
from tidewire import errors
from tidewire.v1 import state_pb2
from tidewire_server.core import Context, Core
from tidewire_server.engine.embedded import EngineOptions, open_engine
from tidewire_server.members import Members
from tidewire_server.services.state import StateService

Answer = TypeVar("Answer")
Operation = tuple[str, str, int]
"""What to do (put, delete, get), the key, and a number for the value."""

NO_CONTEXT = cast("Context", None)
PUT = state_pb2.CHANGE_KIND_PUT
DELETE = state_pb2.CHANGE_KIND_DELETE
PAGE = 2

keys = st.sampled_from(["a", "a/1", "a/2", "b"])
prefixes = st.sampled_from(["", "a", "a/", "b", "c"])
numbers = st.integers(0, 9)
operations = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "get"]), keys, numbers),
    max_size=4,
    unique_by=lambda operation: operation[1],
)


@dataclass(frozen=True)
class Held:
    """One key as the model has it."""

    value: bytes
    revision: int
    create_revision: int
    version: int


@dataclass
class Model:
    """Every revision of the whole store, as dictionaries."""

    now: dict[str, Held] = field(default_factory=dict)
    past: list[dict[str, Held]] = field(default_factory=lambda: [{}])
    log: list[tuple[int, str, int]] = field(default_factory=list)
    compacted: int = 0

    @property
    def revision(self) -> int:
        return len(self.past) - 1

    def perform(self, todo: Sequence[Operation]) -> list[Held | bool | None]:
        """Do operations under one revision; what each answers."""
        revision = self.revision + 1
        results: list[Held | bool | None] = []
        changed = False
        for kind, key, number in todo:
            held = self.now.get(key)
            if kind == "put":
                self.now[key] = Held(
                    b"%d" % number,
                    revision,
                    held.create_revision if held else revision,
                    held.version + 1 if held else 1,
                )
                results.append(self.now[key])
                self.log.append((PUT, key, revision))
                changed = True
            elif kind == "delete":
                results.append(held is not None)
                if held is not None:
                    del self.now[key]
                    self.log.append((DELETE, key, revision))
                    changed = True
            else:
                results.append(held)
        if changed:
            self.past.append(deepcopy(self.now))
        return results


def to_proto(todo: Sequence[Operation]) -> list[state_pb2.StateOperation]:
    make: dict[str, Callable[[str, int], state_pb2.StateOperation]] = {
        "put": lambda key, number: put_operation(key, b"%d" % number),
        "delete": lambda key, _: delete_operation(key),
        "get": lambda key, _: get_operation(key),
    }
    return [make[kind](key, number) for kind, key, number in todo]


def held_of(entry: state_pb2.Entry) -> Held:
    return Held(entry.value.data, entry.revision, entry.create_revision, entry.version)


def result_of(result: state_pb2.StateOperationResult) -> Held | bool | None:
    kind = result.WhichOneof("kind")
    if kind == "delete":
        return result.delete.deleted
    if kind == "put":
        return held_of(result.put.entry)
    return held_of(result.get.entry) if result.get.HasField("entry") else None


def without_values(
    results: Sequence[Held | bool | None], todo: Sequence[Operation]
) -> list[object]:
    """Results as they are answered: a write without its value."""
    return [
        Held(b"", r.revision, r.create_revision, r.version)
        if kind == "put" and isinstance(r, Held)
        else r
        for r, (kind, _, _) in zip(results, todo, strict=True)
    ]


class StateAgrees(RuleBasedStateMachine):
    """Whatever is done in whatever order, the service and the dictionary say the same."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.open()

    def run(self, call: Awaitable[Answer]) -> Answer:
        async def wait() -> Answer:
            return await call

        return self.runner.run(wait())

    def open(self) -> None:
        options = EngineOptions(ballast_bytes=0)
        opening = open_engine(Path(self.folder.name), node_id="server", options=options)
        self.engine = self.runner.run(opening)
        self.service = StateService(Core(self.engine, Members(), "server", "0"))
        self.run(self.service.start())

    def shut(self) -> None:
        self.run(self.service.close())
        self.run(self.engine.close())

    def teardown(self) -> None:
        self.shut()
        self.runner.close()
        self.folder.cleanup()

    @rule()
    def restart(self) -> None:
        self.shut()
        self.open()

    @rule(key=keys, number=numbers, off=st.sampled_from([None, 0, 1]))
    def put(self, key: str, number: int, off: int | None) -> None:
        """Put, always or expecting the right or a wrong revision."""
        request = put(key, b"%d" % number)
        held = self.model.now.get(key)
        if off is not None:
            request.expected_revision = (held.revision if held else 0) + off
        if off:
            with pytest.raises(errors.RevisionMismatch) as caught:
                self.run(self.service.Put(request, NO_CONTEXT))
            assert (held.revision if held else 0) == caught.value.figure("actual_revision")
            assert self.model.revision == caught.value.figure("store_revision")
            return
        expected = without_values(self.model.perform([("put", key, number)]), [("put", key, 0)])
        answer = self.run(self.service.Put(request, NO_CONTEXT))
        assert expected == [held_of(answer.entry)]
        assert self.model.revision == answer.revision

    @rule(key=keys)
    def delete(self, key: str) -> None:
        expected = self.model.perform([("delete", key, 0)])
        answer = self.run(self.service.Delete(state_pb2.DeleteRequest(key=key), NO_CONTEXT))
        assert (expected, self.model.revision) == ([answer.deleted], answer.revision)

    @rule(key=keys, exists=st.booleans(), then=operations, otherwise=operations)
    def transact(
        self, key: str, exists: bool, then: list[Operation], otherwise: list[Operation]
    ) -> None:
        succeeds = (key in self.model.now) == exists
        todo = then if succeeds else otherwise
        request = state_pb2.TransactRequest(
            compare=[state_pb2.Compare(key=key, exists=exists)],
            then=to_proto(then),
            otherwise=to_proto(otherwise),
        )
        expected = without_values(self.model.perform(todo), todo)
        answer = self.run(self.service.Transact(request, NO_CONTEXT))
        assert (succeeds, self.model.revision) == (answer.succeeded, answer.revision)
        assert expected == [result_of(result) for result in answer.results]

    @rule(key=keys, back=st.integers(0, 6))
    def get_at(self, key: str, back: int) -> None:
        """Read as it was some revisions ago, if that is kept."""
        revision = self.model.revision - back
        if revision <= 0:
            return
        request = state_pb2.GetRequest(key=key, revision=revision)
        if revision < self.model.compacted:
            with pytest.raises(errors.RevisionCompacted):
                self.run(self.service.Get(request, NO_CONTEXT))
            return
        answer = self.run(self.service.Get(request, NO_CONTEXT))
        found = held_of(answer.entry) if answer.HasField("entry") else None
        assert self.model.past[revision].get(key) == found

    @rule(prefix=prefixes)
    def list_by_pages(self, prefix: str) -> None:
        request = state_pb2.RangeRequest(prefix=prefix, page_size=PAGE)
        found: list[tuple[str, Held]] = []
        while True:
            answer = self.run(self.service.Range(request, NO_CONTEXT))
            assert len(answer.entries) <= PAGE
            found += [(entry.key, held_of(entry)) for entry in answer.entries]
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
        expected = [(k, held) for k, held in sorted(self.model.now.items()) if k.startswith(prefix)]
        assert (expected, self.model.revision) == (found, answer.revision)

    @rule(key=keys)
    def history(self, key: str) -> None:
        """The kept versions, newest first; the older ones are allowed to be there still."""
        request = state_pb2.HistoryRequest(key=key, page_size=PAGE)
        found: list[tuple[int, str, int]] = []
        while True:
            answer = self.run(self.service.History(request, NO_CONTEXT))
            found += [(c.kind, c.entry.key, c.entry.revision) for c in answer.changes]
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
        log = [change for change in reversed(self.model.log) if change[1] == key]
        kept = [change for change in log if change[2] > self.model.compacted]
        assert kept == found[: len(kept)]
        assert found == log[: len(found)]

    @rule(prefix=prefixes, after=st.integers(0, 8), most=st.integers(1, 3))
    def changes(self, prefix: str, after: int, most: int) -> None:
        """The log of a prefix from some revisions ago on, by pages of whole revisions."""
        revision = max(0, self.model.revision - after)
        expected = [c for c in self.model.log if c[2] > revision and c[1].startswith(prefix)]
        request = state_pb2.ChangesRequest(prefix=prefix, after_revision=revision, changes_max=most)
        if revision < self.model.compacted:
            with pytest.raises(errors.RevisionCompacted):
                self.run(self.service.Changes(request, NO_CONTEXT))
            return
        found: list[tuple[int, str, int]] = []
        while request.after_revision < self.model.revision:
            answer = self.run(self.service.Changes(request, NO_CONTEXT))
            found += [(c.kind, c.entry.key, c.entry.revision) for c in answer.changes]
            request.after_revision = answer.revision
        assert expected == found

    @rule(back=st.integers(0, 5))
    def compact(self, back: int) -> None:
        revision = max(1, self.model.revision - back)
        if revision > self.model.revision:
            return
        request = state_pb2.CompactRequest(revision=revision)
        answer = self.run(self.service.Compact(request, NO_CONTEXT))
        assert answer.compacted_revision == max(self.model.compacted, revision)
        self.model.compacted = answer.compacted_revision

    @invariant()
    def reads_agree(self) -> None:
        for key in ("a", "a/1", "b"):
            answer = self.run(self.service.Get(state_pb2.GetRequest(key=key), NO_CONTEXT))
            found = held_of(answer.entry) if answer.HasField("entry") else None
            assert (self.model.now.get(key), self.model.revision) == (found, answer.revision)


# Not shrunk: every step is a transaction on the disk, and shrinking would take minutes.
StateAgrees.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
TestStateAgrees = StateAgrees.TestCase
