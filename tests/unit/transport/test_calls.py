"""Somebody else's service behaves alike on every wire, through generated code nobody touched."""

import asyncio
import gc
import os
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from support.echo.v1 import echo_pb2
from support.echoing import Echoing
from support.wires import ENCRYPTED

LIMIT_S = 10.0
Say = echo_pb2.SayRequest


async def test_unary_unary(echo: Echoing) -> None:
    """A request comes back."""
    answer = await echo.stub.Say(Say(text="hello", body=b"\x00\x01"), timeout=LIMIT_S)

    assert echo_pb2.SayResponse(text="hello", body=b"\x00\x01") == answer


async def test_empty_message(echo: Echoing) -> None:
    """A message of no bytes is a message."""
    assert echo_pb2.SayResponse() == await echo.stub.Say(Say(), timeout=LIMIT_S)


@pytest.mark.needs("streams")
async def test_unary_stream(echo: Echoing) -> None:
    """Responses come in order, and the iterator ends."""
    call = echo.stub.Repeat(echo_pb2.RepeatRequest(text="x", count=50), timeout=LIMIT_S)

    assert list(range(50)) == [response.index async for response in call]
    assert grpc.StatusCode.OK == await call.code()


@pytest.mark.needs("streams")
async def test_unary_stream_by_read(echo: Echoing) -> None:
    """``read`` gives responses and then EOF, again and again."""
    call = echo.stub.Repeat(echo_pb2.RepeatRequest(count=2), timeout=LIMIT_S)

    got = [(await call.read()).index for _ in range(2)]

    assert [0, 1] == got
    assert grpc.aio.EOF == await call.read()
    assert grpc.aio.EOF == await call.read()


@pytest.mark.needs("streams")
async def test_stream_unary_by_iterators(echo: Echoing) -> None:
    """Requests come from a list and from an async generator."""
    requests = [echo_pb2.CollectRequest(text=str(n), body=bytes(1000)) for n in range(20)]

    async def generate() -> Any:
        for request in requests:
            yield request

    for source in (requests, generate()):
        answer = await echo.stub.Collect(source, timeout=LIMIT_S)
        assert ",".join(str(n) for n in range(20)) == answer.text
        assert 20_000 == answer.body_bytes


@pytest.mark.needs("streams")
async def test_stream_unary_by_write(echo: Echoing) -> None:
    """Requests are written one by one."""
    call = echo.stub.Collect(timeout=LIMIT_S)
    await call.write(echo_pb2.CollectRequest(text="a"))
    await call.write(echo_pb2.CollectRequest(text="b"))
    await call.done_writing()

    assert "a,b" == (await call).text


@pytest.mark.needs("streams")
async def test_handler_may_answer_before_the_last_request(echo: Echoing) -> None:
    """A client's stream that was not finished ends with the answer."""
    call = echo.stub.Collect(timeout=LIMIT_S)
    await call.write(echo_pb2.CollectRequest(text="stop"))

    assert "stop" == (await call).text
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(echo_pb2.CollectRequest(text="late"))


@pytest.mark.needs("streams")
async def test_stream_stream(echo: Echoing) -> None:
    """Turns are taken in both directions."""
    call = echo.stub.Converse(timeout=LIMIT_S)
    for word in ("one", "two", "three"):
        await call.write(echo_pb2.ConverseRequest(text=word))
        assert word == (await call.read()).text
    await call.done_writing()

    assert grpc.aio.EOF == await call.read()
    assert grpc.StatusCode.OK == await call.code()


@pytest.mark.needs("large")
async def test_large_messages(echo: Echoing) -> None:
    """10 MiB travel both ways, also in a stream."""
    body = bytes(range(256)) * 40_960

    answer = await echo.stub.Say(Say(body=body), timeout=LIMIT_S)
    collected = await echo.stub.Collect([echo_pb2.CollectRequest(body=body)] * 2, timeout=LIMIT_S)

    assert body == answer.body
    assert 2 * len(body) == collected.body_bytes


async def test_too_large_a_message_is_refused(echo: Echoing) -> None:
    """A message over the limit ends its call only."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo.stub.Say(Say(body=bytes(12 << 20)), timeout=LIMIT_S)

    assert grpc.StatusCode.RESOURCE_EXHAUSTED == caught.value.code()
    assert "on" == (await echo.stub.Say(Say(text="on"), timeout=LIMIT_S)).text


async def test_abort_with_trailers(echo: Echoing) -> None:
    """Code, message and trailers of an abort arrive."""
    call = echo.stub.Say(Say(fault="abort"), timeout=LIMIT_S)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call

    assert grpc.StatusCode.NOT_FOUND == caught.value.code()
    assert "no such thing" == caught.value.details()
    trailers = caught.value.trailing_metadata()
    assert trailers is not None
    assert "empty" == trailers["shelf"]
    assert grpc.StatusCode.NOT_FOUND == await call.code()
    assert "no such thing" == await call.details()
    assert "empty" == (await call.trailing_metadata())["shelf"]
    assert call.done()
    assert not call.cancelled()


async def test_status_details(echo: Echoing) -> None:
    """``google.rpc.Status`` with details is read by the means gRPC has for it."""
    call = echo.stub.Say(Say(fault="details"), timeout=LIMIT_S)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call

    error: Any = caught.value
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert ("TOO_LOUD", "too loud") == (info.reason, status.message)


async def test_code_without_abort(echo: Echoing) -> None:
    """``set_code`` makes a call fail although its handler returns."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo.stub.Say(Say(fault="code"), timeout=LIMIT_S)

    assert grpc.StatusCode.OUT_OF_RANGE == caught.value.code()
    assert "set, not raised" == caught.value.details()


@pytest.mark.needs("streams")
async def test_abort_after_responses(echo: Echoing) -> None:
    """What was sent before an abort arrives before its status."""
    call = echo.stub.Repeat(echo_pb2.RepeatRequest(text="abort", count=3), timeout=LIMIT_S)
    got = [(await call.read()).index for _ in range(3)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()

    assert [0, 1, 2] == got
    assert grpc.StatusCode.DATA_LOSS == caught.value.code()


async def test_crash_is_unknown(echo: Echoing) -> None:
    """An exception nobody expected is UNKNOWN; raw wires do not tell its text."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo.stub.Say(Say(fault="crash"), timeout=LIMIT_S)

    assert grpc.StatusCode.UNKNOWN == caught.value.code()
    if echo.wire in ("tcp", "tls"):
        assert "swordfish" not in str(caught.value.details())
        assert str(caught.value.details()).startswith("internal error ")


async def test_unknown_method(echo: Echoing) -> None:
    """A method nobody serves is UNIMPLEMENTED."""
    missing = echo.channel.unary_unary("/support.echo.v1.EchoService/Shout")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await missing(b"", timeout=LIMIT_S)

    assert grpc.StatusCode.UNIMPLEMENTED == caught.value.code()


async def test_metadata_both_ways(echo: Echoing) -> None:
    """Text and binary metadata travel with the request, before the response and after it."""
    call = echo.stub.Say(
        Say(fault="metadata"),
        timeout=LIMIT_S,
        metadata=(("color", "blue"), ("raw-bin", b"\x00\x01\xff")),
    )
    initial = await call.initial_metadata()
    answer = await call
    trailing = await call.trailing_metadata()

    assert ("blue", b"\x00\x01\xff") == (answer.text, answer.body)
    assert ("1", b"\x00\xff") == (initial["first"], initial["first-bin"])
    assert ("2", b"\xff\x00") == (trailing["last"], trailing["last-bin"])


async def test_illegal_metadata_is_refused(echo: Echoing) -> None:
    """Upper case in a key is refused before anything is sent."""
    refusals = (ValueError, grpc.aio.AioRpcError, grpc.aio.BaseError)
    with pytest.raises(refusals):
        await echo.stub.Say(Say(), metadata=(("Color", "blue"),), timeout=LIMIT_S)


async def test_deadline(echo: Echoing) -> None:
    """A deadline ends the call at the client and cancels the handler."""
    call = echo.stub.Say(Say(fault="sleep"), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call

    assert grpc.StatusCode.DEADLINE_EXCEEDED == caught.value.code()
    await asyncio.wait_for(echo.service.cancelled.wait(), LIMIT_S)


async def test_remaining_time_reaches_the_handler(echo: Echoing) -> None:
    """The handler sees how long it has."""
    answer = await echo.stub.Say(Say(fault="remaining"), timeout=LIMIT_S)
    forever = await echo.stub.Say(Say(fault="remaining"))

    # gRPC rounds timeouts up on their way, by less than a hundredth.
    assert 0 < float(answer.text) <= 1.01 * LIMIT_S
    assert "None" == forever.text


async def test_cancel_reaches_the_handler(echo: Echoing) -> None:
    """``cancel`` ends the call at once, cancels the handler, and its done callbacks run."""
    call = echo.stub.Say(Say(fault="sleep"))
    seen: list[Any] = []
    call.add_done_callback(seen.append)
    await asyncio.wait_for(echo.service.started.wait(), LIMIT_S)

    assert call.cancel()
    assert not call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()
    assert grpc.StatusCode.CANCELLED == await call.code()
    assert [call] == seen
    await asyncio.wait_for(echo.service.cancelled.wait(), LIMIT_S)
    await asyncio.wait_for(echo.service.callbacks.wait(), LIMIT_S)


async def test_cancelling_the_waiter_cancels_the_call(echo: Echoing) -> None:
    """A task that awaits a call and is cancelled takes the call with it."""
    call = echo.stub.Say(Say(fault="sleep"))

    async def wait() -> None:
        await call

    task = asyncio.create_task(wait())
    await asyncio.wait_for(echo.service.started.wait(), LIMIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert call.cancelled()
    await asyncio.wait_for(echo.service.cancelled.wait(), LIMIT_S)


@pytest.mark.needs("streams")
async def test_cancelling_a_reader_cancels_the_stream(echo: Echoing) -> None:
    """A task that reads a stream and is cancelled takes the stream with it."""
    call = echo.stub.Converse()
    await call.wait_for_connection()
    task = asyncio.create_task(call.read())
    await asyncio.sleep(0)  # a task that never began would cancel nothing
    await asyncio.wait_for(echo.service.started.wait(), LIMIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert call.cancelled()
    await asyncio.wait_for(echo.service.finished.wait(), LIMIT_S)


@pytest.mark.needs("streams")
async def test_dropped_stream_is_cancelled(echo: Echoing) -> None:
    """A stream nobody holds any more is cancelled, as grpc.aio means to."""
    if echo.wire.startswith("grpc"):
        pytest.skip("grpc.aio keeps such calls for ever")
    call = echo.stub.Repeat(echo_pb2.RepeatRequest(count=1_000_000, body_bytes=1000))
    await call.read()
    del call
    gc.collect()

    await asyncio.wait_for(echo.service.cancelled.wait(), LIMIT_S)


@pytest.mark.needs("streams")
async def test_failing_request_iterator_cancels_the_call(echo: Echoing) -> None:
    """An iterator of requests that raises ends its call."""

    async def broken() -> Any:
        yield echo_pb2.CollectRequest(text="a")
        raise ValueError("no more")

    with pytest.raises(asyncio.CancelledError):
        await echo.stub.Collect(broken(), timeout=LIMIT_S)


@pytest.mark.needs("streams")
async def test_mixed_styles_are_refused(echo: Echoing) -> None:
    """Iterating over a call that was read from, or the reverse, is a mistake that shows."""
    call = echo.stub.Repeat(echo_pb2.RepeatRequest(count=2), timeout=LIMIT_S)
    await call.read()

    with pytest.raises(grpc.aio.UsageError):
        async for _ in call:
            pass
    call.cancel()


async def test_many_calls_at_once(echo: Echoing) -> None:
    """Answers find their calls."""
    answers = await asyncio.gather(
        *(echo.stub.Say(Say(text=str(n)), timeout=LIMIT_S) for n in range(300))
    )

    assert [str(n) for n in range(300)] == [answer.text for answer in answers]


async def test_identity(echo: Echoing) -> None:
    """A handler sees who calls, under gRPC's names, alike on all wires."""
    lines = dict(
        line.split("=", 1)
        for line in (await echo.stub.Say(Say(fault="who"), timeout=LIMIT_S)).text.splitlines()
    )

    addresses = {"unix": "unix:", "grpc+unix": "unix:", "memory": "memory:"}
    assert lines["peer"].startswith(addresses.get(echo.wire, "ipv4:127.0.0.1:"))
    if echo.wire == "unix":
        user = f"unix://uid={os.getuid()}".encode()
        assert ("peer_unix", f"{[user]}") == (lines["key"], lines["identities"])
    elif echo.wire == "memory":
        assert ("peer_memory", "[b'memory://process']") == (lines["key"], lines["identities"])
    elif echo.wire in ENCRYPTED:
        assert "x509_subject_alternative_name" == lines["key"]
        assert "[b'spiffe://test/alice']" == lines["identities"]
        assert "[b'spiffe://test/alice']" == lines["peer_spiffe_id"]
        assert "[b'alice']" == lines["x509_common_name"]
    else:
        assert ("None", "[]") == (lines["key"], lines["identities"])


async def test_malformed_request(echo: Echoing) -> None:
    """Bytes that are no protobuf message fail their call, not the server."""
    say = echo.channel.unary_unary("/support.echo.v1.EchoService/Say")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await say(b"\xff\xff\xff", timeout=LIMIT_S)

    grpc_says = grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN
    assert caught.value.code() in (
        grpc_says if echo.wire.startswith("grpc") else (grpc.StatusCode.INVALID_ARGUMENT,)
    )
    assert "on" == (await echo.stub.Say(Say(text="on"), timeout=LIMIT_S)).text


async def test_nobody_there(echo: Echoing) -> None:
    """A call to a server that has gone is UNAVAILABLE; one that waits reaches its deadline."""
    await echo.stub.Say(Say(), timeout=LIMIT_S)
    await echo.server.stop(None)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo.stub.Say(Say(), timeout=LIMIT_S)
    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo.stub.Say(Say(), timeout=0.5, wait_for_ready=True)
    assert grpc.StatusCode.DEADLINE_EXCEEDED == caught.value.code()


async def test_calls_of_a_closed_channel(echo: Echoing) -> None:
    """Closing the channel cancels what is in flight."""
    call = echo.stub.Say(Say(fault="sleep"))
    await asyncio.wait_for(echo.service.started.wait(), LIMIT_S)
    await echo.channel.close()

    with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
        await call
    await asyncio.wait_for(echo.service.cancelled.wait(), LIMIT_S)
    assert grpc.ChannelConnectivity.SHUTDOWN == echo.channel.get_state()


async def test_stop_lets_calls_finish(echo: Echoing) -> None:
    """A server that stops with a grace answers calls in flight."""
    call = echo.stub.Say(Say(fault="sleep"))
    await asyncio.wait_for(echo.service.started.wait(), LIMIT_S)
    stopping = asyncio.create_task(echo.server.stop(LIMIT_S))
    await asyncio.sleep(0)
    echo.service.release.set()

    assert "released" == (await asyncio.wait_for(call, LIMIT_S)).text
    await asyncio.wait_for(stopping, LIMIT_S)


async def test_stop_cancels_calls_after_the_grace(echo: Echoing) -> None:
    """A call that outlives the grace is cancelled; its client hears UNAVAILABLE."""
    call = echo.stub.Say(Say(fault="sleep"))
    await asyncio.wait_for(echo.service.started.wait(), LIMIT_S)
    await asyncio.wait_for(echo.server.stop(0.1), LIMIT_S)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    await asyncio.wait_for(echo.service.cancelled.wait(), LIMIT_S)


async def test_channel_states(echo: Echoing) -> None:
    """A channel is idle until it is wanted, then ready."""
    assert grpc.ChannelConnectivity.IDLE == echo.channel.get_state()
    await asyncio.wait_for(echo.channel.channel_ready(), LIMIT_S)
    assert grpc.ChannelConnectivity.READY == echo.channel.get_state()


@pytest.mark.needs("streams")
async def test_surface_of_a_call(echo: Echoing) -> None:
    """Connection, remaining time, metadata and status may be asked for in any order."""
    call = echo.stub.Repeat(echo_pb2.RepeatRequest(count=1), timeout=LIMIT_S)
    assert not call.done()
    await asyncio.wait_for(call.wait_for_connection(), LIMIT_S)
    left = call.time_remaining()

    assert left is not None
    assert 0 < left <= LIMIT_S
    assert 0 == len(tuple(await call.initial_metadata()))
    assert [0] == [response.index async for response in call]
    assert grpc.StatusCode.OK == await call.code()
    assert "" == await call.details()
    assert 0 == len(tuple(await call.trailing_metadata()))
    assert call.done()
    assert not call.cancel()
    seen: list[Any] = []
    call.add_done_callback(seen.append)
    async with asyncio.timeout(LIMIT_S):
        while not seen:  # noqa: ASYNC110 (gRPC calls back in a later turn)
            await asyncio.sleep(0.01)
    assert None is echo.stub.Say(Say(fault="remaining")).time_remaining()


async def test_a_call_may_be_awaited_twice(echo: Echoing) -> None:
    """The answer, or the error, stays."""
    call = echo.stub.Say(Say(text="x"), timeout=LIMIT_S)
    assert "x" == (await call).text == (await call).text
    failed = echo.stub.Say(Say(fault="abort"), timeout=LIMIT_S)
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError):
            await failed
