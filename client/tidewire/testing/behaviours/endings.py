"""How calls end: statuses with their details, deadlines, cancellation from both sides."""

import asyncio
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from tidewire.errors import STATUS_TRAILER
from tidewire.testing.behaviour import (
    STREAMS,
    Unmet,
    behaviour,
    ending,
    expect,
    expect_code,
    require,
    until_started,
    within,
)
from tidewire.testing.echo import DOMAIN, SECRET, SERVICE, TRAILERS
from tidewire.testing.site import CALL_LIMIT_S, Site, number_of

Code = grpc.StatusCode
SHORT_S = 0.4
CLOCK_S = 0.5
"""What the clocks of both ends, which gRPC reads coarsely, may be apart."""


@behaviour()
async def status(site: Site) -> None:
    """Code and message of an abort arrive."""
    error = await expect_code(site.unary("Fail"), Code.ABORTED)
    expect("too loud", error.details(), "the message")


@behaviour()
async def status_details(site: Site) -> None:
    """``google.rpc.Status`` arrives with its details."""
    error = await ending(site.unary("Fail"))
    raw = dict(error.trailing_metadata() or ()).get(STATUS_TRAILER)
    require(isinstance(raw, bytes), f"the trailers have no {STATUS_TRAILER}")
    assert isinstance(raw, bytes)
    carried = status_pb2.Status.FromString(raw)
    info = error_details_pb2.ErrorInfo()
    require(carried.details[0].Unpack(info), "the first detail is no ErrorInfo")
    expect(("TOO_LOUD", DOMAIN), (info.reason, info.domain), "the reason and its domain")


@behaviour()
async def trailers(site: Site) -> None:
    """Trailing metadata of an abort arrives, text and bytes."""
    error = await ending(site.unary("Fail"))
    found = dict(error.trailing_metadata() or ())
    expect(dict(TRAILERS), {key: found.get(key) for key, _ in TRAILERS}, "the trailers")


@behaviour(STREAMS)
async def status_after_messages(site: Site) -> None:
    """What was sent before an abort arrives before its status."""
    call = site.repeat(3, tail=b"abort")
    numbers: list[int] = []

    async def read() -> None:
        async for message in call:
            numbers.append(number_of(message))  # noqa: PERF401 (kept when it fails)

    await expect_code(read(), Code.DATA_LOSS)
    expect([0, 1, 2], numbers, "the numbers that came before")


@behaviour()
async def unknown_method(site: Site) -> None:
    """A method nobody serves is UNIMPLEMENTED, and the next call is answered."""
    missing: Any = site.channel.unary_unary(f"/{SERVICE}/Shout")
    await expect_code(missing(b"", timeout=CALL_LIMIT_S), Code.UNIMPLEMENTED)
    expect(b"on", await site.say(b"on"), "the answer of the next call")


@behaviour()
async def failing_handler(site: Site) -> None:
    """A handler that fails ends its call with UNKNOWN or INTERNAL, and only that one."""
    error = await expect_code(site.unary("Crash"), Code.UNKNOWN, Code.INTERNAL)
    if not site.url.startswith("grpc"):
        require(SECRET not in str(error.details()), "the text of the exception is told to the peer")
    expect(b"on", await site.say(b"on"), "the answer of the next call")


@behaviour()
async def deadline_ends_both_sides(site: Site) -> None:
    """A deadline ends the call at the client and cancels the handler."""
    await site.say(b"connected")
    await expect_code(site.unary("Hold", timeout=SHORT_S), Code.DEADLINE_EXCEEDED)
    await within(site.echo.cancelled.wait(), "the handler's cancellation")


@behaviour()
async def remaining_time_is_seen(site: Site) -> None:
    """The handler sees how long it has, and that it has for ever."""
    left = float(await site.unary("Remaining", timeout=CALL_LIMIT_S))
    require(0 < left <= CALL_LIMIT_S + CLOCK_S, f"the handler has {left} s of {CALL_LIMIT_S:g}")
    expect(b"None", await site.unary("Remaining", timeout=None), "what is left without a deadline")


@behaviour(STREAMS)
async def deadline_ends_a_stream(site: Site) -> None:
    """A stream that outlives its deadline ends at both sides."""
    await site.say(b"connected")
    call = site.converse("Linger", timeout=SHORT_S)
    await call.write(b"stay")
    expect(b"stay", await call.read(), "the first answer")
    await expect_code(call.read(), Code.DEADLINE_EXCEEDED)
    await within(site.echo.cancelled.wait(), "the handler's cancellation")


async def _cancelled(awaited: Any) -> None:
    try:
        await awaited
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
    else:
        raise Unmet("a cancelled call ended well")


@behaviour()
async def client_cancels(site: Site) -> None:
    """``cancel`` ends the call at once and cancels the handler."""
    call = site.unary("Hold")
    await until_started(site, call)
    require(call.cancel(), "the call could not be cancelled")
    await _cancelled(call)
    expect(Code.CANCELLED, await call.code(), "the status")
    await within(site.echo.cancelled.wait(), "the handler's cancellation")
    expect(b"on", await site.say(b"on"), "the answer of the next call")


@behaviour(STREAMS)
async def client_cancels_a_stream(site: Site) -> None:
    """A stream that is cancelled ends at both sides."""
    call = site.converse("Linger")
    await call.write(b"stay")
    expect(b"stay", await call.read(), "the first answer")
    await within(site.echo.started.wait(), "the handler's start")
    require(call.cancel(), "the call could not be cancelled")
    await _cancelled(call.read())
    await within(site.echo.cancelled.wait(), "the handler's cancellation")


@behaviour(STREAMS)
async def server_cancels_a_stream(site: Site) -> None:
    """A handler that ends with CANCELLED ends the call while the client still writes."""
    call = site.converse("Linger")
    await call.write(b"abort")
    expect(b"abort", await call.read(), "the first answer")
    expect(Code.CANCELLED, await within(call.code(), "the end of the call"), "the status")
