"""The router: what is done around every call, whatever the wire."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import status_pb2

from tidewire import errors
from tidewire.v1 import common_pb2, state_pb2, state_pb2_grpc
from tidewire_server.core import Drain
from tidewire_server.router import MESSAGE_BYTES_MAX, Router


class Servicer(state_pb2_grpc.StateServiceServicer):
    """Fails in every way there is."""

    async def Get(self, request: state_pb2.GetRequest, context: Any) -> state_pb2.GetResponse:
        if request.key == "mistake":
            raise ZeroDivisionError("secret text")
        if request.key == "long":
            raise errors.KeyNotFound("x" * 100_000)
        if request.key == "typed":
            raise errors.RevisionMismatch(
                "key 'a' is at revision 7, expected 5",
                metadata={"actual_revision": 7},
                retry_after_s=0.5,
            )
        return state_pb2.GetResponse(revision=len(request.key))

    async def Watch(
        self, request: state_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[state_pb2.WatchResponse]:
        for revision in range(3):
            yield state_pb2.WatchResponse(bookmark=state_pb2.WatchBookmark(revision=revision))
        if request.prefix == "fail":
            raise errors.RevisionCompacted("revision 1 is gone", metadata={"compacted_revision": 9})


class Serving:
    """A router on a gRPC server."""

    def __init__(self, router: Router) -> None:
        servicer = Servicer()  # type: ignore[abstract]  # these methods are enough
        registering: Any = router
        state_pb2_grpc.add_StateServiceServicer_to_server(servicer, registering)
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.server.add_generic_rpc_handlers((router,))
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    async def __aenter__(self) -> grpc.aio.Channel:
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        return self.channel

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(0)


def error_of(raised: grpc.aio.AioRpcError) -> errors.TidewireError:
    """The typed error of a failed call, from the trailer that carries it."""
    trailers = dict(raised.trailing_metadata())
    status = status_pb2.Status.FromString(trailers[errors.STATUS_TRAILER])
    assert raised.code().value[0] == status.code
    return errors.from_status(status)


async def failure(channel: grpc.aio.Channel, key: str) -> errors.TidewireError:
    stub = state_pb2_grpc.StateServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Get(state_pb2.GetRequest(key=key), timeout=5)
    return error_of(raised.value)


async def test_a_typed_error_arrives_with_its_figures() -> None:
    """What a handler raises is what the client can rebuild."""
    async with Serving(Router()) as channel:
        error = await failure(channel, "typed")

    assert errors.RevisionMismatch is type(error)
    assert error.figure("actual_revision") == 7
    assert error.retry_after_s == 0.5


async def test_a_mistake_of_ours_shows_an_id_and_no_text(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets INTERNAL with an id; the text of the exception stays in the log."""
    with caplog.at_level(logging.ERROR):
        async with Serving(Router()) as channel:
            error = await failure(channel, "mistake")

    assert errors.Internal is type(error)
    assert "secret" not in error.message
    assert [error.metadata["error_id"]] == [getattr(r, "error_id", None) for r in caplog.records]
    assert "secret text" in caplog.text


async def test_a_long_error_text_is_cut_to_fit_into_metadata() -> None:
    """A status of any length arrives on every wire."""
    async with Serving(Router()) as channel:
        error = await failure(channel, "long")

    assert errors.KeyNotFound is type(error)
    assert len(error.message) == MESSAGE_BYTES_MAX


async def test_a_stream_fails_after_what_it_has_sent() -> None:
    """Responses before the error arrive, then the typed error."""
    seen = []
    async with Serving(Router()) as channel:
        stub = state_pb2_grpc.StateServiceStub(channel)
        call = stub.Watch(state_pb2.WatchRequest(prefix="fail"), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for response in call:
                seen.append(response.bookmark.revision)

    assert seen == [0, 1, 2]
    assert error_of(raised.value).figure("compacted_revision") == 9


async def test_an_unknown_method_is_a_typed_error() -> None:
    """The reason is METHOD_NOT_FOUND, not the text of some library."""
    async with Serving(Router()) as channel:
        call: Any = channel.unary_unary("/tidewire.v1.StateService/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"", timeout=5)

    assert errors.MethodNotFound is type(error_of(raised.value))


@pytest.mark.parametrize("method", ["Get", "Watch"])
async def test_malformed_protobuf_is_a_typed_error(method: str) -> None:
    """Bytes that are no message are refused before any handler sees them."""
    async with Serving(Router()) as channel:
        path = f"/tidewire.v1.StateService/{method}"
        unary: Any = channel.unary_unary(path)
        stream: Any = channel.unary_stream(path)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            if method == "Get":
                await unary(b"\xff\xff\xff", timeout=5)
            else:
                await stream(b"\xff\xff\xff", timeout=5).read()

    assert errors.MalformedRequest is type(error_of(raised.value))


async def test_a_request_that_would_grow_30_times_is_refused_unparsed() -> None:
    """A legal message of half a million empty submessages is stopped by its size."""
    bomb = state_pb2.TransactRequest(
        then=[state_pb2.StateOperation() for _ in range(500_000)]
    ).SerializeToString()
    async with Serving(Router()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            call: Any = channel.unary_unary("/tidewire.v1.StateService/Get")
            await call(bomb, timeout=5)

    assert errors.MessageTooLarge is type(error_of(raised.value))


async def test_a_bomb_inside_of_a_field_is_found() -> None:
    """The control of the control: what is nested counts too, so it is no place to hide."""
    operation = state_pb2.StateOperation(put=state_pb2.PutRequest(key="a"))
    operation.put.value.header.extend(common_pb2.Header() for _ in range(200_000))
    bomb = state_pb2.TransactRequest(then=[operation]).SerializeToString()
    async with Serving(Router()) as channel:
        call: Any = channel.unary_unary("/tidewire.v1.StateService/Transact")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(bomb, timeout=5)

    assert errors.MessageTooLarge is type(error_of(raised.value))


async def test_a_large_payload_is_not_a_bomb() -> None:
    """The control: as many bytes in one payload pass."""
    request = state_pb2.PutRequest(key="a", value=common_pb2.Payload(data=bytes(2_000_000)))
    async with Serving(Router()) as channel:
        stub = state_pb2_grpc.StateServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Put(request, timeout=5)

    assert grpc.StatusCode.UNIMPLEMENTED is raised.value.code()  # it reached the servicer's base


async def test_streams_are_refused_while_draining_and_unary_calls_are_not() -> None:
    """A server that is going starts nothing long."""
    drain = Drain()
    drain.start(1.0)
    async with Serving(Router(drain=drain)) as channel:
        stub = state_pb2_grpc.StateServiceStub(channel)
        answer = await stub.Get(state_pb2.GetRequest(key="abc"), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Watch(state_pb2.WatchRequest(), timeout=5).read()

    assert answer.revision == 3
    assert errors.Draining is type(error_of(raised.value))


async def test_who_may_not_call_is_refused() -> None:
    """The authorizer is asked before the handler, on every shape of call."""

    def deny(principal: str, method: str) -> None:
        raise errors.PermissionDenied(f"{principal!r} may not call {method}")

    async with Serving(Router(authorize=deny)) as channel:
        error = await failure(channel, "typed")

    assert errors.PermissionDenied is type(error)


async def test_calls_are_counted_by_their_outcome() -> None:
    """Every call is counted once when it begins and once when it ends, with its code."""

    class Metrics:
        def __init__(self) -> None:
            self.began: list[str] = []
            self.ended: list[tuple[str, int]] = []

        def started(self, method: str) -> None:
            self.began.append(method)

        def finished(self, method: str, code: int, seconds: float) -> None:
            assert seconds >= 0
            self.ended.append((method, code))

    metrics = Metrics()
    method = "/tidewire.v1.StateService/Get"
    async with Serving(Router(metrics=metrics)) as channel:
        stub = state_pb2_grpc.StateServiceStub(channel)
        await stub.Get(state_pb2.GetRequest(key="fine"), timeout=5)
        await failure(channel, "typed")
        await failure(channel, "mistake")

    assert metrics.began == [method] * 3
    assert metrics.ended == [(method, 0), (method, 10), (method, 13)]
