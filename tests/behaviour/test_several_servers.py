"""One client of several servers, on any wire: calls are spread, one that dies costs nothing."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import tidewire
from support.certificates import Certificates
from support.server import Running, running
from support.wires import WIRES
from tidewire.errors import ConnectionLost
from tidewire.transport import TransportOptions
from tidewire.v1.server_pb2 import GetInfoRequest
from tidewire.v1.server_pb2_grpc import ServerServiceStub

LIMIT_S = 20.0
CALLS = 40
PAIRED = WIRES
SOON = TransportOptions(backoff_first_s=0.05, backoff_last_s=0.2)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Those of all servers: one client must trust each of them."""
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def pair(tmp_path: Path, certificates: Certificates) -> AsyncIterator[list[Running]]:
    """Two servers, on every wire."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                running(
                    tmp_path / name,
                    PAIRED,
                    certificates,
                    server={"node_id": name, "data_dir": str(tmp_path / name / "data")},
                )
            )
            for name in ("first", "second")
        ]


async def asked(client: tidewire.Client, calls: int = CALLS) -> Counter[str]:
    """Ask who is there, again and again; return who answered how often."""
    return Counter([(await client.info()).node_id for _ in range(calls)])


async def spread(client: tidewire.Client, expected: Counter[str]) -> None:
    """Ask until the answers are spread as they should be: servers connect one by one."""
    async with asyncio.timeout(LIMIT_S):
        while await asked(client) != expected:
            pass


def urls(pair: list[Running], wire: str) -> list[str]:
    """Return where both are."""
    return [server.url(wire) for server in pair]


@pytest.mark.parametrize("balance", ["round_robin", "least_outstanding", "first"])
@pytest.mark.parametrize("wire", PAIRED)
async def test_a_client_spreads_its_calls(wire: str, balance: Any, pair: list[Running]) -> None:
    """Half and half, or all to the first, as it was told."""
    half = CALLS // 2
    expected = Counter({"first": CALLS} if balance == "first" else {"first": half, "second": half})
    options: dict[str, Any] = {"tls": pair[0].tls(wire), "balance": balance}
    async with tidewire.connect(urls(pair, wire), **options) as client:
        if wire == "grpc" and balance == "least_outstanding":
            assert hasattr(client.channel, "backends")  # gRPC has no such policy: it is ours
        await spread(client, expected)


@pytest.mark.parametrize("wire", PAIRED)
async def test_a_server_that_dies_under_load_costs_no_call(wire: str, pair: list[Running]) -> None:
    """Requests that may be repeated go to the other one; none fails."""
    options: dict[str, Any] = {
        "tls": pair[0].tls(wire),
        "transport_options": SOON,
        "retry": tidewire.RetryPolicy(budget_burst=1_000),
    }
    async with tidewire.connect(urls(pair, wire), **options) as client:
        await spread(client, Counter({"first": CALLS // 2, "second": CALLS // 2}))
        stopping = asyncio.Event()
        answers = Counter[str]()

        async def load() -> None:
            while not stopping.is_set():
                answers[(await client.info(timeout_s=LIMIT_S)).node_id] += 1

        loads = [asyncio.create_task(load()) for _ in range(8)]
        await asyncio.sleep(0.1)
        await asyncio.wait_for(pair[0].server.stop(0.0), LIMIT_S)
        before = answers["second"]
        async with asyncio.timeout(LIMIT_S):
            while answers["second"] < before + 100 and not any(task.done() for task in loads):
                await asyncio.wait(loads, timeout=0.01)
        stopping.set()
        await asyncio.gather(*loads)

    assert answers["second"] >= before + 100


async def test_a_stream_stays_until_its_server_goes(pair: list[Running]) -> None:
    """A subscription is at one server; when that dies it is opened at the other one."""
    options: dict[str, Any] = {"balance": "first", "transport_options": SOON}
    async with (
        tidewire.connect(urls(pair, "tcp"), **options) as client,
        client.events.subscribe("news.>") as news,
        tidewire.connect(pair[1].url("tcp")) as other,
    ):
        await client.events.publish("news.a", b"at the first")
        assert b"at the first" == (await news.next(timeout_s=LIMIT_S)).data
        await pair[0].server.stop(0.0)
        async with asyncio.timeout(LIMIT_S):
            while not news.reopened:  # noqa: ASYNC110 (a count has no event)
                await asyncio.sleep(0.01)
        await other.events.publish("news.a", b"at the second")
        assert b"at the second" == (await news.next(timeout_s=LIMIT_S)).data


async def test_servers_on_different_wires(pair: list[Running]) -> None:
    """One is reached by tcp://, the other by ws://."""
    mixed = [pair[0].url("tcp"), pair[1].url("ws")]
    async with tidewire.connect(mixed) as client:
        await spread(client, Counter({"first": CALLS // 2, "second": CALLS // 2}))
        assert ", ".join(mixed) == client.url


async def test_a_dead_server_in_the_list_costs_nothing(pair: list[Running]) -> None:
    """Connecting succeeds as long as one is there; with none the reason is told."""
    gone = pair[0].url("tcp")
    await pair[0].server.stop(0.0)
    async with tidewire.connect([gone, pair[1].url("tcp")], transport_options=SOON) as client:
        assert Counter({"second": CALLS}) == await asked(client)
    with pytest.raises(ConnectionLost, match="tcp://"):
        await tidewire.connect([gone, gone], connect_timeout_s=2.0)


async def test_the_blocking_client_has_lists_too(pair: list[Running]) -> None:
    """`tidewire.sync.connect` and its channel take several URLs as well."""
    answered = Counter[str]()
    firsts = set[str]()

    def block() -> None:
        with tidewire.sync.connect(urls(pair, "tcp")) as client:
            for _ in range(CALLS):
                answered[client.info().node_id] += 1
        with tidewire.sync.channel(urls(pair, "tcp"), balance="first") as channel:
            stub: Any = ServerServiceStub(channel)
            firsts.add(stub.GetInfo(GetInfoRequest(), timeout=LIMIT_S).node_id)

    thread = threading.Thread(target=block)
    thread.start()
    await asyncio.wait_for(asyncio.to_thread(thread.join), LIMIT_S)

    assert {"first"} == firsts
    assert CALLS == sum(answered.values())
    assert min(answered["first"], answered["second"]) >= CALLS // 4
