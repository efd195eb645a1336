"""Blocking generated stubs work on a raw wire, in all shapes, as they do on grpcio's channel."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import tidewire.sync
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echo_service import EchoService
from tidewire.errors import FailedPrecondition, InvalidArgument
from tidewire.sync.loop import shared_loop

Echo = tuple[str, EchoService]


@pytest.fixture
def channel(echo: Echo) -> Iterator[tidewire.sync.BlockingChannel]:
    """A channel to the echo service."""
    with tidewire.sync.channel(echo[0]) as made:
        yield made


@pytest.fixture
def stub(channel: tidewire.sync.BlockingChannel) -> echo_pb2_grpc.EchoServiceStub:
    """A blocking stub, as it was generated."""
    return echo_pb2_grpc.EchoServiceStub(channel)


def say(text: str = "", fault: str = "") -> echo_pb2.SayRequest:
    return echo_pb2.SayRequest(text=text, fault=fault)


def texts(*words: str) -> Iterator[echo_pb2.CollectRequest]:
    return (echo_pb2.CollectRequest(text=word) for word in words)


def call_of(error: Any) -> Any:
    """A failed call is the error it raises."""
    assert isinstance(error, grpc.Call)
    return error


def test_unary_calls_in_three_ways(stub: echo_pb2_grpc.EchoServiceStub) -> None:
    """A plain call, one with its call object, and one as a future."""
    with_call, call = stub.Say.with_call(say("b"), timeout=10)
    future = stub.Say.future(say("c"), timeout=10)

    assert "a" == stub.Say(say("a"), timeout=10).text
    assert ("b", grpc.StatusCode.OK) == (with_call.text, call.code())
    assert "c" == future.result(timeout=10).text
    assert future.done()
    assert not future.running()
    assert future.exception() is None


def test_streams_of_requests_and_responses(stub: echo_pb2_grpc.EchoServiceStub) -> None:
    """Responses are iterated over, requests are taken from an iterator."""
    repeated = stub.Repeat(echo_pb2.RepeatRequest(text="x", count=5), timeout=10)
    turns = (echo_pb2.ConverseRequest(text=str(number)) for number in range(100))

    assert list(range(5)) == [response.index for response in repeated]
    assert grpc.StatusCode.OK == repeated.code()
    assert "a,b,c" == stub.Collect(texts("a", "b", "c"), timeout=10).text
    assert "a,b" == stub.Collect.future(texts("a", "b"), timeout=10).result().text
    assert [str(number) for number in range(100)] == [
        response.text for response in stub.Converse(turns, timeout=10)
    ]


def test_errors_are_rpc_errors(stub: echo_pb2_grpc.EchoServiceStub) -> None:
    """Code, text, trailers and details of a failed call are those the server gave."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.Say(say(fault="abort"), timeout=10)
    call = call_of(caught.value)
    assert (grpc.StatusCode.NOT_FOUND, "no such thing") == (call.code(), call.details())
    assert ("shelf", "empty") in call.trailing_metadata()

    with pytest.raises(grpc.RpcError) as detailed:
        stub.Say(say(fault="details"), timeout=10)
    status = rpc_status.from_call(call_of(detailed.value))
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert "TOO_LOUD" == info.reason

    future = stub.Say.future(say(fault="abort"), timeout=10)
    assert isinstance(future.exception(timeout=10), grpc.RpcError)
    with pytest.raises(grpc.RpcError):
        list(stub.Repeat(echo_pb2.RepeatRequest(text="abort", count=2), timeout=10))


def test_metadata_travels_both_ways(stub: echo_pb2_grpc.EchoServiceStub) -> None:
    """What the caller says arrives, and so do the server's initial and trailing metadata."""
    metadata = (("color", "blue"), ("raw-bin", b"\x01"))

    response, call = stub.Say.with_call(say(fault="metadata"), timeout=10, metadata=metadata)

    assert ("blue", b"\x01") == (response.text, response.body)
    assert ("first", "1") in call.initial_metadata()
    assert ("last-bin", b"\xff\x00") in call.trailing_metadata()


def test_time_that_is_over_ends_a_call(echo: Echo, stub: echo_pb2_grpc.EchoServiceStub) -> None:
    """The timeout ends the call on both sides; waiting for a future has a time of its own."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.Say(say(fault="sleep"), timeout=0.1)
    future = stub.Say.future(say(fault="sleep"), timeout=30)
    with pytest.raises(grpc.FutureTimeoutError):
        future.result(timeout=0.05)
    remaining = future.time_remaining()

    assert grpc.StatusCode.DEADLINE_EXCEEDED == call_of(caught.value).code()
    assert remaining is not None
    assert 0 < remaining <= 30
    assert future.cancel()


def test_calls_are_cancelled(echo: Echo, stub: echo_pb2_grpc.EchoServiceStub) -> None:
    """Cancelling reaches the server, ends who waits, and is told to who asked to hear of it."""
    _, service = echo
    told = threading.Event()
    future = stub.Say.future(say(fault="sleep"), timeout=30)
    shared_loop().run(service.started.wait(), 10)
    future.add_done_callback(lambda _: told.set())
    assert future.is_active()

    assert future.cancel()

    shared_loop().run(service.cancelled.wait(), 10)
    assert told.wait(10)
    assert future.cancelled()
    with pytest.raises(grpc.FutureCancelledError):
        future.result()
    stream = stub.Converse(iter(()), timeout=30)
    endless = stub.Repeat(echo_pb2.RepeatRequest(count=1_000_000, body_bytes=1_000), timeout=30)
    next(endless)
    endless.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        list(endless)
    assert grpc.StatusCode.CANCELLED == call_of(caught.value).code()
    assert [] == list(stream)


def test_a_failing_iterator_of_requests_ends_the_call(
    stub: echo_pb2_grpc.EchoServiceStub, caplog: pytest.LogCaptureFixture
) -> None:
    """When the application's iterator raises, the call is cancelled instead of hanging."""

    def broken() -> Iterator[echo_pb2.CollectRequest]:
        yield echo_pb2.CollectRequest(text="a")
        raise ValueError("of the application")

    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        stub.Collect(broken(), timeout=10)
    assert "the iterator of requests failed" in caplog.text


def test_many_threads_share_a_channel(stub: echo_pb2_grpc.EchoServiceStub) -> None:
    """Threads call at the same time, each with its own answer."""
    wrong: list[str] = []

    def work(name: str) -> None:
        for number in range(50):
            text = f"{name}-{number}"
            if stub.Say(say(text), timeout=20).text != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(str(name),)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert [] == wrong
    assert not any(thread.is_alive() for thread in threads)


def test_the_state_of_a_channel_is_told(channel: tidewire.sync.BlockingChannel) -> None:
    """Who subscribes hears of the connection, and of the close of the channel."""
    ready = threading.Event()

    def hear(state: grpc.ChannelConnectivity) -> None:
        if state == grpc.ChannelConnectivity.READY:
            ready.set()

    channel.subscribe(hear, try_to_connect=True)
    assert ready.wait(10)
    channel.unsubscribe(hear)


def test_wrong_uses_are_refused(echo: Echo) -> None:
    """A URL that cannot be used, a closed channel, and blocking on the loop's own thread."""
    with pytest.raises(InvalidArgument):
        tidewire.sync.channel("gopher://localhost:70")
    made = tidewire.sync.channel(echo[0])
    made.close()
    with pytest.raises((ValueError, grpc.RpcError)):
        echo_pb2_grpc.EchoServiceStub(made).Say(say("a"), timeout=5)
    loop = shared_loop()

    async def block() -> None:
        tidewire.sync.channel(echo[0])

    with pytest.raises(FailedPrecondition, match="own thread"):
        loop.run(block())
