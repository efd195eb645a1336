"""Generated stubs on a channel of each wire: shapes, deadlines, credit, errors, details."""

import asyncio
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

import tidewire
from support.server import Running
from support.wires import WIRES
from tidewire.v1 import (
    checkpoint_pb2,
    checkpoint_pb2_grpc,
    common_pb2,
    event_pb2,
    event_pb2_grpc,
    query_pb2,
    query_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    state_pb2,
    state_pb2_grpc,
)
from tidewire.wire.batch import decode_payloads, encode_payloads

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 20.0
CODECS = (
    common_pb2.CODEC_NONE,
    common_pb2.CODEC_LZ4,
    common_pb2.CODEC_SNAPPY,
    common_pb2.CODEC_ZSTD,
)
PAYLOADS = common_pb2.BODY_FORM_PAYLOADS
MUCH = common_pb2.Credit(messages_until=1 << 20, bytes_until=1 << 40)
STATUS_KEY = "grpc-status-details-bin"


async def next_of(call: Any, kind: str) -> Any:
    """The next response of a kind."""
    async with asyncio.timeout(WAIT_S):
        while (response := await call.read()).WhichOneof("kind") != kind:
            pass
    return getattr(response, kind)


def details(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The status with its details, as any client of gRPC finds it."""
    found = {key: value for key, value in error.trailing_metadata() or () if key == STATUS_KEY}
    return status_pb2.Status.FromString(found[STATUS_KEY])


def unpacked(status: status_pb2.Status, kind: type[Any]) -> Any:
    """The detail of a type."""
    for detail in status.details:
        if detail.Is(kind.DESCRIPTOR):
            message = kind()
            detail.Unpack(message)
            return message
    raise LookupError(f"no {kind.__name__} in {status}")


def open_live(*subjects: str, messages: int = 1 << 20) -> event_pb2.SubscribeRequest:
    """First request of a live subscription."""
    return event_pb2.SubscribeRequest(
        open=event_pb2.SubscribeOpen(
            live=event_pb2.LiveSource(subjects=subjects),
            credit=common_pb2.Credit(messages_until=messages, bytes_until=1 << 30),
            codecs=CODECS,
        )
    )


async def test_the_server_says_what_it_is(client: tidewire.Client) -> None:
    """Version, limits, codecs, listeners, engine and durability, by a stub of the channel."""
    stub = server_pb2_grpc.ServerServiceStub(client.channel)
    info = await stub.GetInfo(server_pb2.GetInfoRequest(), timeout=WAIT_S)

    assert ("test-server", "embedded") == (info.node_id, info.engine)
    assert 10 << 20 == info.limits.payload_bytes_max
    assert set(CODECS) == set(info.codecs)
    assert set(WIRES) == {listener.url.split(":")[0] for listener in info.listeners}
    assert common_pb2.DURABILITY_FSYNC == info.durability_default


@pytest.mark.needs("streams")
async def test_streams_begin_with_opened_and_obey_credit(
    client: tidewire.Client, name: str
) -> None:
    """Nothing beyond the credit is delivered; more credit, an absolute total, lets it come."""
    stub = event_pb2_grpc.EventServiceStub(client.channel)
    await client.events.stream(name).create(name)
    for number in range(5):
        await client.events.publish(name, str(number))
    call = stub.Subscribe()
    ordered = event_pb2.OrderedSource(stream=name, start=event_pb2.StartPosition(all=True))
    opening = event_pb2.SubscribeOpen(
        ordered=ordered,
        credit=common_pb2.Credit(messages_until=2, bytes_until=1 << 30),
        codecs=CODECS,
    )
    await call.write(event_pb2.SubscribeRequest(open=opening))
    opened = await next_of(call, "opened")
    first = [await next_of(call, "delivery") for _ in range(2)]
    reading = asyncio.create_task(next_of(call, "delivery"))
    done, _ = await asyncio.wait([reading], timeout=0.2)
    await call.write(
        event_pb2.SubscribeRequest(credit=common_pb2.Credit(messages_until=3, bytes_until=1 << 30))
    )
    third = await reading
    call.cancel()

    assert opened.limits.payload_bytes_max > 0
    assert opened.stream_id
    assert set(CODECS) == set(opened.codecs)
    assert [1, 2] == [delivery.first_sequence for delivery in first]
    assert set() == done
    assert 3 == third.first_sequence
    assert [b"2"] == list(decode_payloads(third.batch))


@pytest.mark.needs("streams")
async def test_an_idle_reader_gets_bookmarks(client: tidewire.Client, name: str) -> None:
    """Streams and watches say where it is safe to resume when nothing else is to be said."""
    await client.events.stream(name).create(name)
    await client.events.publish(name, "x")
    entry = await client.state.put(f"{name}/other", "x")
    ordered = event_pb2.OrderedSource(
        stream=name, start=event_pb2.StartPosition(all=True), subjects=[f"{name}.no"]
    )
    opening = event_pb2.SubscribeOpen(ordered=ordered, codecs=CODECS, credit=MUCH)
    opening.idle_bookmark.FromMilliseconds(100)
    call = event_pb2_grpc.EventServiceStub(client.channel).Subscribe()
    await call.write(event_pb2.SubscribeRequest(open=opening))
    bookmark = await next_of(call, "bookmark")
    call.cancel()
    watch = state_pb2.WatchRequest(prefix=f"{name}/a", after_revision=entry.revision)
    watch.idle_bookmark.FromMilliseconds(100)
    watching = state_pb2_grpc.StateServiceStub(client.channel).Watch(watch)
    marked = await next_of(watching, "bookmark")
    watching.cancel()

    assert 1 == bookmark.sequence
    assert marked.revision >= entry.revision


@pytest.mark.needs("streams")
async def test_a_pipeline_settles_each_publish(client: tidewire.Client, name: str) -> None:
    """Results carry the client's numbers; a refusal is the status of one item, the rest goes on."""
    await client.events.stream(name).create(f"{name}.>")
    call = event_pb2_grpc.EventServiceStub(client.channel).PublishStream()
    await call.write(event_pb2.PublishStreamRequest(open=event_pb2.PublishOpen()))
    opened = await next_of(call, "opened")
    for number, subject in enumerate((f"{name}.a", "not a subject", f"{name}.b"), 1):
        batch = encode_payloads(f"{name}.x", [b"1", b"2"])
        batch.subject = subject
        item = event_pb2.PublishItem(
            publish_id=number, request=event_pb2.PublishRequest(batch=batch)
        )
        await call.write(event_pb2.PublishStreamRequest(publish=item))
    results: dict[int, Any] = {}
    while len(results) < 3:
        for result in (await next_of(call, "results")).result:
            results[result.publish_id] = result
    await call.done_writing()
    async with asyncio.timeout(WAIT_S):
        while await call.read() is not grpc.aio.EOF:
            pass

    assert opened.credit.messages_until > 0
    assert (1, 2) == (results[1].response.stored.first, results[1].response.stored.last)
    assert (3, 4) == (results[3].response.stored.first, results[3].response.stored.last)
    assert grpc.StatusCode.INVALID_ARGUMENT.value[0] == results[2].error.code
    assert grpc.StatusCode.OK == await call.code()


@pytest.mark.needs("streams")
async def test_deadlines_end_calls_on_both_sides(client: tidewire.Client, name: str) -> None:
    """A long poll and a stream end with DEADLINE_EXCEEDED when their time is over."""
    loop = asyncio.get_running_loop()
    request = state_pb2.ChangesRequest(prefix=name, after_revision=(await _revision(client)))
    request.wait.FromSeconds(20)
    stub = state_pb2_grpc.StateServiceStub(client.channel)
    began = loop.time()
    with pytest.raises(grpc.aio.AioRpcError) as changes:
        await stub.Changes(request, timeout=0.3)
    watching: Any = stub.Watch(state_pb2.WatchRequest(prefix=name), timeout=0.3)
    assert "opened" == (await watching.read()).WhichOneof("kind")
    with pytest.raises(grpc.aio.AioRpcError) as watch:
        while True:
            await watching.read()

    assert grpc.StatusCode.DEADLINE_EXCEEDED == changes.value.code()
    assert grpc.StatusCode.DEADLINE_EXCEEDED == watch.value.code()
    assert loop.time() - began < 10


async def _revision(client: tidewire.Client) -> int:
    return (await client.state.put("somewhere.else", "x")).revision


@pytest.mark.needs("streams")
async def test_cancelling_reaches_the_server(client: tidewire.Client, name: str) -> None:
    """A subscription that is cancelled, or whose caller stops reading, is gone at the server."""
    stream = client.events.stream(name)
    await stream.create(name)
    await stream.consumer("c").create()
    stub = event_pb2_grpc.EventServiceStub(client.channel)
    call = stub.Subscribe()
    share = event_pb2.ConsumerSource(stream=name, consumer="c")
    opening = event_pb2.SubscribeOpen(consumer=share, codecs=CODECS)
    await call.write(event_pb2.SubscribeRequest(open=opening))
    await next_of(call, "opened")
    during = (await stream.consumer("c").info()).subscriptions
    call.cancel()
    async with asyncio.timeout(WAIT_S):
        while (await stream.consumer("c").info()).subscriptions:
            pass

    assert 1 == during


async def test_metadata_is_carried(client: tidewire.Client) -> None:
    """Text and binary metadata of the caller reach a service that does not know them."""
    stub = server_pb2_grpc.ServerServiceStub(client.channel)
    call = stub.GetInfo(
        server_pb2.GetInfoRequest(),
        metadata=(("x-text", "v"), ("x-bin", b"\x00\xff"), ("traceparent", "00-ab-cd-01")),
        timeout=WAIT_S,
    )
    info = await call

    assert "test-server" == info.node_id
    assert grpc.StatusCode.OK == await call.code()


async def test_details_tell_what_to_do(client: tidewire.Client, name: str) -> None:
    """ErrorInfo with reason and figures; PreconditionFailure and BadRequest where they fit."""
    stub = state_pb2_grpc.StateServiceStub(client.channel)
    value = common_pb2.Payload(data=b"x")
    put = await stub.Put(state_pb2.PutRequest(key=name, value=value), timeout=WAIT_S)
    with pytest.raises(grpc.aio.AioRpcError) as mismatch:
        await stub.Put(
            state_pb2.PutRequest(key=name, value=value, expected_revision=0), timeout=WAIT_S
        )
    with pytest.raises(grpc.aio.AioRpcError) as invalid:
        await stub.Get(state_pb2.GetRequest(key="a b"), timeout=WAIT_S)
    info = unpacked(details(mismatch.value), error_details_pb2.ErrorInfo)
    precondition = unpacked(details(mismatch.value), error_details_pb2.PreconditionFailure)
    bad = unpacked(details(invalid.value), error_details_pb2.BadRequest)

    assert grpc.StatusCode.ABORTED == mismatch.value.code()
    assert ("REVISION_MISMATCH", "tidewire.dev") == (info.reason, info.domain)
    assert str(put.revision) == info.metadata["actual_revision"]
    assert precondition.violations
    assert grpc.StatusCode.INVALID_ARGUMENT == invalid.value.code()
    assert bad.field_violations


def refusals(channel: grpc.aio.Channel, name: str) -> dict[str, Any]:
    """Unary calls that must be refused, by the reason."""
    events = event_pb2_grpc.EventServiceStub(channel)
    state = state_pb2_grpc.StateServiceStub(channel)
    queries = query_pb2_grpc.QueryServiceStub(channel)
    checkpoints = checkpoint_pb2_grpc.CheckpointServiceStub(channel)
    batch = encode_payloads("a.b", [b"x"])
    broken = common_pb2.Batch(
        subject="a.b", count=1, form=PAYLOADS, codec=CODECS[0], raw_size=2, body=b"xx"
    )
    durable = event_pb2.PublishRequest(batch=batch, durability=common_pb2.DURABILITY_FSYNC)
    commit = checkpoint_pb2.CommitRequest(operator=name, epoch=99)
    none = event_pb2.GetConsumerRequest(stream=name, consumer="c")
    return {
        "NO_STREAM": events.Publish(durable),
        "STREAM_NOT_FOUND": events.GetStream(event_pb2.GetStreamRequest(name=name)),
        "STREAM_NOT_FOUND ": events.GetConsumer(none),
        "INVALID_SUBJECT": queries.Ask(query_pb2.AskRequest(subject="a..b")),
        "NO_RESPONDERS": queries.Ask(query_pb2.AskRequest(subject=name)),
        "INVALID_KEY": state.Get(state_pb2.GetRequest(key="")),
        "KEY_NOT_FOUND": state.Touch(state_pb2.TouchRequest(key=name)),
        "REVISION_IN_FUTURE": state.Get(state_pb2.GetRequest(key=name, revision=1 << 40)),
        "CHECKPOINT_NOT_FOUND": checkpoints.Load(
            checkpoint_pb2.LoadRequest(operator=name, revision=7)
        ),
        "OPERATOR_FENCED": checkpoints.Commit(commit),
        "CHUNK_NOT_FOUND": checkpoints.GetChunk(checkpoint_pb2.GetChunkRequest(digest=bytes(32))),
        "DIGEST_MISMATCH": checkpoints.PutChunk(
            checkpoint_pb2.PutChunkRequest(data=b"x", digest=bytes(32))
        ),
        "CHECKSUM_MISMATCH": events.Publish(event_pb2.PublishRequest(batch=broken)),
    }


async def test_refusals_are_the_same_on_every_wire(server: Running, name: str) -> None:
    """Code, message, reason, figures and every other detail are equal byte for byte."""
    seen: dict[str, dict[str, bytes]] = {}
    for each in WIRES:
        async with tidewire.channel(server.url(each), tls=server.tls(each)) as channel:
            for reason, call in refusals(channel, name).items():
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                status = details(caught.value)
                info = unpacked(status, error_details_pb2.ErrorInfo)
                assert reason.strip() == info.reason
                assert status.code == caught.value.code().value[0]
                assert status.message == caught.value.details()
                status_bytes = status.SerializeToString(deterministic=True)
                seen.setdefault(reason, {})[each] = status_bytes

    for reason, by_wire in seen.items():
        assert 1 == len(set(by_wire.values())), f"{reason} differs: {by_wire}"


@pytest.mark.needs("streams")
@pytest.mark.parametrize("stream", ["publish", "subscribe", "serve"])
async def test_streams_must_begin_with_open(client: tidewire.Client, stream: str) -> None:
    """Anything else first is PROTOCOL_ORDER."""
    events = event_pb2_grpc.EventServiceStub(client.channel)
    call: Any
    if stream == "publish":
        call, first = events.PublishStream(), event_pb2.PublishStreamRequest()
        first.publish.publish_id = 1
    elif stream == "subscribe":
        call, first = events.Subscribe(), event_pb2.SubscribeRequest()  # type: ignore[assignment]
        first.credit.messages_until = 1  # type: ignore[attr-defined]
    else:
        call = query_pb2_grpc.QueryServiceStub(client.channel).Serve()
        first = query_pb2.ServeRequest(drain=True)  # type: ignore[assignment]
    await call.write(first)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(WAIT_S):
            while await call.read() is not grpc.aio.EOF:
                pass

    info = unpacked(details(caught.value), error_details_pb2.ErrorInfo)
    assert "PROTOCOL_ORDER" == info.reason
