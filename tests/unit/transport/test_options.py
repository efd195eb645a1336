"""Options of sockets, proved by what the kernel says; and the defaults both seeds of ours named."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from support.echo.v1 import echo_pb2
from support.echoing import echoing
from support.wires import WIRES
from tidewire.client.session import ClientOptions
from tidewire.transport import (
    PoolOptions,
    TransportOptions,
    buffer_bytes,
    channel,
    channel_options,
)
from tidewire.wire.limits import KIB, MIB, WireLimits
from tidewire_server.ops.config import Config

Say = echo_pb2.SayRequest
LIMIT_S = 10.0
STREAMS = tuple(wire for wire in WIRES if wire in ("tcp", "tls", "unix", "ws", "wss"))
OPTIONS = TransportOptions(
    tcp_keepalive_s=17,
    write_timeout_s=12.5,
    unsent_bytes=65_536,
    send_buffer_bytes=40_000,
    receive_buffer_bytes=50_000,
)


def kernel_says(sock: Any) -> dict[str, int]:
    """Return the options of a socket."""
    names = {"send": socket.SO_SNDBUF, "receive": socket.SO_RCVBUF}
    said = {name: sock.getsockopt(socket.SOL_SOCKET, option) for name, option in names.items()}
    if sock.family != socket.AF_UNIX:
        for name in (
            "TCP_NODELAY",
            "TCP_KEEPIDLE",
            "TCP_KEEPINTVL",
            "TCP_KEEPCNT",
            "TCP_USER_TIMEOUT",
            "TCP_NOTSENT_LOWAT",
        ):
            said[name] = sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
        said["keepalive"] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return said


@pytest.mark.parametrize(
    ("wire", "fast"), [(wire, "1") for wire in STREAMS] + [("tcp", "0"), ("tls", "0"), ("ws", "0")]
)
async def test_options_are_set_at_both_ends(
    wire: str, fast: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On every wire that is a stream of the kernel's, with and without aiofastnet."""
    monkeypatch.setenv("TIDEWIRE_AIOFASTNET", fast)
    expected = {"send": 80_000, "receive": 100_000}  # the kernel doubles them, for its own books
    if wire != "unix":
        expected |= {
            "TCP_NODELAY": 1,
            "TCP_KEEPIDLE": 17,
            "TCP_KEEPINTVL": 5,
            "TCP_KEEPCNT": 3,
            "TCP_USER_TIMEOUT": 12_500,
            "TCP_NOTSENT_LOWAT": 65_536,
            "keepalive": 1,
        }
    async with echoing(wire, tmp_path, options=OPTIONS, server_options=OPTIONS) as served:
        await served.stub.Say(Say(), timeout=LIMIT_S)
        links = [served.channel.link, *served.server._links.values()]
        for link in links:
            said = kernel_says(link.protocol.transport.get_extra_info("socket"))
            assert expected == {name: 1 if name == "TCP_NODELAY" else said[name] for name in said}
            assert said.get("TCP_NODELAY", 1)


@pytest.mark.parametrize(
    ("bits_s", "rtt_s", "expected"),
    [
        (1e9, 0.01, 1_250_000),  # GridKV's own example
        (1e9, 0.000_1, 128 * KIB),
        (1e10, 0.1, 4 * MIB),
        (0.0, 0.0, 128 * KIB),
    ],
)
def test_a_buffer_holds_what_is_on_the_way(bits_s: float, rtt_s: float, expected: int) -> None:
    """Bandwidth times delay, from 128 KiB to 4 MiB."""
    assert expected == buffer_bytes(bits_s, rtt_s)


async def test_connecting_has_a_time_limit(tmp_path: Path) -> None:
    """The option is the time: a listener that is silent is given up; control: a good one is not."""
    options = TransportOptions(connect_timeout_s=0.3, limits=WireLimits(hello_timeout_s=60.0))
    async with echoing("tcp", tmp_path, options=options) as served:
        assert "x" == (await served.stub.Say(Say(text="x"), timeout=LIMIT_S)).text
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        async with channel(url, options=options) as made:
            made.get_state(try_to_connect=True)
            counters = made.counters  # type: ignore[attr-defined]
            async with asyncio.timeout(LIMIT_S):
                while not counters.errors:  # noqa: ASYNC110 (a counter has no event)
                    await asyncio.sleep(0.01)


def test_the_defaults_are_those_that_were_promised() -> None:
    """
    Rows 14, 17 and 23 of the seeds' checklist: where they contradict each other, the larger choice.
    """
    wire, limits, pool = TransportOptions(), WireLimits(), PoolOptions()
    server = Config()
    grpc = dict(channel_options(wire))

    assert 10.0 == ClientOptions().connect_timeout_s == wire.connect_timeout_s
    assert 30.0 == ClientOptions().timeout_s
    assert (30.0, 10.0) == (limits.keepalive_s, limits.ping_timeout_s)
    assert (30_000, 10_000) == (grpc["grpc.keepalive_time_ms"], grpc["grpc.keepalive_timeout_ms"])
    assert 10_000 == grpc["grpc.min_reconnect_backoff_ms"]
    assert 10 * MIB == server.limits.payload_bytes_max
    assert limits.message_bytes_max == grpc["grpc.max_receive_message_length"]
    assert 1_000 < server.wire.calls_max == limits.calls_max == 1_024
    assert (30, 30.0) == (wire.tcp_keepalive_s, wire.write_timeout_s)
    assert (1_000, 100, 90.0) == (pool.connections_max, pool.idle_max, pool.idle_timeout_s)
    assert any(url.startswith("grpc://127.0.0.1:50051") for url in server.listen.urls)
