"""Interceptors of grpc.aio work alike on every wire, at both ends and in all four shapes."""

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echo_service import EchoService
from support.echoing import echoing
from support.wires import WIRES
from tidewire.transport import RawServer, channel

LIMIT_S = 10.0


class _Tag:
    """Adds metadata to each call."""

    seen: list[str]

    def __init__(self) -> None:
        self.seen = []

    def tagged(self, details: Any) -> Any:
        """Return details with one entry more."""
        self.seen.append(details.method.decode().rpartition("/")[2])
        metadata = grpc.aio.Metadata(*(details.metadata or ()), ("color", "red"))
        return grpc.aio.ClientCallDetails(
            details.method,
            details.timeout,
            metadata,
            details.credentials,
            details.wait_for_ready,
        )


class _UnaryUnary(_Tag, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self.tagged(details), request)


class _UnaryStream(_Tag, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self.tagged(details), request)


class _StreamUnary(_Tag, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(self.tagged(details), requests)


class _StreamStream(_Tag, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(self.tagged(details), requests)


@pytest.mark.needs("streams")
@pytest.mark.parametrize("wire", WIRES)
async def test_client_interceptors(wire: str, tmp_path: Path) -> None:
    """Each interceptor sees the calls of its shape and may change their metadata."""
    tags = [_UnaryUnary(), _UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream()]
    async with echoing(wire, tmp_path, interceptors=tags) as served:
        stub = served.stub
        colored = await stub.Say(echo_pb2.SayRequest(fault="metadata"), timeout=LIMIT_S)
        repeat = stub.Repeat(echo_pb2.RepeatRequest(count=3), timeout=LIMIT_S)
        indexes = [each.index async for each in repeat]
        words = [echo_pb2.CollectRequest(text=word) for word in "xyz"]
        collected = await stub.Collect(iter(words), timeout=LIMIT_S)
        converse = stub.Converse(timeout=LIMIT_S)
        await converse.write(echo_pb2.ConverseRequest(text="turn"))
        turn = await converse.read()
        await converse.done_writing()
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Say(echo_pb2.SayRequest(fault="abort"), timeout=LIMIT_S)

    assert ("red", [0, 1, 2], "x,y,z") == (colored.text, indexes, collected.text)
    assert "turn" == turn.text
    assert [["Say", "Say"], ["Say", "Say"], ["Repeat"], ["Collect"], ["Converse"]] == [
        tag.seen for tag in tags
    ]


class _Gate(grpc.aio.ServerInterceptor):
    """Lets calls pass that say the word."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if dict(details.invocation_metadata).get("word") == "friend":
            return await continuation(details)

        async def refuse(request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "say the word")

        return grpc.unary_unary_rpc_method_handler(refuse)


async def test_server_interceptors() -> None:
    """An interceptor of a raw server may refuse a call or let it through."""
    server = RawServer(interceptors=[_Gate()])
    echo_pb2_grpc.add_EchoServiceServicer_to_server(EchoService(), server)
    port = server.add_listener("tcp://127.0.0.1:0")
    await server.start()
    async with channel(f"tcp://127.0.0.1:{port}") as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)
        assert grpc.StatusCode.PERMISSION_DENIED == caught.value.code()
        word = (("word", "friend"),)
        for body in (b"", bytes(1 << 20)):
            answer = await stub.Say(
                echo_pb2.SayRequest(text="in", body=body), metadata=word, timeout=LIMIT_S
            )
            assert ("in", body) == (answer.text, answer.body)
        collected = await stub.Collect(
            iter([echo_pb2.CollectRequest(text="a")]), metadata=word, timeout=LIMIT_S
        )
        assert "a" == collected.text
    await server.stop(None)
