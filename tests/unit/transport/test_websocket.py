"""WebSockets: framing against RFC 6455 by hand-made peers, the upgrade, and origins."""

import asyncio
import itertools
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from support import websocket
from support.authority import Authority
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echoing import serving_echo
from support.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, client_frame
from tidewire.errors import InvalidArgument
from tidewire.transport import RawServer, TransportOptions, channel
from tidewire.transport.websocket_codec import whole_frames
from tidewire.wire.bodies import Hello, encode_hello
from tidewire.wire.frame import GOAWAY, HELLO, FrameDecoder, encode_frame
from tidewire.wire.limits import FRAME_BYTES_MAX, KIB, MIB, WireLimits

LIMIT_S = 10.0
QUICK = TransportOptions(
    limits=WireLimits(
        hello_timeout_s=0.4, frame_timeout_s=0.4, keepalive_s=0.3, ping_timeout_s=0.3
    ),
    handshake_timeout_s=0.4,
)
GREETING = encode_frame(HELLO, encode_hello(Hello(), WireLimits()))


@pytest.fixture
async def served() -> AsyncIterator[tuple[str, RawServer]]:
    """An echo server on ws."""
    async with serving_echo("ws") as (url, server, _):
        yield url, server


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has no event."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def works(url: str) -> None:
    """Prove that an honest client is served."""
    async with channel(url) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        assert "on" == (await stub.Say(echo_pb2.SayRequest(text="on"), timeout=LIMIT_S)).text


async def refused(url: str, **more: Any) -> str:
    """Return the words with which a client's call fails as UNAVAILABLE."""
    async with channel(url, **more) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)
    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    return str(caught.value.details())


async def test_greeting_by_hand(served: tuple[str, RawServer]) -> None:
    """HELLO in one masked binary message is answered by HELLO in one that is not masked."""
    reader, writer = await websocket.upgrade(served[0])
    writer.write(client_frame(GREETING))
    kind, payload = await websocket.read_frame(reader)
    writer.close()

    assert BINARY == kind
    assert [HELLO] == [frame[0] for frame in FrameDecoder(FRAME_BYTES_MAX).feed(payload)]


@pytest.mark.parametrize("cuts", [[], [1], [0], [5, 5, 20], [3, 9, 9, 11]])
async def test_fragments_of_a_message(served: tuple[str, RawServer], cuts: list[int]) -> None:
    """A message in fragments, which browsers and proxies may make, is the same message."""
    reader, writer = await websocket.upgrade(served[0])
    edges = [0, *cuts, len(GREETING)]
    for index, (start, stop) in enumerate(itertools.pairwise(edges)):
        kind = CONTINUATION if index else BINARY
        writer.write(client_frame(GREETING[start:stop], kind, fin=stop == len(GREETING)))
        writer.write(client_frame(b"between", PING))
    payload = await websocket.read_until(reader, BINARY)
    writer.close()

    assert HELLO == payload[4]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (client_frame(GREETING, mask=None), 1002),
        (client_frame(b"hello", TEXT), 1003),
        (client_frame(GREETING, reserved=4), 1002),
        (client_frame(GREETING, reserved=1), 1002),
        (client_frame(GREETING, 3), 1002),
        (client_frame(GREETING + GREETING), 1002),
        (client_frame(GREETING[:-1]), 1002),
        (client_frame(b""), 1002),
        (client_frame(GREETING, CONTINUATION), 1002),
        (client_frame(GREETING, fin=False) + client_frame(GREETING), 1002),
        (client_frame(b"", size=FRAME_BYTES_MAX + 5), 1009),
        (client_frame(b"", size=1 << 40), 1009),
        (client_frame(b"", size=1 << 63), 1002),
        (client_frame(bytes(200_000), fin=False) + client_frame(bytes(80_000), 0), 1009),
        (client_frame(b"x" * 126, PING), 1002),
        (client_frame(b"x", PING, fin=False), 1002),
        (client_frame(b"\x03", CLOSE), 1002),
    ],
    ids=[
        "not-masked", "text", "compressed", "reserved-bit", "unknown-opcode", "two-frames",
        "part-of-a-frame", "empty", "continues-nothing", "mixed-fragments", "over-the-limit",
        "huge", "negative", "fragments-over-the-limit", "long-ping", "cut-ping", "half-a-code",
    ],
)  # fmt: skip
async def test_breach(served: tuple[str, RawServer], sent: bytes, code: int) -> None:
    """Each breach of the framing ends the connection with its close code; others are served."""
    url, server = served
    reader, writer = await websocket.upgrade(url)
    writer.write(sent)
    payload = await websocket.read_until(reader, CLOSE)
    async with asyncio.timeout(LIMIT_S):
        await reader.read()
    writer.close()

    assert code == int.from_bytes(payload[:2], "big")
    await until(lambda: server.counters.connections_active == 0)
    assert {"ProtocolViolation": 1} == dict(server.counters.errors)
    await works(url)


async def test_breach_of_the_protocol_within(served: tuple[str, RawServer]) -> None:
    """What is wrong in a frame is said by GOAWAY first, then by the close code."""
    reader, writer = await websocket.upgrade(served[0])
    writer.write(client_frame(GREETING) + client_frame(GREETING))
    kinds = []
    while (frame := await websocket.read_frame(reader))[0] == BINARY:
        kinds.append(frame[1][4])
    writer.close()

    assert [HELLO, GOAWAY] == kinds
    assert (CLOSE, 1002) == (frame[0], int.from_bytes(frame[1][:2], "big"))


async def test_pings_of_websocket(served: tuple[str, RawServer]) -> None:
    """PING is answered with its payload, also before HELLO; PONG is ignored."""
    reader, writer = await websocket.upgrade(served[0])
    writer.write(client_frame(b"", PONG) + client_frame(b"are you there", PING))
    answer = await websocket.read_frame(reader)
    writer.close()

    assert (PONG, b"are you there") == answer


async def test_close_is_answered(served: tuple[str, RawServer]) -> None:
    """CLOSE of the peer is answered and the stream closed by the server, as RFC 6455 7.1.1."""
    url, server = served
    reader, writer = await websocket.upgrade(url)
    writer.write(client_frame(GREETING) + client_frame((1000).to_bytes(2, "big") + b"bye", CLOSE))
    payload = await websocket.read_until(reader, CLOSE)
    async with asyncio.timeout(LIMIT_S):
        assert b"" == await reader.read()
    writer.close()

    assert 1000 == int.from_bytes(payload[:2], "big")
    await until(lambda: server.counters.connections_active == 0)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", websocket.request()[:-2]],
    ids=["nothing", "a-line", "all-but-the-end"],
)
async def test_slow_upgrade(sent: bytes) -> None:
    """An upgrade that does not come in time is refused, and its place is free again."""
    async with serving_echo("ws", options=QUICK) as (url, server, _):
        reader, writer = await websocket.connect(url)
        writer.write(sent)
        async with asyncio.timeout(LIMIT_S):
            answer = await reader.read()
        writer.close()

        assert answer.startswith(b"HTTP/1.1 408 ")
        await until(lambda: server.counters.handshake_failures["timeout"] == 1)
        assert 0 == server.counters.connections_active


async def test_upgrades_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many upgrades in flight connections wait in the kernel, and are served after."""
    monkeypatch.setattr("tidewire.transport.listener.HANDSHAKES_MAX", 2)
    async with serving_echo("ws", options=QUICK) as (url, server, _):
        silent = [await websocket.connect(url) for _ in range(4)]
        (listener,) = server._listeners
        await until(lambda: len(listener._adopting) == 2)
        await works(url)
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("start", [b"", client_frame(GREETING)], ids=["before", "after"])
@pytest.mark.parametrize(
    "part",
    [client_frame(GREETING)[:1], client_frame(GREETING)[:-1], client_frame(GREETING, fin=False)],
    ids=["one-byte", "all-but-one", "a-fragment"],
)
async def test_one_that_stops_within_a_frame(start: bytes, part: bytes) -> None:
    """A frame or message that is begun and not ended is cut off within its time."""
    limits = replace(QUICK.limits, keepalive_s=30.0, hello_timeout_s=30.0)
    options = replace(QUICK, limits=limits)
    async with serving_echo("ws", options=options) as (url, server, _):
        reader, writer = await websocket.upgrade(url)
        writer.write(start + part)
        async with asyncio.timeout(LIMIT_S):
            await reader.read()
        writer.close()

        await until(lambda: server.counters.connections_active == 0)
        assert {"PeerTooSlow": 1} == dict(server.counters.errors)


async def test_one_byte_at_a_time() -> None:
    """A frame that comes byte by byte is cut off although something always comes."""
    async with serving_echo("ws", options=QUICK) as (url, server, _):
        reader, writer = await websocket.upgrade(url)
        writer.write(client_frame(GREETING))
        reading = asyncio.create_task(reader.read())
        for byte in client_frame(bytes(1000)):
            if reading.done() or server.counters.errors:
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        writer.close()

        await until(lambda: server.counters.connections_active == 0)
        assert 1 == server.counters.errors.total()
        reading.cancel()


async def test_silence_after_the_upgrade() -> None:
    """The time for HELLO holds in a WebSocket too."""
    async with serving_echo("ws", options=QUICK) as (url, server, _):
        reader, writer = await websocket.upgrade(url)
        async with asyncio.timeout(LIMIT_S):
            await reader.read()
        writer.close()

        await until(lambda: server.counters.connections_active == 0)
        assert {"PeerTooSlow": 1} == dict(server.counters.errors)


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "not_http"),
        (GREETING, 400, "not_http"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 426, "no_upgrade"),
        (websocket.request("/elsewhere"), 404, "wrong_path"),
        (websocket.request(sec_websocket_version="12"), 426, "wrong_version"),
        (websocket.request(sec_websocket_protocol="other"), 400, "wrong_subprotocol"),
        (websocket.request(origin="https://evil.example"), 403, "origin_refused"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 16 * KIB, 431, "head_too_large"),
    ],
    ids=["tls", "tcp", "plain-get", "path", "version", "subprotocol", "origin", "large"],
)
async def test_refusals(
    served: tuple[str, RawServer], sent: bytes, status: int, reason: str
) -> None:
    """What is no upgrade for us gets its status at once, and is counted under its reason."""
    url, server = served
    got, _ = await websocket.ask(url, sent)

    assert status == got
    assert {reason: 1} == dict(server.counters.handshake_failures)
    assert 1 == server.counters.connections_refused
    assert 0 == server.counters.connections_opened
    await works(url)


async def test_origins_are_an_option() -> None:
    """A page of the list gets in, another one does not, nor does a page when there is no list."""
    options = TransportOptions(websocket_origins=("https://App.example",))
    async with serving_echo("ws", options=options) as (url, _, _):
        here = websocket.request(origin="https://app.example")
        there = websocket.request(origin="https://evil.example")
        assert 101 == (await websocket.ask(url, here))[0]
        assert 403 == (await websocket.ask(url, there))[0]
        await works(url)


async def test_path_of_the_listener() -> None:
    """A listener with a path serves that path, and no other."""
    server = RawServer()
    url = server.listen("ws://127.0.0.1:0/messages").url.text
    await server.start()
    try:
        assert 101 == (await websocket.ask(url, websocket.request("/messages")))[0]
        assert "refused the upgrade with 404" in await refused(url.replace("/messages", ""))
        async with channel(url) as connected:
            await asyncio.wait_for(connected.channel_ready(), LIMIT_S)
    finally:
        await server.stop(None)


async def test_client_at_a_port_of_something_else() -> None:
    """A WebSocket client at a tcp port, and the reverse, fail and say what they met."""
    async with serving_echo("tcp") as (url, _, _):
        assert "before the upgrade" in await refused(url.replace("tcp://", "ws://"))
    async with serving_echo("ws") as (url, _, _):
        said = await refused(url.replace("ws://", "tcp://"))
        assert "does the peer speak this protocol" in said


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00" * 20_000,
        b"HTTP/1.1 200 OK\r\n\r\n",
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
            b"Sec-WebSocket-Accept: wrong\r\nSec-WebSocket-Protocol: tidewire.v1\r\n\r\n"
        ),
        b"x" * 20_000,
        b"",
    ],
    ids=["zeros", "ok", "wrong-key", "endless", "closed"],
)
async def test_client_meets_nonsense(answer: bytes) -> None:
    """A client leaves a server that is none, and says so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert url in await refused(url)


async def test_client_meets_silence() -> None:
    """A server that never answers the upgrade is left when the time to connect is over."""
    stay = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stay.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert "within 0.3 s" in await refused(url, options=TransportOptions(connect_timeout_s=0.3))
        stay.set()


async def test_plain_and_encrypted_do_not_mix(tmp_path: Path) -> None:
    """Wss at a ws port and ws at a wss port fail, typed, and nothing is served in the clear."""
    authority = Authority(tmp_path)
    tls = authority.config(authority.issue("server"))
    client = authority.config(authority.issue("client"))
    async with serving_echo("ws") as (url, server, service):
        said = await refused(url.replace("ws://", "wss://"), tls=client)
        assert "TLS" in said
        assert {"not_http": 1} == dict(server.counters.handshake_failures)
        assert [] == service.order
    async with serving_echo("wss", server_tls=tls) as (url, server, service):
        await refused(url.replace("wss://", "ws://"))
        assert {"http_request": 1} == dict(server.counters.handshake_failures)
        assert [] == service.order


async def test_browsers_without_certificates(tmp_path: Path) -> None:
    """
    Where client certificates are not required a client with only a token is served, over ALPN of
    HTTP as browsers offer it; where they are required it is not.
    """
    authority = Authority(tmp_path)
    tls = authority.config(authority.issue("server"))
    anonymous = replace(authority.config(authority.issue("client")), certificate=None, key=None)
    options = TransportOptions(token="a-secret")
    for required in (False, True):
        lenient = replace(tls, require_client_certificate=required)
        async with serving_echo("wss", server_tls=lenient) as (url, _, _):
            if required:
                await refused(url, tls=anonymous, options=options)
                continue
            async with channel(url, tls=anonymous, options=options) as connected:
                stub = echo_pb2_grpc.EchoServiceStub(connected)
                answer = await stub.Say(echo_pb2.SayRequest(fault="token"), timeout=LIMIT_S)
                assert "Bearer a-secret" == answer.text
            context = ssl.create_default_context(cafile=str(authority.file))
            context.set_alpn_protocols(["http/1.1"])
            port = int(url.rpartition(":")[2])
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() in (
                None,
                "http/1.1",
            )
            writer.close()


async def test_one_that_never_reads_pongs() -> None:
    """PINGs of a peer that does not read are not answered without end."""
    async with serving_echo("ws") as (url, server, _):
        _, writer = await websocket.upgrade(url)
        writer.write(client_frame(GREETING))
        await until(lambda: len(server._links) == 1)
        (link,) = server._links.values()
        many = client_frame(b"x" * 125, PING) * 2_000
        before = -1
        for _ in range(200):
            writer.write(many)
            await asyncio.wait({asyncio.ensure_future(writer.drain())}, timeout=0.05)
            if before == server.counters.bytes_out:
                break
            before = server.counters.bytes_out

        assert link.protocol.transport.get_write_buffer_size() <= 512 * KIB
        writer.transport.abort()


async def test_read_buffers_are_bounded() -> None:
    """Much that comes fast leaves a bounded buffer behind, whatever the kernel holds."""
    options = TransportOptions(receive_buffer_bytes=4 * MIB)
    async with (
        serving_echo("ws", options=options) as (url, server, _),
        channel(url, options=options) as connected,
    ):
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        body = bytes(4 * MIB)
        for _ in range(10):
            await stub.Say(echo_pb2.SayRequest(body=body), timeout=LIMIT_S)
        (link,) = server._links.values()
        size = len(link.protocol._codec.get_buffer(-1))

        assert size <= 512 * KIB


def test_pieces_become_frames() -> None:
    """Pieces of headers and bodies come out as whole frames, without a copy where there is one."""
    one, two, three = GREETING, encode_frame(3, b"body", call_id=1), encode_frame(6, call_id=2)
    pieces: list[bytes | memoryview] = [one, two[:12], memoryview(two)[12:], three]

    got = list(whole_frames(pieces))

    assert [one, two, three] == got
    assert got[0] is one


def test_what_cannot_be() -> None:
    """Certificates for ws, none for wss: refused before anything listens."""
    server = RawServer()
    with pytest.raises(InvalidArgument):
        server.add_listener("wss://127.0.0.1:0")
    with pytest.raises(InvalidArgument):
        channel("ws://127.0.0.1:1?ca=/nowhere")
    for path in ("/a b", "/\u00e9"):
        with pytest.raises(InvalidArgument):
            channel(f"ws://127.0.0.1:1{path}")
        with pytest.raises(InvalidArgument):
            server.add_listener(f"ws://127.0.0.1:0{path}")


def test_without_picows() -> None:
    """An install without picows imports, and names the extra that brings ws and wss."""
    script = (
        "import sys; sys.modules['picows'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'picows' else find(name, *more)\n"
        "from tidewire.transport import missing, transports\n"
        "assert not {'ws', 'wss'} & set(transports())\n"
        "print(*(each.reason for each in missing() if each.scheme == 'wss'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert "needs picows: pip install 'tidewire[ws]'" == done.stdout.strip()
