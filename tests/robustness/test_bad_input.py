"""
Bad requests at a whole server, on every wire.

Each kind gets a typed error, the same on all wires, or is cut off in time. Meanwhile an honest
client works, loses nothing, and the server's memory stays within a bound (`support.meanwhile`).
Peers that do not even speak the protocol are in `test_bad_peers`, those that are gone in
`test_vanishing`; `test_coverage` has the table of what is shown where.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import grpc.aio
import pytest
import zstandard
from google.rpc import error_details_pb2, status_pb2

import tidewire
from support import http2
from support.bad_requests import ANY, CODECS, MIB, batch, refusals
from support.hostile import (
    HTTP2,
    STREAM_WIRES,
    Place,
    Stranger,
    greeting,
    meet,
    open_body,
    opening,
    place_of,
    short_process,
)
from support.meanwhile import meanwhile
from support.process import ServerProcess
from support.wires import LACKS, WIRES
from tidewire import errors
from tidewire.client.translate import translate
from tidewire.transport import TransportOptions
from tidewire.v1 import common_pb2, event_pb2, event_pb2_grpc, state_pb2, state_pb2_grpc
from tidewire.wire.frame import CREDIT, CREDIT_BODY, OPEN, WITH_MESSAGE, encode_frame
from tidewire.wire.limits import WireLimits

WAIT_S: Final = 30.0
HUGE: Final = TransportOptions(limits=WireLimits(message_bytes_max=64 * MIB))
"""A client that does not hold itself to the server's limits."""
STATUS_KEY: Final = "grpc-status-details-bin"
PACKAGE: Final = "/tidewire.v1."
LONG_POLL: Final = PACKAGE + "StateService/Changes"
MUCH: Final = common_pb2.Credit(messages_until=1 << 40, bytes_until=1 << 50)
FLOOD_CALLS: Final = int(os.environ.get("FLOOD_CALLS", "5000"))
"""100,000 by `./run soak calls`."""
FLOOD_PIECE: Final = 1_000
LARGE_BYTES: Final = 100_000
"""Requests longer than this do not fit in a datagram: they are refused before they are sent."""
OF_TOO_LARGE: Final = ("MESSAGE_TOO_LARGE", "MALFORMED_REQUEST", "INVALID_ARGUMENT")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server process for all of them: each test meets what the ones before left behind."""
    with short_process(tmp_path_factory.mktemp("server")) as it:
        yield it


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def place(wire: str, process: ServerProcess, tmp_path: Path) -> AsyncIterator[Place]:
    """The process; for ``memory`` a server in this one."""
    async with place_of(wire, process, tmp_path) as it:
        yield it


@pytest.fixture
def name() -> str:
    return f"t{uuid.uuid4().hex[:10]}"


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason of an error, or its code where it has none."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_KEY and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return str(error.code().name)


async def ask(channel: grpc.aio.Channel, method: str, data: bytes) -> str:
    """Send bytes as a unary request; the reason it was refused for."""
    call: Any = channel.unary_unary(PACKAGE + method)
    try:
        await call(data, timeout=WAIT_S)
    except grpc.aio.AioRpcError as error:
        return reason_of(error)
    except errors.TidewireError as error:  # before it was sent
        return str(error.reason)
    return "nothing"


def expected(wire: str, what: str, data: bytes, reason: str, seen: str) -> str:
    """What a wire must say: the same as the others, but for what it does not even send."""
    if "large" in LACKS.get(wire, ()) and len(data) > LARGE_BYTES:
        return "MESSAGE_TOO_LARGE"
    if wire in HTTP2 and what == "message too large":
        return "RESOURCE_EXHAUSTED"  # grpcio refuses it before any code of ours can give a reason
    if reason == ANY:
        return seen if seen in OF_TOO_LARGE else " or ".join(OF_TOO_LARGE)
    return reason


async def test_bad_requests_are_refused(place: Place, wire: str, name: str) -> None:
    """With the same reason on all wires, again and again, while another client works."""
    plan = refusals()
    async with (
        meanwhile(place, wire, name),
        tidewire.channel(place.url(wire), tls=place.tls(wire), options=HUGE) as channel,
    ):
        seen = {what: await ask(channel, *plan[what][:2]) for what in (*plan, *reversed(plan))}
        first = {what: await ask(channel, *plan[what][:2]) for what in plan}

    wanted = {
        what: expected(wire, what, data, reason, seen[what])
        for what, (_, data, reason) in plan.items()
    }
    assert wanted == seen
    assert wanted == first


async def test_an_expired_deadline_is_told(place: Place, wire: str, name: str) -> None:
    """A call whose time is over ends with DEADLINE_EXCEEDED on every wire."""
    request = state_pb2.ChangesRequest(prefix=name)
    request.wait.FromSeconds(20)
    async with (
        meanwhile(place, wire, name),
        tidewire.channel(place.url(wire), tls=place.tls(wire)) as channel,
    ):
        stub = state_pb2_grpc.StateServiceStub(channel)
        request.after_revision = (await stub.Get(state_pb2.GetRequest(key="a"))).revision
        for timeout_s in (0.05, 0.5):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Changes(request, timeout=timeout_s)
            assert grpc.StatusCode.DEADLINE_EXCEEDED == caught.value.code()


@pytest.mark.parametrize("wire", STREAM_WIRES)
async def test_a_flood_of_calls_is_refused(place: Place, wire: str, name: str) -> None:
    """Very many open calls on one connection: all but a few are refused, cheaply."""
    request = state_pb2.ChangesRequest(prefix=name)
    request.wait.FromSeconds(20)
    data = request.SerializeToString()
    async with meanwhile(place, wire, name):
        stranger = await meet(place, wire)
        draining = asyncio.create_task(stranger.cut_off_or_closed())
        stranger.write(greeting(wire))
        for start in range(1, FLOOD_CALLS + 1, FLOOD_PIECE):
            calls = (opening(wire, LONG_POLL, data, start + n) for n in range(FLOOD_PIECE))
            if wire in ("ws", "wss"):  # one frame in each message
                for call in calls:
                    stranger.write(call)
            else:
                stranger.write(b"".join(calls))
            await stranger.drain()
        stranger.close()
        await draining


@pytest.mark.parametrize("wire", ["quic", "udp", "dtls"])
async def test_a_flood_of_calls_without_a_stream_of_bytes(
    place: Place, wire: str, name: str
) -> None:
    """A client that asks for as many calls as it can, on wires where it needs its own numbers."""
    request = state_pb2.ChangesRequest(prefix=name)
    request.wait.FromSeconds(20)
    count = FLOOD_CALLS // 10
    async with (
        meanwhile(place, wire, name),
        tidewire.channel(place.url(wire), tls=place.tls(wire), options=HUGE) as channel,
    ):
        stub = state_pb2_grpc.StateServiceStub(channel)
        request.after_revision = (await stub.Get(state_pb2.GetRequest(key="a"))).revision
        calls = [stub.Changes(request, timeout=2.0) for _ in range(count)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    codes = {each.code() for each in results if isinstance(each, grpc.aio.AioRpcError)}
    assert codes <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes


async def never_read(place: Place, wire: str, request: bytes) -> Stranger:
    """Open a subscription that gives all the credit there is and never reads."""
    method = PACKAGE + "EventService/Subscribe"
    stranger = await meet(place, wire)
    stranger.write(greeting(wire))
    if wire in HTTP2:
        body = b"\x00" + len(request).to_bytes(4, "big") + request
        head = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.head(method))
        stranger.write(head + http2.frame(http2.DATA, 0, 1, body))
    else:
        huge = CREDIT_BODY.pack(1 << 40)
        body = open_body(method, request)
        stranger.write(encode_frame(OPEN, body, flags=WITH_MESSAGE, priority=5, call_id=1))
        stranger.write(encode_frame(CREDIT, huge))
        stranger.write(encode_frame(CREDIT, huge, call_id=1))
    stranger.deaf()
    return stranger


# Not here: memory, where who does not read is this process and its memory the same; QUIC, which
# follows by a client. Datagrams wait for nobody.
@pytest.mark.parametrize("wire", [wire for wire in STREAM_WIRES if wire != "memory"])
async def test_one_that_never_reads_costs_little(place: Place, wire: str, name: str) -> None:
    """Subscribers that take nothing, ten live and ten of a stream, while 60 MB are published."""
    async with (
        meanwhile(place, wire, name),
        tidewire.connect(place.url(wire), tls=place.tls(wire), timeout_s=WAIT_S) as client,
    ):
        stream = client.events.stream(f"{name}bulk")
        await stream.create(f"{name}.stored", durability="os", bytes_max=20 * MIB)
        live = event_pb2.SubscribeOpen(credit=MUCH, codecs=CODECS)
        live.live.subjects.append(f"{name}.live")
        stored = event_pb2.SubscribeOpen(credit=MUCH, codecs=CODECS)
        stored.ordered.stream = f"{name}bulk"
        stored.ordered.start.all = True
        requests = [event_pb2.SubscribeRequest(open=each) for each in (live, stored)]
        peers = [
            await never_read(place, wire, request.SerializeToString())
            for request in requests
            for _ in range(10)
        ]
        body = bytes(MIB)
        for _ in range(30):
            await client.events.publish(f"{name}.live", body)
            await client.events.publish(f"{name}.stored", body)
        for peer in peers:
            peer.close()


@pytest.mark.parametrize("wire", ["quic"])
async def test_one_that_never_reads_its_streams(place: Place, wire: str, name: str) -> None:
    """The same over QUIC, whose calls have streams of their own: ten calls that are not read."""
    subject = f"{name}.bulk"
    opening = event_pb2.SubscribeOpen(credit=MUCH, codecs=CODECS)
    opening.live.subjects.append(subject)
    tls = place.tls(wire)
    async with (
        meanwhile(place, wire, name),
        tidewire.connect(place.url(wire), tls=tls, timeout_s=WAIT_S) as client,
        tidewire.channel(place.url(wire), tls=tls) as channel,
    ):
        stub = event_pb2_grpc.EventServiceStub(channel)
        calls = [stub.Subscribe() for _ in range(10)]
        for call in calls:
            await call.write(event_pb2.SubscribeRequest(open=opening))
            await call.read()  # that it is open
        receivers = (await client.events.publish(subject, bytes(MIB))).receivers
        for _ in range(20):
            await client.events.publish(subject, bytes(MIB))
        for call in calls:
            call.cancel()
    assert 10 == receivers


async def test_a_decompression_bomb_is_refused_by_who_reads(
    place: Place, wire: str, name: str
) -> None:
    """
    A small body that becomes 200 MB, and says so or does not, is stored as it is, and its reader
    refuses it before it works: as an event, a value of State and a query; the next event is read.
    """
    async with (
        meanwhile(place, wire, name),
        tidewire.connect(place.url(wire), tls=place.tls(wire)) as client,
    ):
        for states_size in (True, False):
            packer = zstandard.ZstdCompressor(write_content_size=states_size)
            bomb = packer.compress(bytes(200 * MIB))
            if "large" in LACKS.get(wire, ()):
                await unsent(client, bomb)
            else:
                await refused_by_readers(client, f"{name}.{states_size}", bomb)


def bomb_payload(bomb: bytes) -> common_pb2.Payload:
    """Make a payload that lies about its size."""
    return common_pb2.Payload(codec=common_pb2.CODEC_ZSTD, raw_size=1_000, data=bomb)


async def unsent(client: tidewire.Client, bomb: bytes) -> None:
    """20 kB are too many for a datagram: it is not even sent."""
    state = state_pb2_grpc.StateServiceStub(client.channel)
    request = state_pb2.PutRequest(key="bomb", value=bomb_payload(bomb))
    with pytest.raises((errors.TidewireError, grpc.aio.AioRpcError)) as caught:
        await state.Put(request, timeout=WAIT_S)
    assert isinstance(translate(caught.value), errors.MessageTooLarge)


async def refused_by_readers(client: tidewire.Client, name: str, bomb: bytes) -> None:
    """Send it as everything that has a body, and read it."""
    events = event_pb2_grpc.EventServiceStub(client.channel)
    state = state_pb2_grpc.StateServiceStub(client.channel)
    payload = bomb_payload(bomb)
    async with client.events.subscribe(f"{name}.x") as subscription:
        bad = batch(f"{name}.x", bomb, codec=common_pb2.CODEC_ZSTD, raw_size=1_000)
        await events.Publish(event_pb2.PublishRequest(batch=bad), timeout=WAIT_S)
        await client.events.publish(f"{name}.x", "good")
        message = await subscription.next(timeout_s=WAIT_S)
        corrupt = subscription.corrupt
    await state.Put(state_pb2.PutRequest(key=name, value=payload), timeout=WAIT_S)
    with pytest.raises(errors.TidewireError) as value:
        await client.state.get(name)
    async with client.queries.serve(name, lambda _: payload):
        with pytest.raises(errors.TidewireError) as answer:
            _ = (await client.queries.ask(name)).payload

    refusals = (errors.BodyCorrupt, errors.MessageTooLarge)
    assert (b"good", 1) == (message.payload, corrupt)
    assert isinstance(value.value, refusals)
    assert isinstance(answer.value, refusals)
