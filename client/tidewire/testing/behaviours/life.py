"""Connections begin, drain, break and come back; no call waits for ever."""

import asyncio

import grpc

from tidewire.testing.behaviour import (
    STREAMS,
    Unmet,
    behaviour,
    expect,
    expect_code,
    until_started,
    within,
)
from tidewire.testing.site import CALL_LIMIT_S, Site

Code = grpc.StatusCode
State = grpc.ChannelConnectivity
GRACE_S = 0.2
SHORT_S = 0.5


@behaviour()
async def connects_when_needed(site: Site) -> None:
    """A channel is idle until it is wanted, then ready, then shut down."""
    fresh = site.connect()
    expect(State.IDLE, fresh.get_state(), "the state of a new channel")
    await within(fresh.channel_ready(), "the connection")
    expect(State.READY, fresh.get_state(), "the state of a channel that is ready")
    expect(b"on", await site.say(b"on", through=fresh), "an answer")
    await fresh.close()
    expect(State.SHUTDOWN, fresh.get_state(), "the state of a closed channel")


@behaviour()
async def nobody_there(site: Site) -> None:
    """A call to an address nobody serves is UNAVAILABLE; one that waits reaches its deadline."""
    await site.say(b"connected")
    await site.stop(None)
    fresh = site.connect()
    await expect_code(site.unary("Say", through=fresh), Code.UNAVAILABLE)
    waiting = site.unary("Say", through=fresh, timeout=SHORT_S, wait_for_ready=True)
    await expect_code(waiting, Code.DEADLINE_EXCEEDED)


@behaviour()
async def drains(site: Site) -> None:
    """A server that stops with a grace answers calls in flight, and takes no new ones."""
    call = site.unary("Hold", b"held")
    await until_started(site, call)
    stopping = asyncio.ensure_future(site.stop(CALL_LIMIT_S))
    await asyncio.sleep(GRACE_S)
    await expect_code(site.unary("Say"), Code.UNAVAILABLE)
    site.echo.release.set()
    expect(b"held", await call, "the answer of the call in flight")
    await within(stopping, "the server's end")


@behaviour()
async def grace_ends(site: Site) -> None:
    """A call that outlives the server's grace is cancelled; its client hears UNAVAILABLE."""
    call = site.unary("Hold")
    await until_started(site, call)
    await within(site.stop(GRACE_S), "the server's end")
    await expect_code(call, Code.UNAVAILABLE)
    await within(site.echo.cancelled.wait(), "the handler's cancellation")


@behaviour()
async def connection_breaks(site: Site) -> None:
    """When the connection breaks, calls in flight end with UNAVAILABLE, and handlers are told."""
    call = site.unary("Hold")
    await until_started(site, call)
    await site.sever()
    await expect_code(call, Code.UNAVAILABLE)
    await within(site.echo.cancelled.wait(), "the handler's cancellation")


@behaviour(STREAMS)
async def connection_breaks_under_a_stream(site: Site) -> None:
    """A broken connection ends a stream with UNAVAILABLE: never as if it had ended well."""
    call = site.converse("Linger")
    await call.write(b"stay")
    expect(b"stay", await call.read(), "the first answer")
    await within(site.echo.started.wait(), "the handler's start")
    await site.sever()
    await expect_code(call.read(), Code.UNAVAILABLE)
    await within(site.echo.cancelled.wait(), "the handler's cancellation")


@behaviour()
async def client_leaves(site: Site) -> None:
    """A client that goes takes its calls along: their handlers are cancelled."""
    fresh = site.connect()
    call = site.unary("Hold", through=fresh)
    await until_started(site, call)
    await fresh.close()
    await within(site.echo.cancelled.wait(), "the handler's cancellation")
    try:
        await call
    except (asyncio.CancelledError, grpc.aio.AioRpcError):
        return
    raise Unmet("a call of a closed channel ended well")


@behaviour()
async def comes_back(site: Site) -> None:
    """The same channel works again when its server has been replaced."""
    expect(b"1", await site.say(b"1"), "an answer")
    await site.restart()
    answer = await site.say(b"2", wait_for_ready=True)
    expect(b"2", answer, "the answer of the new server")
