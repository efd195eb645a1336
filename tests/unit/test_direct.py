"""Handlers without a task: answered now or later, refused, abandoned, counted, no rubbish."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from support.echo.v1 import echo_pb2, echo_pb2_grpc
from tidewire import errors
from tidewire.client.translate import translate
from tidewire.transport import RawServer, channel
from tidewire.transport.context import ServerCall
from tidewire.transport.direct import served_directly_by
from tidewire_server.ops.metrics import CallMetrics
from tidewire_server.router import Router

LIMIT_S = 10.0
SAY = "/support.echo.v1.EchoService/Say"
_Echo: Any = echo_pb2_grpc.EchoServiceServicer

Begin = Callable[[echo_pb2.SayRequest, ServerCall], bool | None]


class Direct(_Echo):  # type: ignore[misc]
    """Says what a test tells it to."""

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.coroutines = 0
        self.slowly: Callable[[echo_pb2.SayRequest], Awaitable[None]] | None = None

    @served_directly_by("say_directly")
    async def Say(self, request: echo_pb2.SayRequest, context: Any) -> echo_pb2.SayResponse:
        """Echo, where there is nothing better."""
        self.coroutines += 1
        if self.slowly is not None:
            await self.slowly(request)
        return echo_pb2.SayResponse(text=request.text)

    def say_directly(self, request: echo_pb2.SayRequest, call: ServerCall) -> bool | None:
        """Do as told."""
        return self.begin(request, call)


@asynccontextmanager
async def serving(
    begin: Begin, **options: Any
) -> AsyncIterator[tuple[Any, Direct, CallMetrics, RawServer]]:
    metrics = CallMetrics()
    router = Router(metrics=metrics)
    service = Direct(begin)
    echo_pb2_grpc.add_EchoServiceServicer_to_server(service, cast("Any", router))
    server = RawServer((router,), **options)
    url = server.listen("tcp://127.0.0.1:0").url.text
    await server.start()
    try:
        async with channel(url) as made:
            yield echo_pb2_grpc.EchoServiceStub(made), service, metrics, server
    finally:
        await server.stop(None)


def answer(request: echo_pb2.SayRequest, call: ServerCall) -> None:
    call.answer(echo_pb2.SayResponse(text=request.text))


def answer_later(request: echo_pb2.SayRequest, call: ServerCall) -> None:
    asyncio.get_running_loop().call_soon(answer, request, call)


@pytest.mark.parametrize("begin", [answer, answer_later])
async def test_an_answer_comes_without_a_task(begin: Begin) -> None:
    """Given at once or later, the answer is the caller's, counted, and no coroutine was run."""
    async with serving(begin) as (stub, service, metrics, _):
        async with asyncio.timeout(LIMIT_S):
            responses = [await stub.Say(echo_pb2.SayRequest(text=str(n))) for n in range(3)]

        assert ["0", "1", "2"] == [response.text for response in responses]
        assert 0 == service.coroutines
        assert 3 == metrics.latency(SAY).count
        assert 0 == metrics.in_flight()


@pytest.mark.parametrize("trailers", [(), (("k", "v"),)])
async def test_an_answer_may_be_encoded_already(trailers: tuple[tuple[str, str], ...]) -> None:
    """It is the caller's as it is, with what else was set; after the end it is nothing."""

    def begin(request: echo_pb2.SayRequest, call: ServerCall) -> None:
        if trailers:
            call.set_trailing_metadata(trailers)
        for text in (request.text, "late"):
            call.answer_encoded(echo_pb2.SayResponse(text=text).SerializeToString())

    async with serving(begin) as (stub, _, metrics, _), asyncio.timeout(LIMIT_S):
        call = stub.Say(echo_pb2.SayRequest(text="a"))

        assert "a" == (await call).text
        assert trailers == tuple(await call.trailing_metadata())
        assert 0 == metrics.in_flight()


async def test_what_cannot_be_done_at_once_gets_a_task() -> None:
    """The coroutine answers, fails and is cancelled with its call, and is counted once."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slowly(request: echo_pb2.SayRequest) -> None:
        await asyncio.sleep(0)
        match request.text:
            case "fail":
                raise errors.NoResponders("nobody is there")
            case "mistake":
                raise KeyError("secret")
            case "wait":
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

    async with serving(lambda *_: True) as (stub, service, metrics, _):
        service.slowly = slowly
        async with asyncio.timeout(LIMIT_S):
            assert "a" == (await stub.Say(echo_pb2.SayRequest(text="a"))).text
            failures = []
            for text in ("fail", "mistake"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Say(echo_pb2.SayRequest(text=text))
                failures.append(translate(caught.value))
            call = stub.Say(echo_pb2.SayRequest(text="wait"))
            await begun.wait()
            call.cancel()
            await ended.wait()

            assert [errors.NoResponders, errors.Internal] == [type(each) for each in failures]
            assert "secret" not in failures[1].message
            assert 0 == metrics.in_flight()
            assert 4 == metrics.latency(SAY).count


@pytest.mark.parametrize("way", ["raised", "told", "mistake"])
async def test_an_error_reaches_the_caller(way: str) -> None:
    """An error ends the call with its reason; a mistake of ours with none of its text."""

    def begin(_request: echo_pb2.SayRequest, call: ServerCall) -> None:
        if way == "mistake":
            raise KeyError("secret")
        error = errors.NoResponders("nobody is there")
        if way == "raised":
            raise error
        call.fail(error)

    async with serving(begin) as (stub, _, metrics, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)

        raised = translate(caught.value)
        expected = errors.Internal if way == "mistake" else errors.NoResponders
        assert expected is type(raised)
        assert "secret" not in raised.message
        assert 0 == metrics.in_flight()


async def test_who_waits_is_told_when_the_caller_goes() -> None:
    """A call that is cancelled or late abandons what it began; what is told then does nothing."""
    calls: list[ServerCall] = []
    abandoned = asyncio.Event()
    begun = asyncio.Event()

    def begin(_request: echo_pb2.SayRequest, call: ServerCall) -> None:
        calls.append(call)
        call.abandoned = abandoned.set
        begun.set()

    async with serving(begin) as (stub, _, metrics, _), asyncio.timeout(LIMIT_S):
        call = stub.Say(echo_pb2.SayRequest())
        await begun.wait()
        call.cancel()
        await abandoned.wait()
        abandoned.clear()
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Say(echo_pb2.SayRequest(), timeout=0.05)
        await abandoned.wait()
        for each in calls:
            each.answer(echo_pb2.SayResponse())
            each.fail(errors.NoResponders("too late"))

        assert 2 == len(calls)
        assert 0 == metrics.in_flight()


async def test_the_server_stops_with_calls_that_nobody_answers() -> None:
    """They end with the grace, and what they began is abandoned."""
    abandoned = asyncio.Event()
    begun = asyncio.Event()

    def begin(_request: echo_pb2.SayRequest, call: ServerCall) -> None:
        call.abandoned = abandoned.set
        begun.set()

    async with serving(begin) as (stub, _, _, server), asyncio.timeout(LIMIT_S):
        call = stub.Say(echo_pb2.SayRequest())
        await begun.wait()
        await server.stop(0.05)

        assert abandoned.is_set()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await call


async def test_interceptors_get_the_coroutine() -> None:
    """Where somebody stands between, the handler that gRPC knows serves."""

    class Watching(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            return await continuation(details)

    async with serving(answer, interceptors=(Watching(),)) as (stub, service, _, _):
        response = await stub.Say(echo_pb2.SayRequest(text="a"), timeout=LIMIT_S)

        assert "a" == response.text
        assert 1 == service.coroutines


async def test_an_answered_call_leaves_no_cycle() -> None:
    """What a handler hangs on its call is let go with the answer: the collector has no work."""
    seen: list[weakref.ref[Any]] = []

    class Hanging:
        def __init__(self, call: ServerCall) -> None:
            self.call = call

        def abandon(self) -> None:
            raise AssertionError("the call was answered")

    def begin(request: echo_pb2.SayRequest, call: ServerCall) -> None:
        hanging = Hanging(call)
        seen.append(weakref.ref(hanging))
        call.abandoned = hanging.abandon
        call.answer(echo_pb2.SayResponse(text=request.text))

    gc.disable()
    try:
        async with serving(begin) as (stub, _, _, _):
            await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)
            await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)

            assert seen[0]() is None
    finally:
        gc.enable()
