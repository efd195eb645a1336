"""Responses handed over in the turn that brings them, and requests written without a task."""

import asyncio
from typing import Any

import grpc
import pytest

from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echoing import serving_echo
from tidewire.transport import channel

LIMIT_S = 20.0
BODIES_MAX = 10_000


async def test_what_is_unread_comes_first_and_then_each_as_it_comes() -> None:
    """Nothing is lost or reordered between reading and delivery; the end is told as by `read`."""
    got: list[str] = []
    async with serving_echo("tcp") as (url, _, _), channel(url) as made:
        call: Any = echo_pb2_grpc.EchoServiceStub(made).Converse(timeout=LIMIT_S)
        await call.write(echo_pb2.ConverseRequest(text="0"))
        assert "0" == (await call.read()).text
        for number in range(1, 4):
            await call.write(echo_pb2.ConverseRequest(text=str(number)))
        async with asyncio.timeout(LIMIT_S):
            assert "1" == (await call.read()).text
            call.deliver_to(lambda response: got.append(response.text))
            assert call.write_nowait(echo_pb2.ConverseRequest(text="4"))
            await call.done_writing()
            await call.wait_delivered()
        assert not call.write_nowait(echo_pb2.ConverseRequest(text="late"))

    assert ["2", "3", "4"] == got


async def test_a_receiver_that_fails_ends_its_own_call_and_no_other() -> None:
    """The call ends with INTERNAL; one beside it on the same connection goes on."""

    def fail(_: object) -> None:
        raise ValueError("swordfish")

    async with serving_echo("tcp") as (url, _, _), channel(url) as made:
        stub = echo_pb2_grpc.EchoServiceStub(made)
        other: Any = stub.Converse(timeout=LIMIT_S)
        call: Any = stub.Converse(timeout=LIMIT_S)
        call.deliver_to(fail)
        await call.write(echo_pb2.ConverseRequest(text="x"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.wait_delivered()
        await other.write(echo_pb2.ConverseRequest(text="y"))
        assert "y" == (await other.read()).text
        other.cancel()

    assert grpc.StatusCode.INTERNAL is caught.value.code()
    assert "swordfish" in str(caught.value.details())


async def test_writing_without_waiting_stops_where_the_wire_does() -> None:
    """While credit is used up nothing is taken; what was taken comes, whole and in order."""
    got: list[int] = []
    body = "x" * 100_000
    async with serving_echo("tcp") as (url, _, _), channel(url) as made:
        call: Any = echo_pb2_grpc.EchoServiceStub(made).Converse(timeout=LIMIT_S)
        assert not call.write_nowait(echo_pb2.ConverseRequest(text=body))  # not connected yet
        await call.write(echo_pb2.ConverseRequest(text=body))
        count = 1
        while count < BODIES_MAX and call.write_nowait(echo_pb2.ConverseRequest(text=body)):
            count += 1
        assert 1 < count < BODIES_MAX
        call.deliver_to(lambda response: got.append(len(response.text)))
        async with asyncio.timeout(LIMIT_S):
            await call.write(echo_pb2.ConverseRequest(text=body))
            await call.done_writing()
            await call.wait_delivered()

    assert [len(body)] * (count + 1) == got
