"""The admin listener: what it says, and what it lets nobody do."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry

from tidewire_server.ops.admin import HEAD_BYTES_MAX, AdminServer
from tidewire_server.ops.config import ConfigError

LIMIT_S = 10


@asynccontextmanager
async def admin(**options: Any) -> AsyncIterator[AdminServer]:
    server = AdminServer("127.0.0.1:0", CollectorRegistry(), **options)
    await server.start()
    try:
        yield server
    finally:
        await asyncio.wait_for(server.close(), LIMIT_S)


async def dial(server: AdminServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", urlsplit(server.url).port)


async def exchange(server: AdminServer, data: bytes) -> bytes:
    """Send bytes and return all that comes until the server closes."""
    reader, writer = await dial(server)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), LIMIT_S)
    finally:
        await hang_up(writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def get(server: AdminServer, path: str, method: str = "GET") -> tuple[int, str]:
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    head, _, body = (await exchange(server, request.encode())).partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


async def test_probes_say_what_is_wrong() -> None:
    """Live and ready by default; a fault of readiness leaves the process alone, one of life not."""
    async with admin() as server:
        assert (200, {"live": True, "reasons": {}}) == _parsed(await get(server, "/livez"))
        assert 200 == (await get(server, "/readyz?verbose"))[0]

        server.ready.add("drain", lambda: "draining")
        assert (503, {"ready": False, "reasons": {"drain": "draining"}}) == _parsed(
            await get(server, "/readyz")
        )
        assert 200 == (await get(server, "/livez"))[0]

        server.live.add("store", lambda: "the store failed")
        assert 503 == (await get(server, "/livez"))[0]
        status, verdict = _parsed(await get(server, "/readyz"))
        assert (503, {"drain", "store"}) == (status, set(verdict["reasons"]))


async def test_a_check_that_fails_is_a_fault() -> None:
    """A probe is answered whatever its checks do."""

    def broken() -> str | None:
        raise RuntimeError("broken")

    async with admin() as server:
        server.ready.add("x", broken)

        assert (
            503,
            {"ready": False, "reasons": {"x": "the check failed: RuntimeError"}},
        ) == _parsed(await get(server, "/readyz"))


async def test_metrics_are_text() -> None:
    """The figures of the registry, in the text format."""
    async with admin() as server:
        status, body = await get(server, "/metrics")

        assert (200, "") == (status, body)  # an empty registry


async def test_heads_have_no_body_and_other_methods_are_refused() -> None:
    """HEAD is GET without its body; nothing else is done here."""
    async with admin() as server:
        assert (200, "") == await get(server, "/livez", "HEAD")
        assert 405 == (await get(server, "/livez", "POST"))[0]
        assert 404 == (await get(server, "/nothing"))[0]


async def test_connections_are_kept() -> None:
    """Several requests go over one connection, also with a body that is not wanted."""
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with admin() as server:
        assert 3 == (await exchange(server, request * 2 + last)).count(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00" * 4 + b"\r\n\r\n", 400),
        (b"GET /" + b"x" * 2 * HEAD_BYTES_MAX, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + b"x" * 99_999, 413),
    ],
)
async def test_what_is_no_request_is_refused(data: bytes, status: int) -> None:
    """Garbage, and what is too large, is answered once and cut off."""
    async with admin() as server:
        answer = await exchange(server, data)

        assert answer.startswith(b"HTTP/1.1 %d" % status)
        assert 200 == (await get(server, "/livez"))[0]


async def test_slow_requests_are_cut_off() -> None:
    """
    Who sends half a request is dropped after the time limit; control: a whole one is answered.
    """
    async with admin(request_timeout_s=0.2) as server:
        assert b"" == await exchange(server, b"GET /livez HT")
        assert 200 == (await get(server, "/livez"))[0]


async def test_connections_are_bounded() -> None:
    """One connection too many is closed at once; when one goes there is room again."""
    async with admin(connections_max=2) as server:
        held = [await dial(server) for _ in range(2)]
        for reader, writer in held:  # answered, so they are counted
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)

        assert b"" == await exchange(server, b"")
        assert 1 == server.refused

        for _, writer in held:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for reader, writer in held:
            await asyncio.wait_for(reader.read(), LIMIT_S)
            await hang_up(writer)
        assert 200 == (await get(server, "/livez"))[0]


async def test_a_taken_address_is_an_error() -> None:
    """Two servers on one admin port is a mistake that says what to do."""
    async with admin() as server:
        address = urlsplit(server.url).netloc

        with pytest.raises(ConfigError, match="choose another one, or port 0"):
            await AdminServer(address, CollectorRegistry()).start()


def _parsed(answer: tuple[int, str]) -> tuple[int, dict[str, Any]]:
    return answer[0], json.loads(answer[1])
