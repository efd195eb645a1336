"""``udp://`` and ``dtls://`` beside what every wire does: options, refusals, sockets."""

import asyncio
import socket
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from support.authority import Authority
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echoing import echoing, serving_echo
from tidewire.errors import InvalidArgument, WireUnsuitable
from tidewire.transport import TransportOptions, channel
from tidewire.transport.datagram_socket import ReadBudget, bind_datagrams
from tidewire.wire.bodies import Hello, decode_goaway
from tidewire.wire.cookie import Commitment
from tidewire.wire.datagram import (
    GOAWAY,
    HELLO,
    NO_PROOF,
    WELCOME,
    Greeting,
    encode_datagram,
    encode_greeting,
    parse_datagram,
)
from tidewire.wire.datagram_limits import DatagramLimits
from tidewire.wire.limits import WireLimits

LIMIT_S = 10.0
FAST = TransportOptions(connect_timeout_s=1.0)
Say = echo_pb2.SayRequest


def test_a_plain_wire_takes_no_certificates_and_no_token(tmp_path: Path) -> None:
    """What would be sent in the clear, or be ignored, is refused when the channel is made."""
    authority = Authority(tmp_path)

    with pytest.raises(InvalidArgument, match="dtls://"):
        channel("udp://127.0.0.1:1", tls=authority.config(authority.issue("client")))
    with pytest.raises(WireUnsuitable, match="token"):
        channel("udp://127.0.0.1:1", options=TransportOptions(token="secret"))


@pytest.mark.parametrize("size", [511, 65_508])
def test_sizes_no_datagram_has(size: int) -> None:
    """A datagram that could not carry a HELLO, or that UDP could not carry, is a mistake."""
    with pytest.raises(ValueError, match="datagram_bytes"):
        DatagramLimits(datagram_bytes=size)


async def test_the_socket_has_its_options() -> None:
    """Buffers as asked for, and no fragments."""
    options = TransportOptions(receive_buffer_bytes=200_000, send_buffer_bytes=100_000)
    with bind_datagrams("127.0.0.1", 0, options) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 200_000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 100_000
        if sys.platform == "linux":
            assert 2 == sock.getsockopt(socket.IPPROTO_IP, 10)  # IP_MTU_DISCOVER: DO


def test_as_many_are_read_as_there_were() -> None:
    """One at a time while one comes at a time; more only when there are more again and again."""
    budget = ReadBudget()
    for _ in range(7):
        budget.used()
    assert 1 == budget.size

    budget.used()
    assert 2 == budget.size
    budget.left(1)
    assert 1 == budget.size
    for _ in range(1_000):
        budget.used()
    assert 64 == budget.size


@pytest.mark.parametrize("shape", ["Repeat", "Collect", "Converse"])
async def test_each_shape_of_stream_says_what_to_use(shape: str, tmp_path: Path) -> None:
    """A stream ends at once with the reason, its method and the wires that carry it."""
    async with echoing("udp", tmp_path) as echo:
        calls: dict[str, Any] = {
            "Repeat": lambda: echo.stub.Repeat(echo_pb2.RepeatRequest(count=1)).read(),
            "Collect": lambda: echo.stub.Collect(iter([echo_pb2.CollectRequest()])),
            "Converse": lambda: echo.stub.Converse().write(echo_pb2.ConverseRequest()),
        }
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(calls[shape](), LIMIT_S)

    assert grpc.StatusCode.FAILED_PRECONDITION == caught.value.code()
    assert f"EchoService/{shape}" in str(caught.value.details())
    assert "quic://" in str(caught.value.details())


async def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send a datagram and return the next one that comes."""
    sock.send(data)
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 4_096), LIMIT_S)


def hello(cookie: bytes, version: int) -> bytes:
    """Return a HELLO of a version."""
    spoken = Hello(version_min=version, version_max=version)
    greeting = Greeting(cookie, NO_PROOF, Commitment().value, spoken)
    return encode_datagram(HELLO, 5, 1, encode_greeting(greeting, WireLimits()))


@pytest.mark.parametrize(("version", "answer"), [(1, WELCOME), (9, GOAWAY)])
async def test_a_version_nobody_speaks_is_refused(version: int, answer: int) -> None:
    """The server says so; the control speaks the right one and gets in."""
    async with serving_echo("udp") as (url, _, _):
        host, port = url.removeprefix("udp://").split(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((host, int(port)))
            retry = parse_datagram(await exchange(sock, hello(b"", version)), from_client=False)
            kind, *_, body = parse_datagram(
                await exchange(sock, hello(retry[5], version)), from_client=False
            )

    assert answer == kind
    if kind == GOAWAY:
        assert "versions 9 to 9" in decode_goaway(body).reason.message


async def test_an_encrypted_client_at_a_plain_port(tmp_path: Path) -> None:
    """A client of DTLS does not fall back to plain, and a plain server does not answer it."""
    authority = Authority(tmp_path)
    tls = authority.config(authority.issue("client"))
    async with (
        serving_echo("udp") as (url, server, service),
        channel(url.replace("udp://", "dtls://"), tls=tls, options=FAST) as connected,
    ):
        stub: Any = echo_pb2_grpc.EchoServiceStub(connected)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Say(Say(text="hello"), timeout=LIMIT_S)

        assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
        assert [] == service.order
        assert 0 == server.counters.bytes_out
        assert server.counters.datagrams_refused["malformed"] > 0
