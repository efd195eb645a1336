"""Raw wires run on both event loops, with and without aiofastnet below."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest
import uvloop

from support.echo.v1 import echo_pb2
from support.echoing import echoing

LIMIT_S = 10.0


async def everything(wire: str, folder: Path) -> None:
    """Use each shape once, with a large message, an error, a cancellation and a stop with grace."""
    async with echoing(wire, folder) as served:
        stub = served.stub
        body = bytes(5_000_000)
        assert body == (await stub.Say(echo_pb2.SayRequest(body=body), timeout=LIMIT_S)).body
        repeat = stub.Repeat(echo_pb2.RepeatRequest(count=20, body_bytes=200_000), timeout=LIMIT_S)
        assert list(range(20)) == [each.index async for each in repeat]
        words = [echo_pb2.CollectRequest(text=word, body=body) for word in "xyz"]
        assert "x,y,z" == (await stub.Collect(words, timeout=LIMIT_S)).text
        converse = stub.Converse(timeout=LIMIT_S)
        await converse.write(echo_pb2.ConverseRequest(text="turn"))
        assert "turn" == (await converse.read()).text
        await converse.done_writing()
        assert grpc.aio.EOF == await converse.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Say(echo_pb2.SayRequest(fault="sleep"), timeout=0.1)
        assert grpc.StatusCode.DEADLINE_EXCEEDED == caught.value.code()
        await asyncio.wait_for(served.service.cancelled.wait(), LIMIT_S)
        await served.server.stop(LIMIT_S)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)


@pytest.mark.parametrize("fast", ["0", "1"])
@pytest.mark.parametrize("wire", ["tcp", "tls", "ws", "wss"])
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_loops(
    factory: Callable[[], asyncio.AbstractEventLoop],
    wire: str,
    fast: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Nothing of the behaviour depends on what moves the bytes."""
    monkeypatch.setenv("TIDEWIRE_AIOFASTNET", fast)
    with asyncio.Runner(loop_factory=factory, debug=True) as runner:
        runner.run(everything(wire, tmp_path))
