"""
Datagrams of strangers at a QUIC listener: garbage, spoofed and replayed beginnings, floods, streams
that break the rules. An honest client is served before and after, and nothing is kept.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echoing import serving_echo
from support.impairment import Impairment, impaired
from support.quic import FAST, LIMIT_S, VERSION_1, Quic, Stranger, initial, serving, until
from tidewire.transport import TransportOptions, channel
from tidewire.transport.quic import listener as listening
from tidewire.transport.quic.backend import DATAGRAM_BYTES_LEAST
from tidewire.transport.quic.listener import quic_settings
from tidewire.transport.quic.over_aioquic import BACKEND
from tidewire.transport.quic.tokens import Memory
from tidewire.transport.tls import ALPN
from tidewire.wire.bodies import Hello, encode_head, encode_hello
from tidewire.wire.frame import END, HELLO, OPEN, OPEN_PREFIX, WITH_MESSAGE, encode_frame
from tidewire.wire.limits import WireLimits


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Quic]:
    """A server over QUIC."""
    async with serving(tmp_path) as made:
        yield made


async def works(served: Quic) -> None:
    """Prove that an honest client is served."""
    async with channel(served.url, tls=served.tls, options=FAST) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        assert "on" == (await stub.Say(echo_pb2.SayRequest(text="on"), timeout=LIMIT_S)).text


async def heard(served: Quic, count: int) -> None:
    """Wait until the server has read so many datagrams in all."""
    await until(lambda: served.server.counters.datagrams_in >= count)


async def test_an_address_is_proved_before_anything_is_kept(served: Quic) -> None:
    """A first datagram gets a Retry, which is shorter than it; no connection is made of it."""
    with Stranger(served.address) as stranger:
        first = initial()
        for _ in range(200):
            stranger.send(first)  # spoofed or replayed: it is always the same
        await heard(served, 200)
        await until(lambda: served.server.counters.cookies_sent == 200)
        answers = stranger.answers()

    assert 200 == len(answers)
    assert all(len(answer) < len(first) / 3 for answer in answers)
    assert {} == served.listener._routes
    await works(served)


async def test_a_token_of_another_address(served: Quic) -> None:
    """The token of a Retry is worth nothing from another port; a replay gets a Retry again."""
    with Stranger(served.address) as first, Stranger(served.address) as other:
        first.send(initial())
        await until(lambda: served.server.counters.cookies_sent == 1)
        (retry,) = first.answers()
        token = retry[5 + 1 + 8 + 1 + 8 : -16]
        other.send(initial(token))
        await until(lambda: served.server.counters.cookies_sent == 2)

    assert {} == served.listener._routes


async def test_a_version_nobody_speaks(served: Quic) -> None:
    """It is answered with the versions there are, once and shortly; an answer gets no answer."""
    with Stranger(served.address) as stranger:
        stranger.send(initial(version=b"\x1a\x2a\x3a\x4a"))
        await heard(served, 1)
        await until(lambda: served.server.counters.datagrams_out == 1)
        (answer,) = stranger.answers()
        assert b"\0\0\0\0" == answer[1:5]
        assert VERSION_1 in answer
        assert len(answer) < 100
        stranger.send(answer.ljust(DATAGRAM_BYTES_LEAST, b"\0"))
        stranger.send(initial(version=b"\x1a\x2a\x3a\x4a", size=DATAGRAM_BYTES_LEAST - 1))
        await heard(served, 3)

    assert 1 == served.server.counters.datagrams_out


async def test_first_datagrams_that_are_too_short(served: Quic) -> None:
    """A first datagram below 1,200 bytes is dropped: it could be answered with more."""
    with Stranger(served.address) as stranger:
        stranger.send(initial(size=DATAGRAM_BYTES_LEAST - 1))
        await heard(served, 1)
        assert [] == stranger.answers()
    assert {"malformed": 1} == dict(served.server.counters.datagrams_refused)


async def test_half_open_handshakes_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Clients that prove their address and stop there are dropped when there are too many, and given
    up in time; then others get in.
    """
    monkeypatch.setattr(listening, "HANDSHAKES_MAX", 8)
    async with serving(tmp_path, options=TransportOptions(handshake_timeout_s=0.5)) as served:
        strangers = [Stranger(served.address) for _ in range(20)]
        for stranger in strangers:
            stranger.send(initial())
        await until(lambda: served.server.counters.cookies_sent == 20)
        for stranger in strangers:
            (retry,) = stranger.answers()
            chosen, token = retry[6 + 8 + 1 : 6 + 8 + 1 + 8], retry[6 + 8 + 1 + 8 : -16]
            data = initial(token)
            stranger.send(data[:6] + chosen + data[14:])
        await heard(served, 40)
        young = len(served.listener._young)
        await until(lambda: not served.listener._young)
        await works(served)
        for stranger in strangers:
            stranger.__exit__()

    assert 8 == young
    assert 8 == served.server.counters.handshake_failures["timeout"]
    assert 12 == served.server.counters.datagrams_refused["too_many_handshakes"]
    assert {} == served.listener._routes


async def test_too_many_connections(tmp_path: Path) -> None:
    """Beyond the limit connections are not taken, and counted."""
    options = TransportOptions(connections_max=1)
    async with serving(tmp_path, options=options) as served:
        async with channel(served.url, tls=served.tls, options=FAST) as connected:
            stub = echo_pb2_grpc.EchoServiceStub(connected)
            await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)
            short = replace(FAST, connect_timeout_s=0.5)
            async with channel(served.url, tls=served.tls, options=short) as other:
                with pytest.raises(grpc.aio.AioRpcError):
                    await echo_pb2_grpc.EchoServiceStub(other).Say(
                        echo_pb2.SayRequest(), timeout=LIMIT_S
                    )
        await until(lambda: served.server.counters.connections_active == 0)
        await works(served)
    assert served.server.counters.refusals["too_many_connections"] >= 1


async def test_replayed_datagrams(served: Quic) -> None:
    """Everything an honest client said, said again from elsewhere, does nothing."""
    async with impaired(served.address) as between:
        between.capture = True
        url = f"quic://127.0.0.1:{between.address[1]}"
        async with channel(url, tls=served.tls, options=FAST) as connected:
            stub = echo_pb2_grpc.EchoServiceStub(connected)
            for text in ("a", "b", "c"):
                await stub.Say(echo_pb2.SayRequest(text=text), timeout=LIMIT_S)
            before = served.server.counters.datagrams_in
            with Stranger(served.address) as stranger:
                captured = list(between.captured)
                for data in captured:
                    stranger.send(data)
                await heard(served, before + len(captured))
            answer = await stub.Say(echo_pb2.SayRequest(text="d"), timeout=LIMIT_S)

    assert "d" == answer.text
    assert ["a", "b", "c", "d"] == served.service.order


async def test_a_storm_of_resets(served: Quic) -> None:
    """Thousands of calls opened and cancelled at once leave nothing behind."""
    async with channel(served.url, tls=served.tls, options=FAST) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        for _ in range(20):
            calls = [stub.Say(echo_pb2.SayRequest(fault="sleep")) for _ in range(100)]
            await asyncio.sleep(0)
            for call in calls:
                call.cancel()
        assert "on" == (await stub.Say(echo_pb2.SayRequest(text="on"), timeout=LIMIT_S)).text
        (link,) = served.server._links.values()
        await until(lambda: not link.calls)
        assert len(link._partials) <= 1  # type: ignore[attr-defined]
    assert {} == dict(served.server.counters.errors)


async def test_a_mistake_of_the_library(served: Quic, caplog: pytest.LogCaptureFixture) -> None:
    """Should it raise for one connection, that one ends and says so; others go on."""
    url, tls = served.url, served.tls
    async with (
        channel(url, tls=tls, options=FAST) as broken,
        channel(url, tls=tls, options=FAST) as other,
    ):
        stub, whole = (echo_pb2_grpc.EchoServiceStub(each) for each in (broken, other))
        await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)
        shells: list[Any] = list(served.server._shells)
        await whole.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)
        (shell,) = shells

        def fail(_: float) -> None:
            raise AssertionError("a mistake")

        shell.session.datagrams = fail
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Say(echo_pb2.SayRequest(), timeout=1.0)
        await until(shell.lost.done)
        assert "on" == (await whole.Say(echo_pb2.SayRequest(text="on"), timeout=LIMIT_S)).text

    assert "could not go on" in caplog.text
    await works(served)


async def test_the_wrong_port(served: Quic) -> None:
    """Clients of quic:// and udp:// at each other's ports get nowhere; both servers go on."""
    short = replace(FAST, connect_timeout_s=0.5)
    async with serving_echo("udp") as (plain, _, service):
        for url, tls in (
            (plain.replace("udp://", "quic://"), served.tls),
            (served.url.replace("quic://", "udp://"), None),
        ):
            async with channel(url, tls=tls, options=short) as connected:
                stub = echo_pb2_grpc.EchoServiceStub(connected)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Say(echo_pb2.SayRequest(), timeout=2.0)
                assert caught.value.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                )
        async with channel(plain, options=FAST) as connected:
            stub = echo_pb2_grpc.EchoServiceStub(connected)
            assert "on" == (await stub.Say(echo_pb2.SayRequest(text="on"), timeout=LIMIT_S)).text
    assert ["on"] == service.order
    await works(served)


async def test_a_slow_path_has_time_for_its_handshake(tmp_path: Path) -> None:
    """HELLO has its time from the end of the handshake, which may take longer than that."""
    limits = WireLimits(hello_timeout_s=0.5)
    slow = Impairment(delay_s=0.15)
    async with (
        serving(tmp_path, options=TransportOptions(limits=limits)) as served,
        impaired(served.address, up=slow) as between,
        channel(
            f"quic://127.0.0.1:{between.address[1]}",
            tls=served.tls,
            options=replace(FAST, limits=limits),
        ) as connected,
    ):
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        assert "on" == (await stub.Say(echo_pb2.SayRequest(text="on"), timeout=LIMIT_S)).text


# Streams that break the rules ---------------------------------------------------------------------

GREETING = encode_frame(HELLO, encode_hello(Hello(), WireLimits()))
FOREIGN = encode_frame(HELLO, encode_hello(Hello(version_min=98, version_max=99), WireLimits()))
HEAD = encode_head("/support.echo.v1.EchoService/Say")
OPENING = encode_frame(
    OPEN, OPEN_PREFIX.pack(0, len(HEAD)) + HEAD, flags=END | WITH_MESSAGE, priority=5, call_id=1
)


async def speak(served: Quic, said: list[tuple[int, bytes, bool]]) -> None:
    """Connect with a good certificate and say something on streams of one's own choice."""
    config = served.tls
    made = quic_settings(
        WireLimits(), alpn=(ALPN,), whole=False, files=config.read(), server_name="127.0.0.1"
    )
    loop = asyncio.get_running_loop()
    session = BACKEND.connect(made, served.address, loop.time(), Memory())

    class Deaf:
        """Hears nothing."""

        def __getattr__(self, _: str) -> Any:
            return lambda *_, **__: None

    deaf: Any = Deaf()
    with Stranger(served.address) as stranger:
        for stream, data, last in said:
            session.send(stream, data, last=last)
        async with asyncio.timeout(LIMIT_S):
            while not session.over:
                for data, _ in session.datagrams(loop.time()):
                    stranger.send(data)
                for data in stranger.answers():
                    session.receive(data, served.address, loop.time())
                session.deliver(deaf)
                if loop.time() >= session.wake_s():
                    session.handle_timer(loop.time())
                await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ([(0, b"GET / HTTP/1.1\r\n\r\n", False)], "ProtocolViolation"),
        ([(4, OPENING, True)], "ProtocolViolation"),
        ([(0, GREETING, False), (4, OPENING[:-1], True)], "ProtocolViolation"),
        ([(0, GREETING, False), (4, b"\xff" * 40, False)], "ProtocolViolation"),
        ([(0, GREETING, False), (8, OPENING, True)], "ProtocolViolation"),
        ([(0, GREETING, False), (2, OPENING, True)], "ProtocolViolation"),
        ([(0, GREETING, True)], "ProtocolViolation"),
        ([(0, FOREIGN, False)], "WireVersionUnsupported"),
        ([(0, GREETING[:7], False)], "PeerTooSlow"),
        ([(0, GREETING, False), (4, OPENING[:20], False)], "PeerTooSlow"),
    ],
)
async def test_streams_that_break_the_rules(
    tmp_path: Path, said: list[tuple[int, bytes, bool]], error: str
) -> None:
    """The connection ends, with its reason counted; others are served."""
    options = TransportOptions(limits=WireLimits(hello_timeout_s=0.5, frame_timeout_s=0.5))
    async with serving(tmp_path, options=options) as served:
        await speak(served, said)

        await until(lambda: served.server.counters.connections_active == 0)
        assert {error: 1} == dict(served.server.counters.errors)
        await works(served)
