"""
Bad input at a whole server, on gRPC and on a raw wire.

Each kind gets a typed error, the same on both wires, or is cut off in time. Meanwhile an honest
client works, loses nothing, and the server's memory stays within a bound (`support.meanwhile`).
"""

import asyncio
import hashlib
import uuid
from collections.abc import Iterator
from typing import Any, Final

import grpc.aio
import pytest
import zstandard
from google.rpc import error_details_pb2, status_pb2

import tidewire
from support import http2
from support.meanwhile import meanwhile
from support.process import ServerProcess
from tidewire import errors
from tidewire.transport import TransportOptions
from tidewire.v1 import (
    checkpoint_pb2,
    common_pb2,
    event_pb2,
    event_pb2_grpc,
    query_pb2,
    state_pb2,
    state_pb2_grpc,
)
from tidewire.wire.batch import encode_payloads
from tidewire.wire.bodies import Hello, encode_head, encode_hello
from tidewire.wire.frame import (
    CREDIT,
    CREDIT_BODY,
    END,
    HELLO,
    OPEN,
    OPEN_PREFIX,
    WITH_MESSAGE,
    encode_frame,
)
from tidewire.wire.limits import WireLimits

WIRES: Final = ("grpc", "tcp")
WAIT_S: Final = 30.0
CUT_S_MAX: Final = 15.0
"""What cannot be answered is cut off within this time (the waits below are 1 s, and 2 s)."""
FLAGS: Final = {
    "--wire-hello-timeout-s": "1",
    "--wire-frame-timeout-s": "1",
    "--wire-handshake-timeout-s": "1",
    "--wire-keepalive-s": "1",
    "--wire-ping-timeout-s": "1",
    "--limits-subscriber-stall-s": "2",
    "--log-level": "error",
}
MIB: Final = 1 << 20
HUGE: Final = TransportOptions(limits=WireLimits(message_bytes_max=64 * MIB))
"""A client that does not hold itself to the server's limits."""
STATUS_KEY: Final = "grpc-status-details-bin"
PACKAGE: Final = "/tidewire.v1."
LONG_POLL: Final = PACKAGE + "StateService/Changes"
MUCH: Final = common_pb2.Credit(messages_until=1 << 40, bytes_until=1 << 50)
CODECS: Final = common_pb2.Codec.values()[1:]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server process for all of them: each test meets what the ones before left behind."""
    flags = [part for pair in FLAGS.items() for part in pair]
    with ServerProcess(tmp_path_factory.mktemp("server"), WIRES, flags=flags) as it:
        yield it


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def name() -> str:
    return f"t{uuid.uuid4().hex[:10]}"


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason of an error, or its code where it has none."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_KEY:
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return str(error.code().name)


async def ask(channel: grpc.aio.Channel, method: str, data: bytes, timeout_s: float) -> str:
    """Send bytes as a unary request; the reason it was refused for."""
    call: Any = channel.unary_unary(PACKAGE + method)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(data, timeout=timeout_s)
    return reason_of(caught.value)


def batch(subject: str, body: bytes, **fields: Any) -> common_pb2.Batch:
    """A batch by hand."""
    made = encode_payloads(subject, [b"x"])
    made.body = body
    made.raw_size = len(body)
    for field, value in fields.items():
        setattr(made, field, value)
    if "crc32c" not in fields:
        from crc32c import crc32c

        made.crc32c = crc32c(body)
    return made


def publish(**fields: Any) -> bytes:
    return event_pb2.PublishRequest(**fields).SerializeToString()


Case = tuple[str, bytes, str]
"""Method, bytes of the request, and the reason it is refused for; "*" for one of several."""


def refusals() -> dict[str, tuple[str, bytes, str, float]]:
    """Bad requests, with the deadline of the call."""
    plan = broken() | too_large() | bad_batches() | bad_states()
    return {what: (*case, WAIT_S) for what, case in plan.items()}


def broken() -> dict[str, Case]:
    """What is no request at all."""
    put = state_pb2.PutRequest(key="a", value=common_pb2.Payload(data=b"x"))
    return {
        "unknown method": ("EventService/Explode", b"", "METHOD_NOT_FOUND"),
        "unknown service": ("BombService/Explode", b"", "METHOD_NOT_FOUND"),
        "no protobuf": ("StateService/Put", b"\xff" * 50, "MALFORMED_REQUEST"),
        "cut protobuf": ("StateService/Put", put.SerializeToString()[:-1], "MALFORMED_REQUEST"),
        "large no protobuf": ("StateService/Put", b"\xff" * MIB, "MALFORMED_REQUEST"),
    }


def too_large() -> dict[str, Case]:
    """What is too large, or would become so."""
    bomb = b"\x0a\x00" * (4 * MIB)  # four million empty submessages in 8 MiB
    deep = b""
    for _ in range(30):  # each level doubles what is in it
        deep = b"\x0a" + _varint(len(deep)) + deep if len(deep) > 60_000 else b"\x0a\x00" + deep * 2
    over = publish(batch=batch("a.b", bytes(10 * MIB + 1)))
    stated = publish(batch=batch("a.b", b"xx", codec=CODECS[3], raw_size=1 << 31))
    return {
        "payload too large": ("EventService/Publish", over, "MESSAGE_TOO_LARGE"),
        "message too large": ("EventService/Publish", bytes(12 * MIB), "RESOURCE_EXHAUSTED"),
        "protobuf bomb": ("StateService/Transact", bomb, "MESSAGE_TOO_LARGE"),
        "bomb in a list": ("EventService/Acknowledge", b"\x12" + _varint(len(bomb)) + bomb, "*"),
        "deep bomb": ("StateService/Transact", b"\x12" + _varint(len(deep)) + deep, "*"),
        "stated size too large": ("EventService/Publish", stated, "MESSAGE_TOO_LARGE"),
    }


def bad_batches() -> dict[str, Case]:
    """Batches that are not what they say."""
    plan = {
        "codec nobody knows": (batch("a.b", b"xx", codec=99), "CODEC_UNSUPPORTED"),
        "false raw size": (batch("a.b", b"xx", raw_size=3), "INVALID_ARGUMENT"),
        "false checksum": (batch("a.b", b"xx", crc32c=1), "CHECKSUM_MISMATCH"),
        "invalid subject": (batch("a..b", b"xx"), "INVALID_SUBJECT"),
        "wildcard subject": (batch("a.>", b"xx"), "INVALID_SUBJECT"),
    }
    return {
        what: ("EventService/Publish", publish(batch=bad), reason)
        for what, (bad, reason) in plan.items()
    }


def bad_states() -> dict[str, Case]:
    """What does not fit the state of the server."""
    good = encode_payloads("a.b", [b"x"])
    durable = publish(batch=good, durability=common_pb2.DURABILITY_FSYNC)
    value = common_pb2.Payload(data=b"x")
    plan: dict[str, tuple[str, Any, str]] = {
        "unknown stream": (
            "EventService/Fetch",
            event_pb2.FetchRequest(ordered=event_pb2.OrderedSource(stream="nowhere")),
            "STREAM_NOT_FOUND",
        ),
        "wrong revision": (
            "StateService/Put",
            state_pb2.PutRequest(key="a", value=value, expected_revision=77),
            "REVISION_MISMATCH",
        ),
        "fenced operator": (
            "CheckpointService/Commit",
            checkpoint_pb2.CommitRequest(operator="op", epoch=9),
            "OPERATOR_FENCED",
        ),
        "false digest": (
            "CheckpointService/PutChunk",
            checkpoint_pb2.PutChunkRequest(data=b"x", digest=hashlib.sha256(b"y").digest()),
            "DIGEST_MISMATCH",
        ),
        "nobody asked": (
            "QueryService/Ask",
            query_pb2.AskRequest(subject="a.b"),
            "NO_RESPONDERS",
        ),
    }
    cases: dict[str, Case] = {
        what: (method, request.SerializeToString(), reason)
        for what, (method, request, reason) in plan.items()
    }
    return cases | {"no stream": ("EventService/Publish", durable, "NO_STREAM")}


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


@pytest.mark.parametrize("what", refusals())
async def test_a_bad_request_is_refused(process: ServerProcess, what: str, name: str) -> None:
    """With the same reason on both wires, while another client works."""
    method, data, reason, timeout_s = refusals()[what]
    seen = []
    async with meanwhile(process, "tcp", name):
        for wire in WIRES:
            async with tidewire.channel(process.url(wire), options=HUGE) as channel:
                for _ in range(3):
                    seen.append(await ask(channel, method, data, timeout_s))

    if what == "message too large":  # grpcio refuses it before any code of ours can give a reason
        seen = ["RESOURCE_EXHAUSTED" if each == "MESSAGE_TOO_LARGE" else each for each in seen]
    assert 1 == len(set(seen)), seen
    assert reason in (seen[0], "*")
    if reason == "*":
        assert seen[0] in ("MESSAGE_TOO_LARGE", "MALFORMED_REQUEST", "INVALID_ARGUMENT")


async def test_an_expired_deadline_is_told(process: ServerProcess, wire: str, name: str) -> None:
    """A call whose time is over ends with DEADLINE_EXCEEDED on both wires."""
    request = state_pb2.ChangesRequest(prefix=name)
    request.wait.FromSeconds(20)
    async with meanwhile(process, wire, name), tidewire.channel(process.url(wire)) as channel:
        stub = state_pb2_grpc.StateServiceStub(channel)
        request.after_revision = (await stub.Get(state_pb2.GetRequest(key="a"))).revision
        for timeout_s in (0.05, 0.5):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Changes(request, timeout=timeout_s)
            assert grpc.StatusCode.DEADLINE_EXCEEDED == caught.value.code()


async def raw(
    process: ServerProcess, wire: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect without a client."""
    return await asyncio.open_connection("127.0.0.1", int(process.url(wire).rpartition(":")[2]))


async def cut_off(reader: asyncio.StreamReader) -> None:
    """Read until the server closes."""
    async with asyncio.timeout(CUT_S_MAX):
        try:
            while await reader.read(1 << 16):
                pass
        except ConnectionResetError:
            return


GREETING: Final = {
    "grpc": http2.GREETING,
    "tcp": encode_frame(HELLO, encode_hello(Hello(), WireLimits())),
}


def opening(wire: str, message: bytes, number: int) -> bytes:
    """A whole unary call, the n-th of its connection."""
    if wire == "grpc":
        return http2.call(LONG_POLL, message, 2 * number - 1)
    head = encode_head(LONG_POLL)
    body = OPEN_PREFIX.pack(0, len(head)) + head + message
    return encode_frame(OPEN, body, flags=END | WITH_MESSAGE, priority=5, call_id=number)


# Not here: a truncated frame on gRPC. grpcio keeps such a connection beyond its keepalive.
BAD_BYTES: Final = {
    ("grpc", "garbage"): b"\xff" * 64,
    ("tcp", "garbage"): b"\xff" * 64,
    ("grpc", "frame too large"): GREETING["grpc"] + b"\xff\xff\xff" + bytes(6),
    ("tcp", "frame too large"): GREETING["tcp"] + b"\x7f\xff\xff\xff" + bytes(12),
    ("grpc", "wrong length"): http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, b"12345"),
    ("tcp", "wrong length"): GREETING["tcp"] + b"\x00\x00\x00\x03abc",
    ("grpc", "nothing"): b"",
    ("tcp", "nothing"): b"",
    ("grpc", "half a greeting"): http2.PREFACE[:10],
    ("tcp", "half a greeting"): GREETING["tcp"][:7],
    ("tcp", "truncated frame"): GREETING["tcp"] + opening("tcp", b"", 1)[:20],
}


@pytest.mark.parametrize(("wire", "what"), BAD_BYTES)
async def test_bad_bytes_are_cut_off(
    process: ServerProcess, wire: str, what: str, name: str
) -> None:
    """Garbage, lengths that lie and frames that never end cost a connection and nobody else."""
    async with meanwhile(process, wire, name):
        pairs = [await raw(process, wire) for _ in range(20)]
        for _, writer in pairs:
            writer.write(BAD_BYTES[wire, what])
        await asyncio.gather(*(cut_off(reader) for reader, _ in pairs))
        for _, writer in pairs:
            writer.close()


async def test_one_byte_at_a_time_is_cut_off(process: ServerProcess, wire: str, name: str) -> None:
    """A greeting that comes byte by byte is not waited for, although something always comes."""
    async with meanwhile(process, wire, name):
        reader, writer = await raw(process, wire)
        cutting = asyncio.create_task(cut_off(reader))
        for byte in GREETING[wire] * 100:
            if cutting.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.2)
        await cutting
        writer.close()


async def test_a_flood_of_calls_is_refused(process: ServerProcess, wire: str, name: str) -> None:
    """A hundred thousand open calls on one connection: all but a few are refused, cheaply."""
    request = state_pb2.ChangesRequest(prefix=name)
    request.wait.FromSeconds(20)
    data = request.SerializeToString()
    async with meanwhile(process, wire, name):
        reader, writer = await raw(process, wire)
        draining = asyncio.create_task(_read_all(reader))
        writer.write(GREETING[wire])
        try:
            for start in range(1, 100_001, 1_000):
                writer.write(
                    b"".join(opening(wire, data, start + number) for number in range(1_000))
                )
                async with asyncio.timeout(WAIT_S):
                    await writer.drain()
        except ConnectionError:
            pass  # cut off: as good as refused
        writer.close()
        await draining


async def _read_all(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(1 << 20):
            pass
    except ConnectionError:
        return


async def never_read(process: ServerProcess, wire: str, request: bytes) -> Any:
    """Open a subscription that gives all the credit there is and never reads."""
    method = PACKAGE + "EventService/Subscribe"
    reader, writer = await raw(process, wire)
    if wire == "grpc":
        body = b"\x00" + len(request).to_bytes(4, "big") + request
        head = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.head(method))
        writer.write(GREETING[wire] + head + http2.frame(http2.DATA, 0, 1, body))
    else:
        head = encode_head(method)
        huge = CREDIT_BODY.pack(1 << 40)
        writer.write(
            GREETING[wire]
            + encode_frame(
                OPEN,
                OPEN_PREFIX.pack(0, len(head)) + head + request,
                flags=WITH_MESSAGE,
                priority=5,
                call_id=1,
            )
            + encode_frame(CREDIT, huge)
            + encode_frame(CREDIT, huge, call_id=1)
        )
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("source", ["live", "ordered"])
async def test_one_that_never_reads_costs_little(
    process: ServerProcess, wire: str, source: str, name: str
) -> None:
    """Ten subscribers that take nothing, while 100 MB are published to them."""
    subject = f"{name}.bulk"
    opening = event_pb2.SubscribeOpen(credit=MUCH, codecs=CODECS)
    if source == "live":
        opening.live.subjects.append(subject)
    else:
        opening.ordered.stream = f"{name}bulk"
        opening.ordered.start.all = True
    request = event_pb2.SubscribeRequest(open=opening).SerializeToString()
    async with (
        meanwhile(process, wire, name),
        tidewire.connect(process.url(wire), timeout_s=WAIT_S) as client,
    ):
        if source == "ordered":
            stream = client.events.stream(f"{name}bulk")
            await stream.create(subject, durability="os", bytes_max=60 * MIB)
        peers = [await never_read(process, wire, request) for _ in range(10)]
        body = bytes(MIB)
        for _ in range(100):
            await client.events.publish(subject, body)
        for _, writer in peers:
            writer.close()


@pytest.mark.parametrize("states_size", [True, False])
async def test_a_decompression_bomb_is_refused_by_who_reads(
    process: ServerProcess, wire: str, name: str, states_size: bool
) -> None:
    """
    A small body that becomes 200 MB is stored as it is, and its reader refuses it before it works:
    as an event, a value of State and a query; the next event is read.
    """
    packer = zstandard.ZstdCompressor(write_content_size=states_size)
    bomb = packer.compress(bytes(200 * MIB))
    zstd = common_pb2.CODEC_ZSTD
    async with (
        meanwhile(process, wire, name),
        tidewire.connect(process.url(wire)) as client,
    ):
        events = event_pb2_grpc.EventServiceStub(client.channel)
        state = state_pb2_grpc.StateServiceStub(client.channel)
        async with client.events.subscribe(f"{name}.x") as subscription:
            bad = batch(f"{name}.x", bomb, codec=zstd, raw_size=1_000)
            await events.Publish(event_pb2.PublishRequest(batch=bad), timeout=WAIT_S)
            await client.events.publish(f"{name}.x", "good")
            message = await subscription.next(timeout_s=WAIT_S)
            corrupt = subscription.corrupt
        payload = common_pb2.Payload(codec=zstd, raw_size=1_000, data=bomb)
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
