"""The echo service of somebody else, written for grpc.aio, with faults on demand."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from support.echo.v1 import echo_pb2, echo_pb2_grpc

Context = Any


class EchoService(echo_pb2_grpc.EchoServiceServicer):
    """Remembers what happened to its handlers."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.finished = asyncio.Event()
        self.callbacks = asyncio.Event()
        self.release = asyncio.Event()
        self.order: list[str] = []
        self.written = 0

    async def Say(self, request: echo_pb2.SayRequest, context: Context) -> echo_pb2.SayResponse:
        """Echo, or do what ``fault`` says."""
        if request.fault:
            fault = getattr(self, f"_{request.fault}")
            answer: echo_pb2.SayResponse = await fault(request, context)
            return answer
        self.order.append(request.text)
        return echo_pb2.SayResponse(text=request.text, body=request.body)

    async def _abort(self, request: echo_pb2.SayRequest, context: Context) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing", (("shelf", "empty"),))

    async def _details(self, request: echo_pb2.SayRequest, context: Context) -> None:
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason="TOO_LOUD", domain="echo.example"))
        status = status_pb2.Status(code=code_pb2.ABORTED, message="too loud", details=[detail])
        await context.abort_with_status(rpc_status.to_status(status))

    async def _crash(self, request: echo_pb2.SayRequest, context: Context) -> None:
        raise RuntimeError("the password is swordfish")

    async def _sleep(self, request: echo_pb2.SayRequest, context: Context) -> echo_pb2.SayResponse:
        context.add_done_callback(lambda _: self.callbacks.set())
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return echo_pb2.SayResponse(text="released")

    async def _code(self, request: echo_pb2.SayRequest, context: Context) -> echo_pb2.SayResponse:
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        context.set_details("set, not raised")
        return echo_pb2.SayResponse()

    async def _metadata(
        self, request: echo_pb2.SayRequest, context: Context
    ) -> echo_pb2.SayResponse:
        given = dict(context.invocation_metadata())
        await context.send_initial_metadata((("first", "1"), ("first-bin", b"\x00\xff")))
        context.set_trailing_metadata((("last", "2"), ("last-bin", b"\xff\x00")))
        return echo_pb2.SayResponse(text=given.get("color", ""), body=given.get("raw-bin", b""))

    async def _token(self, request: echo_pb2.SayRequest, context: Context) -> echo_pb2.SayResponse:
        given = dict(context.invocation_metadata())
        return echo_pb2.SayResponse(text=given.get("authorization", ""))

    async def _remaining(
        self, request: echo_pb2.SayRequest, context: Context
    ) -> echo_pb2.SayResponse:
        return echo_pb2.SayResponse(text=str(context.time_remaining()))

    async def _who(self, request: echo_pb2.SayRequest, context: Context) -> echo_pb2.SayResponse:
        auth = context.auth_context()
        lines = [
            f"peer={context.peer()}",
            f"key={context.peer_identity_key()}",
            f"identities={sorted(context.peer_identities() or ())!r}",
        ]
        keys = ("peer_spiffe_id", "x509_common_name", "x509_subject_alternative_name")
        lines.extend(f"{key}={sorted(auth.get(key, ()))!r}" for key in keys)
        return echo_pb2.SayResponse(text="\n".join(lines))

    async def Repeat(
        self, request: echo_pb2.RepeatRequest, context: Context
    ) -> AsyncIterator[echo_pb2.RepeatResponse]:
        """Answer ``count`` times."""
        body = bytes(request.body_bytes)
        try:
            for index in range(request.count):
                yield echo_pb2.RepeatResponse(text=request.text, index=index, body=body)
                self.written = index + 1
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise
        if request.text == "abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "after the last one")

    async def Collect(
        self, request_iterator: AsyncIterator[echo_pb2.CollectRequest], context: Context
    ) -> echo_pb2.CollectResponse:
        """Join what was sent."""
        texts, size = [], 0
        async for request in request_iterator:
            texts.append(request.text)
            size += len(request.body)
            if request.text == "stop":
                break
            if request.text == "wait":
                self.started.set()
                await self.release.wait()
        return echo_pb2.CollectResponse(text=",".join(texts), body_bytes=size)

    async def Converse(  # type: ignore[override]  # the stubs know only one of two legal styles
        self, request_iterator: AsyncIterator[echo_pb2.ConverseRequest], context: Context
    ) -> None:
        """Answer each message, in the reader and writer style."""
        self.started.set()
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                await context.write(echo_pb2.ConverseResponse(text=request.text))
        finally:
            # On gRPC a cancelled reader may see EOF instead of its cancellation.
            self.finished.set()
