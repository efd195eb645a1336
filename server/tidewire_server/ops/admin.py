"""
The admin listener: HTTP/1.1 for probes and metrics, and nothing that changes anything.

``GET /livez`` says whether the process should be left alone, ``/readyz`` whether it should get
traffic, ``/metrics`` holds the figures. Every size, time and number of connections is bounded.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import h11
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tidewire_server.ops.config import ConfigError, admin_address

HEAD_BYTES_MAX: Final = 8 * 1024
READ_BYTES: Final = 4 * 1024
CONNECTIONS_MAX: Final = 64
REQUESTS_MAX: Final = 1_000
"""Requests on one connection before it is closed."""
REQUEST_TIMEOUT_S: Final = 5.0
"""
Time for a request to arrive, and for its answer to be taken; also how long a connection may idle.
"""
METHODS: Final = (b"GET", b"HEAD")
JSON: Final = "application/json"

log = structlog.stdlib.get_logger(__name__)

Check = Callable[[], str | None]
"""Returns what is wrong, or ``None``. Must not block."""


@dataclass(slots=True)
class Checks:
    """What must hold, by name."""

    checks: dict[str, Check] = field(default_factory=dict)

    def add(self, name: str, check: Check) -> None:
        """Ask this too."""
        self.checks[name] = check

    def faults(self) -> dict[str, str]:
        """What does not hold, by name; a check that itself fails is a fault."""
        found = {}
        for name, check in self.checks.items():
            try:
                fault = check()
            except Exception as error:  # noqa: BLE001 (told to the prober, whatever it is)
                fault = f"the check failed: {type(error).__name__}"
            if fault:
                found[name] = fault
        return found


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP response."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


class AdminServer:
    """
    Serves the admin listener.

    Attributes:
        live: What must hold for the process to be left alone.
        ready: What must hold for it to get traffic, besides what ``live`` asks.
        refused: Connections closed because there were too many.

    """

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        *,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self._address = address
        self._registry = registry
        self._request_timeout_s = request_timeout_s
        self._connections_max = connections_max
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.live = Checks()
        self.ready = Checks()
        self.refused = 0

    @property
    def url(self) -> str:
        """Where it listens, with the port that was picked."""
        if self._server is None:
            raise RuntimeError("the admin listener is not started")
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def start(self) -> None:
        """
        Listen.

        Raises:
            ConfigError: The address cannot be listened on.

        """
        host, port = admin_address(self._address)
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=HEAD_BYTES_MAX)
        except OSError as error:
            raise ConfigError(
                f"admin.address {self._address!r} cannot be listened on: {error.strerror}; "
                "choose another one, or port 0"
            ) from error

    async def close(self) -> None:
        """Stop listening and drop the connections."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._connections) >= self._connections_max:
                self.refused += 1
                return
            self._connections.add(task)
            await self._converse(reader, writer)
        except (ConnectionError, TimeoutError) as error:
            log.debug("admin connection dropped", reason=type(error).__name__)
        finally:
            self._connections.discard(task)
            await self._hang_up(writer)

    async def _hang_up(self, writer: asyncio.StreamWriter) -> None:
        """Close; a peer that does not take the rest of its answer is dropped."""
        writer.close()
        try:
            async with asyncio.timeout(self._request_timeout_s):
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError) as error:
            writer.transport.abort()
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        for _ in range(REQUESTS_MAX):
            try:
                async with asyncio.timeout(self._request_timeout_s):
                    request = await _receive(connection, reader)
                if request is None:
                    return
                answer = self.answer(request)
                with_body = request.method != b"HEAD"
            except h11.RemoteProtocolError as error:
                answer = _refusal(error.error_status_hint, f"this is not HTTP/1.1: {error}")
                with_body = True
            async with asyncio.timeout(self._request_timeout_s):
                await _send(connection, writer, answer, with_body)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    def answer(self, request: h11.Request) -> Answer:
        """Decide what to say to a request."""
        if request.method not in METHODS:
            refusal = _refusal(405, f"use GET, not {request.method.decode('ascii')[:16]}")
            return Answer(refusal.status, refusal.body, headers=(("allow", "GET, HEAD"),))
        path = request.target.partition(b"?")[0]
        if path == b"/livez":
            return _verdict("live", self.live.faults())
        if path == b"/readyz":
            return _verdict("ready", self.live.faults() | self.ready.faults())
        if path == b"/metrics":
            return self._metrics()
        return _refusal(404, "there are /livez, /readyz and /metrics here")

    def _metrics(self) -> Answer:
        try:
            return Answer(200, generate_latest(self._registry), CONTENT_TYPE_LATEST)
        except Exception:
            log.exception("metrics failed")
            return _refusal(500, "the figures could not be read; the log has the reason")


async def _receive(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """Read one request; its body, which no resource here has, is read over up to its end."""
    request: h11.Request | None = None
    body_bytes = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(READ_BYTES))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body_bytes += len(event.data)
            if body_bytes > HEAD_BYTES_MAX:
                raise h11.RemoteProtocolError("the body is too large", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage):
            return request
        else:  # ConnectionClosed, PAUSED
            return None


async def _send(
    connection: h11.Connection, writer: asyncio.StreamWriter, answer: Answer, with_body: bool
) -> None:
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    headers = [
        ("content-type", answer.content_type),
        ("content-length", str(len(answer.body))),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        *answer.headers,
    ]
    if connection.their_state is h11.ERROR:
        headers.append(("connection", "close"))
    head = connection.send(h11.Response(status_code=answer.status, headers=headers))
    body = connection.send(h11.Data(data=answer.body)) if with_body else b""
    end = connection.send(h11.EndOfMessage())
    writer.write((head or b"") + (body or b"") + (end or b""))
    await writer.drain()


def _verdict(name: str, faults: dict[str, str]) -> Answer:
    body = json.dumps({name: not faults, "reasons": faults}).encode() + b"\n"
    return Answer(503 if faults else 200, body)


def _refusal(status: int, text: str) -> Answer:
    return Answer(status, json.dumps({"error": text}).encode() + b"\n")
