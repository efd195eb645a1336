"""Reads of State that come together go together, and stay apart in everything else."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

import tidewire
from support.server import running
from support.store import until
from tidewire import errors
from tidewire.client import state_gets
from tidewire.client.state_gets import TOGETHER_MAX, Gets
from tidewire.v1 import state_pb2

LIMIT_S = 20.0
KEYS = [f"k/{number:03}" for number in range(300)]


class Recording:
    """The stub of State, which notes what is called and refuses what a test tells it to."""

    def __init__(self, gets: Gets) -> None:
        self.calls: list[int] = []
        self.refuse: dict[str, Callable[[], errors.TidewireError]] = {}
        self.before: Callable[[], Any] | None = None
        self._below = gets._stub
        gets._stub = self

    async def Get(self, request: state_pb2.GetRequest, **options: Any) -> Any:
        self.calls.append(1)
        return await self._call("Get", request, options)

    async def GetMany(self, request: state_pb2.GetManyRequest, **options: Any) -> Any:
        self.calls.append(len(request.keys))
        return await self._call("GetMany", request, options)

    async def _call(self, name: str, request: Any, options: dict[str, Any]) -> Any:
        if self.before is not None:
            await self.before()
        if name in self.refuse:
            make = self.refuse[name]
            raise make()
        return await getattr(self._below, name)(request, **options)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[tidewire.Client]:
    async with (
        running(tmp_path, ("tcp",)) as it,
        tidewire.connect(it.url("tcp"), timeout_s=LIMIT_S) as connected,
    ):
        for key in KEYS[:20]:
            await connected.state.put(key, key)
        yield connected


@pytest.fixture
def stub(client: tidewire.Client) -> Recording:
    return Recording(client.state._gets)


async def read(client: tidewire.Client, keys: list[str]) -> list[Any]:
    async with asyncio.timeout(LIMIT_S):
        return await asyncio.gather(
            *(client.state.get(key) for key in keys), return_exceptions=True
        )


def texts(found: list[Any]) -> list[Any]:
    return [entry.text if isinstance(entry, tidewire.Entry) else entry for entry in found]


async def test_reads_of_one_turn_go_together(client: tidewire.Client, stub: Recording) -> None:
    """The first leaves at once, the others as one request; control: one by one each is its own."""
    wanted = [*KEYS[:3], "none", KEYS[1], KEYS[1]]
    found = await read(client, wanted)
    assert [1, 5] == stub.calls
    assert [*KEYS[:3], None, KEYS[1], KEYS[1]] == texts(found)

    for key in KEYS[:3]:
        assert key == texts([await client.state.get(key)])[0]
    assert [1, 5, 1, 1, 1] == stub.calls


async def test_no_more_go_together_than_is_good(client: tidewire.Client, stub: Recording) -> None:
    """Many are cut: the answer to the first does not wait for all."""
    found = await read(client, KEYS)

    assert [*KEYS[:20], *[None] * 280] == texts(found)
    assert [1, TOGETHER_MAX, TOGETHER_MAX, 299 - 2 * TOGETHER_MAX] == stub.calls


async def test_each_key_has_its_own_error(client: tidewire.Client, stub: Recording) -> None:
    """What is no key is refused; those that went with it are answered. Too long ones go alone."""
    wanted = [KEYS[0], KEYS[1], "no key", "k" * 600, KEYS[2]]
    found = await read(client, wanted)

    assert [KEYS[0], KEYS[1], KEYS[2]] == texts([found[0], found[1], found[4]])
    assert [errors.InvalidKey] * 2 == [type(found[2]), type(found[3])]
    assert "'no key'" in found[2].message


async def test_an_error_of_all_is_told_to_each(client: tidewire.Client, stub: Recording) -> None:
    """Each reader gets an exception of its own, with the figures; the next reads are made anew."""
    stub.refuse["GetMany"] = lambda: errors.Overloaded("full", metadata={"a": 1}, retry_after_s=2)
    found = await read(client, KEYS[:4])
    refused = found[1:]

    assert [errors.Overloaded] * 3 == [type(error) for error in refused]
    assert 3 == len({id(error) for error in refused})
    assert {("full", 1, 2)} == {(e.message, e.figure("a"), e.retry_after_s) for e in refused}
    stub.refuse.clear()
    assert KEYS[:4] == texts(await read(client, KEYS[:4]))


@pytest.mark.parametrize("refusal", [errors.MethodNotFound, errors.PermissionDenied])
async def test_a_server_that_reads_one_at_a_time(
    client: tidewire.Client, stub: Recording, refusal: type[errors.TidewireError]
) -> None:
    """Who knows no GetMany, or does not allow it, is asked for each key, from then on."""
    stub.refuse["GetMany"] = lambda: refusal("no")
    assert KEYS[:5] == texts(await read(client, KEYS[:5]))
    assert [1, 4, 1, 1, 1, 1] == stub.calls
    stub.calls.clear()
    assert KEYS[:5] == texts(await read(client, KEYS[:5]))
    assert [1] * 5 == stub.calls


async def test_rules_may_allow_one_key_only(tmp_path: Path) -> None:
    """The server's own refusal: reading goes on, many keys at once are refused."""
    allowed = ["ServerService/*", "StateService/Get", "StateService/Put"]
    rules = [{"principals": ["*"], "methods": allowed, "effect": "allow"}]
    async with (
        running(tmp_path, ("tcp",), access={"rules": rules}) as it,
        tidewire.connect(it.url("tcp")) as client,
    ):
        await client.state.put("a", "1")
        assert ["1"] * 9 == texts(await read(client, ["a"] * 9))
        with pytest.raises(errors.PermissionDenied):
            await client.state.get_many(["a"])


async def test_a_reader_may_leave(client: tidewire.Client, stub: Recording) -> None:
    """Cancelling one does not end the others; when all are gone the call ends too."""
    held = asyncio.Event()
    stub.before = held.wait
    first = asyncio.create_task(client.state.get(KEYS[0]))
    others = [asyncio.create_task(client.state.get(key)) for key in KEYS[:4]]
    await until(lambda: len(stub.calls) == 2)
    others[1].cancel()
    await asyncio.wait(others[1:2])
    held.set()
    left = [await each for each in (first, others[0], others[2], others[3])]
    assert [KEYS[0], KEYS[0], KEYS[2], KEYS[3]] == texts(left)

    held.clear()
    tasks = [asyncio.create_task(client.state.get(key)) for key in KEYS[:4]]
    await until(lambda: len(stub.calls) == 4)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    await until(lambda: not client.state._gets._on_the_way)


async def test_a_client_that_closes_leaves_nobody_waiting(tmp_path: Path) -> None:
    """Reads that are under way when the client is closed end with an error."""
    async with running(tmp_path, ("tcp",)) as it:
        client = await tidewire.connect(it.url("tcp"))
        stub = Recording(client.state._gets)
        held = asyncio.Event()
        stub.before = held.wait
        reading = asyncio.create_task(read(client, KEYS[:3]))
        await until(lambda: len(stub.calls) == 2)
        await client.close()
        held.set()

        assert all(isinstance(each, errors.TidewireError) for each in await reading)


# Several keys by one request.


async def test_several_keys_are_of_one_revision(
    client: tidewire.Client, stub: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    An answer in several parts shows one moment, though keys are written between them; when that is
    forgotten meanwhile, all is read anew.
    """
    monkeypatch.setattr(state_gets, "KEYS_MAX", 2)
    writes = 0

    async def write() -> None:
        nonlocal writes
        writes += 1
        revision = (await client.state.put(KEYS[3], f"{writes}")).revision
        await client.state.put(KEYS[0], f"{writes}")
        if writes == 6:
            await client.state.compact(revision)

    stub.before = write
    first = await client.state.get_many(KEYS[:4])
    assert ["1", KEYS[1], KEYS[2], "1"] == texts(list(first.values()))
    stub.before = None
    old = first[KEYS[0]].revision
    then = await client.state.get_many(KEYS[:4], revision=old)
    assert first == then
    stub.before = write
    again = await client.state.get_many(KEYS[:6])
    assert again[KEYS[0]].text == again[KEYS[3]].text
    assert 6 == len(again)
    with pytest.raises(errors.RevisionCompacted):
        await client.state.get_many(KEYS[:4], revision=1)


async def test_large_values_take_several_answers(client: tidewire.Client, stub: Recording) -> None:
    """What does not fit one answer is asked on for."""
    for key in KEYS[:3]:
        await client.state.put(key, b"x" * 3_000_000)
    found = await client.state.get_many(KEYS[:4])
    together = await read(client, KEYS[:4])

    assert [3_000_000] * 3 == [len(entry.value or b"") for entry in list(found.values())[:3]]
    assert [*found.values()] == together
    assert [4, 3, 2, 1, 3, 2] == stub.calls


async def test_what_is_asked_for_must_be_several(client: tidewire.Client) -> None:
    """A text is one key, not many; a server that reads nothing is not asked for ever."""
    with pytest.raises(errors.InvalidArgument):
        await client.state.get_many("key")
    gets = client.state._gets

    class Idle:
        """Reads no key."""

        async def GetMany(self, _request: object, **_options: object) -> Any:
            return state_pb2.GetManyResponse(revision=1)

    gets._stub = cast("Any", Idle())
    with pytest.raises(errors.Internal):
        await client.state.get_many(["a"])
