"""Calls of all four shapes: what is sent arrives, whole, once and in order."""

import asyncio
import os

import grpc
import grpc.aio

from tidewire.testing.behaviour import LARGE, STREAMS, behaviour, expect, expect_code, running
from tidewire.testing.site import Site, decoded, number_of, numbered

MESSAGES = 300
CALLS = 200
STREAMS_AT_ONCE = 40
LARGE_BYTES = 10 << 20
TOO_LARGE_BYTES = 12 << 20


@behaviour()
async def unary_unary(site: Site) -> None:
    """One request has one answer."""
    expect(b"\x00hello\xff", await site.say(b"\x00hello\xff"), "the answer")


@behaviour(STREAMS)
async def unary_stream(site: Site) -> None:
    """One request has many answers, which come in order, none missing, none twice."""
    call = site.repeat(MESSAGES, 10)
    numbers = [number_of(message) async for message in call]
    expect(list(range(MESSAGES)), numbers, "the numbers of the answers")
    expect(grpc.StatusCode.OK, await call.code(), "the status")


@behaviour(STREAMS)
async def stream_unary(site: Site) -> None:
    """Many requests have one answer; they arrive in order, none missing, none twice."""
    answer = decoded(await site.collect([numbered(n, 10) for n in range(MESSAGES)]))
    expect(list(range(MESSAGES)), answer["numbers"], "the numbers that arrived")


@behaviour(STREAMS)
async def stream_stream(site: Site) -> None:
    """Turns are taken in both directions on one call."""
    call = site.converse()
    for number in range(50):
        await call.write(numbered(number))
        expect(number, number_of(await call.read()), "the answer to a message")
    await call.done_writing()
    expect(grpc.aio.EOF, await call.read(), "what comes after the last answer")
    expect(grpc.StatusCode.OK, await call.code(), "the status")


@behaviour(STREAMS)
async def order_both_ways(site: Site) -> None:
    """Writing and reading at the same time keeps the order of both directions."""
    call = site.converse()

    async def write() -> None:
        for number in range(MESSAGES):
            await call.write(numbered(number))
        await call.done_writing()

    async with running(write()) as writing:
        numbers = [number_of(message) async for message in call]
        await writing
    expect(list(range(MESSAGES)), numbers, "the numbers of the answers")


@behaviour(STREAMS)
async def half_close(site: Site) -> None:
    """A client that has said its last still gets every answer."""
    call = site.converse()
    for number in range(20):
        await call.write(numbered(number))
    await call.done_writing()
    numbers = [number_of(message) async for message in call]
    expect(list(range(20)), numbers, "the numbers of the answers")
    expect(grpc.StatusCode.OK, await call.code(), "the status")


@behaviour(STREAMS)
async def empty_stream(site: Site) -> None:
    """A stream without a message ends well, in both directions."""
    expect([], decoded(await site.collect([]))["numbers"], "what arrived")
    expect([], [message async for message in site.repeat(0)], "the answers")


@behaviour()
async def empty_message(site: Site) -> None:
    """A message of no bytes is a message."""
    expect(b"", await site.say(b""), "the answer")


@behaviour()
async def every_byte(site: Site) -> None:
    """Bytes are not looked at: each value, and what looks like frames or lines, arrives."""
    for body in (bytes(range(256)), b"\r\n\r\n", b"\x00" * 64, b"\xff" * 64, os.urandom(500)):
        expect(body, await site.say(body), "the answer")


@behaviour()
async def many_calls_at_once(site: Site) -> None:
    """Answers find their calls, however many are open."""
    bodies = [str(number).encode() for number in range(CALLS)]
    answers = await asyncio.gather(*(site.say(body) for body in bodies))
    expect(bodies, list(answers), "the answers")


@behaviour(STREAMS)
async def many_streams_at_once(site: Site) -> None:
    """Streams side by side do not mix."""

    async def one(number: int) -> list[int]:
        return [number_of(message) async for message in site.repeat(number)]

    lists = await asyncio.gather(*(one(number) for number in range(STREAMS_AT_ONCE)))
    expect([list(range(n)) for n in range(STREAMS_AT_ONCE)], list(lists), "the answers")


@behaviour(LARGE)
async def large_message(site: Site) -> None:
    """10 MiB travel both ways."""
    body = bytes(range(256)) * (LARGE_BYTES // 256)
    answer = await site.say(body)
    expect(len(body), len(answer), "the bytes of the answer")
    expect(True, body == answer, "that the bytes are the same")


@behaviour()
async def too_large_a_message(site: Site) -> None:
    """A message over the limit ends its call with RESOURCE_EXHAUSTED, and nothing else."""
    await site.say(b"before")
    await expect_code(site.unary("Say", bytes(TOO_LARGE_BYTES)), grpc.StatusCode.RESOURCE_EXHAUSTED)
    expect(b"on", await site.say(b"on"), "the answer of the next call")
