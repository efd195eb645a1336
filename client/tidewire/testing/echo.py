"""
The service the kit calls: bytes in, bytes out, no generated code.

It is written against ``grpc.aio`` alone, as anybody's service is. What happened to its handlers is
noted, so that behaviours can ask what the server saw of a call.
"""

import asyncio
import json
import struct
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tidewire.errors import STATUS_TRAILER

SERVICE: Final = "tidewire.testing.Echo"
INDEX: Final = struct.Struct(">II")
"""How a message of Repeat begins, and the whole request of it: two numbers."""
TRAILERS: Final = (("shelf", "empty"), ("shelf-bin", b"\x00\xff"))
DOMAIN: Final = "echo.example"
SECRET: Final = "the password is swordfish"  # noqa: S105 (not one)

Context = Any


class Echo:
    """
    The servicer.

    Attributes:
        calls: Calls that reached a handler.
        written: Messages Repeat has handed over.
        started, cancelled, release: Of the handlers that wait.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.written = 0
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the methods, for a server."""
        unary, stream = (
            grpc.unary_unary_rpc_method_handler,
            grpc.stream_stream_rpc_method_handler,
        )
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Say": unary(self.say),
                "Hold": unary(self.hold),
                "Fail": unary(self.fail),
                "Crash": unary(self.crash),
                "Metadata": unary(self.metadata),
                "Remaining": unary(self.remaining),
                "Who": unary(self.who),
                "Repeat": grpc.unary_stream_rpc_method_handler(self.repeat),
                "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
                "Converse": stream(self.converse),
                "Linger": stream(self.linger),
            },
        )

    async def say(self, request: bytes, _context: Context) -> bytes:
        """Answer what was said."""
        self.calls += 1
        return request

    async def hold(self, request: bytes, _context: Context) -> bytes:
        """Answer once ``release`` is set."""
        self.calls += 1
        await self._wait()
        return request

    async def fail(self, _request: bytes, context: Context) -> bytes:
        """Abort with a message, details and trailers."""
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason="TOO_LOUD", domain=DOMAIN))
        status = status_pb2.Status(code=code_pb2.ABORTED, message="too loud", details=[detail])
        trailers = (*TRAILERS, (STATUS_TRAILER, status.SerializeToString()))
        await context.abort(grpc.StatusCode.ABORTED, "too loud", trailers)
        raise AssertionError("abort returns never")

    async def crash(self, _request: bytes, _context: Context) -> bytes:
        """Fail in a way nobody expected."""
        raise RuntimeError(SECRET)

    async def metadata(self, _request: bytes, context: Context) -> bytes:
        """Answer the metadata as JSON, and send it back before and after the answer."""
        given = [
            (key, value)
            for key, value in context.invocation_metadata() or ()
            if key.startswith("kit-")
        ]
        await context.send_initial_metadata(tuple((f"first-{key}", it) for key, it in given))
        context.set_trailing_metadata(tuple((f"last-{key}", it) for key, it in given))
        shown = [(k, v.hex() if isinstance(v, bytes) else v) for k, v in given]
        return json.dumps(shown).encode()

    async def remaining(self, _request: bytes, context: Context) -> bytes:
        """Answer the seconds until the deadline, or ``None``."""
        return str(context.time_remaining()).encode()

    async def who(self, _request: bytes, context: Context) -> bytes:
        """Answer as JSON who calls, and with which token."""
        self.calls += 1
        given = dict(context.invocation_metadata() or ())
        identities = [raw.decode() for raw in context.peer_identities() or ()]
        return json.dumps(
            {
                "peer": context.peer(),
                "identities": identities,
                "authorization": given.get("authorization", ""),
            }
        ).encode()

    async def repeat(self, request: bytes, context: Context) -> None:
        """Send so many messages of so many bytes, each with its number; then abort if told to."""
        count, size = INDEX.unpack_from(request)
        try:
            for number in range(count):
                await context.write(INDEX.pack(number, size) + bytes(size))
                self.written = number + 1
        finally:
            # gRPC may end a writer that waits by another error than its cancellation.
            if self.written < count:
                self.cancelled.set()
        if request[INDEX.size :]:
            await context.abort(grpc.StatusCode.DATA_LOSS, "after the last one")

    async def collect(self, requests: Any, _context: Context) -> bytes:
        """Answer as JSON the number and sizes of what came, and the numbers it began with."""
        numbers, size = [], 0
        async for request in requests:
            if request == b"wait":
                await self._wait()
                continue
            if len(request) >= INDEX.size:
                numbers.append(INDEX.unpack_from(request)[0])
            size += len(request)
        return json.dumps({"numbers": numbers, "bytes": size}).encode()

    async def converse(self, _requests: Any, context: Context) -> None:
        """Answer each message as it comes."""
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)

    async def linger(self, _requests: Any, context: Context) -> None:
        """Answer the first message, and stay; ``abort`` as the first message aborts instead."""
        first = await context.read()
        await context.write(first)
        if first == b"abort":
            await context.abort(grpc.StatusCode.CANCELLED, "not wanted")
        await self._wait()

    async def _wait(self) -> None:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
