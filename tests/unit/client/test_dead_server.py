"""A server that is not there is told within the connect timeout, not at the end of all time."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest

import tidewire
from support.server import Running, running
from tidewire.client.timeouts import LAN, PROFILES, SATELLITE, WAN, profile_of
from tidewire.errors import ConnectionLost, InvalidArgument
from tidewire.transport import TransportOptions

LIMIT_S = 15.0
PATIENCE_S = 0.5
SOON = TransportOptions(backoff_first_s=0.05, backoff_last_s=0.2)


@pytest.fixture(params=["tcp", "grpc"])
def wire(request: pytest.FixtureRequest) -> str:
    """One raw wire, and gRPC."""
    return str(request.param)


@pytest.fixture
def silent() -> object:
    """A port that takes connections and says nothing."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(8)
        yield sock.getsockname()[1]


async def test_nobody_listens(wire: str) -> None:
    """A refused connection is told as soon as the tries are used up."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(ConnectionLost, match=str(port)):
        await asyncio.wait_for(_open(f"{wire}://127.0.0.1:{port}", 60.0), LIMIT_S)


async def test_somebody_listens_and_is_silent(wire: str, silent: int) -> None:
    """The connect timeout ends it; longer than 200 ms on gRPC too, which a far server needs."""
    begun_s = asyncio.get_running_loop().time()
    with pytest.raises(ConnectionLost, match="within 1 s"):
        await asyncio.wait_for(_open(f"{wire}://127.0.0.1:{silent}", 1.0), LIMIT_S)

    assert asyncio.get_running_loop().time() - begun_s >= 0.9


async def _open(url: str, connect_timeout_s: float) -> None:
    async with tidewire.connect(url, connect_timeout_s=connect_timeout_s):
        raise AssertionError("nobody was there")


async def publish(client: tidewire.Client) -> None:
    await client.events.publish("orders.x", b"late")


async def flush(client: tidewire.Client) -> None:
    async with client.events.publisher(acknowledge=False) as publisher:
        await publisher.publish("orders.x", b"x")
        await publisher.flush()


async def subscribe(client: tidewire.Client) -> None:
    async with client.events.subscribe("orders.>"):
        pass


async def watch(client: tidewire.Client) -> None:
    async with client.state.watch("k"):
        pass


async def get(client: tidewire.Client) -> None:
    await client.state.get("k")


async def attend(client: tidewire.Client) -> None:
    async with client.control.attend("node", {"x": lambda _: b""}):
        pass


ACTS: list[Callable[[tidewire.Client], Awaitable[None]]] = [
    publish,
    flush,
    subscribe,
    watch,
    get,
    attend,
]


@pytest.fixture
async def left(wire: str, tmp_path: Path) -> AsyncIterator[tuple[tidewire.Client, str]]:
    """A client whose server has gone, and where that was."""
    async with running(tmp_path, (wire,)) as it:
        url = it.url(wire)
        client = await tidewire.connect(
            url, connect_timeout_s=PATIENCE_S, timeout_s=60.0, transport_options=SOON
        )
        await client.events.stream("orders").create("orders.>")
        await client.events.publish("orders.x", b"early")
    yield client, url
    await client.close()


@pytest.mark.parametrize("act", ACTS, ids=[act.__name__ for act in ACTS])
async def test_a_server_that_has_gone_is_told_in_time(
    act: Callable[[tidewire.Client], Awaitable[None]], left: tuple[tidewire.Client, str]
) -> None:
    """Everything that needs it fails with the reason, long before its own timeout of 60 s."""
    client, _ = left
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(act(client), LIMIT_S)


async def test_what_was_published_meanwhile_goes_when_it_is_back(
    left: tuple[tidewire.Client, str], wire: str, tmp_path: Path
) -> None:
    """The publisher that said so went on trying; nothing is stored twice."""
    client, url = left
    with pytest.raises(ConnectionLost, match="may still be stored"):
        await asyncio.wait_for(client.events.publish("orders.x", b"late"), LIMIT_S)
    async with running(tmp_path, (wire,), listen={"urls": [url]}) as again:
        assert isinstance(again, Running)
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    await client.events.publish("orders.x", b"now")
                    break
                except ConnectionLost:
                    await asyncio.sleep(0.05)
        async with client.events.read("orders", start="all") as messages:
            bodies = [(await messages.next(timeout_s=LIMIT_S)).data for _ in range(3)]

    assert [b"early", b"late", b"now"] == bodies


async def test_profiles_set_the_times_of_client_and_wire(tmp_path: Path) -> None:
    """By name or by itself; what is given beside it wins; without one it is that of a WAN."""
    async with running(tmp_path, ("tcp",)) as it:
        for choice, request_s, expected in (
            ("lan", None, LAN),
            (SATELLITE, 7.0, SATELLITE),
            (None, None, WAN),
        ):
            async with tidewire.connect(
                it.url("tcp"), profile=choice, timeout_s=request_s
            ) as client:
                options = client.channel.options  # type: ignore[attr-defined]
                limits = options.limits
                assert (expected.connect_s, expected.write_s) == (
                    options.connect_timeout_s,
                    options.write_timeout_s,
                )
                assert (
                    expected.hello_s,
                    expected.probe_s,
                    expected.keepalive_s,
                    expected.ping_s,
                    expected.read_s,
                ) == (
                    limits.hello_timeout_s,
                    limits.probe_s,
                    limits.keepalive_s,
                    limits.ping_timeout_s,
                    limits.frame_timeout_s,
                )
                given = client._session.options
                assert (request_s or expected.request_s) == given.timeout_s
                assert expected.connect_s == given.connect_timeout_s


def test_profiles_fit_together() -> None:
    """Farther servers are waited for longer; a hung one is left within the time of a request."""
    times = [PROFILES[name] for name in ("lan", "wan", "satellite")]
    for near, far in pairwise(times):
        assert near.connect_s < far.connect_s
        assert near.request_s < far.request_s
    for profile in times:
        assert 2 * profile.probe_s < profile.request_s
        assert profile.hello_s <= profile.connect_s
    with pytest.raises(InvalidArgument, match="lan, wan, satellite"):
        profile_of("moon")
