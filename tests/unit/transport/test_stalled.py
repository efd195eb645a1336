"""A server that hangs is noticed while a call is open; a slow handler is not taken for one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from support.echo.v1 import echo_pb2
from support.echoing import Echoing, echoing
from tidewire.client.session import ClientOptions, Session
from tidewire.errors import DeadlineExceeded
from tidewire.transport import TransportOptions
from tidewire.wire.limits import WireLimits

Say = echo_pb2.SayRequest
LIMIT_S = 10.0
STREAMS = ("tcp", "tls", "unix")
QUICK = TransportOptions(limits=WireLimits(probe_s=0.1))


@pytest.fixture(params=STREAMS)
async def echo(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Echoing]:
    """Echo to a client that looks into silence after 0.1 s, but is idle for 30 s."""
    async with echoing(request.param, tmp_path, options=QUICK) as served:
        await served.channel.channel_ready()
        yield served


def stall(echo: Echoing) -> None:
    """Let the server read no more from the connections there are."""
    for link in echo.server._links.values():
        link.protocol.transport.pause_reading()


async def test_a_call_to_a_server_that_hangs_ends(echo: Echoing) -> None:
    """Well within its deadline, and long before the keepalive, with what happened."""
    stall(echo)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(echo.stub.Say(Say(text="x")), LIMIT_S)

    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    assert "silent" in (caught.value.details() or "")


async def test_a_repeatable_request_is_made_again_elsewhere(echo: Echoing) -> None:
    """Within one deadline: the connection that hangs is given up, a new one answers."""
    session = Session(echo.channel, ClientOptions(timeout_s=LIMIT_S))
    stall(echo)
    answer = await session.unary(echo.stub.Say, Say(text="again"))

    assert "again" == answer.text
    assert {"lost": 1} == echo.channel.pool_stats().closed_by


async def test_a_slow_handler_is_not_asked_twice(echo: Echoing) -> None:
    """It takes many times the probe time; its one call ends well, and the PINGs measured."""
    session = Session(echo.channel, ClientOptions(timeout_s=LIMIT_S))
    call = asyncio.ensure_future(session.unary(echo.stub.Say, Say(fault="sleep")))
    await echo.service.started.wait()
    async with asyncio.timeout(LIMIT_S):
        while echo.channel.link._liveness.rtt.samples < 3:  # noqa: ASYNC110 (PONGs have no event)
            await asyncio.sleep(0.05)
    assert not call.done()
    echo.service.release.set()

    assert "released" == (await call).text
    assert not echo.service.cancelled.is_set()
    assert 0 == echo.channel.pool_stats().closed
    assert echo.channel.link.rtt_s > 0


async def test_a_good_connection_survives_a_doubt(echo: Echoing) -> None:
    """It answers the PING."""
    measured = echo.channel.link._liveness.rtt.samples
    echo.channel.suspect()
    async with asyncio.timeout(LIMIT_S):
        while echo.channel.link._liveness.rtt.samples == measured:  # noqa: ASYNC110 (as above)
            await asyncio.sleep(0.01)

    assert 0 == echo.channel.pool_stats().closed


async def test_an_idle_connection_that_hangs_does_not(echo: Echoing) -> None:
    """A doubt of the caller ends it at once, not after the keepalive."""
    stall(echo)
    echo.channel.suspect()
    async with asyncio.timeout(LIMIT_S):
        await echo.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)

    assert {"lost": 1} == echo.channel.pool_stats().closed_by


async def test_failing_requests_do_not_ping_a_connection_to_death(echo: Echoing) -> None:
    """A hundred timeouts in a row doubt the server a hundred times; it stays connected."""
    session = Session(echo.channel, ClientOptions())
    for _ in range(100):
        with pytest.raises(DeadlineExceeded):
            await session.unary(echo.stub.Say, Say(fault="sleep"), timeout_s=0.002)
    assert "well" == (await session.unary(echo.stub.Say, Say(text="well"))).text

    assert 0 == echo.channel.pool_stats().closed
